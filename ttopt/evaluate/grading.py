"""Every method's finished videos in the eyes of one teacher, and beside the reference's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel

from ttopt.config.comparison import CompareSettings, chosen
from ttopt.data.find import given_queries
from ttopt.data.sample import Sample
from ttopt.data.video import Decoded, decode, sample_frames
from ttopt.errors import UserError
from ttopt.evaluate.files import Grades, Questions, find_sample, read_each
from ttopt.methods.existing import judged_video
from ttopt.models.teacher import Queries
from ttopt.record import metrics
from ttopt.record.identity import sample_digest, teacher_digest
from ttopt.record.plain import there
from ttopt.record.result import json_safe
from ttopt.record.run_folder import write_text, writing
from ttopt.run.loader import Loader

M = TypeVar("M", bound=BaseModel)
JUDGED = "judged.json"
QUERIES = "queries.json"


def grade(
    settings: CompareSettings, folder: Path, samples: Sequence[Sample], load: Loader, note: Callable[[str], None]
) -> list[str]:
    """Grades every finished video that is not graded yet with its sample's questions, the same for all methods, and
    compares it with the reference's, if that is not done or the reference is another. ``note`` is told of samples
    without questions. Returns which videos cannot be read; damaged results are left out (the table names them)."""
    asked = _questions(settings, folder, samples, load, note)
    reference = folder / "methods" / _slug(settings, settings.reference) / "samples"
    problems = []
    for method in chosen(settings):
        place = folder / "methods" / method.slug
        judged = _kept(place / JUDGED, folder, Grades, note)
        for sample in samples:
            mine, base = place / "samples" / sample.id, reference / sample.id
            stamp = _stamp(mine, folder)
            if stamp is None:
                continue
            queries, old = asked.get(sample.id), judged.get(sample.id)
            questions = None if queries is None else queries.all
            p_yes = old.p_yes if old and (old.of, old.asked) == (stamp, questions) else None
            beside = [settings.reference, _stamp(base, folder)]
            same = old is not None and (old.of, old.asked, old.beside) == (stamp, questions, beside)
            if same and (p_yes is not None or queries is None):
                continue
            try:
                video = decode(judged_video(mine))
                drift = _drift(video, method.name == settings.reference, base if beside[1] else None)
            except UserError as error:
                problems.append(f"{method.name}: sample {sample.id}: {error}")
                judged.pop(sample.id, None)  # of an earlier video
                continue
            if p_yes is None and queries is not None:
                p_yes = _p_yes(video, video.rate or sample.fps, queries, settings, load)
            judged[sample.id] = Grades(of=stamp, asked=questions, beside=beside, p_yes=p_yes, **drift)
        with writing(folder):
            content = {name: grades.model_dump() for name, grades in judged.items()}
            write_text(place / JUDGED, json.dumps(json_safe(content), indent=1))
    return problems


def _kept(path: Path, root: Path, form: type[M], note: Callable[[str], None]) -> dict[str, M]:
    """What an earlier call has left; what cannot be read is made again."""
    found, problems = read_each(path, root, form)
    for problem in problems:
        note(f"{problem}; made again")
    return found


def _stamp(place: Path, root: Path) -> str | None:
    """When the video in a sample's folder was finished; None: there is none that can be used."""
    result = find_sample(place, root)
    return result.finished if result is not None and there(place / "video.mp4") else None


@torch.no_grad()
def _p_yes(video: Decoded, fps: float, queries: Queries, settings: CompareSettings, load: Loader) -> list[float]:
    numbers = sample_frames(settings.teacher.frames, len(video.frames))
    losses = load.teacher(settings).yes_losses(video.pixels(numbers)[None], [queries.all], fps, numbers)[0]
    found: list[float] = (-losses).exp().tolist()
    return found


def _drift(video: Decoded, same: bool, base: Path | None) -> Mapping[str, float | None]:
    """SSIM and PSNR to the reference's video, which may be the ``same``; None where there is none of this length and
    size."""
    if same:
        return metrics.EQUAL
    try:
        other = decode(judged_video(base)) if base else None
    except UserError:  # told where it is graded
        other = None
    if other is None or other.shape != video.shape:
        return {"ssim": None, "psnr": None}
    shown = metrics.compared(len(video.frames))
    return metrics.drift(video.pixels(shown), other.pixels(shown))


def _questions(
    settings: CompareSettings, folder: Path, samples: Sequence[Sample], load: Loader, note: Callable[[str], None]
) -> dict[str, Queries | None]:
    """The questions of every sample; None where the teacher writes none that can be read. Those of an earlier call
    are taken if the user's own, else sample and teacher, are the same."""
    path, own = folder / QUERIES, given_queries(settings)
    kept = _kept(path, folder, Questions, note)
    if not settings.questions:
        return {}
    teacher = teacher_digest(settings)
    for sample in samples:
        try:
            source = str(own.all) if own else f"{sample_digest(sample)} {teacher}"
        except UserError as error:  # its image is damaged
            note(f"{sample.id}: not graded: {error}")
            continue
        if sample.id in kept and kept[sample.id].source == source:
            continue
        try:
            found = own or load.teacher(settings).write_queries(sample)
            kept[sample.id] = Questions(source=source, goal=found.goal, process=list(found.process))
        except UserError as error:
            note(f"{sample.id}: not graded: {error}")
            kept[sample.id] = Questions(source=source)
    with writing(folder):
        content = {name: entry.model_dump(exclude_none=True) for name, entry in kept.items()}
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False))
    return {sample.id: _read(kept[sample.id]) for sample in samples}


def _read(entry: Questions) -> Queries | None:
    return None if entry.goal is None else Queries(entry.goal, tuple(entry.process))


def _slug(settings: CompareSettings, name: str) -> str:
    return next(method.slug for method in settings.methods if method.name == name)
