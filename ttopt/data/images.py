"""Images from and to files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ttopt.data.video import to_uint8
from ttopt.errors import UserError

# What Pillow raises for a file that is no image, or a dangerous one.
UNREADABLE = (
    UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError,
    TypeError, KeyError, EOFError, struct.error,
)  # fmt: skip


def write_image(path: Path, image: Tensor) -> None:
    """Writes ``image`` (3,H,W), float in [0,1], as a PNG."""
    Image.fromarray(to_uint8(image[None])[0]).save(path, format="PNG")


def read_image(path: Path, height: int, width: int) -> Tensor:
    """An image file, cropped to the aspect and resized: (3,height,width) float32 in [0,1].

    An image that already has that size keeps its 8-bit levels. Raises UserError for what is no image.
    """
    if not path.is_file():
        raise UserError(f"image {path}: there is no such file; check --sample.image")
    if path.stat().st_size == 0:
        raise UserError(f"image {path} is empty; give a PNG or JPEG file")
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except UNREADABLE as error:
        raise UserError(f"image {path} cannot be read as an image; give a PNG or JPEG file") from error
    return fit_image(image, height, width)


def fit_image(image: Image.Image, height: int, width: int) -> Tensor:
    """An RGB image, cropped to the aspect and resized: (3,height,width) float32 in [0,1]."""
    image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
