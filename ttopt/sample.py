"""A reasoning instance: what the reasoner is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ttopt.errors import UserError

ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


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
        if not ID_PATTERN.fullmatch(self.id) or self.id.endswith("."):
            raise UserError(
                f"sample id {self.id!r} cannot name a folder: use 1-120 letters, digits, '.', '_' or '-', "
                "starting with a letter or digit"
            )
        if not self.prompt.strip():
            raise UserError(f"sample {self.id}: the prompt is empty; give --sample.prompt 'what should happen'")
        if self.frames < 1 or self.frames % 4 != 1:
            raise UserError(f"sample {self.id}: {self.frames} frames; Wan videos have 4k+1 frames (5, 9, ... 81, 89)")
        if self.image is not None and tuple(self.image.shape) != (3, self.height, self.width):
            raise UserError(
                f"sample {self.id}: the image is {tuple(self.image.shape)}, "
                f"but the video is {self.height}x{self.width}; resize one of them"
            )
