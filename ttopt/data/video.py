"""Frames to and from files: mp4 (H.264) with exact frame counts, PNG without loss."""

from __future__ import annotations

import struct
import warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ttopt.errors import UserError

# What Pillow raises for a file that is no image, or a dangerous one.
UNREADABLE = (
    UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError,
    TypeError, KeyError, EOFError, struct.error,
)  # fmt: skip
FRAMES = "frames.png"  # beside a small video.mp4: its frames without loss
SMALL = 128  # pixels; H.264 halves the resolution of colors, which ruins colored things a few pixels large
# Visually lossless; chain tensors or PNG files where the last bit counts. Without mbtree, which x264 computes a little
# differently each time, the same frames always make the same file.
H264 = {"crf": "12", "preset": "medium", "x264-params": "mbtree=0"}


def write_video(path: Path, video: Tensor, fps: float) -> None:
    """Writes ``video`` (T,3,H,W), float in [0,1], H and W even, as an mp4 of exactly T frames."""
    frames = to_uint8(video)
    _, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise ValueError(f"H.264 needs even sizes, got {height}x{width}")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=H264)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def read_video(path: Path) -> Tensor:
    """All frames of a video file, (T,3,H,W) float32 in [0,1]. Raises UserError for what is no video."""
    return read_video_rate(path)[0]


def read_video_rate(path: Path) -> tuple[Tensor, float]:
    """As ``read_video``, and the frames a second."""
    try:
        with av.open(str(path)) as container:
            rate = float(container.streams.video[0].average_rate or 0)
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, OSError, IndexError) as error:
        raise UserError(f"{path} cannot be read as a video ({error}); give an mp4 file") from error
    if not frames:
        raise UserError(f"{path} holds no video frames; give an mp4 file")
    if len({frame.shape for frame in frames}) > 1:
        raise UserError(f"{path} has frames of different sizes; give a video of one size")
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 255, rate


def video_rate(path: Path) -> float:
    """Frames a second of a video file, 0 where it does not say."""
    with av.open(str(path)) as container:
        return float(container.streams.video[0].average_rate or 0)


def write_frames(folder: Path, video: Tensor) -> None:
    """Writes a small ``video`` (T,3,H,W) side by side into frames.png; a large one loses too little to need it."""
    if max(video.shape[-2:]) <= SMALL:
        write_image(folder / FRAMES, strip(video))


def read_frames(folder: Path) -> Tensor:
    """The video of a result folder, (T,3,H,W) float32 in [0,1]: without loss if it lies there so. Raises UserError."""
    video = read_video(folder / "video.mp4")
    path = folder / FRAMES
    if not path.exists():
        return video
    frames, _, height, width = video.shape
    side_by_side = read_image(path, height, frames * width)
    return torch.stack(side_by_side.split(width, dim=-1))


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


def strip(video: Tensor) -> Tensor:
    """Frames side by side: (T,3,H,W) -> (3,H,T*W)."""
    return torch.cat(list(video), dim=-1)


def to_uint8(video: Tensor) -> np.ndarray:
    """(T,3,H,W) float in [0,1] -> (T,H,W,3) uint8."""
    scaled = (video.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(scaled.permute(0, 2, 3, 1).cpu().numpy())


def sample_frames(count: int, total: int) -> list[int]:
    """K uniformly sampled frame numbers of a video, first and last included: round(linspace(0, total-1, K)).

    All of them, with a warning, where the video has fewer than K.
    """
    if count > total:
        warnings.warn(f"the video has only {total} frames: all are looked at instead of {count}", stacklevel=2)
    return torch.linspace(0, total - 1, min(count, total), dtype=torch.float64).round().long().tolist()
