"""Flow-matching samplers, as pure functions of a schedule.

Flow matching: the noisy latents are z = (1 - sigma) * z0 + sigma * noise and the model predicts the velocity
u = noise - z0, so the one-step clean-latent prediction is z0 = z - sigma * u (VLM-as-Teacher,
arXiv 2606.02564, Algorithm 1, line "z0 = z1 - u", where sigma = 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from ttopt.errors import UserError

TIMESTEPS = 1000.0  # Wan was trained with timestep = 1000 * sigma


@dataclass(frozen=True)
class Schedule:
    """Noise levels of a few-step sampler.

    ``sigmas`` fall strictly from exactly 1.0 and stay above 0; the final step always goes to sigma 0.
    ``renoise=False`` takes Euler steps; ``renoise=True`` predicts the clean latents and noises them afresh to
    the next level, as models distilled by distribution matching sample (DMD2, arXiv 2405.14867).
    ``solver`` "unipc" takes UniPC's steps of second order instead (arXiv 2302.04867), which look back at earlier ones.
    Raises UserError for any other list.
    """

    sigmas: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    renoise: bool = False
    solver: Literal["euler", "unipc"] = "euler"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigmas", tuple(float(sigma) for sigma in self.sigmas))
        sigmas = self.sigmas
        falling = all(high > low for high, low in pairwise(sigmas))
        if not sigmas or sigmas[0] != 1.0 or sigmas[-1] <= 0.0 or not falling:
            raise UserError(
                f"schedule sigmas {list(sigmas)} must start at 1.0, fall strictly and stay above 0; "
                "for example [1.0, 0.75, 0.5, 0.25]"
            )

    def __len__(self) -> int:
        return len(self.sigmas)

    def next_sigma(self, step: int) -> float:
        """The noise level that step number ``step`` arrives at: the next sigma, or 0.0 for the last step."""
        return self.sigmas[step + 1] if step + 1 < len(self.sigmas) else 0.0


def shifted(steps: int, shift: float, solver: Literal["euler", "unipc"]) -> tuple[float, ...]:
    """As many noise levels as steps, moved towards 1 by ``shift``, where diffusers' scheduler of the solver has them.

    Its schedulers differ: Euler's last level comes from a lowest one that is shifted already, UniPC's leaves it out.
    """
    lowest = 1.0 / TIMESTEPS
    if solver == "unipc":
        even = np.linspace(1.0, lowest, steps + 1)[:-1]
    else:
        even = np.linspace(1.0, shift * lowest / (1.0 + (shift - 1.0) * lowest), steps)
    levels = shift * even / (1.0 + (shift - 1.0) * even)
    return (1.0, *levels[1:].tolist())


def unipc(schedule: Schedule) -> UniPCMultistepScheduler:
    """diffusers' solver for one pass through a schedule, as Wan's pipelines use it; it remembers earlier steps."""
    solver = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)
    solver.set_timesteps(sigmas=np.array(schedule.sigmas))
    return solver


def predict_clean(latents: Tensor, velocity: Tensor, sigma: float) -> Tensor:
    """One-step prediction z0 = z - sigma * u; all tensors (B, C, T, h, w)."""
    return latents - sigma * velocity


def euler_step(latents: Tensor, velocity: Tensor, sigma: float, next_sigma: float) -> Tensor:
    """Follow the velocity from ``sigma`` down to ``next_sigma``; all tensors (B, C, T, h, w)."""
    return latents + (next_sigma - sigma) * velocity


def renoise_step(latents: Tensor, velocity: Tensor, sigma: float, next_sigma: float, noise: Tensor) -> Tensor:
    """Predict clean latents, then noise them afresh to ``next_sigma``; all tensors (B, C, T, h, w)."""
    return (1.0 - next_sigma) * predict_clean(latents, velocity, sigma) + next_sigma * noise


def draw_noise(shape: Sequence[int], generators: Sequence[torch.Generator], device: torch.device | str) -> Tensor:
    """Standard normal (B, *shape) float32, item b drawn from ``generators[b]``.

    Drawn on the CPU, so that a seed means the same noise on every device and in every batch.
    """
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in generators]).to(device)
