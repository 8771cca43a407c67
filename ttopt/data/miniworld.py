"""The embedded sprite world as a dataset: samples, their scorer, and an export in VBVR-Bench's folder layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ttopt.data.images import write_image
from ttopt.data.queries import Queries
from ttopt.data.sample import Sample
from ttopt.data.video import write_video
from ttopt.errors import UserError
from ttopt.miniworld.questions import InOrder, OffWalls, Question
from ttopt.miniworld.scene import Task
from ttopt.miniworld.scorer import Score, score_videos
from ttopt.miniworld.tasks import FAMILIES, MULTI_STEP, make_task
from ttopt.miniworld.world import FPS, FRAMES, SIZE, read, render

VBVR_FOLDERS = {"id": "In-Domain_50", "ood": "Out-of-Domain_50"}


@dataclass(frozen=True)
class Explained(Score):
    """``words``: what each rule asks for; ``frames``: the numbers of those that break it."""

    words: dict[str, str]
    frames: dict[str, list[int]]


def samples(split: str, families: Sequence[str] | None, seed: int, limit: int) -> list[Sample]:
    """``limit`` samples, families in turn; the same arguments give the same samples.

    Without ``families`` those that one clip can solve (FAMILIES); MULTI_STEP names those that need several.

    Splits: "id" (in distribution) and "ood" (longer ways, more distractors, rare color pairs); "dev_id" and
    "dev_ood" are their twins for choosing settings. Raises UserError for unknown names and limits below 1.
    """
    if limit < 1:
        raise UserError(f"limit {limit} leaves no samples; give --limit 1 or more")
    if split not in ("id", "ood", "dev_id", "dev_ood"):
        raise UserError(f"unknown miniworld split {split!r}; choose id, ood, dev_id or dev_ood")
    chosen = tuple(families or FAMILIES)
    return [to_sample(make_task(chosen[i % len(chosen)], split, seed, i // len(chosen))) for i in range(limit)]


def to_sample(task: Task) -> Sample:
    """A task as the reasoner may see it; the task itself travels as the hidden answer."""
    first = render(task.codes()[:1])[0]
    return Sample(task.name, task.prompt, first, FRAMES, FPS, SIZE, SIZE, task.family, task.split, task)


def score(sample: Sample, video: Tensor) -> Explained:
    """Rule-based score of a video (T, 3, 48, 48) in [0, 1], two frames or more; UserError for other sizes."""
    if len(video) < 2 or tuple(video.shape[1:]) != (3, SIZE, SIZE):
        raise UserError(
            f"sample {sample.id}: the scorer reads two or more frames of {SIZE}x{SIZE}, "
            f"but the video is {video.shape[0]} frames of {video.shape[-2]}x{video.shape[-1]}"
        )
    task = _task(sample)
    found = score_videos(task, video.unsqueeze(0))[0]
    asked = dict(zip(found.rules, (task.goal, *task.process, *task.common.values()), strict=True))
    words = {name: question.text() for name, question in asked.items()}
    frames = {name: _breaking(asked[name], video) for name, holds in found.rules.items() if not holds}
    return Explained(found.success, found.partial, found.rules, words, frames)


def _breaking(question: Question, video: Tensor) -> list[int]:
    """The frames that break a rule: those with something on a wall, else the last, by which all others but the order
    of moves are judged."""
    if isinstance(question, OffWalls):
        alone = question.truth(read(video.unsqueeze(1)))  # each frame as a video
        broken: list[int] = (alone <= 0.5).nonzero().flatten().tolist()
        return broken
    return [] if isinstance(question, InOrder) else [len(video) - 1]


def true_video(sample: Sample) -> Tensor:
    """The right answer, (T, 3, 48, 48) float32 in [0, 1]."""
    return render(_task(sample).codes())


def true_queries(sample: Sample) -> Queries:
    """The questions a perfect teacher would write."""
    goal, *process = (question.text() for question in _task(sample).questions)
    return Queries(goal, tuple(process))


def export(folder: Path, split: str, families: Sequence[str] | None, seed: int, limit: int) -> list[Path]:
    """Writes samples in VBVR-Bench's layout: {split}/{task}_data-generator/{00000}/ with first_frame.png, prompt.txt,
    final_frame.png, ground_truth.mp4 and metadata.json. Returns the sample folders.
    """
    made = []
    counts: dict[str, int] = {}
    for sample in samples(split, families, seed, limit):
        number = counts[sample.family] = counts.get(sample.family, -1) + 1
        place = (
            folder
            / VBVR_FOLDERS.get(split, split)
            / f"M-{(*FAMILIES, *MULTI_STEP).index(sample.family) + 1}_{sample.family}_data-generator"
        )
        place = place / f"{number:05d}"
        place.mkdir(parents=True, exist_ok=True)
        video = true_video(sample)
        write_image(place / "first_frame.png", video[0])
        write_image(place / "final_frame.png", video[-1])
        write_video(place / "ground_truth.mp4", video, sample.fps)
        (place / "prompt.txt").write_text(sample.prompt + "\n", encoding="utf-8")
        metadata = {
            "id": sample.id,
            "family": sample.family,
            "split": split,
            "seed": seed,
            "frames": FRAMES,
            "fps": FPS,
        }
        (place / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        made.append(place)
    return made


def _task(sample: Sample) -> Task:
    if not isinstance(sample.answer, Task):
        raise UserError(f"sample {sample.id} does not come from the miniworld, so its scorer cannot judge it")
    return sample.answer
