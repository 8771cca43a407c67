"""The benchmarks' evaluators: their protocol and arithmetic; nothing that is missing or broken counts as good."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import BaseModel
from torch import Tensor

from ttopt.__main__ import main
from ttopt.config.comparison import parse_evaluate
from ttopt.config.settings import SampleSettings
from ttopt.data import genvire as genvire_data
from ttopt.data import miniworld
from ttopt.data import ruler as ruler_data
from ttopt.data import vbvr as vbvr_data
from ttopt.data.sample import Sample
from ttopt.data.video import decode, plays_everywhere, write_video
from ttopt.errors import UserError
from ttopt.evaluate.judges import genvire, ruler, vbvr, verdict
from ttopt.models.chat import ChatError, Message, Mp4, Reply
from ttopt.models.teacher import Teacher

FORM = SampleSettings(frames=9, fps=8, height=48, width=48, multiple=16)


class Judge:
    """Says what ``answer`` makes of the question's text; an exception is raised."""

    name = "judge"

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)
        self.asked: list[Sequence[Message]] = []

    def reply(self, messages: Sequence[Message], schema: type[BaseModel] | None = None) -> Reply:
        self.asked.append(messages)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, Reply) else Reply(reply, 0.0, 0, 0, 0.0, self.name)


def film(path: Path, frames: int = 9, fps: int = 8, size: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, torch.linspace(0, 1, frames).view(-1, 1, 1, 1).expand(-1, 3, size, size), fps)


def coded(path: Path, codec: str, size: int) -> None:
    """As another system may have written it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8, width=size, height=size, pix_fmt="yuv420p")
        for level in range(0, 250, 30):
            image = np.full((size, size, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


# RULER-Bench


def row(task: str, index: int, category: str, *metrics: str) -> dict[str, Any]:
    asked = [{metric: f"question {number}"} for number, metric in enumerate(metrics)]
    return {"prompt": "p", "index": index, "checklist": asked, "task_name": task, "category": category}


FOUR = ("Instruction Following", "Visual Consistency", "Visual Fidelity", "Rule Coherence")


@pytest.fixture
def science(tmp_path: Path) -> list[Sample]:
    """Two of science (one metric with two questions), one of games, one of vision rules."""
    rows = [
        row("chemistry", 1, "science", *FOUR, "Rule Coherence"),
        row("chemistry", 2, "science", *FOUR),
        row("chess", 1, "game", *FOUR),
        row("color", 1, "vision rule", *FOUR[1:]),
    ]
    Image.new("RGB", (40, 30), "red").save(tmp_path / "in.png")
    rows[0] |= {"input_image_path": "in.png", "gt_image_path": "in.png", "implicit_explanation": "it bubbles"}
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    return ruler_data.samples("id", None, 0, 9, root=tmp_path, form=FORM)


def test_ruler_arithmetic(science: list[Sample]) -> None:
    """By hand: a metric is the mean of its questions, a sample the mean of its metrics, a category the mean of its
    samples; the overall of a metric is the unweighted mean over categories."""
    labels = {
        "chemistry.1": ["Good", "Medium", "Poor", "Good", "Medium"],  # 2, 1, 0, 1.5
        "chemistry.2": ["Poor", "Good", "Good", "Poor"],  # 0, 2, 2, 0
        "chess.1": ["Good"] * 4,
        "color.1": ["Good", "Medium", "Poor"],  # 2, 1, 0 of three metrics
    }
    metrics = {s.id: ruler.metric_scores(s, labels[s.id]) for s in science}
    by_id = {s.id: s for s in science}
    assert ruler.sample_score(by_id["chemistry.1"], metrics["chemistry.1"]) == pytest.approx(4.5 / 4)
    assert ruler.sample_score(by_id["color.1"], metrics["color.1"]) == pytest.approx(1.0)
    found = ruler.summary(science, metrics)
    assert found["science"]["overall"] == pytest.approx(50 * (4.5 / 4 + 1) / 2, abs=0.01)
    assert found["science"]["Visual Consistency"] == pytest.approx(75) and "Instruction Following" in found["game"]
    every = found["overall"]
    assert every["Instruction Following"] == pytest.approx((50 + 100) / 2), "science and game; vision rules have none"
    assert "Instruction Following" not in found["vision rule"]
    assert every["Visual Consistency"] == pytest.approx((75 + 100 + 100) / 3, abs=0.01)
    overall = ((50 + 100) / 2 + (75 + 100 + 100) / 3 + (50 + 100 + 50) / 3 + (37.5 + 100 + 0) / 3) / 4
    assert every["overall"] == pytest.approx(overall, abs=0.01)
    assert found["without games"]["Instruction Following"] == pytest.approx(50)
    nothing = ruler.summary(science, {s.id: ruler.metric_scores(s, None) for s in science})
    assert nothing["overall"]["overall"] == 0, "what is missing counts 0"


def test_ruler_protocol(science: list[Sample], tmp_path: Path) -> None:
    """All questions in one call, two frames a second, everything in order, replies kept, bad ones asked again."""
    videos, work = tmp_path / "videos", tmp_path / "work"
    film(videos / "chemistry/1.mp4", frames=17, fps=8, size=600)
    film(videos / "chemistry/2.mp4")
    good = '<think>ok</think><answer>["Good","Good","Good","Good"{}]</answer>'
    judge = Judge("no tags", good, good.format(',"Poor"'), good.format(""))
    judged = [s for s in science if s.family == "science"]
    found = ruler.judge_all(judge, "SYSTEM", tmp_path, videos, judged, science, work, "o3")
    assert found.scores == {"chemistry.1": pytest.approx((2 + 2 + 2 + 1) / 8), "chemistry.2": 1.0}
    assert len(judge.asked) == 4, "one with no tags, one with a label too few, then two good ones"
    system, user = judge.asked[0]
    assert (system.role, system.text) == ("system", "SYSTEM")
    shapes = [tuple(image.shape[1:]) for image in user.images]
    assert shapes == [(30, 40), (30, 40)] + [(512, 512)] * 5, "input, ground truth, frames 0, 4, 8, 12, 16"
    files = [part for part in user.encoded if isinstance(part, bytes)]
    assert [file[:3] for file in files] == [b"\x89PN"] * 2 + [b"\xff\xd8\xff"] * 5, "frames as JPEG"
    text = user.text
    order = ["Input Image", "Input Prompt", "Ground truth", "it bubbles", "Video to evaluate", "# Question 5:"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)

    again = Judge(AssertionError("nothing is asked twice"))
    assert ruler.judge_all(again, "SYSTEM", tmp_path, videos, judged, science, work, "o3") == found
    down = Judge(ChatError("the judge is down"))
    film(videos / "chemistry/2.mp4", frames=5)
    third = ruler.judge_all(down, "SYSTEM", tmp_path, videos, judged, science, work, "o3")
    assert list(third.errors) == ["chemistry.2"] and list(third.scores) == ["chemistry.1"], "a new video, a new verdict"

    (tmp_path / "in.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\1IHDR\0")
    fourth = ruler.judge_all(Judge(good.format("")), "SYSTEM", tmp_path, videos, judged, science, work, "o3")
    assert "in.png cannot be read" in fourth.errors["chemistry.1"] and fourth.scores == {"chemistry.2": 1.0}


@pytest.mark.parametrize(
    "reply, problem",
    [
        ('["Good"]', "no <answer>"),
        ("<answer>Good</answer>", "no list"),
        ('<answer>["Good"]</answer>', "must be 2 of"),
        ('<answer>["Good","good"]</answer>', "must be 2 of"),
        ('<answer>{"Good": 1, "Poor": 2}</answer>', "must be 2 of"),
        ('<answer>[{"Q1": "Good"}, {"Q2": "Poor"}]</answer>', "must be 2 of"),
        ("<answer>" + "[" * 100_000 + "</answer>", "no list"),
    ],
)
def test_a_malformed_reply_is_no_verdict(reply: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ruler.labels_of(reply, 2)
    judge = Judge(reply)
    with pytest.raises(ChatError, match="asked 3 times"):
        verdict(judge, [Message("user", ("?",))], lambda text: ruler.labels_of(text, 2))
    assert len(judge.asked) == 3


def test_a_verdict_that_was_cut_off_is_none() -> None:
    """What looks like an answer may be a draft."""
    judge = Judge(Reply('<answer>["Good", "Good"]</answer> But', 0.0, 9, 400, 0.0, "judge", cut=True))
    with pytest.raises(ChatError, match="cut off after 400 tokens; raise chat.max_tokens"):
        verdict(judge, [Message("user", ("?",))], lambda text: ruler.labels_of(text, 2))


def test_ruler_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A judge behind a real server; the second call asks nothing, and one that failed is tried again."""
    from fake_server import Server, fails, ok

    rows = [row("chemistry", 1, "science", *FOUR), row("color", 1, "vision rule", *FOUR[1:])]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    for name in ("chemistry/1.mp4", "color/1.mp4"):
        film(tmp_path / "videos" / name)
    server = Server()
    verdict = '<think>.</think><answer>["Good", "Good", "Good", "Medium"]</answer>'
    server.answers = [ok(verdict), fails(400, "not now")]
    args = ["evaluate", "--dataset", "ruler", "--root", str(tmp_path), "--videos", f"[{tmp_path / 'videos'}]"]
    args += ["--official", "true", "--questions", "false", "--run-dir", str(tmp_path / "run")]
    args += ["--chat.backend", "openai", "--chat.model", "judge", "--chat.base_url", server.url, "--chat.key_env", ""]
    args += ["--chat.max_retries", "0", "--logging.wandb", "disabled", "--report", "false"]
    try:
        assert main(args) == 2
        out, err = capsys.readouterr()
        assert "color.1: judge at http" in err and "no verdict on color.1; counted as 0" in out
        kept = json.loads((tmp_path / "run/comparison.json").read_text())
        own = next(iter(kept["official"].values()))["summary"]
        assert (own["science"]["overall"], own["vision rule"]["overall"]) == (87.5, 0)
        assert kept["rows"][0]["failed"] == ["color.1"] and kept["score"] == "benchmark score"
        server.answers = [ok('<think>.</think><answer>["Good", "Good", "Good"]</answer>')]
        assert main(args) == 0 and len(server.requests) == 3, "only what had failed is asked"
        assert server.requests[0]["max_tokens"] == 8192
        assert main(args) == 0 and len(server.requests) == 3
    finally:
        server.http.shutdown()
    table = json.loads((tmp_path / "run/comparison.json").read_text())
    assert table["score"] == "benchmark score"
    assert table["rows"][0]["score"]["mean"] == pytest.approx((0.875 + 1) / 2)


def test_a_verdict_is_reused_only_for_the_same_samples_and_instruction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sample more, whose video is missing, halves the score although no video changed."""
    from fake_server import Server, ok

    rows = [row("chemistry", 1, "science", *FOUR), row("chemistry", 2, "science", *FOUR)]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    film(tmp_path / "videos/chemistry/1.mp4")
    server, prompt = Server(), tmp_path / "prompt.txt"
    server.answers = [ok('<think>.</think><answer>["Good", "Good", "Good", "Good"]</answer>')]
    args = ["evaluate", "--dataset", "ruler", "--root", str(tmp_path), "--videos", f"[{tmp_path / 'videos'}]"]
    args += ["--official", "true", "--questions", "false", "--run-dir", str(tmp_path / "run")]
    args += ["--chat.backend", "openai", "--chat.model", "judge", "--chat.base_url", server.url, "--chat.key_env", ""]
    args += ["--logging.wandb", "disabled", "--report", "false", "--judge_prompt", str(prompt), "--limit"]
    try:
        prompt.write_text("Judge.")
        assert main([*args, "1"]) == 0 and re.search(r"overall .* 100 ", capsys.readouterr().out)
        assert main([*args, "2"]) == 2 and re.search(r"overall .* 50 ", capsys.readouterr().out)
        assert len(server.requests) == 1
        prompt.write_text("Judge well.")
        assert main([*args, "1"]) == 0 and len(server.requests) == 2
    finally:
        server.http.shutdown()


# Gen-ViRe

HINT = 'hint = """\nReply {"Criterion_1": {"score": <value>}}"""\n'
UPLOADS = """
def upload_and_wait(client, file_path, name):
    file_obj = client.files.upload(file=file_path)
    return file_obj
input_image_path = task_config.get("input_image_path", "")
eval_task_description = task_config["eval_task_description"]
"""
# What the judge sees in each task, as the benchmark's scripts say it; these are written for the test.
SCRIPTS = {
    "arc": """
full = eval_task_description + hint
try:
    a = upload_and_wait(client, input_image_path, "in")
    b = upload_and_wait(client, answer_image_path, "answer")
    c = upload_and_wait(client, last_frame_image_path, "frame")
    response = client.models.generate_content(model=m, contents=[full, "in:", a, "truth:", b, "frame:", c])
except Exception:
    raise
""",
    "symmetry": """
eval_prompt = task.get("eval_task_description") or task.get("eval_system_prompt", "")
final = eval_prompt + hint
a = upload_and_wait(client, gt_image_path, "gt")
b = upload_and_wait(client, last_frame_path, "frame")
response = client.models.generate_content(model=m, contents=[final, "truth:", a, "frame:", b])
""",
    "matching_color": """
system = f\"\"\"You count lines.\"\"\"
full = system + "\\n\\n" + eval_task_description + hint
a = upload_and_wait(client, input_image_path, "in")
b = upload_and_wait(client, last_frame_image_path, "frame")
response = client.models.generate_content(model=m, contents=[full, "in:", a, "frame:", b])
""",
    "maze": """
full = eval_task_description + hint
a = upload_and_wait(client, input_image_path, "in")
b = upload_and_wait(client, video_path, "video")
response = client.models.generate_content(model=m, contents=[full, "in:", a, "video:", b])
""",
    "gui": """
prompt = eval_task_description
video_file = client.files.upload(file=video_path)
while video_file.state.name == "PROCESSING":
    video_file = client.files.get(name=video_file.name)
response = client.models.generate_content(model=m, contents=[prompt, video_file])
""",
    "rotation": """
target_image_path = os.path.join(ROOT, task["last_frame_image_path_half"])
choices_image_path = os.path.join(ROOT, task["gt_image_path"])
def upload_file(file_path, desc):
    return client.files.upload(file=file_path)
a = upload_file(target_image_path, "target")
b = upload_file(choices_image_path, "choices")
final = eval_prompt + hint
response = client.models.generate_content(model=m, contents=[final, "target:", a, "choices:", b])
""",
}
SCRIPTS["multi_step"] = SCRIPTS["maze"]
for name in ("maze", "gui"):  # the others stop at words around the JSON
    SCRIPTS[name] += "found = re.search(r'\\{.*\\}', response.text, re.DOTALL)\n"
# script, main and sub category, id, the rubric beside its text, what is shown, replies and what they are worth
TASKS: list[tuple[str, str, str, str, dict[str, Any], list[str], list[tuple[str, float]]]] = [
    ("arc", "abstract_reasoning", "2d_rule_extrapolation", "01",
     {"input_image_path": "input_images/in.png", "answer_image_path": "answer_images/gt.png"}, ["in", "gt", "frame"],
     [('{"Criterion_1": {"score": 3}, "Criterion_2": {"score": 2}, "Criterion_3": {"score": 1}}', 0.75),
      ('```json\n{"Criterion_1_Pattern": {"score": 8}, "Note": {"score": 9}}\n```', 1.0),
      ('{"Criterion_1": {"score": 3}, "Criterion_2": {}}', 0.375)]),
    ("symmetry", "abstract_reasoning", "symmetry", "random_02", {"gt_image_path": "elsewhere/input_images/gt.png"},
     ["gt", "frame"],
     [('{"Criterion_1": {"score": 1}, "Criterion_2": {"score": 0}, "Criterion_3": {"score": 0}}', 0.3333),
      ('{"Criterion_1": {"score": 1}, "Criterion_2": {"score": 1}}', 1.0), ('{"Criterion_1": {"score": 0}}', 0.0)]),
    ("matching_color", "perceptual_reasoning", "matching_color", "01",
     {"input_image_path": "input_images/in.png", "max_score": 5}, ["in", "frame"],
     [('{"Criterion_1": {"score": 2}, "Criterion_2": {"score": 1}}', 0.6), ('{"Criterion_1": {"score": 5}}', 1.0),
      ('{"Criterion_1": {"score": 1}}', 0.2)]),
    ("maze", "spatial_reasoning", "maze", "01", {"input_image_path": "input_images/in.png"}, ["in", "video"],
     [('{"Criterion_1_Path": {"Score": 1}, "Criterion_2_Goal": {"Score": 0}}', 0.5),
      ('{"标准_1": {"分数": 1}, "标准_2": {"分数": 1}}', 1.0),
      ('{"Criterion_1": {"score": 1}, "Criterion_2": {"score": 1}}', 0.0)]),
    ("multi_step", "planning_reasoning", "multi_step_procedural_planning", "03",
     {"input_image_path": "input_images/gone.png"}, ["in", "video"],
     [('```json\n{"Criterion_1": {"score": 1}, "Criterion_2": {"score": 0.5}}\n```', 0.75)] * 3),
    ("gui", "planning_reasoning", "gui_reasoning", "02", {}, ["video"],
     [('{"video_meets_requirements": true, "overall_score": 0.85}', 0.85), ('It fails. {"overall_score": 0}', 0.0),
      ('{"overall_score": 1.0, "Criterion_1": {"score": 0}}', 1.0)]),
    ("rotation", "analogy_reasoning", "rotation", "2DRotation-90_1",
     {"gt_image_path": "far/input_images/gt.png", "correct_answer": "A"}, ["quarter", "gt"],
     [("It turns.\nFinal Answer: A", 1.0), ("final answer: B", 0.0), ("Final Answer: different object type", 0.0)]),
]  # fmt: skip
FOLDERS = {"abstract_reasoning": "c1_abstract_reasoning", "analogy_reasoning": "c4_analogy_resoning",
           "perceptual_reasoning": "c3_perceptural_reasoning", "planning_reasoning": "c5_planing_reasoning",
           "spatial_reasoning": "c6_spatial_reasoning"}  # fmt: skip


@pytest.fixture
def genvire_root(tmp_path: Path) -> Path:
    """The code's layout with one sample of every kind of task, and the data set's records in it."""
    root, rows = tmp_path / "GVR", []
    (root / "data").mkdir(parents=True)
    Image.new("RGB", (60, 40), "red").save(root / "data/first.png")
    for script, main_category, sub, number, rubric, _, _ in TASKS:
        folder = root / FOLDERS[main_category] / sub
        for name, color in (("input_images/in", "red"), ("input_images/gt", "lime"), ("answer_images/gt", "lime")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 40), color).save(folder / f"{name}.png")
        own = rubric | ({} if script == "rotation" else {"eval_task_description": f"Judge {script}."})
        (folder / f"{script}_eval.json").write_text(json.dumps({number: own, "99": {}}))
        (folder / f"{script}_eval.py").write_text(HINT + UPLOADS + SCRIPTS[script])
        (folder.parent / f"prompt_{sub}.json").write_text('{"eval_task_description": "Judge analogies."}')
        rows.append({
            "main_category": main_category, "sub_category": sub, "id": number, "i2v_prompt": "secret prompt",
            "image": "data/first.png", "needs_frame_extraction": script not in ("maze", "gui"),
            "frame_crop_mode": "right_half" if script == "rotation" else "full",
            "eval_json_path": str((folder / f"{script}_eval.json").relative_to(root)),
        })  # fmt: skip
    (root / "data/train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def quarters(path: Path) -> None:
    """A video that ends in four colors; the lower right one is blue."""
    path.parent.mkdir(parents=True, exist_ok=True)
    last = torch.zeros(3, 48, 48)
    last[0, :24], last[1, :, :24], last[2, 24:, 24:] = 1, 1, 1
    write_video(path, torch.stack([torch.zeros(3, 48, 48)] * 4 + [last]), 8)


def test_genvire_is_what_its_code_computes(genvire_root: Path, tmp_path: Path) -> None:
    """Seven kinds of tasks: what the judge sees, in order, and what its replies are worth, by the rules of each."""
    samples = genvire_data.samples("train", None, 0, 99, root=genvire_root, form=FORM)
    by_kind = {sample.answer["sub_category"]: sample for sample in samples}
    found, asked = {}, {}
    for script, _, sub, _, _, shown, replies in TASKS:
        sample = by_kind[sub]
        quarters(tmp_path / "videos" / genvire_data.output_path(sample))
        judge = Judge(*(reply for reply, _ in replies), "unused")
        one = genvire.judge_all(judge, tmp_path / "videos", [sample], samples, tmp_path / "work", "m")
        assert not one.errors, one.errors
        assert list(one.parts[sample.id].values()) == [worth for _, worth in replies], script
        assert one.scores[sample.id] == pytest.approx(sum(worth for _, worth in replies) / 3)
        found[sample.id], asked[script] = one.scores[sample.id], judge.asked
        assert len(judge.asked) == 3, "three runs"
        (message,) = judge.asked[0]
        text = next(part for part in message.parts if isinstance(part, str))
        assert text.startswith(("Judge ", "You count lines.\n\nJudge")) and "secret prompt" not in message.text
        assert ("Criterion_1" in text) == (script != "gui"), "the script's own hint"
        files = [part for part in message.parts if not isinstance(part, str)]
        assert [what(file) for file in files] == shown, script
        again = genvire.judge_all(Judge("unused"), tmp_path / "videos", [sample], samples, tmp_path / "work", "m")
        assert again == one, "replies are kept"
    numbers = genvire.summary(samples, found)
    categories = {name: value["score"] for name, value in numbers.items() if name != "average"}
    assert len(categories) == 5 and categories["planning_reasoning"] == pytest.approx((0.75 + 0.6167) / 2, abs=1e-4)
    assert numbers["average"]["score"] == pytest.approx(sum(categories.values()) / 5, abs=1e-4)
    assert genvire.summary(samples, {})["average"]["score"] == 0, "what is missing counts 0"


def test_genvire_from_the_hub(genvire_root: Path, tmp_path: Path) -> None:
    """As the hub has it: parquet in shards, the images inside; what is judged is the same."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [json.loads(line) for line in (genvire_root / "data/train.jsonl").read_text().splitlines()]
    before = genvire_data.samples("train", None, 0, 99, root=genvire_root, form=FORM)
    content = (genvire_root / "data/first.png").read_bytes()
    for shard in (0, 1):
        own = [row | {"image": {"bytes": content, "path": "first.png"}} for row in rows[shard::2]]
        parquet.write_table(pyarrow.Table.from_pylist(own), genvire_root / f"data/train-0000{shard}-of-00002.parquet")
    (genvire_root / "data/train.jsonl").unlink()
    (genvire_root / "data/first.png").unlink()
    after = genvire_data.samples("train", None, 0, 99, root=genvire_root, form=FORM)
    assert {sample.id for sample in after} == {sample.id for sample in before} and len(after) == len(rows)
    found = {sample.id: sample for sample in after}
    for sample in before:
        same = found[sample.id]
        assert (same.prompt, same.height, same.width) == (sample.prompt, sample.height, sample.width)
    (steps,) = (sample for sample in after if sample.answer["sub_category"] == "multi_step_procedural_planning")
    film(tmp_path / "a.mp4")
    (message,) = genvire.question(genvire.task_of(steps), tmp_path / "a.mp4")
    assert [what(part) for part in message.parts if not isinstance(part, str)] == ["in", "video"]


def test_genvire_stops_where_its_scripts_stop(genvire_root: Path, tmp_path: Path) -> None:
    """Of words around the JSON, which some of them look for and others do not; one that is never read counts 0."""
    samples = genvire_data.samples("train", ["symmetry"], 0, 9, root=genvire_root, form=FORM)
    quarters(tmp_path / "videos" / genvire_data.output_path(samples[0]))
    judge = Judge('Good. {"Criterion_1": {"score": 1}}')
    found = genvire.judge_all(judge, tmp_path / "videos", samples, samples, tmp_path / "work", "m")
    assert len(judge.asked) == 3 and not found.scores and found.summary["average"]["score"] == 0
    assert re.search("words stand around its JSON.*its last reply: 'Good. {", found.errors[samples[0].id])
    again = Judge('Good. {"Criterion_1": {"score": 1}}', '{"Criterion_1": {"score": 1}}')
    assert genvire.judge_all(again, tmp_path / "videos", samples, samples, tmp_path / "work", "m").scores


def what(file: Any) -> str:
    if isinstance(file, Mp4):
        return "video" if file.content[4:8] == b"ftyp" else "?"
    r, g, b = (round(float(channel)) for channel in file.mean((1, 2)))
    if file.shape[1:] == (24, 24):
        return "quarter" if b and not r and not g else "?"
    return {(1, 0, 0): "in", (0, 1, 0): "gt"}.get((r, g, b), "frame" if file.shape[1:] == (48, 48) else "?")


def test_genvire_knows_all_its_tasks() -> None:
    """24 sub-categories; the five that state no maximum but the sum's share have one by default."""
    assert len(genvire.RULES) == 24
    five = '{"Criterion_1": {"score": 3}, "Criterion_2": {"score": 2}}'
    worth = {"raven_matrix": 5 / 8, "3d_rule_extrapolation": 5 / 8, "sudoku": 0.5556, "cross_word": 0.5556}
    for kind, expected in worth.items():
        assert genvire.RULES[kind](five, {}) == pytest.approx(expected)
    assert genvire.RULES["sudoku"](five, {"max_score": 5}) == 1


@pytest.mark.parametrize(
    "kind, reply, problem",
    [
        ("symmetry", "none", "no JSON object"),
        ("symmetry", '{"Criterion_1": {"score": "1"}}', "'1' is no score"),
        ("symmetry", '{"Criterion_1": {"score": NaN}}', "is no score"),
        ("symmetry", '{"Criterion_1": 1}', "no criterion"),
        ("symmetry", '{"Criterion_1": {"score": 2}}', "add up to 2, but 0 to 1"),
        ("sudoku", '{"Criterion_1": {"score": 10}}', "add up to 10, but 0 to 9"),
        ("gui_reasoning", '{"Criterion_1": {"score": 1}}', "no overall_score"),
        ("gui_reasoning", '{"overall_score": 85}', "0 to 1 is possible"),
        ("rotation", '{"Criterion_1": {"score": 1}}', "no .Final Answer"),
        ("vla", '{"Criterion_1": ' + "[" * 9999, "JSON"),
    ],
)
def test_genvire_replies_that_are_none(kind: str, reply: str, problem: str) -> None:
    judge = Judge(reply)
    with pytest.raises(ChatError, match=f"asked 3 times: .*{problem}.*its last reply"):
        verdict(judge, [Message("user", ("?",))], lambda text: genvire.RULES[kind](text, {}))
    assert len(judge.asked) == 3


BROKEN = [
    ("arc_eval.json", "[]", "must hold a JSON object"), ("arc_eval.json", "{", "cannot be read"),
    ("arc_eval.json", "{}", "has no sample '01'"), ("arc_eval.json", None, "must be a checkout of Gen-ViRe's code"),
    ("arc_eval.py", None, "must be a checkout"), ("arc_eval.py", "print(", "is no Python"),
    ("arc_eval.py", "x = 1", "shows the judge nothing"),
    ("arc_eval.py", "client.models.generate_content(contents=[what])", "not known what what is"),
    ("answer_images/gt.png", None, "gt.png cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize("file, content, problem", BROKEN)
def test_genvire_says_what_is_wrong_with_a_checkout(
    file: str, content: str | None, problem: str, genvire_root: Path, tmp_path: Path
) -> None:
    path = genvire_root / "c1_abstract_reasoning/2d_rule_extrapolation" / file
    path.unlink() if content is None else path.write_text(content)
    samples = genvire_data.samples("train", ["2d_rule_extrapolation"], 0, 9, root=genvire_root, form=FORM)
    film(tmp_path / "videos" / genvire_data.output_path(samples[0]))
    found = genvire.judge_all(Judge("unused"), tmp_path / "videos", samples, samples, tmp_path / "work", "m")
    assert problem in found.errors[samples[0].id] and not found.scores


# VBVR-Bench, with a stand-in for the kit of the same interface

Kit = Callable[..., None]


@pytest.fixture
def kit(monkeypatch: pytest.MonkeyPatch) -> Kit:
    def install(scores: dict[str, Any], opencv: str = "4.12.0") -> None:
        def entries(videos: str) -> list[dict[str, Any]]:
            paths = sorted(Path(videos).rglob("*.mp4"))
            return [{"video_path": str(p), **scores[p.stem]} for p in paths if p.stem in scores]

        class Bench:
            def __init__(self, gt_base_path: str, output_path: str, device: str) -> None:
                assert device == "cpu"

            def evaluate(self, videos_path: str, name: str) -> dict[str, Any]:
                print("much")
                return {"detailed": [e | {"score": e["score"] + 0.2} for e in entries(videos_path)]}

        def evaluate_model(name: str, path: str, gt: str, out: str, device: str) -> dict[str, Any]:
            return {"samples": entries(path)}

        monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(__version__=opencv))
        monkeypatch.setitem(sys.modules, "vbvr_bench", SimpleNamespace(VBVRBench=Bench))
        monkeypatch.setitem(sys.modules, "run_evaluation", SimpleNamespace(evaluate_model=evaluate_model))

    return install


def test_vbvr_counts_what_the_kit_skips(kit: Kit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kit({"00000": {"score": 0.8}, "00001": {"score": 0.0, "error": "no circle"}})
    miniworld.export(tmp_path / "world", "id", ["move"], 3, 4)
    samples = vbvr_data.samples("id", None, 0, 9, root=tmp_path / "world", form=FORM)
    for sample in samples[:3]:
        film(tmp_path / "videos" / vbvr_data.output_path(sample))
    world = ["--dataset", "vbvr", "--root", str(tmp_path / "world"), "--videos", f"[{tmp_path / 'videos'}]"]
    settings = parse_evaluate([*world, "--official", "true"])
    found = vbvr.evaluator(settings)(tmp_path / "videos", samples[:3], samples, tmp_path / "work")
    assert found.scores == {samples[0].id: 0.8} and found.parts[samples[0].id] == {"task": 0.8, "weighted": 1.0}
    assert found.summary["overall"] == found.summary["in domain"] == {"task": 0.2, "weighted": 0.25}, "of four"
    assert "no circle" in found.errors[samples[1].id] and "no rules" in found.errors[samples[2].id]
    assert found.errors[samples[2].id].endswith("counted as 0 in task and weighted")
    assert capsys.readouterr().out == "" and "much" in (tmp_path / "work/log.txt").read_text()

    args = [
        "evaluate",
        *world,
        "--limit",
        "9",
        "--official",
        "true",
        "--questions",
        "false",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    assert main([*args, "--logging.wandb", "disabled", "--report", "false"]) == 2
    out, err = capsys.readouterr()
    assert [row["method"] for row in json.loads((tmp_path / "run/comparison.json").read_text())["rows"]] == [
        "videos",
        "static",
    ], "the baseline stands beside it"
    assert "the benchmark's own numbers" in out and re.search(r"task .* 0\.2 ", out) and "benchmark score" in out
    assert f"no video for {samples[3].id}; counted as 0" in err and "no circle" in err


def test_vbvr_needs_the_kit_and_opencv_4(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: Any = SimpleNamespace(root=str(tmp_path))
    monkeypatch.setitem(sys.modules, "vbvr_bench", None)
    with pytest.raises(UserError, match="pip install"):
        vbvr.evaluator(settings)
    kit({}, "5.0.0")
    with pytest.raises(UserError, match="install OpenCV 4"):
        vbvr.evaluator(settings)


@pytest.mark.parametrize("dataset", ["ruler", "genvire"])
def test_a_judge_must_be_named(dataset: str, tmp_path: Path) -> None:
    settings = parse_evaluate(["--dataset", dataset, "--root", str(tmp_path), "--videos", f"[{tmp_path}]"])
    module = {"ruler": ruler, "genvire": genvire}[dataset]
    with pytest.raises(UserError, match="needs a judge; give --chat.backend openai"):
        module.evaluator(settings)


# Videos of another system


def test_evaluate_scores_videos_without_any_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ttopt.run.loader.load_models", "ttopt.run.loader.load_teacher"):
        monkeypatch.setattr(name, lambda settings: pytest.fail("a model was loaded"))
    samples = miniworld.samples("id", None, 5, 3)
    right, still = tmp_path / "right", tmp_path / "still"
    for sample in samples:
        for folder, video in ((right, miniworld.true_video(sample)), (still, None)):
            folder.mkdir(exist_ok=True)
            frames = sample.image.expand(25, -1, -1, -1) if video is None and sample.image is not None else video
            assert frames is not None
            write_video(folder / f"{sample.id}.mp4", frames, 8)
    (still / f"{samples[2].id}.mp4").unlink()
    args = ["evaluate", "--videos", f"[{right},{still}]", "--seed", "5", "--limit", "3", "--questions", "false"]
    args += ["--run-dir", str(tmp_path / "run"), "--logging.wandb", "disabled"]
    assert main(args) == 2, "one video is missing"
    out, err = capsys.readouterr()
    assert f"still: no usable video for {samples[2].id}; counted as 0" in out and f"{samples[2].id}.mp4" in err
    rows = {row["method"]: row for row in json.loads((tmp_path / "run/comparison.json").read_text())["rows"]}
    assert rows["right"]["score"]["mean"] == 1 and rows["still"]["score"]["mean"] == 0
    assert rows["still"]["gain"]["worse"] >= 2 and (tmp_path / "run/report.html").exists()
    assert rows["right"]["ssim"] > 0.9999

    assert main([*args, "--reference", "still", "--report", "false"]) == 2
    rows = {row["method"]: row for row in json.loads((tmp_path / "run/comparison.json").read_text())["rows"]}
    assert rows["still"]["ssim"] > 0.9999 and rows["right"]["ssim"] < 0.999, "another reference"
    shutil.copyfile(still / f"{samples[0].id}.mp4", right / f"{samples[0].id}.mp4")
    assert main(args) == 2 and "was made with another video" in capsys.readouterr().err


def test_an_evaluator_gets_the_files_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever their rate; one that few browsers play has a copy to watch; odd sizes are refused by name."""
    miniworld.export(tmp_path / "world", "id", ["move"], 3, 3)
    fast, odd, old = (
        tmp_path / "videos" / vbvr_data.output_path(sample)
        for sample in vbvr_data.samples("id", None, 0, 3, root=tmp_path / "world", form=FORM)
    )
    coded(old, "mpeg4", 64)
    film(fast, fps=30)
    with av.open(str(odd), "w") as container:
        stream = container.add_stream("libx264", rate=8, width=33, height=48, pix_fmt="yuv444p")
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 33, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    args = ["evaluate", "--dataset", "vbvr", "--root", str(tmp_path / "world"), "--videos", f"[{tmp_path / 'videos'}]"]
    args += ["--split", "id", "--questions", "false", "--report", "false", "--run-dir", str(tmp_path / "run")]
    assert main([*args, "--logging.wandb", "disabled"]) == 2
    assert f"{odd} has frames of 48x33; give a video of even sizes" in capsys.readouterr().err
    written = {path.name: path.read_bytes() for path in (tmp_path / "run/outputs").rglob("*.mp4")}
    assert written == {fast.name: fast.read_bytes(), old.name: old.read_bytes()}
    shown = {path.parent.name[-5:]: path for path in (tmp_path / "run/methods").rglob("video.mp4")}
    assert shown[fast.stem].read_bytes() == fast.read_bytes() and decode(shown[fast.stem]).rate == 30
    assert not (shown[fast.stem].parent / "original.mp4").exists(), "no second copy"
    assert plays_everywhere(shown[old.stem]) and not plays_everywhere(old)
    watched, real = decode(shown[old.stem]), decode(old)
    assert (watched.shape, watched.rate) == (real.shape, real.rate) == ((9, 3, 64, 64), 8)
    assert (watched.pixels() - real.pixels()).abs().mean() < 0.02


def test_videos_are_graded_at_their_own_rate_with_the_questions_of_now(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sample,) = miniworld.samples("id", ["move"], 3, 1)
    asked: list[tuple[list[str], float]] = []
    grade = Teacher.yes_losses

    def seen(self: Teacher, frames: Tensor, questions: list[list[str]], fps: float, numbers: list[int]) -> Tensor:
        asked.append((questions[0], fps))
        return grade(self, frames, questions, fps, numbers)

    monkeypatch.setattr(Teacher, "yes_losses", seen)
    write_video(tmp_path / f"{sample.id}.mp4", miniworld.true_video(sample), 2)
    args = ["evaluate", "--videos", f"[{tmp_path}]", "--seed", "3", "--families", "[move]", "--limit", "1"]
    args += ["--run-dir", str(tmp_path / "run"), "--report", "false", "--teacher.model", str(folders["teacher"])]
    args += ["--logging.wandb", "disabled", "--sample.queries.process", '["is the red cross whole ?"]']
    goals = ["is the red cross on the green pad ?", "is the blue square whole ?"]
    for name, goal in (("a", goals[0]), ("a", goals[0]), ("b", goals[1])):
        assert main([*args, "--names", f"[{name}]", "--sample.queries.goal", goal]) == 0
    assert asked == [([goal, "is the red cross whole ?"], 2) for goal in goals]


def test_evaluate_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reference is 'b', but the systems are a"):
        parse_evaluate(["--videos", f"[{tmp_path}]", "--names", "[a]", "--reference", "b"])
    own = ["--dataset", "ruler", "--root", str(tmp_path), "--sample.prompt", "go", "--sample.frames", "9"]
    with pytest.raises(UserError, match="a sample of your own has no official evaluator"):
        parse_evaluate(["--videos", f"[{tmp_path}]", "--official", "true", *own])
    with pytest.raises(UserError, match="videos is empty"):
        parse_evaluate([])
    with pytest.raises(UserError, match="1 folders of videos, but 2 names"):
        parse_evaluate(["--videos", f"[{tmp_path}]", "--names", "[a,b]"])
