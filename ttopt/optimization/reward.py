"""The loss the adapter is trained on: lambda * goal + (1 - lambda) / M * sum of the process losses.

VLM-as-Teacher (arXiv 2606.02564), Algorithm 1. Shapes: B videos, M process questions, Q = 1 + M.
"""

from __future__ import annotations

from torch import Tensor


def multi_vqa_loss(per_query: Tensor, goal_weight: float = 0.5) -> Tensor:
    """(B,Q) question losses, goal first -> (B,) loss L; ``goal_weight`` is the paper's lambda, in [0,1].

    Without process questions (Q = 1, the paper's ablation) the goal's loss counts whole.
    """
    if not 0 <= goal_weight <= 1:
        raise ValueError(f"goal_weight is {goal_weight}, but lambda lies in [0, 1]")
    goal, process = per_query[:, 0], per_query[:, 1:]
    if process.shape[1] == 0:
        return goal
    return goal_weight * goal + (1 - goal_weight) * process.mean(1)
