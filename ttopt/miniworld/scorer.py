"""The rule-based scorer: pixels in, one verdict per rule out. It never sees how a video was made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ttopt.miniworld.questions import InOrder, Keeps, OffWalls, One
from ttopt.miniworld.scene import Task
from ttopt.miniworld.world import Reading, read


@dataclass(frozen=True)
class Score:
    """``success`` is True when every rule holds; ``partial`` is the mean of the rules' soft truths, in [0, 1]."""

    success: bool
    partial: float
    rules: dict[str, bool]


def rule_truths(task: Task, reading: Reading) -> dict[str, Tensor]:
    """Soft truth (N,) of every rule of a task for N readings of its videos.

    "goal", the process rules, and two that every task has: "nothing new" (no sprite at the end that was not there
    before and was not asked for, none twice, and what was asked to turn has turned) and "pads" (none is erased or
    repainted, and none has appeared, but in the cells that something has to cross).
    """
    truths = {"goal": task.goal.truth(reading)}
    for question in task.process:
        if isinstance(question, One):
            count = sum(name.startswith("one") for name in truths)
            name = ("one", "one, second", "one, third")[count]
        elif isinstance(question, OffWalls):
            name = "walls"
        elif isinstance(question, InOrder):
            name = "order"
        else:
            assert isinstance(question, Keeps)
            name = f"keeps {next(i for i, a in enumerate(task.actors) if a.sprite == question.sprite)}"
        truths[name] = question.truth(reading)
    return truths | {name: question.truth(reading) for name, question in task.common.items()}


def score_videos(task: Task, videos: Tensor) -> list[Score]:
    """Scores of several videos (N, T, 3, 48, 48) in [0, 1] of one task."""
    truths = rule_truths(task, read(videos))
    soft = torch.stack(list(truths.values()), 1)  # (N, rules)
    scores = []
    for row in soft:
        rules = {name: bool(value > 0.5) for name, value in zip(truths, row, strict=True)}
        scores.append(Score(all(rules.values()), float(row.mean()), rules))
    return scores
