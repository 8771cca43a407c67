"""Images from and to files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from ttopt.data.images import read_image, write_image
from ttopt.errors import UserError


def test_png_is_lossless(tmp_path: Path) -> None:
    levels = torch.randint(0, 256, (3, 6, 8))
    write_image(tmp_path / "a.png", levels / 255)
    assert torch.equal((read_image(tmp_path / "a.png", 6, 8) * 255).round().long(), levels)
    assert read_image(tmp_path / "a.png", 16, 16).shape == (3, 16, 16)


def test_transparent_and_grey_images_are_read(tmp_path: Path) -> None:
    for mode in ("RGBA", "L", "P"):
        Image.new(mode, (8, 8)).save(tmp_path / f"{mode}.png")
        assert read_image(tmp_path / f"{mode}.png", 8, 8).shape == (3, 8, 8)


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
