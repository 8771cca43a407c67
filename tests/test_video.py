"""Videos from and to files: what is read is what was written, and every player shows it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from PIL import Image
from torch import Tensor

from ttopt.data import miniworld
from ttopt.data.video import decode, enlargement, read_video, strip, write_video
from ttopt.errors import UserError
from ttopt.record.metrics import drift


def smooth(frames: int, height: int, width: int, detail: int = 24) -> Tensor:
    """Random colors that change smoothly, one about every ``detail`` pixels."""
    points = torch.rand(1, 3, 3, height // detail + 2, width // detail + 2, generator=torch.Generator().manual_seed(0))
    size = (frames, height, width)
    return torch.nn.functional.interpolate(points, size, mode="trilinear")[0].transpose(0, 1).contiguous()


def noise(frames: int, height: int, width: int) -> Tensor:
    return torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(0))


def sprites() -> Tensor:
    """Right videos of the sprite world in all its colors, a frame of each board."""
    return torch.cat([miniworld.true_video(sample)[::4] for sample in miniworld.samples("ood", None, 3, 12)])


def levels(video: Tensor) -> Tensor:
    return (video * 255).round()


SMALL = [sprites(), noise(5, 48, 48), smooth(9, 48, 48, 6), noise(2, 15, 31), noise(2, 128, 96), smooth(2, 254, 400)]


@pytest.mark.parametrize("video", SMALL)
def test_small_videos_are_read_as_they_were_written(video: Tensor, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", video, 8)
    off = (levels(read_video(tmp_path / "a.mp4")) - levels(video)).abs()
    assert off.max() <= 2 and (off > 1).float().mean() < 1e-3
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert min(stream.width, stream.height) >= 512 and stream.profile == "High", "seen, and played everywhere"


@pytest.mark.parametrize("detail, decibels", [(200, 47), (24, 39)])
def test_real_videos_are_not_enlarged(detail: int, decibels: float, tmp_path: Path) -> None:
    video = smooth(2, 704, 1280, detail)
    write_video(tmp_path / "a.mp4", video, 24)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (1280, 704)
    assert drift(read_video(tmp_path / "a.mp4"), video)["psnr"] > decibels


def test_enlargements_are_even_and_not_too_wide() -> None:
    sizes = {(48, 48): 12, (15, 31): 36, (128, 96): 6, (254, 400): 4, (256, 256): 1, (480, 832): 1, (16, 960): 4}
    assert {size: enlargement(*size) for size in sizes} == sizes
    assert enlargement(16, 8000) == 2


@pytest.mark.parametrize("frames, fps, size", [(1, 8, 48), (9, 29.97, 48), (89, 24, 256)])
def test_frame_count_and_rate_are_exact(frames: int, fps: float, size: int, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", torch.linspace(0, 1, frames).view(-1, 1, 1, 1).expand(-1, 3, size, size), fps)
    video = decode(tmp_path / "a.mp4")
    assert len(video.frames) == frames and video.rate == pytest.approx(fps, abs=1e-4)


@pytest.mark.parametrize(
    "comment, size",
    [
        ("enlarged 12x from 4x4", (4, 4)),
        ("", (48, 48)),
        ("enlarged 12x from 48x48", (48, 48)),
        ("enlarged 3x from 16x16", (48, 48)),
        ("enlarged 0x from 0x0", (48, 48)),
        ("enlarged 12x", (48, 48)),
    ],
)
def test_files_of_others_are_read_as_they_are(comment: str, size: tuple[int, int], tmp_path: Path) -> None:
    """An enlargement is undone only where it can be true; whatever the file's color format."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=8, width=48, height=48, pix_fmt="yuv444p")
        frame = av.VideoFrame.from_image(Image.new("RGB", (48, 48), (200, 40, 90)))
        container.mux([*stream.encode(frame), *stream.encode(None)])
    video = read_video(tmp_path / "a.mp4")
    assert video.shape == (1, 3, *size)
    assert (video.mean((0, 2, 3)) * 255 - torch.tensor([200, 40, 90])).abs().max() < 4


@pytest.mark.parametrize("size", [96, 768])
def test_chromium_plays_them(size: int, browser: Any, tmp_path: Path) -> None:
    """Every frame, in its colors. Of 720 lines and more players take other colors for granted than these."""
    video = sprites()[:9] if size == 96 else smooth(9, size, size, 200)
    write_video(tmp_path / "a.mp4", video, 8)
    page = browser.new_page()
    page.set_content("<video muted></video><canvas></canvas>")
    source = "data:video/mp4;base64," + base64.b64encode((tmp_path / "a.mp4").read_bytes()).decode()
    shown = page.evaluate(
        """async ([source, cells, frames]) => {
            const video = document.querySelector('video'), canvas = document.querySelector('canvas')
            const after = event => new Promise((done, fail) => { video['on' + event] = done; video.onerror = fail })
            const loaded = after('loadeddata')
            video.src = source
            await loaded
            canvas.width = video.videoWidth; canvas.height = video.videoHeight
            const pen = canvas.getContext('2d', {willReadFrequently: true}), side = canvas.width / cells, found = []
            for (let frame = 0; frame < frames; frame++) {
                const there = after('seeked')
                video.currentTime = (frame + .5) / 8
                await there
                pen.drawImage(video, 0, 0)
                const data = pen.getImageData(0, 0, canvas.width, canvas.height).data
                const at = i => Math.floor((i + .5) * side)
                for (let y = 0; y < cells; y++) for (let x = 0; x < cells; x++) {
                    const first = 4 * (at(y) * canvas.width + at(x))
                    found.push(...data.slice(first, first + 3))
                }
            }
            return found
        }""",
        [source, 96, 9],
    )
    every = size // 96
    seen = torch.tensor(shown).view(9, 96, 96, 3).permute(0, 3, 1, 2)
    meant = levels(video)[..., every // 2 :: every, every // 2 :: every]
    assert (seen - meant).abs().max() <= (4 if size == 96 else 8)


def test_odd_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="even"):
        write_video(tmp_path / "a.mp4", torch.zeros(1, 3, 257, 256), 8)


def test_strip_is_side_by_side() -> None:
    assert strip(torch.zeros(4, 3, 5, 6)).shape == (3, 5, 24)


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
