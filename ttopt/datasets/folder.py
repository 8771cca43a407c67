"""One's own samples: a folder of images with prompts beside them, or a .jsonl file.

folder/a.png + folder/a.txt          an image and its prompt; a.txt alone is text to video
file.jsonl                           {"prompt": "...", "image": "a.png", "id": "a", "frames": 81, "fps": 16,
                                      "family": "..."}: all but the prompt optional, paths from the file's folder
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttopt.config import SampleSettings
from ttopt.datasets.files import IMAGES, choose, field, first_frame, records
from ttopt.errors import UserError
from ttopt.sample import Sample

score = None


def samples(
    split: str, families: Sequence[str] | None, seed: int, limit: int, *, root: Path, form: SampleSettings
) -> list[Sample]:
    """``limit`` samples in the order of their names or lines, families in turn. No split, no seed.

    Raises UserError for an image without a prompt, two samples of one name and an empty folder.
    """
    rows = _lines(root) if root.is_file() else _pairs(root)
    groups: dict[str, list[dict[str, Any]]] = {}
    names: set[str] = set()
    for number, row in enumerate(rows, start=1):
        row.setdefault("id", f"{number:05d}")
        if row["id"] in names:
            raise UserError(f"{root} has two samples called {row['id']!r}; give each its own name")
        names.add(row["id"])
        groups.setdefault(str(row.get("family", "")), []).append(row)
    base = root.parent if root.is_file() else root
    return [_sample(row, base, form) for row in choose(groups, families, limit, "family")]


def _lines(file: Path) -> list[dict[str, Any]]:
    if file.suffix != ".jsonl":
        raise UserError(f"--root {file}: give a folder of images and prompts, or a .jsonl file")
    return records(file)


def _pairs(folder: Path) -> list[dict[str, Any]]:
    prompts = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    images = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGES}
    alone = sorted(images.keys() - prompts.keys())
    if alone:
        raise UserError(f"{images[alone[0]]} has no prompt; write it into {folder / alone[0]}.txt")
    if not prompts:
        raise UserError(f"{folder} holds no prompts; write one into a .txt file beside each image")
    return [
        {"id": name, "prompt": path.read_text(encoding="utf-8").strip()}
        | ({"image": images[name].name} if name in images else {})
        for name, path in prompts.items()
    ]


def _sample(row: dict[str, Any], base: Path, form: SampleSettings) -> Sample:
    name = str(row["id"])
    image = first_frame(base / row["image"], form) if row.get("image") else None
    height, width = (form.height, form.width) if image is None else image.shape[1:]
    try:
        frames, fps = int(row.get("frames", form.frames)), int(row.get("fps", form.fps))
    except (TypeError, ValueError) as error:
        raise UserError(f"sample {name}: frames and fps must be whole numbers") from error
    prompt = str(field(row, "prompt", f"sample {name}"))
    return Sample(name, prompt, image, frames, fps, height, width, str(row.get("family", "")))


def output_path(sample: Sample) -> Path:
    """Videos lie side by side: {id}.mp4."""
    return Path(f"{sample.id}.mp4")
