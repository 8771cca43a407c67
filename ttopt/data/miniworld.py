"""The embedded world as a dataset: samples, their scorer, and an export in VBVR-Bench's folder layout."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ttopt.data.images import write_image
from ttopt.data.queries import Queries
from ttopt.data.sample import Sample
from ttopt.data.video import write_video
from ttopt.errors import UserError
from ttopt.miniworld.look import FPS, FRAMES, SIZE, Film, render
from ttopt.miniworld.questions import questions, rule_words
from ttopt.miniworld.scene import Task
from ttopt.miniworld.scorer import Score, score_videos
from ttopt.miniworld.tasks import FAMILIES, LONG, make_task

PUBLIC_SPLITS = ("id", "ood", "dev_id", "dev_ood")
_NAME = re.compile(rf"({'|'.join(PUBLIC_SPLITS)})-([a-z]+)-(\d{{1,18}})-(\d{{4,9}})")
VBVR_FOLDERS = {"id": "In-Domain_50", "ood": "Out-of-Domain_50"}


@dataclass(frozen=True)
class Explained(Score):
    """``words``: what each rule asks for."""

    words: dict[str, str]


def samples(split: str, families: Sequence[str] | None, seed: int, limit: int) -> list[Sample]:
    """``limit`` samples, families in turn; the same arguments give the same samples.

    Without ``families`` those that one clip can solve (FAMILIES); LONG names those that need several.

    Splits: "id" (in distribution) and "ood" (commands that no training prompt gives, and fuller boards); "dev_id" and
    "dev_ood" are their twins for choosing settings. Raises UserError for unknown names and limits below 1.
    """
    if limit < 1:
        raise UserError(f"limit {limit} leaves no samples; give --limit 1 or more")
    if split not in PUBLIC_SPLITS:
        raise UserError(f"unknown split {split!r}; choose from {', '.join(PUBLIC_SPLITS)}")
    chosen = tuple(families or FAMILIES)
    return [to_sample(make_task(chosen[i % len(chosen)], split, seed, i // len(chosen))) for i in range(limit)]


def named(ids: Sequence[str]) -> list[Sample]:
    """The samples with these names, e.g. "id-move-0-0003": split, family, seed and number. UserError for others."""
    found = []
    for name in ids:
        parts = _NAME.fullmatch(name)
        if parts is None or parts[2] not in (*FAMILIES, *LONG):
            raise UserError(f"the embedded world has no sample {name!r}; its names are like id-move-0-0003")
        sample = to_sample(make_task(parts[2], parts[1], int(parts[3]), int(parts[4])))
        if sample.id != name:
            raise UserError(f"the embedded world has no sample {name!r}, but {sample.id}")
        found.append(sample)
    return found


def to_sample(task: Task) -> Sample:
    """A task as the reasoner may see it; the task itself travels as the hidden answer. Every video is one clip."""
    film = task.film()
    first = render(Film(film.actors, film.grounds[:1]))[0]
    return Sample(task.name, task.prompt, first, FRAMES, FPS, SIZE, SIZE, task.family, task.split, task)


def score(sample: Sample, video: Tensor) -> Explained:
    """Rule-based score of a video (T, 3, 96, 96) in [0, 1] of 4k + 1 frames, five or more; UserError for others."""
    if len(video) < 5 or len(video) % 4 != 1 or tuple(video.shape[1:]) != (3, SIZE, SIZE):
        raise UserError(
            f"sample {sample.id}: the scorer reads 5, 9, 13 ... frames of {SIZE}x{SIZE}, "
            f"but the video is {video.shape[0]} frames of {video.shape[-2]}x{video.shape[-1]}"
        )
    task = _task(sample)
    found = score_videos(task, video.unsqueeze(0))[0]
    words = rule_words(task)
    return Explained(**vars(found), words={name: words[name] for name in found.rules})


def true_video(sample: Sample) -> Tensor:
    """A right answer, (T, 3, 96, 96) float32 in [0, 1]."""
    return render(_task(sample).film())


def true_queries(sample: Sample) -> Queries:
    """The questions that a perfect teacher would write."""
    goal, *process = (question.text for question in questions(_task(sample)))
    return Queries(goal, tuple(process))


def export(folder: Path, split: str, families: Sequence[str] | None, seed: int, limit: int) -> list[Path]:
    """Writes samples in VBVR-Bench's layout: {split}/{task}_data-generator/{00000}/ with first_frame.png, prompt.txt,
    final_frame.png, ground_truth.mp4 and metadata.json. Returns the sample folders.
    """
    made = []
    counts: dict[str, int] = {}
    for sample in samples(split, families, seed, limit):
        number = counts[sample.family] = counts.get(sample.family, -1) + 1
        kind = f"M-{(*FAMILIES, *LONG).index(sample.family) + 1}_{sample.family}_data-generator"
        place = folder / VBVR_FOLDERS.get(split, split) / kind / f"{number:05d}"
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
            "frames": len(video),
            "fps": FPS,
        }
        (place / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        made.append(place)
    return made


def _task(sample: Sample) -> Task:
    if not isinstance(sample.answer, Task):
        raise UserError(f"sample {sample.id} is none of the embedded world's, so it cannot be scored by its rules")
    return sample.answer
