"""Frames to and from files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from ttopt.data.video import read_frames, read_image, read_video, strip, write_frames, write_image, write_video
from ttopt.errors import UserError


@pytest.mark.parametrize("frames, fps", [(1, 8), (9, 8), (89, 24)])
def test_video_keeps_frame_count_and_looks(frames: int, fps: int, tmp_path: Path) -> None:
    ramp = torch.linspace(0.1, 0.9, frames)[:, None, None, None]
    video = ramp * torch.ones(frames, 3, 32, 48)
    write_video(tmp_path / "a.mp4", video, fps)
    back = read_video(tmp_path / "a.mp4")
    assert back.shape == video.shape
    assert (back - video).abs().mean() < 0.02


def test_odd_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even"):
        write_video(tmp_path / "a.mp4", torch.zeros(1, 3, 15, 16), 8)


def test_png_is_lossless(tmp_path: Path) -> None:
    levels = torch.randint(0, 256, (3, 6, 8))
    write_image(tmp_path / "a.png", levels / 255)
    assert torch.equal((read_image(tmp_path / "a.png", 6, 8) * 255).round().long(), levels)
    assert read_image(tmp_path / "a.png", 16, 16).shape == (3, 16, 16)


def test_strip_is_side_by_side() -> None:
    assert strip(torch.zeros(4, 3, 5, 6)).shape == (3, 5, 24)


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


def test_unreadable_video(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"no video")
    for path in (tmp_path / "x.mp4", tmp_path / "absent.mp4"):
        with pytest.raises(UserError, match="cannot be read as a video"):
            read_video(path)


def test_frames_of_different_sizes_are_no_video(tmp_path: Path) -> None:
    with (tmp_path / "x.mjpeg").open("wb") as file:
        for size in (48, 64):
            Image.new("RGB", (size, size)).save(file, "JPEG")
    with pytest.raises(UserError, match="frames of different sizes; give a video of one size"):
        read_video(tmp_path / "x.mjpeg")


def test_small_videos_are_kept_without_loss(tmp_path: Path) -> None:
    video = (torch.rand(5, 3, 48, 32) * 255).round() / 255
    write_video(tmp_path / "video.mp4", video, 8)
    assert not torch.equal(read_frames(tmp_path), video), "only the mp4 yet"
    write_frames(tmp_path, video)
    assert torch.equal(read_frames(tmp_path), video)
    (tmp_path / "large").mkdir()
    write_frames(tmp_path / "large", torch.rand(2, 3, 48, 192))
    assert not any((tmp_path / "large").iterdir())
