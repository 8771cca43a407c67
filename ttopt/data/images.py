"""Images from and to files."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from ttopt.data.video import to_uint8
from ttopt.errors import UserError

# What Pillow raises for a file that is no image, or a dangerous one.
UNREADABLE = (
    UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError,
    TypeError, KeyError, EOFError, struct.error,
)  # fmt: skip
DAMAGED = "cannot be read; fetch the data set again"
EIGHT_BITS = "save it with 8 bits a color"
ORIENTATION, PHOTOMETRIC = 0x0112, 0x0106  # EXIF's and TIFF's tags


def write_image(path: Path, image: Tensor) -> None:
    """Writes ``image`` (3,H,W), float in [0,1], as a PNG."""
    Image.fromarray(to_uint8(image[None])[0]).save(path, format="PNG")


@dataclass(frozen=True)
class FirstFrame:
    """An image that is read only when it is asked for, so that thousands of samples cost no memory.

    ``source`` is its file, or the file's bytes; ``height`` and ``width`` what it is cropped and resized to. It travels
    to other processes as the file's bytes: their machines may not have the file.
    """

    source: Path | bytes
    height: int
    width: int
    name: str = "in the data set"  # how errors call it
    border: tuple[int, int] = (0, 0)  # white pixels that are added first, above and below, and at both sides

    def pixels(self) -> Tensor:
        """(3,height,width) float32 in [0,1]. Raises UserError for what cannot be read, or shown."""
        with _reading(self.source, self.name, DAMAGED) as file:
            image, (rows, columns) = as_seen(file, self.name), self.border
            if rows or columns:
                image = ImageOps.expand(image, (columns, rows, columns, rows), "white")
            return fit_image(image, self.height, self.width)

    def __reduce__(self) -> tuple[type[FirstFrame], tuple[bytes, int, int, str, tuple[int, int]]]:
        content = self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        return FirstFrame, (content, self.height, self.width, self.name, self.border)


def image_size(source: Path | bytes, name: str) -> tuple[int, int]:
    """(height, width) as a viewer shows it, from the file's header alone. Raises UserError for what is no image."""
    if isinstance(source, Path) and not source.is_file():
        raise UserError(f"image {name}: there is no such file; check --root")
    with _reading(source, name, DAMAGED) as file:
        # Not file.getexif(), for which a PNG is read to its end; a TIFF's size is turned already.
        turned = Image.Image.getexif(file).get(ORIENTATION, 1) in (5, 6, 7, 8)
        lies = turned and not isinstance(file, TiffImagePlugin.TiffImageFile)
        return (file.width, file.height) if lies else (file.height, file.width)


def read_image(path: Path, height: int, width: int) -> Tensor:
    """An image file, cropped to the aspect and resized: (3,height,width) float32 in [0,1].

    An image that already has that size keeps its 8-bit levels. Raises UserError for what is no image.
    """
    if not path.is_file():
        raise UserError(f"image {path}: there is no such file; check --sample.image")
    if path.stat().st_size == 0:
        raise UserError(f"image {path} is empty; give a PNG or JPEG file")
    with _reading(path, str(path), "cannot be read as an image; give a PNG or JPEG file") as file:
        return fit_image(as_seen(file, str(path)), height, width)


def as_seen(file: Image.Image, name: str) -> Image.Image:
    """An opened image in RGB as a viewer shows it: the right way up, deep gray levels scaled, what is transparent over
    white; of an animation the first picture. Color profiles are ignored. Raises UserError naming ``name``.
    """
    image = ImageOps.exif_transpose(file)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _gray(file, image, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _gray(file: Image.Image, image: Image.Image, name: str) -> Image.Image:
    """An image of more than 8 bits with 256 gray levels. Pillow's own conversion cuts them off."""
    # What Pillow calls I are 32-bit numbers, which it also uses for the 16 bits of PNG and PGM files.
    deep = image.mode.startswith("I;16") or (image.mode == "I" and file.format in ("PNG", "PPM"))
    values = np.asarray(image, dtype=np.float64) / (65535 if deep else 1)
    inverted = isinstance(file, TiffImagePlugin.TiffImageFile) and file.tag_v2.get(PHOTOMETRIC) == 0
    if not (deep or image.mode == "F") or inverted or "transparency" in file.info:
        raise UserError(f"image {name} has pixels of mode {image.mode}, whose white is not known; {EIGHT_BITS}")
    if not (values.min() >= 0 and values.max() <= 1):  # NaN is neither
        raise UserError(f"image {name} has levels from {values.min():g} to {values.max():g}, not 0 to 1; {EIGHT_BITS}")
    return Image.fromarray((values * 255).round().astype(np.uint8))


@contextmanager
def _reading(source: Path | bytes, name: str, problem: str) -> Iterator[Image.Image]:
    """The opened image. A UserError with the ``problem`` for what Pillow raises."""
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as file:
            yield file
    except UserError:
        raise
    except UNREADABLE:
        # Without its cause: an OSError, which Pillow raises for a damaged image, ends a run as a full disk does.
        raise UserError(f"image {name} {problem}") from None


def fit_image(image: Image.Image, height: int, width: int) -> Tensor:
    """An RGB image, cropped to the aspect and resized: (3,height,width) float32 in [0,1]."""
    image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
