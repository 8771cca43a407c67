"""Few steps: the reasoner learns to finish what its first step began.

At lower noise levels it meets its own first predictions, noised again, and must still make the right answer of them;
and wrong films, which it must keep as they are, so that the first step decides what happens (and what the adapter
changes there survives) while the later ones only make it clean.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.code import CHANNELS, SCALE, film_code
from training.common import Ema, Run, cosine, device, update
from training.corruptions import corrupt
from training.reasoner import (
    BATCH,
    FIRST_NOISE,
    TEXT_LENGTH,
    Batch,
    cell_weights,
    embed,
    load_state,
    optimizers_for,
    predict,
    training_tasks,
)
from ttopt.miniworld.look import BOARDS
from ttopt.miniworld.tokenizer import reasoner_tokenizer

SIGMAS = (1.0, 0.5, 0.25)  # noise levels of the few-step sampler
STEPS, FIRST_TASK = 2000, 2_000_000  # the tasks are others than before
SHARE = 0.5  # of the learning rates of the stage before


@torch.no_grad()
def sample(transformer: nn.Module, noise: Tensor, first: Tensor, text: Tensor) -> Tensor:
    """Latents of the few-step sampler at SIGMAS."""
    latents = noise
    for sigma, following in zip(SIGMAS, (*SIGMAS[1:], 0.0), strict=True):
        clean = predict(transformer, latents, sigma, first, text)
        latents = clean + following / sigma * (latents - clean)
    return latents


def train(folder: Path, start: Path, steps: int = STEPS) -> None:
    """Goes on from the state of the stage before. ``folder`` keeps the new one."""
    torch.manual_seed(4)
    tokenizer = reasoner_tokenizer(TEXT_LENGTH)
    transformer, encoder = (m.to(device()).train() for m in load_state(start))
    both = nn.ModuleDict({"transformer": transformer, "encoder": encoder})
    optimizers, ema = optimizers_for(both), Ema(both, 0.995)
    run = Run(folder, {"all": both}, optimizers, ema)
    for step in run.steps(steps):
        rng = np.random.default_rng([3, step])
        generator = torch.Generator().manual_seed(50_000_000 + step)
        tasks = training_tasks(FIRST_TASK // BATCH + step, BATCH)
        batch = Batch(tasks, tokenizer)
        noise = torch.randn((BATCH, CHANNELS, BOARDS, 6, 6), generator=generator).to(device())
        clean = batch.first().to(noise)
        first = clean[:, :, :1] + FIRST_NOISE * torch.randn(clean[:, :, :1].shape, generator=generator).to(noise)
        text = embed(encoder, batch.ids.to(device()), batch.mask.to(device()))
        level = int(rng.integers(len(SIGMAS))) if step % 2 else 0
        sigma = SIGMAS[level]
        begun = clean.clone()
        if level:
            with torch.no_grad():
                begun = predict(transformer, noise, 1.0, first, text)
            wrong = slice(0, BATCH // 2)
            films = torch.stack([film_code(corrupt(task, rng)[1]) for task in tasks[wrong]]) / SCALE
            begun[wrong] = films.to(begun)
            clean[wrong] = films.to(begun)
        found = predict(transformer, (1 - sigma) * begun + sigma * noise, sigma, first, text)
        error = ((found - clean) * SCALE).square() * cell_weights(batch.codes.to(clean))
        loss = 40 * error[:, :, 1:].mean()
        update(loss, both, optimizers, ema, SHARE * cosine(step, steps, 100))
        if step % 50 in (0, 1):
            run.log(step, sigma=sigma, loss=loss)
