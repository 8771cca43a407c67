"""RULER-Bench's judge and arithmetic (arXiv 2512.02622): one call a video, all questions of its checklist at once.

The judge sees the input image, the prompt, the ground-truth image, the explanation, the input video and the generated
one (two frames a second as JPEG, longest side 512) and answers <think>...</think><answer>["Good", ...]</answer>. A
malformed reply is asked again. Good, Medium, Poor count 2, 1, 0; per sample and metric the mean, 0 for a metric without
questions; a sample is the mean of its four metrics (three for vision rules, which have no instruction following).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttopt.config.comparison import CompareSettings
from ttopt.data.files import inside
from ttopt.data.images import FirstFrame, image_size
from ttopt.data.ruler import METRICS, output_path
from ttopt.data.sample import Sample
from ttopt.data.video import decode
from ttopt.errors import brief
from ttopt.evaluate.judges import Evaluator, Judgment, judge_prompt, kept_verdict, mean_of, measured, server
from ttopt.models.chat import Chat, Jpeg, Message, fingerprint

POINTS = {"Good": 2, "Medium": 1, "Poor": 0}
FRAMES_PER_SECOND = 2
LONGEST_SIDE = 512
VISION = "vision rule"  # the category without instruction following
GAMES = ("game", "game rule")

SYSTEM = """\
You judge generated videos with a checklist. You are given the prompt of the video, the video as frames in order, the \
checklist's questions, and where they exist an input image, a ground-truth image (the expected end or path), an \
explanation of what should happen, and an input video.
Answer every question by itself with one label: "Good" if the video fully satisfies it, "Medium" if partly or with \
small faults, "Poor" if not. Where what a question presupposes never happens in the video, answer "Poor".
Write exactly this and nothing else:
<think>what the task is, what the video shows, and one or two factual sentences for each question</think>
<answer>["Good", "Medium", ...]</answer>
with as many labels as there are questions, in their order."""


def evaluator(settings: CompareSettings) -> Evaluator:
    """The judge behind chat.*; the benchmark's own is o3. Raises UserError without a server."""
    chat, system = server(settings, "RULER-Bench", "o3"), judge_prompt(settings) or SYSTEM
    root = Path(str(settings.root))

    def evaluate(videos: Path, judged: Sequence[Sample], samples: Sequence[Sample], work: Path) -> Judgment:
        return judge_all(chat, system, root, videos, judged, samples, work, settings.chat.model)

    return evaluate


def judge_all(
    chat: Chat, system: str, root: Path, videos: Path, judged: Sequence[Sample], samples: Sequence[Sample], work: Path,
    model: str,
) -> Judgment:  # fmt: skip
    """Judges what ``work`` does not hold yet: one file a sample, named like the official evaluator's."""

    def label(sample: Sample) -> list[str]:
        messages = question(sample, root, videos / output_path(sample), system)
        read = functools.partial(labels_of, count=len(sample.answer["checklist"]))
        path = work / output_path(sample).with_suffix(".json")
        return kept_verdict(chat, [model, fingerprint(messages)], messages, read, path, "eval_results")

    answers, errors = measured(judged, label)
    metrics = {s.id: metric_scores(s, answers.get(s.id)) for s in samples}
    scores = {s.id: sample_score(s, metrics[s.id]) / 2 for s in samples if s.id in answers}
    parts = {s: {metric: 50 * value for metric, value in metrics[s].items()} for s in answers}
    return Judgment("RULER-Bench score", scores, summary(samples, metrics), errors, {"judge": model}, parts)


def question(sample: Sample, root: Path, video: Path, system: str) -> list[Message]:
    """What the judge is asked about one video, in the order of the benchmark's own script."""
    row: dict[str, Any] = sample.answer
    parts: list[str | Tensor | Jpeg] = []
    if row.get("input_image_path"):
        parts += ["\n## Input Image:\n", _image(inside(root, row["input_image_path"]))]
    parts.append(f"\n## Input Prompt:\n{sample.prompt}\n")
    if row.get("gt_image_path"):
        parts += ["\n## Ground truth Image:\n", _image(inside(root, row["gt_image_path"]))]
    if row.get("implicit_explanation"):
        parts.append(f"\n## Implicit Explanation:\n{row['implicit_explanation']}\n")
    if row.get("input_video_path"):
        parts += ["\n## Input Video:\n", *map(Jpeg, frames(inside(root, row["input_video_path"])))]
    parts += ["\n## Video to evaluate:\n", *map(Jpeg, frames(video)), "\n## CheckList Questions:\n"]
    parts += [f"\n# Question {number}:\n{text}\n" for number, (_, text) in enumerate(row["checklist"], start=1)]
    return [Message("system", (system,)), Message("user", tuple(parts))]


def labels_of(reply: str, count: int) -> list[str]:
    """The labels of a reply. Raises ValueError saying what is wrong with it."""
    found = re.search(r"<answer>(.*?)</answer>", reply, re.DOTALL)
    if not found:
        raise ValueError("there is no <answer>")
    try:
        labels = json.loads(found[1])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the answer is no list ({brief(error)})") from error
    known = isinstance(labels, list) and all(isinstance(label, str) and label in POINTS for label in labels)
    if not known or len(labels) != count:
        raise ValueError(f"the answer must be {count} of {', '.join(POINTS)}, but is {labels!r}"[:200])
    return labels


def metric_scores(sample: Sample, labels: Sequence[str] | None) -> dict[str, float]:
    """0..2 for each metric; 0 for one without questions and for a sample without a verdict."""
    asked = sample.answer["checklist"]
    points: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for (metric, _), label in zip(asked, labels or ["Poor"] * len(asked), strict=True):
        points[metric].append(POINTS[label])
    return {metric: mean_of(values) for metric, values in points.items()}


def counted(sample: Sample) -> list[str]:
    """The metrics that count for a sample's category."""
    return [m for m in METRICS if not (m == "Instruction Following" and sample.family == VISION)]


def sample_score(sample: Sample, metrics: dict[str, float]) -> float:
    """0..2."""
    return mean_of([metrics[metric] for metric in counted(sample)])


def summary(samples: Sequence[Sample], metrics: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The benchmark's numbers, 0..100: the four metrics and their mean, of all categories, of all but games (the 30
    tasks of VLM-as-Teacher), and of each category, where "overall" is the mean of its samples."""
    groups = {"overall": list(samples), "without games": [s for s in samples if s.family not in GAMES]}
    found = {
        label: _overall(chosen, metrics)
        for label, chosen in groups.items()
        if chosen and (label == "overall" or len(chosen) < len(samples))
    }
    for category in sorted({s.family for s in samples}):
        of_it = [s for s in samples if s.family == category]
        numbers = {m: 50 * mean_of([metrics[s.id][m] for s in of_it]) for m in counted(of_it[0])}
        numbers["overall"] = 50 * mean_of([sample_score(s, metrics[s.id]) for s in of_it])
        found[category] = numbers
    return {label: {m: round(value, 2) for m, value in numbers.items()} for label, numbers in found.items()}


def _overall(samples: Sequence[Sample], metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of each metric the unweighted mean over the categories that it counts for, and the mean of these."""
    found = {}
    for metric in METRICS:
        by_category: dict[str, list[float]] = {}
        for sample in samples:
            if metric in counted(sample):
                by_category.setdefault(sample.family, []).append(50 * metrics[sample.id][metric])
        if by_category:
            found[metric] = mean_of([mean_of(values) for values in by_category.values()])
    return {**found, "overall": mean_of(list(found.values()))}


def frames(path: Path) -> list[Tensor]:
    """Two frames a second of a video, longest side at most 512."""
    video = decode(path)
    chosen = video.pixels(range(0, len(video.frames), max(1, int(video.rate / FRAMES_PER_SECOND))))
    height, width = chosen.shape[-2:]
    scale = LONGEST_SIDE / max(height, width)
    if scale >= 1:
        return list(chosen)
    size = (int(height * scale), int(width * scale))
    return list(torch.nn.functional.interpolate(chosen, size, mode="area"))


def _image(path: Path) -> Tensor:
    return FirstFrame(path, *image_size(path, str(path)), str(path)).pixels()
