"""VBVR-Bench (arXiv 2602.20159): 100 tasks, half of them out of the domain of its training set.

    {In-Domain_50|Out-of-Domain_50}/{task}_data-generator/{00000}/first_frame.png, prompt.txt and the answers

A model sees the first frame, the prompt, and how long the true video is (read from the file's header: no frame of it
is decoded). The first frame comes from the PNG: the video's coding shifts white by about 3/255.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av

from ttopt.config.settings import SampleSettings
from ttopt.data.files import choose, first_frame, fitted_length, inside, sample_id, text
from ttopt.data.sample import Sample
from ttopt.errors import UserError

FOLDERS = {"id": "In-Domain_50", "ood": "Out-of-Domain_50"}
ENDING = "_data-generator"

score = None  # judged by VBVR-EvalKit: ttopt/evaluate/judges/vbvr.py


def samples(
    split: str, families: Sequence[str] | None, seed: int, limit: int, *, root: Path, form: SampleSettings
) -> list[Sample]:
    """``limit`` samples of a split (id, ood or all), tasks in turn; ``families`` are tasks such as O-30_bookshelf.

    Square, as the benchmark's frames are; as many frames as the true video, to the nearest 4k+1 and at most
    ``form.frames``, at its rate. ``seed`` changes nothing. Raises UserError for what is missing.
    """
    if split not in (*FOLDERS, "all"):
        raise UserError(f"VBVR-Bench has no split {split!r}; give --split id, ood or all")
    places: dict[str, list[tuple[str, Path]]] = {}
    for name, folder in FOLDERS.items():
        if split not in (name, "all"):
            continue
        if not (root / folder).is_dir():
            raise UserError(f"{root / folder} is missing; --root must be a copy of Video-Reason/VBVR-Bench-Data")
        for place in sorted((root / folder).glob(f"*{ENDING}/*/")):
            places.setdefault(place.parent.name.removesuffix(ENDING), []).append((name, place))
    if not places:
        raise UserError(f"{root} holds no samples; --root must be a copy of Video-Reason/VBVR-Bench-Data")
    return [_sample(name, place, root, form) for name, place in choose(places, families, limit, "VBVR-Bench task")]


def _sample(split: str, place: Path, root: Path, form: SampleSettings) -> Sample:
    task = place.parent.name
    prompt = place / "prompt.txt"
    if not prompt.is_file():
        raise UserError(f"{prompt} is missing; fetch the data set again")
    image = first_frame(inside(root, (place / "first_frame.png").relative_to(root)), form)
    frames, fps = _length(place / "ground_truth.mp4", form)
    return Sample(
        sample_id(task, place.name), text(prompt, root), image, frames, fps,
        image.height, image.width, task.removesuffix(ENDING), split, place,
    )  # fmt: skip


def _length(video: Path, form: SampleSettings) -> tuple[int, int]:
    """Frames and rate of a true video, from its header alone; ``form``'s where there is none."""
    if not video.is_file():
        return form.frames, form.fps
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            frames, fps = stream.frames, stream.average_rate
    except (av.FFmpegError, OSError, IndexError) as error:
        raise UserError(f"{video} cannot be read as a video; fetch the data set again") from error
    if not frames or not fps:
        raise UserError(f"{video} does not say how long it is; fetch the data set again")
    return fitted_length(frames, form), round(fps)


def output_path(sample: Sample) -> Path:
    """Where VBVR-EvalKit looks for this sample's video: {split}/{task}/{00000}.mp4."""
    place: Path = sample.answer
    return Path(FOLDERS[sample.split]) / place.parent.name / f"{place.name}.mp4"
