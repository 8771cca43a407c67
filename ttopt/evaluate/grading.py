"""Every method's finished videos in the eyes of one teacher, and beside the reference's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttopt.config.comparison import CompareSettings, chosen
from ttopt.data.find import given_queries
from ttopt.data.sample import Sample
from ttopt.data.video import read_video, sample_frames, video_rate
from ttopt.errors import UserError
from ttopt.evaluate.table import Judged
from ttopt.models.teacher import Queries
from ttopt.record import metrics
from ttopt.record.identity import sample_digest, teacher_digest
from ttopt.record.result import FILE, Result
from ttopt.record.run_folder import read_json, write_text, writing
from ttopt.run.loader import Loader

JUDGED = "judged.json"
QUERIES = "queries.json"


def grade(
    settings: CompareSettings, folder: Path, samples: Sequence[Sample], load: Loader, note: Callable[[str], None]
) -> None:
    """Grades every finished video that is not graded yet with its sample's questions, the same for all methods, and
    compares it with the reference's, if that is not done or the reference is another. ``note`` is told of samples
    without questions."""
    asked = _questions(settings, folder, samples, load, note)
    reference = folder / "methods" / _slug(settings, settings.reference) / "samples"
    for method in chosen(settings):
        place = folder / "methods" / method.slug
        judged: dict[str, Any] = read_json(place / JUDGED)
        for sample in samples:
            mine, base = place / "samples" / sample.id, reference / sample.id
            stamp = _stamp(mine)
            if stamp is None:
                continue
            queries, old = asked.get(sample.id), judged.get(sample.id, {})
            questions = None if queries is None else queries.all
            if (old.get("of"), old.get("asked")) != (stamp, questions):
                old = {"p_yes": None}
            beside = [settings.reference, _stamp(base)]
            if old.get("beside") == beside and (old["p_yes"] is not None or queries is None):
                continue
            video = read_video(mine / "video.mp4")
            p_yes = old["p_yes"]
            if p_yes is None and queries is not None:
                p_yes = _p_yes(video, video_rate(mine / "video.mp4") or sample.fps, queries, settings, load)
            found = Judged(p_yes, **_drift(video, base))
            judged[sample.id] = {"of": stamp, "asked": questions, "beside": beside, **dataclasses.asdict(found)}
        with writing(folder):
            write_text(place / JUDGED, json.dumps(judged, indent=1))


def _stamp(place: Path) -> str | None:
    """When the video in a sample's folder was finished; None: there is none."""
    whole = (place / FILE).exists() and (place / "video.mp4").exists()
    return Result.load(place).finished if whole else None


@torch.no_grad()
def _p_yes(video: Tensor, fps: float, queries: Queries, settings: CompareSettings, load: Loader) -> list[float]:
    numbers = sample_frames(settings.teacher.frames, len(video))
    losses = load.teacher(settings).yes_losses(video[None, numbers], [queries.all], fps, numbers)[0]
    found: list[float] = (-losses).exp().tolist()
    return found


def _drift(video: Tensor, base: Path) -> Mapping[str, float | None]:
    """SSIM and PSNR to the reference's video; None where there is none of this length and size."""
    other = read_video(base / "video.mp4") if (base / "video.mp4").exists() else None
    if other is None or other.shape != video.shape:
        return {"ssim": None, "psnr": None}
    return metrics.drift(video, other)


def _questions(
    settings: CompareSettings, folder: Path, samples: Sequence[Sample], load: Loader, note: Callable[[str], None]
) -> dict[str, Queries | None]:
    """The questions of every sample; None where the teacher writes none that can be read. Those of an earlier call
    are taken if the user's own, else sample and teacher, are the same."""
    path, own = folder / QUERIES, given_queries(settings)
    kept: dict[str, Any] = read_json(path)
    if not settings.questions:
        return {}
    teacher = teacher_digest(settings)
    for sample in samples:
        try:
            source = str(own.all) if own else f"{sample_digest(sample)} {teacher}"
        except UserError as error:  # its image is damaged
            note(f"{sample.id}: not graded: {error}")
            continue
        if (kept.get(sample.id) or {}).get("source") == source:
            continue
        try:
            found = own or load.teacher(settings).write_queries(sample)
            kept[sample.id] = {"source": source, "goal": found.goal, "process": list(found.process)}
        except UserError as error:
            note(f"{sample.id}: not graded: {error}")
            kept[sample.id] = {"source": source}
    with writing(folder):
        write_text(path, json.dumps(kept, indent=1, ensure_ascii=False))
    return {name: _read(entry or {}) for name, entry in kept.items()}


def _read(entry: Mapping[str, Any]) -> Queries | None:
    return Queries(entry["goal"], tuple(entry["process"])) if "goal" in entry else None


def _slug(settings: CompareSettings, name: str) -> str:
    return next(method.slug for method in settings.methods if method.name == name)
