"""The benchmarks' evaluators: their protocol and arithmetic; nothing that is missing or broken counts as good."""

from __future__ import annotations

import json
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
from ttopt.data.video import read_video_rate, write_video
from ttopt.errors import UserError
from ttopt.evaluate.judges import genvire, ruler, vbvr
from ttopt.models.chat.chat import ChatError, Message, Reply
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
    assert found["category science"] == pytest.approx(50 * (4.5 / 4 + 1) / 2, abs=0.01)
    assert found["Instruction Following"] == pytest.approx((50 + 100) / 2), "science and game; vision rules have none"
    assert found["Visual Consistency"] == pytest.approx((75 + 100 + 100) / 3, abs=0.01)
    overall = ((50 + 100) / 2 + (75 + 100 + 100) / 3 + (50 + 100 + 50) / 3 + (37.5 + 100 + 0) / 3) / 4
    assert found["overall"] == pytest.approx(overall, abs=0.01)
    assert found["Instruction Following, without games"] == pytest.approx(50)
    nothing = ruler.summary(science, {s.id: ruler.metric_scores(s, None) for s in science})
    assert nothing["overall"] == 0, "what is missing counts 0"


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
        ruler.ask(judge, [Message("user", ("?",))], 2)
    assert len(judge.asked) == 3


def test_a_verdict_that_was_cut_off_is_none() -> None:
    """What looks like an answer may be a draft."""
    judge = Judge(Reply('<answer>["Good", "Good"]</answer> But', 0.0, 9, 400, 0.0, "judge", cut=True))
    with pytest.raises(ChatError, match="cut off after 400 tokens; raise chat.max_tokens"):
        ruler.ask(judge, [Message("user", ("?",))], 2)


def test_ruler_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A judge behind a real server; the second call asks nothing, and one that failed is tried again."""
    from test_chat import Server, fails, ok

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
        assert (
            "color.1: judge at http" in err and '"category science": 87.5' in out and '"category vision rule": 0' in out
        )
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
    from test_chat import Server, ok

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
        assert main([*args, "1"]) == 0 and '"overall": 100.0' in capsys.readouterr().out
        assert main([*args, "2"]) == 2 and '"overall": 50.0' in capsys.readouterr().out
        assert len(server.requests) == 1
        prompt.write_text("Judge well.")
        assert main([*args, "1"]) == 0 and len(server.requests) == 2
    finally:
        server.http.shutdown()


# Gen-ViRe


def test_genvire(tmp_path: Path) -> None:
    common = {"image": "in.png", "i2v_prompt": "solve", "sub_category": "x"}
    rows = [
        common | {"main_category": "A", "id": 1, "eval_json_path": "mean.json"},
        common | {"main_category": "A", "id": 2, "eval_json_path": "sum.json", "needs_frame_extraction": True},
        common | {"main_category": "B", "id": 3, "eval_json_path": "none.json"},
        common | {"main_category": "B", "id": 4, "eval_json_path": "mean.json", "needs_frame_extraction": True,
                  "frame_crop_mode": "left_half"},
    ]  # fmt: skip
    Image.new("RGB", (48, 48), "red").save(tmp_path / "in.png")
    (tmp_path / "samples.json").write_text(json.dumps(rows))
    (tmp_path / "mean.json").write_text('{"criteria": ["solved?", {"name": "smooth?"}]}')
    (tmp_path / "sum.json").write_text('{"criteria": ["a", "b"], "max_score": 10}')
    samples = genvire_data.samples("id", None, 0, 9, root=tmp_path, form=FORM)
    for sample in samples:
        film(tmp_path / "videos" / genvire_data.output_path(sample))
    scores = [[1, 0.5], [0, 0], [1, 1], [5, 2], [0, 0], [5, 5]]
    by_sample = {s.id: s for s in samples}
    ordered = [by_sample[name] for name in ("A.x.1", "A.x.2", "B.x.3", "B.x.4")]
    judge = Judge(*(json.dumps({"reason": "r", "scores": s}) for s in scores), "unused")
    found = genvire.judge_all(judge, tmp_path / "videos", ordered, samples, tmp_path / "work", "m")
    assert found.scores == {"A.x.1": pytest.approx((0.75 + 0 + 1) / 3), "A.x.2": pytest.approx((0.7 + 0 + 1) / 3)}
    assert set(found.errors) == {"B.x.3", "B.x.4"} and "left_half" in found.errors["B.x.4"]
    half = (sum(found.scores.values()) / 2) / 2
    assert found.summary == {
        "A": round(2 * half, 4), "B": 0.0, "average": round(half, 4),
        "unsupported": 1, "average without unsupported": round(half, 4),
    }  # fmt: skip
    alone = genvire.summary([by_sample["A.x.1"], by_sample["B.x.4"]], {"A.x.1": 0.5})
    assert (alone["average"], alone["average without unsupported"]) == (0.25, 0.5)
    assert len(judge.asked[3][0].images) == len(judge.asked[0][0].images) + 1, "the last frame once more"
    assert genvire.judge_all(judge, tmp_path / "videos", ordered, samples, tmp_path / "work", "m") == found
    assert len(judge.asked) == 6, "replies are kept"


def test_genvire_scores_must_be_in_range(tmp_path: Path) -> None:
    """A criterion's own maximum where the rubric states one, else only the sum is bounded."""
    unstated: dict[str, Any] = {"criteria": ["a", "b"], "max_score": 10}
    stated: dict[str, Any] = {"criteria": [{"name": str(most), "max_score": most} for most in (5, 3, 2)]}
    cases: list[tuple[dict[str, Any], list[float], list[list[float]]]] = [
        (unstated, [8, 2], [[8, 3], [1], [1, 2, 3], [-1, 0], [float("nan"), 0]]),
        (stated | {"max_score": 10}, [5, 3, 2], [[4, 4, 2], [0, 0, 3]]),
        (stated, [5, 3, 2], [[4, 4, 2]]),
        ({"criteria": ["a", "b"]}, [1, 1], [[2, 0]]),
    ]
    for rubric, right, wrongs in cases:
        schema: Any = genvire._schema(rubric)
        assert genvire.run_score(rubric, schema.model_validate({"scores": right}).scores) == 1
        for wrong in wrongs:
            with pytest.raises(ValueError):
                schema.model_validate({"scores": wrong})


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
    assert found.scores == {samples[0].id: 0.8}
    assert found.summary["task, overall"] == found.summary["task, in domain"] == pytest.approx(0.2), "0.8 of four"
    assert found.summary["weighted, overall"] == pytest.approx(0.25)
    assert "no circle" in found.errors[samples[1].id] and "no rules" in found.errors[samples[2].id]
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
    assert '"task, overall": 0.2' in out and "benchmark score" in out
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
            frames = sample.image.expand(9, -1, -1, -1) if video is None and sample.image is not None else video
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
    assert rows["still"]["gain"]["difference"]["high"] <= 0 and (tmp_path / "run/report.html").exists()
    assert rows["right"]["ssim"] > 0.9999

    assert main([*args, "--reference", "still", "--report", "false"]) == 2
    rows = {row["method"]: row for row in json.loads((tmp_path / "run/comparison.json").read_text())["rows"]}
    assert rows["still"]["ssim"] > 0.9999 and rows["right"]["ssim"] < 0.999, "another reference"
    shutil.copyfile(still / f"{samples[0].id}.mp4", right / f"{samples[0].id}.mp4")
    assert main(args) == 2 and "was made with another video" in capsys.readouterr().err


def test_an_evaluator_gets_the_files_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever their rate; frames that no browser could play are refused by name."""
    miniworld.export(tmp_path / "world", "id", ["move"], 3, 2)
    fast, odd = (
        tmp_path / "videos" / vbvr_data.output_path(sample)
        for sample in vbvr_data.samples("id", None, 0, 2, root=tmp_path / "world", form=FORM)
    )
    film(fast, fps=30)
    with av.open(str(odd), "w") as container:
        stream = container.add_stream("libx264", rate=8, width=33, height=48, pix_fmt="yuv444p")
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 33, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    args = ["evaluate", "--dataset", "vbvr", "--root", str(tmp_path / "world"), "--videos", f"[{tmp_path / 'videos'}]"]
    args += ["--split", "id", "--questions", "false", "--report", "false", "--run-dir", str(tmp_path / "run")]
    assert main([*args, "--logging.wandb", "disabled"]) == 2
    assert f"{odd} has frames of 48x33; give a video of even sizes" in capsys.readouterr().err
    (written,) = (tmp_path / "run/outputs").rglob("*.mp4")
    assert written.read_bytes() == fast.read_bytes()
    (shown,) = (tmp_path / "run/methods").rglob("video.mp4")
    assert read_video_rate(shown)[1] == 30


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
