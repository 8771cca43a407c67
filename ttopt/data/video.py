"""Videos to and from mp4 files (H.264) with exact frame counts.

Every player shows H.264 with a color for two by two pixels, which ruins colored things a few pixels large. So a small
video is written enlarged by an even whole factor, each pixel as a square, and read back as it was: to within two of 255
levels, nearly all within one. Others read such a file as a larger video. A video whose sides are 256 pixels or more is
written as it is, visually without loss: 47 dB where its colors change slowly, 39 where they do every 24 pixels. Chain
tensors or PNG files where the last bit counts.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace
from einops import reduce, repeat
from torch import Tensor

from ttopt.errors import UserError

SMALL = 256  # pixels; a video with a shorter side is enlarged,
SEEN = 512  # until its shorter side has so many pixels
WIDEST = 4096  # or its longer side so many
# Without mbtree, which x264 computes a little differently each time, the same frames always make the same file.
H264 = {"preset": "medium", "x264-params": "mbtree=0"}
VISUALLY_LOSSLESS = H264 | {"crf": "12"}
WATCHED = {"preset": "veryfast", "crf": "18"}
FORMATS = "mp4,matroska,avi,mjpeg"  # of files that are read: of FFmpeg's, some name further files, as playlists do
FINEST = H264 | {"qp": "1"}  # 0 is "lossless", which few players know
COMMENT = "enlarged {factor}x from {width}x{height}"  # in the file's metadata
ENLARGED = re.compile(r"enlarged (\d{1,4})x from (\d{1,4})x(\d{1,4})")
# ITU-R BT.601, full range: what an RGB color is in Y, U and V.
TO_YUV = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
GREY = torch.tensor([0.0, 128.0, 128.0])
ITU709, SRGB = 1, 13  # ISO/IEC 23091-2: which red, green and blue, and how bright


def write_video(path: Path, video: Tensor, fps: float) -> None:
    """Writes ``video`` (T,3,H,W), float in [0,1], as an mp4 of exactly T frames; large ones have even H and W."""
    height, width = video.shape[-2:]
    factor = enlargement(height, width)
    if height * factor % 2 or width * factor % 2:
        raise ValueError(f"H.264 needs even sizes, got {height}x{width}")
    with av.open(str(path), "w", format="mp4") as container:
        options = VISUALLY_LOSSLESS if factor == 1 else FINEST
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = width * factor, height * factor, "yuv420p"
        # Players guess from the size what is not said.
        codec = stream.codec_context
        codec.colorspace, codec.color_range = Colorspace.ITU601, ColorRange.JPEG
        codec.color_primaries, codec.color_trc = ITU709, SRGB
        if factor > 1:
            container.metadata["comment"] = COMMENT.format(factor=factor, width=width, height=height)
        for image in to_uint8(video):
            container.mux(stream.encode(_frame(image, factor)))
        container.mux(stream.encode(None))


@dataclass(frozen=True)
class Decoded:
    """A video file's frames as its codec keeps them, which takes an eighth of the memory and little of the time that
    their pixels do."""

    frames: list[av.VideoFrame]
    rate: float  # frames a second; 0 where the file does not say
    factor: int  # by how much they are enlarged

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T,3,H,W) as it was written."""
        first = self.frames[0]
        return len(self.frames), 3, first.height // self.factor, first.width // self.factor

    def pixels(self, numbers: Sequence[int] | None = None) -> Tensor:
        """The frames of these numbers (None: all), (N,3,H,W) float32 in [0,1]."""
        chosen = self.frames if numbers is None else [self.frames[number] for number in numbers]
        images = [f.to_ndarray(format="rgb24") if self.factor == 1 else _reduced(f, self.factor) for f in chosen]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def decode(path: Path) -> Decoded:
    """All frames of a video file. Raises UserError for what is no video."""
    try:
        with av.open(str(path), options={"format_whitelist": FORMATS}) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            factor = enlarged(container.metadata.get("comment", ""), stream.width, stream.height)
            frames = list(container.decode(video=0))
    except (av.FFmpegError, OSError, IndexError) as error:
        raise UserError(f"{path} cannot be read as a video ({error}); give an mp4 file") from error
    if not frames:
        raise UserError(f"{path} holds no video frames; give an mp4 file")
    if len({(frame.width, frame.height) for frame in frames}) > 1:
        raise UserError(f"{path} has frames of different sizes; give a video of one size")
    return Decoded(frames, rate, factor)


def read_video(path: Path) -> Tensor:
    """All frames of a video file, (T,3,H,W) float32 in [0,1], of the size they were written from.

    Raises UserError for what is no video.
    """
    return decode(path).pixels()


def plays_everywhere(path: Path) -> bool:
    """Whether every browser plays a video file that can be decoded: H.264 with 4:2:0 colors in mp4."""
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        return "mp4" in container.format.name and codec.name == "h264" and codec.pix_fmt in ("yuv420p", "yuvj420p")


def write_to_watch(path: Path, video: Decoded) -> None:
    """Writes ``video``, of even sizes, as an mp4 that every browser plays: fast, for eyes, not for scores."""
    with av.open(str(path), "w", format="mp4") as container:
        rate = Fraction(video.rate or 8).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options=WATCHED)
        stream.width, stream.height = video.frames[0].width, video.frames[0].height
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(video.frames):
            image = frame.reformat(format="yuv420p")
            image.pts, image.time_base = number, 1 / rate
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))


def enlargement(height: int, width: int) -> int:
    """How many times larger a video is written: 1 or, so that no color is shared by two pixels, an even number."""
    shorter, longer = sorted((height, width))
    if shorter >= SMALL:
        return 1
    return 2 * max(1, min(math.ceil(SEEN / shorter / 2), WIDEST // longer // 2))


def enlarged(comment: str, width: int, height: int) -> int:
    """How many times larger the frames of a file are; 1 where its comment does not say, or of another size."""
    found = ENLARGED.fullmatch(comment)
    factor, *size = map(int, found.groups()) if found else (1, width, height)
    return factor if factor and factor % 2 == 0 and [factor * side for side in size] == [width, height] else 1


def _frame(image: np.ndarray, factor: int) -> av.VideoFrame:
    """(H,W,3) uint8 RGB -> a frame of factor times its size. FFmpeg's own conversion darkens by about a level."""
    y, u, v = (torch.from_numpy(image).float() @ TO_YUV.T + GREY).unbind(-1)
    planes = [repeat(plane, "h w -> (h k) (w l)", k=factor, l=factor) for plane in (y, u, v)]
    planes[1:] = [reduce(plane, "(h k) (w l) -> h w", "mean", k=2, l=2) for plane in planes[1:]]
    content = torch.cat([plane.flatten() for plane in planes]).round().clamp(0, 255).to(torch.uint8)
    return av.VideoFrame.from_ndarray(content.view(-1, image.shape[1] * factor).numpy(), format="yuv420p")


def _reduced(frame: av.VideoFrame, factor: int) -> np.ndarray:
    """A frame -> (H,W,3) uint8 RGB, each pixel the mean of its square."""
    area = frame.height * frame.width
    planes = torch.from_numpy(frame.to_ndarray(format="yuvj420p")).flatten().float().split((area, area // 4, area // 4))
    yuv = [
        reduce(plane, "(h k w l) -> h w", "mean", w=frame.width // factor, k=side, l=side)
        for plane, side in zip(planes, (factor, factor // 2, factor // 2), strict=True)
    ]
    rgb = (torch.stack(yuv, dim=-1) - GREY) @ TO_YUV.inverse().T
    return rgb.round().clamp(0, 255).to(torch.uint8).numpy()


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
