"""The rule-based scorer: pixels in, one verdict per rule out. It never sees how a video was made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ttopt.miniworld.questions import Keeps, OffWalls, One
from ttopt.miniworld.tasks import Task
from ttopt.miniworld.world import NONE, Reading, read


@dataclass(frozen=True)
class Score:
    """``success`` is True when every rule holds; ``partial`` is the mean of the rules' soft truths, in [0, 1]."""

    success: bool
    partial: float
    rules: dict[str, bool]


def rule_truths(task: Task, reading: Reading) -> dict[str, Tensor]:
    """Soft truth (N,) of every rule of a task for N readings of its videos.

    "goal" and the process rules are the teacher's questions; "nothing new" (no sprite at the end that was not there
    before and was not asked for) is a rule that no question asks about.
    """
    truths = {"goal": task.goal.truth(reading)}
    for question in task.process:
        if isinstance(question, One):
            name = "one" if "one" not in truths else "one, second"
        elif isinstance(question, OffWalls):
            name = "walls"
        else:
            assert isinstance(question, Keeps)
            name = f"keeps {next(i for i, a in enumerate(task.actors) if a.sprite == question.sprite)}"
        truths[name] = question.truth(reading)
    allowed = {a.looks[0] for a in task.actors} | {a.looks[-1] for a in task.actors} | {NONE}
    strange = [s for s in range(reading.sprite.shape[-1]) if s not in allowed]
    truths["nothing new"] = 1 - reading.sprite[:, -1][..., strange].flatten(1).amax(1)
    return truths


def score_videos(task: Task, videos: Tensor) -> list[Score]:
    """Scores of several videos (N, 9, 3, 48, 48) in [0, 1] of one task."""
    truths = rule_truths(task, read(videos))
    soft = torch.stack(list(truths.values()), 1)  # (N, rules)
    scores = []
    for row in soft:
        rules = {name: bool(value > 0.5) for name, value in zip(truths, row, strict=True)}
        scores.append(Score(all(rules.values()), float(row.mean()), rules))
    return scores
