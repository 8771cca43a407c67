"""The samples that the settings ask for, and the user's own questions about them."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from pathlib import Path

from ttopt.config.settings import EMBEDDED, FitSettings
from ttopt.data.images import read_image
from ttopt.data.queries import Queries
from ttopt.data.sample import Sample, Scorer
from ttopt.errors import UserError
from ttopt.miniworld import known

ALL = 1_000_000  # more samples than any data set has


def find_samples(settings: FitSettings) -> tuple[list[Sample], Scorer | None]:
    """The samples of a run, and the data set's scorer if they are the data set's. Raises UserError."""
    samples, scorer = _samples(settings)
    if not samples:
        raise UserError(f"dataset {settings.dataset}: {settings.root} holds no samples; check --root")
    names: dict[str, str] = {}
    for sample in samples:
        other = names.setdefault(sample.id.casefold(), sample.id)  # some file systems know no upper case
        if other is not sample.id:
            raise UserError(f"the samples {other} and {sample.id} would share a folder; give each its own name")
    return samples, scorer


def _samples(settings: FitSettings) -> tuple[list[Sample], Scorer | None]:
    own = settings.sample
    if own.prompt is not None:
        # Checked before the image is made as large as is asked for.
        sample = Sample(own.id, own.prompt, None, own.frames, own.fps, own.height, own.width)
        embedded = settings.reasoner.model == EMBEDDED
        if embedded:
            known.check_prompt(own.prompt)
        image = None if own.image is None else read_image(Path(own.image), own.height, own.width)
        if embedded and image is not None:
            known.check_scene(image)
        return [dataclasses.replace(sample, first_frame=image)], None
    dataset = importlib.import_module(f"ttopt.data.{settings.dataset}")
    wanted = (settings.split, settings.families, settings.seed, settings.limit if settings.ids is None else ALL)
    if settings.root is not None and settings.dataset != "miniworld":
        root = Path(settings.root)
        try:
            return _named(dataset.samples(*wanted, root=root, form=own), settings), dataset.score
        except UserError as error:
            if hint := looks_like(root, settings.dataset):
                raise UserError(f"{error}; {hint}") from error
            raise
    samples: list[Sample] = dataset.named(settings.ids) if settings.ids else dataset.samples(*wanted)
    for sample in samples:
        if settings.teacher.frames > sample.frames:
            raise UserError(
                f"teacher.frames is {settings.teacher.frames}, but the videos of {settings.dataset} have only "
                f"{sample.frames} frames; give --teacher.frames {sample.frames} or fewer"
            )
    return samples, dataset.score


def _named(samples: list[Sample], settings: FitSettings) -> list[Sample]:
    """Those of a data set's samples that ``ids`` names, in its order; all if it names none. Raises UserError."""
    if settings.ids is None:
        return samples
    by_name = {sample.id: sample for sample in samples}
    for name in settings.ids:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1, cutoff=0)[0]
            raise UserError(f"dataset {settings.dataset} has no sample {name!r}; the nearest is {near}")
    return [by_name[name] for name in settings.ids]


# What lies in the folder of each benchmark, and in no other's.
LAYOUTS = {
    "vbvr": ("VBVR-Bench", ("In-Domain_50", "Out-of-Domain_50")),
    "ruler": ("RULER-Bench", ("data.jsonl",)),
    "genvire": ("Gen-ViRe", ("c1_abstract_reasoning", "c6_spatial_reasoning")),
    "vrbench": ("VR-Bench", ("eval/maze", "train/maze", "metadata/eval", "metadata/train")),
    "mme_cof": ("MME-CoF", ("visual_detail_reasoning",)),
    "physics_iq": ("Physics-IQ", ("switch-frames", "split-videos")),
}


def looks_like(root: Path, dataset: str) -> str:
    """Where a folder is none of ``dataset``'s: what to give instead, if that can be seen; else nothing."""

    def fits(place: Path, name: str) -> bool:
        return any((place / mark).exists() for mark in LAYOUTS[name][1])

    if not root.is_dir() or (dataset in LAYOUTS and fits(root, dataset)):
        return ""
    for name, (title, _) in LAYOUTS.items():
        if fits(root, name):
            return f"{root} looks like {title}: give --dataset {name}"
    if dataset in LAYOUTS:
        for place in (*sorted(path for path in root.iterdir() if path.is_dir()), root.resolve().parent):
            if fits(place, dataset):
                return f"{LAYOUTS[dataset][0]} seems to lie in {place}: give --root {place}"
    return ""


def given_queries(settings: FitSettings) -> Queries | None:
    """The user's own queries, or None: the teacher writes them."""
    given = settings.sample.queries
    if settings.teacher.model == EMBEDDED:
        known.check_questions([given.goal or "", *given.process])
    return Queries(given.goal, tuple(given.process)) if given.goal else None
