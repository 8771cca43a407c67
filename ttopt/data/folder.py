"""One's own samples: a folder of images with prompts beside them, or a .jsonl file.

folder/a.png + folder/a.txt          an image and its prompt; a.txt alone is text to video
file.jsonl                           {"prompt": "...", "image": "a.png", "id": "a", "frames": 81, "fps": 16,
                                      "family": "..."}: all but the prompt optional, paths from the file's folder

Links that lead out of a folder are refused; a .jsonl file may name any image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ttopt.config.settings import SampleSettings
from ttopt.data.files import IMAGES, choose, first_frame, inside, records, text
from ttopt.data.sample import Sample
from ttopt.errors import UserError, wrong_fields

score = None


def samples(
    split: str, families: Sequence[str] | None, seed: int, limit: int, *, root: Path, form: SampleSettings
) -> list[Sample]:
    """``limit`` samples in the order of their names or lines, families in turn. No split, no seed.

    Raises UserError for an image without a prompt, two samples of one name and an empty folder.
    """
    rows = _lines(root) if root.is_file() else _pairs(root)
    groups: dict[str, list[Row]] = {}
    names: set[str] = set()
    for row in rows:
        if row.id in names:
            raise UserError(f"{root} has two samples called {row.id!r}; give each its own name")
        names.add(row.id)
        groups.setdefault(row.family, []).append(row)
    base = root.parent if root.is_file() else root
    return [_sample(row, base, form) for row in choose(groups, families, limit, "family")]


class Row(BaseModel):
    """One line of a .jsonl file."""

    model_config = ConfigDict(strict=True)

    prompt: str
    id: str
    image: str | None = None
    frames: int | None = None
    fps: int | None = None
    family: str = ""


def _lines(file: Path) -> list[Row]:
    if file.suffix != ".jsonl":
        raise UserError(f"--root {file}: give a folder of images and prompts, or a .jsonl file")
    rows = []
    for number, row in enumerate(records(file), start=1):
        name = row.get("id")
        name = f"{number:05d}" if name is None else str(name) if type(name) is int else name
        try:
            rows.append(Row(**(row | {"id": name})))
        except ValidationError as error:
            raise UserError(f"{file}, record {number}: {wrong_fields(error)}") from error
    return rows


def _pairs(folder: Path) -> list[Row]:
    prompts = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    images = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGES}
    alone = sorted(images.keys() - prompts.keys())
    if alone:
        raise UserError(f"{images[alone[0]]} has no prompt; write it into {folder / alone[0]}.txt")
    if not prompts:
        raise UserError(f"{folder} holds no prompts; write one into a .txt file beside each image")
    return [
        Row(
            id=name,
            prompt=text(path, folder),
            image=inside(folder, images[name].name).name if name in images else None,
        )
        for name, path in prompts.items()
    ]


def _sample(row: Row, base: Path, form: SampleSettings) -> Sample:
    image = first_frame(base / row.image, form) if row.image else None
    height, width = (form.height, form.width) if image is None else image.shape[1:]
    frames, fps = form.frames if row.frames is None else row.frames, form.fps if row.fps is None else row.fps
    return Sample(row.id, row.prompt, image, frames, fps, height, width, row.family)


def output_path(sample: Sample) -> Path:
    """Videos lie side by side: {id}.mp4."""
    return Path(f"{sample.id}.mp4")
