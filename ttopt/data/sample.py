"""A reasoning instance: what the reasoner is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ttopt.errors import UserError

ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no files under Windows
LARGEST = 8192  # pixels, width and height
LONGEST = 10_000  # frames
FASTEST = 1000  # frames a second


@dataclass(frozen=True)
class Sample:
    """A condition c = (p, x) and the video's format (VLM-as-Teacher, section 3).

    ``image`` is the first frame, (3, height, width) float32 in [0, 1], or None for text-to-video. ``answer`` belongs
    to the scorer and must never reach a model. Raises UserError for a sample no model could use.
    """

    id: str
    prompt: str
    image: Tensor | None
    frames: int
    fps: int
    height: int
    width: int
    family: str = ""
    split: str = ""
    answer: Any = None

    def __post_init__(self) -> None:
        if not ID_PATTERN.fullmatch(self.id) or self.id.endswith(".") or DEVICE.fullmatch(self.id):
            raise UserError(
                f"sample id {self.id!r} cannot name a folder: use 1-120 letters, digits, '.', '_' or '-', "
                "starting with a letter or digit, and no name that Windows keeps for itself, such as con or nul"
            )
        if not self.prompt.strip():
            raise UserError(f"sample {self.id}: the prompt is empty; give --sample.prompt 'what should happen'")
        try:
            self.prompt.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"sample {self.id}: the prompt {self.prompt!r} is no UTF-8; write it anew") from error
        if not 1 <= self.frames <= LONGEST or self.frames % 4 != 1:
            raise UserError(f"sample {self.id}: {self.frames} frames; Wan videos have 4k+1 frames (5, 9, ... 81, 89)")
        if not 1 <= self.fps <= FASTEST:
            raise UserError(f"sample {self.id}: {self.fps} frames a second; give 1 to {FASTEST}")
        if not (1 <= self.height <= LARGEST and 1 <= self.width <= LARGEST):
            raise UserError(
                f"sample {self.id}: {self.width}x{self.height} pixels; give a width and height of 1 to {LARGEST}"
            )
        if self.image is not None and tuple(self.image.shape) != (3, self.height, self.width):
            raise UserError(
                f"sample {self.id}: the image is {tuple(self.image.shape)}, "
                f"but the video is {self.height}x{self.width}; resize one of them"
            )


Scorer = Callable[[Sample, Tensor], Any]  # sample, video (T,3,H,W) in [0,1] -> object with success, partial, rules
Status = Callable[[str], None]  # is told in one line what is being done
