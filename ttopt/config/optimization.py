"""Settings of the optimization of one sample, and of the bank that it may start from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ttopt.config.fields import Group, setting

KEEP = Literal["last", "accepted", "better", "best"]


@dataclass(frozen=True)
class OptimizationSettings(Group):
    """Algorithm 1's numbers."""

    steps: int = setting(40, low=1, cap=100_000, give="1 or more (base.mp4 is the video of 0 steps)")
    """N: most optimization steps per sample."""
    lr: float = setting(5e-5, above=0, give="a positive learning rate such as 5e-5")
    """Learning rate of AdamW."""
    tau: float = setting(0.22, low=0, why=", but a loss is never below 0", give="0.22, or 0 to use all steps")
    """Stop as soon as the loss is at most tau (0.22: about 80 % sure of "Yes")."""
    goal_weight: float = setting(0.5, low=0, high=1, give="a number from 0 to 1")
    """Weight of the goal query; the process queries share the rest."""
    denoise_step: Literal["first", "last", "all"] = "first"
    """Which denoising step is optimized."""
    clip_norm: float = setting(1.0, above=0, give="a positive number such as 1")
    """Largest gradient norm."""
    weight_decay: float = setting(0.0, low=0)
    """AdamW weight decay."""
    starts: int = setting(1, low=1, cap=10_000)
    """Start from the first noise, of this many, whose one-step prediction has a loss of at most tau, or else from the
    one with the lowest. 1: the seed's own."""
    keep: KEEP = "last"
    """Which video is kept. last: the adapter's, accepted or not. accepted: the frozen model's if the loss stayed above
    tau. better: the one of the two with the lower loss. best: as better, or the adapter's one-step prediction."""


@dataclass(frozen=True)
class BankSettings(Group):
    """A bank of adapters that satisfied the teacher, from which new samples may start (docs/bank.md)."""

    folder: str | None = None
    """Folder of the bank, which runs share; null: none, every adapter starts from zero. Only ttopt.methods.TeacherLora
    uses it."""
    least_similarity: float = setting(0.9, low=-1, high=1, give="a cosine from -1 to 1, e.g. 0.9")
    """Start from the most similar entry if prompt and first image are at least this similar: cosine, -1 to 1."""
    add: bool = setting(True, free=True)
    """Adapters that satisfy the teacher enter the bank, for later runs."""
