"""The multi-VQA loss as a table."""

from __future__ import annotations

import pytest
import torch

from ttopt.optimization.reward import multi_vqa_loss


@pytest.mark.parametrize(
    ("per_query", "goal_weight", "total"),
    [
        ([1.0, 3.0], 0.5, 2.0),
        ([1.0, 2.0, 4.0], 0.5, 2.0),  # process questions share their half: 0.5 * 1 + 0.25 * 2 + 0.25 * 4
        ([1.0, 2.0, 4.0, 6.0], 0.25, 3.25),
        ([1.0, 2.0, 4.0], 1.0, 1.0),
        ([1.0, 2.0, 4.0], 0.0, 3.0),
        ([1.5], 0.5, 1.5),  # goal only
        ([0.22, 0.22, 0.22, 0.22], 0.5, 0.22),
    ],
)
def test_loss_is_the_weighted_mean(per_query: list[float], goal_weight: float, total: float) -> None:
    loss = multi_vqa_loss(torch.tensor([per_query, [0.0] * len(per_query)]), goal_weight)
    torch.testing.assert_close(loss, torch.tensor([total, 0.0]))


def test_gradient_reaches_every_question() -> None:
    per_query = torch.ones(2, 3, requires_grad=True)
    multi_vqa_loss(per_query, goal_weight=0.5).sum().backward()
    torch.testing.assert_close(per_query.grad, torch.tensor([[0.5, 0.25, 0.25]]).expand(2, 3))


@pytest.mark.parametrize("goal_weight", [-0.1, 1.1])
def test_a_weight_outside_the_unit_interval_is_refused(goal_weight: float) -> None:
    with pytest.raises(ValueError, match="lambda"):
        multi_vqa_loss(torch.ones(1, 2), goal_weight)
