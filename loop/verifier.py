"""Did the action happen? (CollabVR, section 3: step verification)

Only a consistent accept accepts. The reply must be one JSON object and nothing else (thoughts before it and a fence
around it apart), and the object itself must say "accept", that the action happened, that there was progress, and that
the clip begins right. Whatever else says "accept" is asked again, and then an error: an object inside another one or
inside a sentence, which may deny it; one that contradicts itself; a reply that was cut off or stopped by a filter. A
reject needs no such proof.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, model_validator
from torch import Tensor

from ttopt.data.replies import stands_alone
from ttopt.models.chat import Message

from .clips import shown_frames
from .wording import Wording, done_text, message

ROUNDING = 0.01


def _rounded(value: Any) -> Any:
    """1.004 is a 1; a percentage such as 80 stays wrong."""
    if isinstance(value, (int, float)) and not 0 <= value <= 1 and -ROUNDING <= value <= 1 + ROUNDING:
        return min(max(value, 0.0), 1.0)
    return value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), BeforeValidator(_rounded)]


class Verdict(BaseModel):
    """The verifier's reply. ``good_fraction`` is the part of the clip, from its beginning, that is right."""

    reason: str
    action_executed: bool
    progress: Fraction
    good_fraction: Fraction
    confidence: Fraction | None = None
    suggestion: str = ""
    verdict: Annotated[Literal["accept", "reject"], BeforeValidator(_lower)]

    @model_validator(mode="after")
    def _accepts_consistently(self, info: ValidationInfo) -> Verdict:
        if self.accepted and not (self.action_executed and self.progress > 0 and self.good_fraction > 0):
            raise ValueError(
                f"verdict accept contradicts action_executed {str(self.action_executed).lower()}, "
                f"progress {self.progress:g} and good_fraction {self.good_fraction:g}"
            )
        if self.accepted and not stands_alone(info):
            raise ValueError("verdict accept counts only without any words around the JSON object")
        return self

    @property
    def accepted(self) -> bool:
        return self.verdict == "accept"

    @property
    def rank(self) -> tuple[float, float, float]:
        """The verifier's own order of attempts: of two that it rejects alike, the less sure one is the better."""
        sure = self.confidence or 0.0
        return self.progress, self.good_fraction, sure if self.accepted else -sure


def verify(
    ask: Callable[[Message, type[Verdict]], Verdict],
    wording: Wording,
    start: Tensor | None,
    clip: Tensor,
    fps: int,
    frames_per_second: float,
    prompt: str,
    done: Sequence[str],
    action: str,
    target: str,
) -> Verdict:
    """Judges the action, not the whole task, from ``frames_per_second`` of the frames of ``clip`` (T,3,H,W).

    ``target`` is the planned state of the scene after it, if there is one.
    """
    numbers = shown_frames(len(clip), fps, frames_per_second)
    asked = message(
        wording.verify,
        start,
        list(clip[numbers]),
        "clip_images",
        prompt=prompt,
        done=done_text(done),
        action=action,
        target_state=target or "as the action says.",
        seconds=", ".join(f"{number / fps:.1f}" for number in numbers),
    )
    return ask(asked, Verdict)
