"""Where the optimisation starts: the noise whose one-step prediction the reward likes best."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ttopt.processes import led
from ttopt.reasoner import Condition, Reasoner

Losses = Callable[[Tensor], Tensor]  # clean latents (B, C, T, h, w) -> total losses (B,)


@torch.no_grad()
def best_noise(
    reasoner: Reasoner, condition: Condition, seeds: Sequence[Sequence[int]], losses: Losses
) -> tuple[Tensor, list[int]]:
    """The best starting noise z1 (B, C, T, h, w) of each of B samples, and its seed.

    ``seeds[b]`` lists the candidates of sample b (equally many for each). One candidate is taken as it is. With k of
    them this is Pass@k on one-step predictions, which cost a k-th of few-step videos; not in the paper.
    """
    columns = list(zip(*seeds, strict=True))
    best = reasoner.noise(condition, list(columns[0]))
    if len(columns) == 1:
        return best, list(columns[0])
    chosen = list(columns[0])
    lowest = _finite(losses(reasoner.predict_clean(best, 1.0, condition)))
    for column in columns[1:]:
        z1 = reasoner.noise(condition, list(column))
        total = _finite(losses(reasoner.predict_clean(z1, 1.0, condition)))
        for b in torch.nonzero(total < lowest).flatten().tolist():
            best[b], chosen[b] = z1[b], column[b]
        lowest = torch.minimum(lowest, total)
    return best, chosen


def _finite(total: Tensor) -> Tensor:
    """NaN loses to everything."""
    return torch.nan_to_num(torch.tensor(led(lambda: total.tolist())), nan=torch.inf)
