"""What is said to a chat model, and what it says."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

from PIL import Image
from pydantic import BaseModel
from torch import Tensor

from ttopt.data.video import to_uint8


@dataclass(frozen=True)
class Jpeg:
    """An image (3,H,W) that is sent as a JPEG file instead of a PNG one."""

    image: Tensor


@dataclass(frozen=True)
class Mp4:
    """A video file, for servers whose models take one."""

    content: bytes


@dataclass(frozen=True)
class Message:
    """What one side says: texts, images (3,H,W) float in [0,1] and video files, in order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Tensor | Jpeg | Mp4, ...]

    @property
    def text(self) -> str:
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> list[Tensor]:
        found = (part.image if isinstance(part, Jpeg) else part for part in self.parts)
        return [part for part in found if isinstance(part, Tensor)]

    @cached_property
    def encoded(self) -> list[str | bytes]:
        """The parts, images as files: what is sent and hashed, made once."""
        return [part if isinstance(part, str) else _file(part) for part in self.parts]


@dataclass(frozen=True)
class Reply:
    """What a model said, and what that took."""

    text: str
    latency: float  # seconds
    tokens_in: int
    tokens_out: int
    cost: float  # in the currency of the prices
    model: str
    cut: bool = False  # it has max_tokens, and perhaps no end: the conclusion may be missing
    without: str = ""  # fields of the request that the server refused


class Chat(Protocol):
    """A model that answers."""

    name: str

    def reply(self, messages: Sequence[Message], schema: type[BaseModel] | None = None) -> Reply:
        """The model's answer, if possible held to the ``schema``. Raises ChatError."""
        ...


def fingerprint(messages: Sequence[Message]) -> str:
    """A short hash of everything that was asked, pictures included."""
    digest = hashlib.sha256()
    for message in messages:
        for part in (message.role, *message.encoded):
            digest.update(part.encode() if isinstance(part, str) else part)
            digest.update(b"\0")
    return digest.hexdigest()[:16]


def _file(part: Tensor | Jpeg | Mp4) -> bytes:
    if isinstance(part, Mp4):
        return part.content
    file = io.BytesIO()
    image = part.image if isinstance(part, Jpeg) else part
    picture = Image.fromarray(to_uint8(image[None])[0])
    if isinstance(part, Jpeg):
        picture.save(file, format="JPEG", quality=95)  # as OpenCV's, which benchmarks use
    else:
        picture.save(file, format="PNG")
    return file.getvalue()
