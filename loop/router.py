"""What to do with a step that keeps failing (CollabVR, section 3: failure routing)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field
from torch import Tensor

from ttopt.models.chat import Message

from .verifier import _lower
from .wording import Wording, done_text, message


class Route(BaseModel):
    """The router's reply: one more try, smaller steps, or the whole task in one clip."""

    action: Annotated[Literal["regen", "split", "fallback"], BeforeValidator(_lower)]
    suggestion: str = ""
    reason: str = ""
    estimated_steps: int = Field(default=1, ge=1)


def route(
    ask: Callable[[Message, type[Route]], Route],
    wording: Wording,
    start: Tensor | None,
    frame: Tensor | None,
    prompt: str,
    done: Sequence[str],
    action: str,
    reason: str,
    tries: int,
) -> Route:
    """What to do after ``tries`` rejected clips from ``frame`` (3,H,W); ``reason`` is the last verdict's."""
    images = [] if frame is None else [frame]
    asked = message(
        wording.route,
        start,
        images,
        "current_image",
        prompt=prompt,
        done=done_text(done),
        action=action,
        reason=reason,
        tries=tries,
    )
    return ask(asked, Route)
