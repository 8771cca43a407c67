"""The light decoder of the optimization loop: a small TAEHV, one frame a latent frame, the board after each move.

It draws codes of random films with noise of all levels: where it had seen one level only, codes without any made it see
things. A blend of two codes in a cell, what a prediction that wavers looks like, becomes the same blend of their
pictures, so that the teacher's gradient says which way to decide.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from training.code import CHANNELS, SCALE
from training.common import Ema, Run, averaged, device, matrices_and_rest, update
from training.vae import HARD, Phase, noisy, phase_of, pieces, pixel_loss, worst_loss
from training.world.look import CELL, GRID, PER_MOVE
from ttopt.models.reasoner.light_decoder import LightDecoder, LightDecoderConfig

MUON, ADAM = 0.005, 1e-3
PHASES = (
    Phase(3000, 12, 3, 3, 1.0, noise=0.15),
    Phase(2500, 3, GRID, 3, 0.5, noise=0.15),
    Phase(2500, 3, GRID, 3, 0.4, HARD, noise=0.15),
    Phase(2500, 3, GRID, 3, 0.4, HARD, noise=0.15),
)
BLENDED = 0.3  # share of the films, where boards are whole
CONFIG = LightDecoderConfig(
    channels=(96, 64, 40, 32), latent_channels=CHANNELS, patch_size=4, time_upscale=(False, False, False),
    space_upscale=(True, True, False),
)  # fmt: skip


def train(folder: Path, steps: int | None = None) -> None:
    """Trains; ``folder`` keeps the state."""
    torch.manual_seed(5)
    light = LightDecoder(CONFIG).to(device())
    optimizers, ema = matrices_and_rest(light, MUON, ADAM), Ema(light, 0.995)
    run = Run(folder, {"light": light}, optimizers, ema)
    for step in run.steps(steps or sum(phase.steps for phase in PHASES)):
        phase, rate = phase_of(step, PHASES, steps)
        generator = torch.Generator().manual_seed(step)
        video, code = pieces(np.random.default_rng([4, step]), phase)
        target = video[:, ::PER_MOVE]
        if phase.cells == GRID:
            part = torch.rand(phase.count, 1, phase.boards, GRID, GRID, generator=generator)
            part *= torch.rand(phase.count, 1, 1, 1, 1, generator=generator) < BLENDED
            pixels = part.transpose(1, 2).repeat_interleave(CELL, 3).repeat_interleave(CELL, 4)
            code, target = torch.lerp(code, code.roll(1, 0), part), torch.lerp(target, target.roll(1, 0), pixels)
        target, code = target.to(device()), noisy(code, phase, generator).to(device())
        error = light(code / SCALE, [PER_MOVE * board for board in range(phase.boards)]) - target
        loss, hard = pixel_loss(error, target), worst_loss(error)
        update(loss + phase.hard * hard, light, optimizers, ema, rate)
        if step % 50 == 0:
            run.log(step, loss=loss, hard=hard, psnr=-10 * error.square().mean().log10())


def load_state(state: Path) -> LightDecoder:
    """The averaged decoder of a training's state."""
    light = LightDecoder(CONFIG)
    averaged(state, "light", light)
    return light.eval().requires_grad_(False)


def save(state: Path, out: Path) -> None:
    """Writes the decoder of a training's state in float16."""
    load_state(state).half().save(out)
