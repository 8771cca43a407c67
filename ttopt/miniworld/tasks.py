"""Every task of the world by family, split, seed and index."""

from __future__ import annotations

import numpy as np

from ttopt.errors import UserError
from ttopt.miniworld import chains, families
from ttopt.miniworld.scene import Draw, RetryError, Task

FAMILIES = tuple(families.MAKERS)  # one clip is enough
LONG = tuple(chains.MAKERS)  # a step loop plans them step by step
SPLITS = {"train": 0, "id": 1, "ood": 2, "dev_id": 3, "dev_ood": 4, "teacher_ood": 5}

_MAKERS = {**families.MAKERS, **chains.MAKERS}


def make_task(family: str, split: str, seed: int, index: int) -> Task:
    """Task ``index`` of a family, split (see SPLITS) and seed; the same arguments give the same task."""
    if family not in _MAKERS:
        raise UserError(f"unknown family {family!r}; choose from {', '.join(_MAKERS)}")
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
    rng = np.random.default_rng([seed, SPLITS[split], list(_MAKERS).index(family), index])
    while True:
        try:
            task = _MAKERS[family](Draw(rng, novel=split.endswith("ood")))
        except RetryError:
            continue
        task.split, task.name = split, f"{split}-{family}-{seed}-{index:04d}"
        return task


def clip_task(family: str, split: str, seed: int, index: int) -> Task:
    """A task that one clip solves: ``make_task``, or for a long family one of its steps."""
    task = make_task(family, split, seed, index)
    if family not in LONG:
        return task
    steps = chains.legs(task)
    return steps[index % len(steps)]


def task_bank(split: str, seed: int, count: int, chosen: tuple[str, ...] = FAMILIES) -> list[Task]:
    """``count`` tasks, families in turn; the same arguments give the same tasks."""
    return [make_task(chosen[i % len(chosen)], split, seed, i // len(chosen)) for i in range(count)]
