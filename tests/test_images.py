"""Images from and to files."""

from __future__ import annotations

import ast
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ttopt.config.settings import SampleSettings
from ttopt.data.files import first_frame
from ttopt.data.images import read_image, write_image
from ttopt.data.sample import Sample
from ttopt.errors import UserError

FORM = SampleSettings(height=16, width=16, multiple=16)


def test_png_is_lossless(tmp_path: Path) -> None:
    levels = torch.randint(0, 256, (3, 6, 8))
    write_image(tmp_path / "a.png", levels / 255)
    assert torch.equal((read_image(tmp_path / "a.png", 6, 8) * 255).round().long(), levels)
    assert read_image(tmp_path / "a.png", 16, 16).shape == (3, 16, 16)


def gray(dtype: str, *values: float) -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


def paletted() -> Image.Image:
    """Red, and a magenta that is transparent."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 255, 0, 255])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 1
    return image


def two(mode: str, left: Any, right: Any) -> Image.Image:
    image = Image.new(mode, (2, 1), left)
    image.putpixel((1, 0), right)
    return image


RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
SEEN: dict[str, tuple[Image.Image, str, tuple[Any, Any]]] = {  # an image, how it is saved, and its two pixels
    "1": (two("1", 0, 1), "png", (BLACK, WHITE)),
    "L": (two("L", 10, 200), "png", ((10,) * 3, (200,) * 3)),
    "L with a transparent level": (two("L", 10, 200), "png, transparency 10", (WHITE, (200,) * 3)),
    "LA": (two("LA", (10, 255), (10, 0)), "png", ((10,) * 3, WHITE)),
    "P": (paletted(), "png", (RED, WHITE)),
    "RGB with a transparent color": (two("RGB", RED, BLUE), "png, transparency (255, 0, 0)", (WHITE, BLUE)),
    "RGBA": (two("RGBA", (255, 0, 255, 0), (0, 0, 255, 51)), "png", (WHITE, (204, 204, 255))),
    "CMYK": (two("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), "tiff", (RED, BLACK)),
    "HSV": (two("HSV", (0, 255, 255), (0, 0, 128)).convert("RGB"), "png", (RED, (128,) * 3)),
    "16 bits": (gray("uint16", 1285, 65535), "png", ((5,) * 3, WHITE)),
    "16 bits of a TIFF": (gray("uint16", 1285, 32896), "tiff", ((5,) * 3, (128,) * 3)),
    "16 bits, big end first": (gray(">u2", 1285, 65535), "tiff", ((5,) * 3, WHITE)),
    "float": (gray("float32", 0.2, 1), "tiff", ((51,) * 3, WHITE)),
    "gif": (paletted(), "gif", (RED, WHITE)),
    "webp": (two("RGBA", (255, 0, 255, 0), (0, 0, 255, 255)), "webp, lossless", (WHITE, BLUE)),
    "turned": (two("RGB", BLUE, RED), "png, turned", (RED, BLUE)),
}


@pytest.mark.parametrize("image, way, pixels", SEEN.values(), ids=SEEN.keys())
def test_images_are_read_as_viewers_show_them(image: Image.Image, way: str, pixels: Any, tmp_path: Path) -> None:
    """What is transparent is white."""
    ending, _, how = way.partition(", ")
    options: dict[str, Any] = {}
    if how.startswith("transparency"):
        options["transparency"] = ast.literal_eval(how.removeprefix("transparency "))
    elif how == "turned":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 3
    elif how == "lossless":
        options |= {"lossless": True, "exact": True}
    path = tmp_path / f"a.{ending}"
    image.save(path, **options)
    meant = torch.tensor(pixels).T.unsqueeze(1) / 255
    assert (read_image(path, 1, 2) - meant).abs().max() <= 1 / 255
    frame = first_frame(path, SampleSettings(height=1, width=2, multiple=1))
    assert (frame.height, frame.width) == (1, 2) and torch.equal(frame.pixels(), read_image(path, 1, 2))


@pytest.mark.parametrize(
    "image, message",
    [
        (gray("int32", 0, 70000), "pixels of mode I, whose white is not known; save it with 8 bits a color"),
        (gray("float32", -1, 5), "levels from -1 to 5, not 0 to 1; save it with 8 bits a color"),
        (gray("float32", float("nan"), 1), "not 0 to 1"),
    ],
)
def test_images_without_a_white_are_refused(image: Image.Image, message: str, tmp_path: Path) -> None:
    image.save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match=message):
        read_image(tmp_path / "a.tiff", 1, 2)


def test_a_turned_photograph_keeps_its_aspect(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    for ending in ("png", "jpg", "tiff", "webp"):
        Image.new("RGB", (64, 32)).save(tmp_path / f"a.{ending}", exif=turned)
        frame = first_frame(tmp_path / f"a.{ending}", SampleSettings(height=64, width=32, multiple=16))
        assert (frame.height, frame.width) == (64, 32), ending


def test_a_first_frame_travels_without_its_file(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", torch.rand(3, 16, 16))
    sample = Sample("a", "go", first_frame(tmp_path / "a.png", FORM), 9, 8, 16, 16)
    assert sample == dataclasses.replace(sample) and sample.image is not None
    sent, sample_image = pickle.dumps(sample), sample.image
    (tmp_path / "a.png").unlink()
    assert torch.equal(pickle.loads(sent).image, sample_image)
    with pytest.raises(UserError, match=r"a.png cannot be read"):
        _ = sample.image
    with pytest.raises(UserError, match="the image is .3, 16, 16., but the video is 32x16"):
        dataclasses.replace(sample, height=32)


@pytest.mark.parametrize(
    "content, message",
    [(None, "there is no such file"), (b"", "is empty"), (b"no image", "cannot be read as an image")],
)
def test_unreadable_image(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_image(path, 8, 8)


def test_truncated_image(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read"):
        read_image(tmp_path / "x.png", 8, 8)
