"""Clips as tensors (T,3,H,W) in [0,1]: chaining, splicing, joining. Nothing is ever read back from a lossy file.

A clip's first frame shows its condition, which is the last frame of what came before: it is left out when two are put
together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ttopt.record.metrics import similarity

LEAST_NEW = 4  # frames: one latent frame


def join(clips: Sequence[Tensor]) -> Tensor:
    """One video, every joint frame once."""
    return torch.cat([clips[0], *(clip[1:] for clip in clips[1:])])


def splice(kept: Tensor, resumed: Tensor, length: int) -> Tensor:
    """``kept`` and what was made from its last frame, as a clip of exactly ``length`` frames."""
    whole = torch.cat([kept, resumed[1:]])
    assert len(whole) >= length
    return whole[:length]


def good_frames(fraction: float, length: int, threshold: float) -> int:
    """How many first frames of a rejected clip are kept; 0: none. At least one latent frame is made again."""
    if fraction <= threshold:
        return 0
    kept = min(math.floor(fraction * length + 1e-6), length - LEAST_NEW)
    return kept if kept > 1 else 0  # the first frame alone is the condition


def reasoner_length(frames: int, shortest: int) -> int:
    """The least 4k+1 that gives ``frames`` frames, but at least ``shortest`` frames."""
    return 4 * math.ceil((max(frames, shortest) - 1) / 4) + 1


def frames_of(seconds: float, fps: int) -> int:
    """The 4k+1 nearest to ``seconds``."""
    return max(4 * round(seconds * fps / 4) + 1, 5)


def shown_frames(length: int, fps: int, per_second: float) -> list[int]:
    """Frame numbers at ``per_second``, the first and the last always among them."""
    step = max(fps / per_second, 1.0)
    regular = {round(number * step) for number in range(math.floor((length - 1) / step) + 1)}
    return sorted(regular | {length - 1})


def fidelity(clip: Tensor, condition: Tensor) -> float:
    """SSIM of the clip's first frame with its condition (3,H,W)."""
    return similarity(clip[:1], condition[None].to(clip))
