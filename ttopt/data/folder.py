"""One's own samples: a folder of images with prompts beside them, or a .jsonl file.

folder/a.png + folder/a.txt          an image and its prompt; a.txt alone is text to video
file.jsonl                           {"prompt": "...", "image": "a.png", "id": "a", "frames": 81, "fps": 16,
                                      "family": "..."}: all but the prompt optional, paths from the file's folder

A file with a sample's name that is neither is refused, as is an image without a prompt. What else lies in the folder is
not read: folders in it, hidden files and those that systems leave behind, and a README.txt or LICENSE.txt without an
image. Links that lead out of a folder are refused; a .jsonl file may name any image.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from ttopt.config.settings import SampleSettings
from ttopt.data.files import choose, first_frame, inside, records, text
from ttopt.data.sample import Sample, check_id
from ttopt.errors import UserError, wrong_fields

READ = (
    ".png .apng .jpg .jpeg .jpe .jfif .webp .avif .gif .bmp .dib .tif .tiff .jp2 .j2k .j2c .jpx .jpf "
    ".tga .ppm .pgm .pbm .pnm .pfm .qoi"
).split()  # by Pillow
UNREAD = ".heic .heif .jxl .svg .exr .hdr .dng .psd".split()
LITTER = {"thumbs.db", "ehthumbs.db", "desktop.ini"}  # of Windows; what macOS leaves is hidden
ABOUT = {"readme", "license"}

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
        for key in row.keys() - Row.model_fields.keys():
            (nearest,) = difflib.get_close_matches(key, Row.model_fields, n=1, cutoff=0)
            raise UserError(f"{file}, record {number}: unknown key {key!r}; the nearest is {nearest!r}")
        name = row.get("id")
        name = f"{number:05d}" if name is None else str(name) if type(name) is int else name
        try:
            rows.append(Row(**(row | {"id": name})))
        except ValidationError as error:
            raise UserError(f"{file}, record {number}: {wrong_fields(error)}") from error
    return rows


def _pairs(folder: Path) -> list[Row]:
    prompts: dict[str, Path] = {}
    others: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.lower() in LITTER or path.is_dir():
            continue
        if path.suffix == ".txt":
            prompts[path.stem] = path
        else:
            others.setdefault(path.stem, []).append(path)
    for name in [name for name in prompts if name.lower() in ABOUT and name not in others]:
        del prompts[name]
    for name, paths in others.items():
        for path in paths:
            if name not in prompts and path.suffix.lower() in (*READ, *UNREAD):
                raise UserError(f"{path} has no prompt; write it into {folder / name}.txt")
            if name in prompts and path.suffix.lower() not in READ:
                raise UserError(f"{path} is no image that can be read; make it a PNG file, or move it elsewhere")
        if name in prompts and len(paths) > 1:
            raise UserError(f"{paths[0]} and {paths[1].name} are both of sample {name}; keep one of them")
    if not prompts:
        raise UserError(f"{folder} holds no prompts; write one into a .txt file beside each image")
    rows = []
    for name, path in prompts.items():
        check_id(name, f"; rename {path.name}, or list the samples with an id each in a .jsonl file")
        image = inside(folder, others[name][0].name).name if name in others else None
        rows.append(Row(id=name, prompt=text(path, folder), image=image))
    return rows


def _sample(row: Row, base: Path, form: SampleSettings) -> Sample:
    image = first_frame(base / row.image, form) if row.image else None
    height, width = (form.height, form.width) if image is None else (image.height, image.width)
    frames, fps = form.frames if row.frames is None else row.frames, form.fps if row.fps is None else row.fps
    return Sample(row.id, row.prompt, image, frames, fps, height, width, row.family)


def output_path(sample: Sample) -> Path:
    """Videos lie side by side: {id}.mp4."""
    return Path(f"{sample.id}.mp4")
