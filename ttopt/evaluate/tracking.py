"""A comparison's table in Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ttopt.config.settings import FitSettings
from ttopt.evaluate.table import Row, columns
from ttopt.run.tracking import wandb_run


def log_comparison(
    settings: FitSettings, folder: Path, score: str, table: Sequence[Row], note: Callable[[str], None] = print
) -> None:
    """A run of its own in the comparison's group, with the table, and every method's score in the summary."""
    numbers = [name for name in columns(table) if name != "failed"]
    names = [
        "method",
        score,
        "low",
        "high",
        "gain",
        "gain low",
        "gain high",
        "better",
        "worse",
        "p",
        "failed",
        *numbers,
    ]
    with wandb_run(settings, "comparison", folder, note) as logger:
        if logger is None:
            return
        import wandb

        made = wandb.Table(columns=names)
        for row in table:
            gain = row.gain
            against: list[Any] = [None] * 6
            if gain is not None:
                d = gain.difference
                against = [d.mean, d.low, d.high, gain.better, gain.worse, gain.p]
            scores = [row.score.mean, row.score.low, row.score.high]
            made.add_data(row.method, *scores, *against, len(row.failed), *(getattr(row, name) for name in numbers))
        logger.experiment.log({"comparison": made})
        logger.experiment.summary.update({f"{score}/{row.method}": row.score.mean for row in table})
