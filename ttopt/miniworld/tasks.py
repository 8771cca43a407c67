"""Every task of the sprite world by family, split, seed and index."""

from __future__ import annotations

import numpy as np

from ttopt.errors import UserError
from ttopt.miniworld import families, multistep
from ttopt.miniworld.scene import Draw, RetryError, Task

FAMILIES = tuple(families.MAKERS)  # one clip is enough
TWO_STOPS = ("two", "visit")  # of these; a step loop plans them step by step all the same
MULTI_STEP = tuple(multistep.MAKERS)
SPLITS = {"train": 0, "id": 1, "ood": 2, "dev_id": 3, "dev_ood": 4, "teacher_ood": 5}

_MAKERS = {**families.MAKERS, **multistep.MAKERS}


def make_task(family: str, split: str, seed: int, index: int) -> Task:
    """Task ``index`` of a family, split (see SPLITS) and seed; the same arguments give the same task."""
    if family not in _MAKERS:
        raise UserError(f"unknown miniworld family {family!r}; choose from {', '.join(_MAKERS)}")
    if split not in SPLITS:
        raise UserError(f"unknown miniworld split {split!r}; choose from {', '.join(SPLITS)}")
    rng = np.random.default_rng([seed, SPLITS[split], list(_MAKERS).index(family), index])
    level = 1 + int(rng.integers(3))
    while True:
        draw = Draw(rng, hard=split.endswith("ood"))
        try:
            task = _MAKERS[family](draw, level)
        except RetryError:
            continue
        task.split, task.name = split, f"{split}-{family}-{seed}-{index:04d}"
        return task
