"""Where the optimization starts: the noise whose one-step prediction the reward likes best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ttopt.models.distributed import from_rank_zero
from ttopt.models.reasoner import Condition, Reasoner

Losses = Callable[[Tensor, list[int]], Tensor]  # clean latents (b, C, T, h, w) of these samples -> total losses (b,)


@torch.no_grad()
def best_noise(
    reasoner: Reasoner,
    condition: Condition,
    seeds: Sequence[Sequence[int]],
    losses: Losses,
    tau: float,
    computing: Callable[[list[int]], None] = lambda rows: None,
) -> tuple[Tensor, list[int], list[int]]:
    """The best starting noise z1 (B, C, T, h, w) of each of B samples, its seed, and how many were graded.

    ``seeds[b]`` lists the candidates of sample b (equally many for each), of which the first that needs no step (a loss
    of at most tau) is taken, or else the best. A single candidate is taken as it is. With k of them this is Pass@k on
    one-step predictions, which cost a k-th of few-step videos; not in the paper. ``computing`` is told which samples
    the next forward is for.
    """
    columns = list(zip(*seeds, strict=True))
    best, chosen = reasoner.noise(condition, list(columns[0])), list(columns[0])
    tried, lowest = [0] * len(chosen), [math.inf] * len(chosen)
    rows = list(range(len(chosen)))  # samples that have not found theirs
    for column in columns if len(columns) > 1 else ():
        some = condition.select(rows)
        z1 = reasoner.noise(some, [column[row] for row in rows])
        computing(rows)
        total = losses(reasoner.predict_clean(z1, 1.0, some), rows)
        for row, noise, loss in zip(rows, z1, from_rank_zero(total.tolist), strict=True):
            tried[row] += 1
            if loss < lowest[row]:  # False for NaN
                best[row], chosen[row], lowest[row] = noise, column[row], loss
        rows = [row for row in rows if lowest[row] > tau]
        if not rows:
            break
    return best, chosen, tried
