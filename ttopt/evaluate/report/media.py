"""The videos of a page: checked, embedded or linked, with a thumbnail."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import av
from PIL import Image

from ttopt.data.sample import LARGEST
from ttopt.data.video import enlarged
from ttopt.errors import UserError, brief
from ttopt.record.plain import VIDEO, check_video, read_plain, there

EMBED_MB = 64.0  # more video than this is linked, not embedded: browsers choke on larger pages
THUMBNAIL = 96  # pixels

T = TypeVar("T")


@dataclass(frozen=True)
class Look:
    """What a video looks like. ``thumbnail``: its first frame as a data URI, small in bytes too: a page may have a
    thousand. ``width`` and ``height`` are those it was made in, which a small video's file enlarges."""

    thumbnail: str
    fps: float
    frames: int
    width: int
    height: int


class Media:
    """The files of one page. What lies outside ``root`` or is not what its name says becomes one of the ``problems``;
    ``videos`` are all that may be asked for, embedded if that is wished and they are not too large."""

    def __init__(self, root: Path, videos: Sequence[Path], embed: bool = True) -> None:
        self.root = root
        self.problems: list[str] = []
        sizes = [size for path in videos if (size := self._size(path)) is not None]
        self.embed = embed and sum(sizes) <= EMBED_MB * 2**20

    def read(self, path: Path, how: Callable[[Path], T]) -> T | None:
        """What ``how`` makes of a file; None if it is not there or cannot be read."""
        if not there(path):
            return None
        try:
            return how(path)
        except UserError as error:
            self.problems.append(f"{error}; it is left out")
            return None

    def video(self, path: Path, needed: bool = True) -> tuple[str, Look | None]:
        """Data URI or relative address of a video, and its look; ("", None) if there is none that can be shown.

        One that is linked and whose look is not ``needed`` is not decoded: of a thousand that takes minutes.
        """
        if self._size(path) is None:
            return "", None
        if not (needed or self.embed):
            return self._address(path), None
        look = self.read(path, _look)
        if look is None:
            return "", None
        if not self.embed:
            return self._address(path), look
        content = self.read(path, lambda place: read_plain(place, self.root, VIDEO))
        return ("", None) if content is None else (_uri("video/mp4", content), look)

    def _address(self, path: Path) -> str:
        return quote(os.path.relpath(path, self.root).replace(os.sep, "/"))

    def _size(self, path: Path) -> int | None:
        try:
            return check_video(path, self.root) if there(path) else None
        except UserError as error:
            problem = f"{error}; it is left out"
            if problem not in self.problems:
                self.problems.append(problem)
            return None


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _look(video: Path) -> Look:
    try:
        # Named, or its content would choose the format: a playlist names other files.
        with av.open(str(video), format="mp4") as container:
            stream = container.streams.video[0]
            fps, frames = float(stream.average_rate or 8), stream.frames or 1
            if max(stream.width, stream.height) > LARGEST or not 0 < fps < 1000:
                raise UserError(f"{video} has {stream.width}x{stream.height} pixels and {fps:g} frames a second")
            image = next(container.decode(video=0)).to_image()
            factor = enlarged(container.metadata.get("comment", ""), stream.width, stream.height)
    except (av.FFmpegError, StopIteration, IndexError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{video} cannot be read as a video ({brief(error)}); remove its folder") from error
    width, height = (side // factor for side in image.size)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, format="WEBP", quality=80)
    return Look(_uri("image/webp", file.getvalue()), fps, frames, width, height)
