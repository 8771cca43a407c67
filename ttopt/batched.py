"""Several samples optimised side by side in one batch, each with its own LoRA, optimiser state and stop.

The same arithmetic as ttopt/module.py (VLM-as-Teacher, Algorithm 1), instance by instance: a batch gives what its
samples give one by one, up to the rounding of batched matrix products.

Shapes: B samples, Q queries each (the same Q), latents (B, C, T, h, w), frames (B, K, 3, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ttopt.config import OptimisationSettings
from ttopt.module import Decoder
from ttopt.reasoner import Condition, Reasoner
from ttopt.reasoner.batched import BatchedAdapter

BatchReward = Callable[[Tensor, Tensor], Tensor]  # frames (B, K, 3, H, W), latents -> total losses (B,)


@dataclass(frozen=True)
class BatchResult:
    """Where each instance stopped. ``losses`` (B,) are those of the kept weights."""

    steps: list[int]
    losses: list[float]
    accepted: list[bool]
    predictions: Tensor  # (B, C, T, h, w) one-step predictions of the kept weights


def optimise_batch(
    reasoner: Reasoner,
    adapter: BatchedAdapter,
    decoder: Decoder,
    reward: BatchReward,
    condition: Condition,
    z1: Tensor,
    frames: Sequence[int],
    settings: OptimisationSettings,
) -> BatchResult:
    """Optimises ``adapter``'s instances in place until each one's loss is at most tau, or for N steps.

    Optimises the first denoising step only. An instance that has stopped keeps its weights to the bit while the others
    go on. Raises ValueError for another ``denoise_step``.
    """
    if settings.denoise_step != "first":
        raise ValueError("batches optimise the first denoising step only")
    parameters = adapter.parameters()
    optimiser = torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay)
    count = z1.shape[0]
    open_ = torch.ones(count, dtype=torch.bool)
    steps, losses = [settings.steps] * count, [float("nan")] * count
    kept = torch.empty_like(z1)
    for step in range(settings.steps + 1):
        last = step == settings.steps
        with torch.set_grad_enabled(not last):
            latents = reasoner.predict_clean(z1, 1.0, condition)
            total = reward(decoder(latents, frames), latents)  # (B,)
        for i, value in enumerate(total.detach().tolist()):
            if open_[i] and (last or value <= settings.tau):
                steps[i], losses[i] = step, value
                kept[i] = latents[i].detach()
                open_[i] = False
        if not open_.any():
            break
        optimiser.zero_grad(set_to_none=True)
        gradients = torch.autograd.grad(total.sum(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        adapter.clip_gradients(settings.clip_norm)
        before = [parameter.detach().clone() for parameter in parameters]
        optimiser.step()
        closed = ~open_
        with torch.no_grad():
            for parameter, old in zip(parameters, before, strict=True):
                parameter[closed] = old[closed]
    accepted = [loss <= settings.tau for loss in losses]
    return BatchResult(steps, losses, accepted, kept)
