"""One planned action on its way to an accepted clip."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from .verifier import Verdict


@dataclass
class Attempt:
    """A clip as it was judged; ``verdict`` None: not judged."""

    clip: Tensor  # (T,3,H,W)
    verdict: Verdict | None = None


@dataclass
class Step:
    """One action on its way. ``prompt`` is the action with all suggestions, ``kept`` the prefix that stays."""

    number: int
    action: str
    prompt: str
    frames: int
    start: Tensor | None  # (3,H,W): the frame it starts from; None: text to video
    clips: tuple[Tensor, ...]  # H when it began, as clips
    done: tuple[str, ...]  # H as actions
    target: str = ""  # how the planner says that the scene looks right after the action; empty: it does not
    kept: Tensor | None = None
    attempts: list[Attempt] = field(default_factory=list)
    diagnoses: list[Verdict] = field(default_factory=list)
