"""The light decoder of the optimization loop: a small TAEHV, one frame a latent frame, the board after each move.

It draws noisy codes of random films. A blend of two codes, what a prediction that cannot decide looks like, becomes the
same blend of their pictures, so that the teacher's gradient says which way to decide.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.code import CHANNELS, SCALE, film_code
from training.common import Ema, Run, averaged, cosine, device, matrices_and_rest, update
from training.films import random_film
from training.vae import pixel_loss
from training.world.look import PER_MOVE, render
from ttopt.models.reasoner.light_decoder import LightDecoder, LightDecoderConfig

STEPS, FILMS, BOARDS = 3000, 4, 3
MUON, ADAM, NOISE = 0.01, 2e-3, 0.1
CONFIG = LightDecoderConfig(
    channels=(64, 48, 32, 32), latent_channels=CHANNELS, patch_size=4, time_upscale=(False, False, False),
    space_upscale=(True, True, False),
)  # fmt: skip


def films(rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Boards after each move (count, B, 3, 96, 96) of random films, and their codes (count, 20, B, 6, 6)."""
    made = [random_film(rng, BOARDS, float(rng.uniform(0.2, 1))) for _ in range(count)]
    return torch.stack([render(f)[::PER_MOVE] for f in made]), torch.stack([film_code(f) for f in made])


def train(folder: Path, steps: int = STEPS) -> None:
    """Trains; ``folder`` keeps the state."""
    torch.manual_seed(5)
    light = LightDecoder(CONFIG).to(device())
    optimizers, ema = matrices_and_rest(light, MUON, ADAM), Ema(light, 0.995)
    run = Run(folder, {"light": light}, optimizers, ema)
    frames = [PER_MOVE * board for board in range(BOARDS)]
    for step in run.steps(steps):
        rng = np.random.default_rng([4, step])
        generator = torch.Generator().manual_seed(step)
        target, code = films(rng, FILMS)
        part = torch.rand(FILMS, 1, 1, 1, 1, generator=generator) * (
            torch.rand(FILMS, 1, 1, 1, 1, generator=generator) < 0.3
        )
        code = torch.lerp(code, code.roll(1, 0), part) + NOISE * torch.randn(code.shape, generator=generator)
        target = torch.lerp(target, target.roll(1, 0), part)
        target, code = target.to(device()), code.to(device())
        error = light(code / SCALE, frames) - target
        loss = pixel_loss(error, target)
        update(loss, light, optimizers, ema, cosine(step, steps))
        if step % 50 == 0:
            run.log(step, loss=loss, psnr=-10 * error.square().mean().log10())


def load_state(state: Path) -> LightDecoder:
    """The averaged decoder of a training's state."""
    light = LightDecoder(CONFIG)
    averaged(state, "light", light)
    return light.eval().requires_grad_(False)


def save(state: Path, out: Path) -> None:
    """Writes the decoder of a training's state in float16."""
    load_state(state).half().save(out)
