"""A reasoning instance: what the reasoner is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ttopt.data.images import FirstFrame
from ttopt.errors import UserError

ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no files under Windows
LARGEST = 8192  # pixels, width and height
LONGEST = 10_000  # frames
FASTEST = 1000  # frames a second


@dataclass(frozen=True)
class Sample:
    """A condition c = (p, x) and the video's format (VLM-as-Teacher, section 3).

    ``first_frame`` is an image (3, height, width) float32 in [0, 1], or where it is read from, or None for
    text-to-video. ``answer`` belongs to the scorer and must never reach a model. Raises UserError for a sample no model
    could use.
    """

    id: str
    prompt: str
    first_frame: Tensor | FirstFrame | None
    frames: int
    fps: int
    height: int
    width: int
    family: str = ""
    split: str = ""
    answer: Any = None

    def __post_init__(self) -> None:
        check_id(self.id)
        if not self.prompt.strip():
            raise UserError(f"sample {self.id}: the prompt is empty; give --sample.prompt 'what should happen'")
        try:
            self.prompt.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"sample {self.id}: the prompt {self.prompt!r} is not UTF-8; write it again") from error
        if not 1 <= self.frames <= LONGEST or self.frames % 4 != 1:
            raise UserError(f"sample {self.id}: {self.frames} frames; Wan videos have 4k+1 frames (5, 9, ... 81, 89)")
        if not 1 <= self.fps <= FASTEST:
            raise UserError(f"sample {self.id}: {self.fps} frames a second; give 1 to {FASTEST}")
        if not (1 <= self.height <= LARGEST and 1 <= self.width <= LARGEST):
            raise UserError(
                f"sample {self.id}: {self.width}x{self.height} pixels; give a width and height of 1 to {LARGEST}"
            )
        first = self.first_frame
        shape = (
            (3, first.height, first.width) if isinstance(first, FirstFrame) else first if first is None else first.shape
        )
        if shape is not None and tuple(shape) != (3, self.height, self.width):
            raise UserError(
                f"sample {self.id}: the image is {tuple(shape)}, "
                f"but the video is {self.height}x{self.width}; resize one of them"
            )

    @property
    def image(self) -> Tensor | None:
        """The first frame's pixels, (3, height, width) float32 in [0, 1]; read each time. Raises UserError."""
        return self.first_frame.pixels() if isinstance(self.first_frame, FirstFrame) else self.first_frame


def check_id(name: str, cure: str = "") -> None:
    """Raises UserError for a name that no folder can have on every file system."""
    if not ID_PATTERN.fullmatch(name) or name.endswith(".") or DEVICE.fullmatch(name):
        raise UserError(
            f"sample id {name!r} cannot name a folder: use 1-120 letters, digits, '.', '_' or '-', "
            f"starting with a letter or digit, and no name that Windows keeps for itself, such as con or nul{cure}"
        )


# Sample and video (T,3,H,W) in [0,1] -> object with success, partial and rules, and if it likes words and frames: see
# ttopt.record.result.Scored.
Scorer = Callable[[Sample, Tensor], Any]
Status = Callable[[str], None]  # is told in one line what is being done
