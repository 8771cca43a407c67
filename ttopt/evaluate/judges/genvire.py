"""Gen-ViRe's judge and arithmetic (arXiv 2511.13853), as the benchmark's code has them (L-CodingSpace/GVR).

``root`` is a checkout of that code with the data set's files in it: a sample's ``eval_json_path`` names its rubric
there, {sample id: {eval_task_description, input_image_path, max_score, ...}}, and beside it lies the task's script,
which says what the judge sees (ttopt/evaluate/judges/genvire_script.py). A reply is scored by the rule of its task:

    sum / max_score        2d and 3d rules, Raven (max_score 8 where none is stated), crossword, sudoku (9), matching
                           (the number of criteria)
    mean of criteria       symmetry, geometry, graphs, assembling, steps, tools, driving, obstacles, robot arms
    mean of "Score"        maze, whose script reads no other spelling but its Chinese one
    the right letter       color, reflect, resize, rotation: "Final Answer: A"
    overall_score          gui

A sample's score is the mean of three judge runs, a category's that of its samples, the average that of the categories.
The benchmark leaves out what has no score; here it counts 0.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor

from ttopt.config.comparison import CompareSettings
from ttopt.data.files import inside
from ttopt.data.genvire import open_image, output_path
from ttopt.data.images import UNREADABLE, fit_image
from ttopt.data.sample import Sample
from ttopt.data.video import decode
from ttopt.errors import UserError, brief
from ttopt.evaluate.judges import Evaluator, Judgment, kept_verdict, mean_of, measured, server
from ttopt.evaluate.judges.genvire_script import contents
from ttopt.models.chat import Chat, Message, Mp4, fingerprint

RUNS = 3
CROPS = ("full", "right_half")
FINDS = r"\{.*\}"  # how some scripts look for the JSON in a reply
ANSWER = re.compile(r"Final Answer:\s*([A-C]|different object type)", re.IGNORECASE)

Rubric = dict[str, Any]
Rule = Callable[[str, Rubric], float]  # reply, rubric -> 0..1; raises ValueError


def evaluator(settings: CompareSettings) -> Evaluator:
    """The judge behind chat.*; the benchmark's own is gemini-2.5-pro. Raises UserError without a server."""
    chat, model = server(settings, "Gen-ViRe", "gemini-2.5-pro"), settings.chat.model
    root = Path(str(settings.root))
    if not any(root.glob("c[1-6]_*/*/*_eval.json")):
        raise UserError(
            f"{root} holds no rubrics (c1_abstract_reasoning/2d_rule_extrapolation/arc_eval.json, ...); --root must be "
            "a checkout of Gen-ViRe's code, with the data set's files in its data folder"
        )

    def evaluate(videos: Path, judged: Sequence[Sample], samples: Sequence[Sample], work: Path) -> Judgment:
        return judge_all(chat, videos, judged, samples, work, model)

    return evaluate


def judge_all(
    chat: Chat, videos: Path, judged: Sequence[Sample], samples: Sequence[Sample], work: Path, model: str
) -> Judgment:
    """Judges what ``work`` does not hold yet: one file a sample and run."""

    def score(sample: Sample) -> list[float]:  # a judge that fails in one run leaves the sample unjudged
        task = task_of(sample)
        messages = question(task, videos / output_path(sample))
        paths = [work / f"run_{run}" / output_path(sample).with_suffix(".json") for run in range(1, RUNS + 1)]
        asked = [model, fingerprint(messages)]
        return [kept_verdict(chat, asked, messages, task.read, path, "normalized_score") for path in paths]

    runs, errors = measured(judged, score)
    scores = {sample: mean_of(values) for sample, values in runs.items()}
    parts = {s: {f"run {n}": value for n, value in enumerate(values, start=1)} for s, values in runs.items()}
    about = {"judge": model, "runs": str(RUNS)}
    return Judgment("Gen-ViRe score", scores, summary(samples, scores), errors, about, parts)


@dataclass(frozen=True)
class Task:
    """One sample in the benchmark's terms."""

    sample: Sample
    rubric: Rubric
    text: str  # of the rubric
    folder: Path  # of the rubric and its script
    script: Path
    bare: bool  # whether the script stops at words around the reply's JSON
    rule: Rule

    def read(self, reply: str) -> float:
        """Its score, 0 to 1. Raises ValueError for a reply without one."""
        if self.bare and self.rule is not letter and not _undressed(reply).startswith("{"):
            raise ValueError("words stand around its JSON, at which the benchmark's script stops")
        return self.rule(reply, self.rubric)


def task_of(sample: Sample) -> Task:
    """A sample's rubric, script and rule. Raises UserError."""
    row: dict[str, Any] = sample.answer
    root, kind = row["root"], str(row["sub_category"])
    if kind not in RULES:
        raise UserError(
            f"{sample.id}: it is not known how {kind!r} is scored; the sub-categories are {', '.join(RULES)}"
        )
    if not row.get("eval_json_path"):
        raise UserError(f"{sample.id}: the record names no rubric (eval_json_path); fetch the data set again")
    path = inside(root, str(row["eval_json_path"]))
    content = _json(path)
    rubric = content.get(str(row["id"]))
    if not isinstance(rubric, dict):
        raise UserError(f"rubric {path} has no sample {row['id']!r}; fetch the benchmark's code again")
    text = rubric.get("eval_task_description")
    if text is None:  # the analogies share one, in the folder above
        shared = inside(root, (path.parent.parent / f"prompt_{kind}.json").relative_to(root))
        text = _json(shared).get("eval_task_description")
    if not isinstance(text, str):
        raise UserError(f"rubric {path}: {row['id']} has no eval_task_description; fetch the benchmark's code again")
    script = inside(root, path.with_suffix(".py").relative_to(root))
    return Task(sample, rubric, text, path.parent, script, FINDS not in _read(script), RULES[kind])


def question(task: Task, video: Path) -> list[Message]:
    """What the judge is asked about one video, as the task's script asks it."""
    parts: list[str | Tensor | Mp4] = []
    for part in contents(_read(task.script), task.text, task.script):
        if isinstance(part, str):
            parts.append(part)
        elif part.what == "video":
            parts.append(Mp4(video.read_bytes()))
        elif part.what == "frame":
            parts.append(last_frame(video, task.sample))
        else:
            parts.append(_image(task, part.what))
    return [Message("user", tuple(parts))]


def last_frame(video: Path, sample: Sample) -> Tensor:
    """A video's last frame (3,H,W); of ``right_half`` its lower right quarter."""
    crop = sample.answer.get("frame_crop_mode") or "full"
    if crop not in CROPS:
        raise UserError(f"{sample.id}: frame_crop_mode is {crop!r}, which is not known; it may be {' or '.join(CROPS)}")
    (frame,) = decode(video).pixels([-1])
    height, width = frame.shape[1:]
    return frame[:, height // 2 :, width // 2 :] if crop == "right_half" else frame


def _image(task: Task, what: str) -> Tensor:
    """An image that the rubric names; the input image is the data set's own where the code's copy is missing."""
    root, name = task.sample.answer["root"], task.rubric.get(f"{what}_image_path")
    if what == "answer" and task.sample.answer["sub_category"] == "raven_matrix":  # named after the input
        stem = Path(str(task.rubric.get("input_image_path", ""))).name.replace(".png", "")
        name = f"gt_images/{stem}_gt.png"
    path = None
    if name:
        _, folder, rest = str(name).rpartition("input_images/")  # some are given from elsewhere
        path = inside(root, (task.folder / (folder + rest)).relative_to(root))
    if what == "input" and (path is None or not path.is_file()):
        return _tensor(open_image(task.sample.answer["image"], root, task.sample.id), task.sample.id)
    if path is None:
        raise UserError(f"{task.sample.id}: the rubric names no {what}_image_path; fetch the benchmark's code again")
    return _tensor(path, path)


def _tensor(source: Any, where: object) -> Tensor:
    try:
        with Image.open(source) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except UNREADABLE as error:
        raise UserError(f"image {where} cannot be read ({brief(error)}); fetch the benchmark's code again") from error
    return fit_image(image, image.height, image.width)


def summary(samples: Sequence[Sample], scores: dict[str, float]) -> dict[str, dict[str, float]]:
    """Each main category's mean, and before them the mean of these; a sample without a verdict counts 0."""
    categories = sorted({sample.family for sample in samples})
    found = {c: mean_of([scores.get(s.id, 0.0) for s in samples if s.family == c]) for c in categories}
    found = {"average": mean_of(list(found.values())), **found}
    return {name: {"score": round(value, 4)} for name, value in found.items()}


# The rules. A reply's keys are Criterion_1, Criterion_2_Something, ...


def _criteria(reply: str, keys: Sequence[str] = ("score",), also: str = "Criterion_") -> list[float]:
    """The scores of a reply's criteria; a criterion without one of the ``keys`` counts 0, as in the scripts."""
    found = []
    for name, value in _object(reply).items():
        if name.startswith(("Criterion_", also)) and isinstance(value, dict):
            found.append(_number(next((value[key] for key in keys if key in value), 0)))
    if not found:
        raise ValueError("there is no criterion in it")
    return found


def _part(reached: float, most: float) -> float:
    if most <= 0:
        return 0.0
    if not 0 <= reached <= most + 1e-9:
        raise ValueError(f"the scores add up to {reached:g}, but 0 to {most:g} is possible")
    return round(reached / most, 4)


def of_most(default: float | None) -> Rule:
    """The sum over max_score; ``default`` None: the number of criteria."""

    def rule(reply: str, rubric: Rubric) -> float:
        scores = _criteria(reply)
        return _part(sum(scores), _number(rubric.get("max_score", len(scores) if default is None else default)))

    return rule


def mean(reply: str, rubric: Rubric) -> float:
    scores = _criteria(reply)
    return _part(sum(scores), len(scores))


def maze(reply: str, rubric: Rubric) -> float:
    scores = _criteria(reply, ("分数", "Score"), "标准_")
    return _part(sum(scores), len(scores))


def letter(reply: str, rubric: Rubric) -> float:
    found = ANSWER.search(reply)
    if not found:
        raise ValueError('there is no "Final Answer: A, B, C or different object type"')
    return float(found[1].strip() == rubric.get("correct_answer"))


def overall(reply: str, rubric: Rubric) -> float:
    content = _object(reply)
    if "overall_score" not in content:
        raise ValueError("there is no overall_score")
    score = _number(content["overall_score"])
    if not 0 <= score <= 1:
        raise ValueError(f"overall_score is {score:g}, but 0 to 1 is possible")
    return score


def _object(reply: str) -> dict[str, Any]:
    found = re.search(r"\{.*\}", _undressed(reply), re.DOTALL)
    try:
        content = json.loads(found[0]) if found else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its JSON is broken ({brief(error)})") from error
    if not isinstance(content, dict):
        raise ValueError("there is no JSON object in it")
    return content


def _undressed(reply: str) -> str:
    return reply.replace("```json", "").replace("```", "").strip()


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no score"[:100])
    return float(value)


RULES: dict[str, Rule] = {
    "2d_rule_extrapolation": of_most(8), "3d_rule_extrapolation": of_most(8), "raven_matrix": of_most(8),
    "symmetry": mean,
    "cross_word": of_most(9), "sudoku": of_most(9), "geometric_reasoning": mean, "graph_tr": mean,
    "matching_color": of_most(None), "matching_num": of_most(None), "matching_pairs": of_most(None),
    "matching_shape": of_most(None),
    "color": letter, "reflect": letter, "resize": letter, "rotation": letter,
    "assemble_reasoning": mean, "gui_reasoning": overall, "multi_step_procedural_planning": mean,
    "tool_use_selection": mean,
    "auto_drive": mean, "maze": maze, "spatial_obstacle": mean, "vla": mean,
}  # fmt: skip


def _json(path: Path) -> dict[str, Any]:
    text = _read(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({brief(error)}); fetch the benchmark's code again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object; fetch the benchmark's code again")
    return content


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({brief(error)}); --root must be a checkout of Gen-ViRe's code"
        ) from error
