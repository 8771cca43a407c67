"""What a person sees: progress while samples are optimised, and the table at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import rich.console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ttopt.module import TestTimeTraining
from ttopt.result import Result, Scored
from ttopt.sample import Sample

Status = Callable[[str], None]
TABLE_WIDTH = 140  # when the output is a file, not a terminal


class Console:
    """A terminal or a file. Lines in a file are never broken to 80 columns."""

    def __init__(self, output: rich.console.Console | None = None) -> None:
        plain = rich.console.Console()
        self.output = output or (plain if plain.is_terminal else rich.console.Console(width=TABLE_WIDTH))

    @contextmanager
    def samples(self, samples: Sequence[Sample], steps: int) -> Iterator[LiveSteps]:
        """Live progress over samples and the steps of the current one."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.output, transient=True) as progress:
            yield LiveSteps(progress, len(samples), steps)

    def summary(self, results: Sequence[Result]) -> None:
        """The table of all samples."""
        table = Table(title="Test-time optimisation", title_justify="left")
        for name in ("sample", "family", "split"):
            table.add_column(name, overflow="fold")
        for name in ("steps", "loss before → after"):
            table.add_column(name, justify="right")
        table.add_column("why it stopped")
        table.add_column("scorer before → after")
        table.add_column("seconds", justify="right")
        for r in results:
            table.add_row(
                r.sample,
                r.family or "-",
                r.split or "-",
                str(r.steps),
                f"{_number(r.prediction_before.loss)} → {_number(r.prediction_after.loss)}",
                r.stop,
                f"{_score(r.score_before)} → {_score(r.score_after)}" if r.score_after else "-",
                f"{r.seconds['total']:.1f}",
            )
        self.output.print(table)
        before = [r.score_before.success for r in results if r.score_before]
        after = [r.score_after.success for r in results if r.score_after]
        if after:
            self.output.print(f"right by the scorer: {sum(before)} of {len(before)} → {sum(after)} of {len(after)}")

    def print(self, text: str) -> None:
        self.output.print(escape(text), soft_wrap=True, highlight=False)


class LiveSteps:
    """Progress of one run; its ``callback`` shows the loss of every step."""

    def __init__(self, progress: Progress, samples: int, steps: int) -> None:
        self._progress = progress
        self._count = 0
        self._total = samples
        self._all = progress.add_task("samples", total=samples, text="")
        self._one = progress.add_task("steps", total=steps, text="", visible=False)

    def begin(self, sample: Sample) -> None:
        self._progress.reset(self._one, visible=True, description=escape(sample.id), text="")

    def status(self, text: str) -> None:
        self._progress.update(self._one, text=text, visible=True)

    def note(self, text: str) -> None:
        self._progress.console.print(escape(text), soft_wrap=True, highlight=False)

    def finished(self, result: Result, skipped: bool = False) -> None:
        self._advance()
        before, after = result.prediction_before, result.prediction_after
        how = "finished earlier" if skipped else f"{result.seconds['total']:.1f} s"
        self.note(
            f"{self._count}/{self._total} {result.sample}: loss {_number(before.loss)} → {_number(after.loss)} in "
            f"{result.steps} steps ({result.stop}), {how}"
        )

    def failed(self, sample: Sample, why: str) -> None:
        self._advance()
        self.note(f"{self._count}/{self._total} {sample.id}: not optimised: {why}")

    def callback(self) -> L.Callback:
        return _ShowLoss(self._progress, self._one)

    def _advance(self) -> None:
        self._count += 1
        self._progress.advance(self._all)
        self._progress.update(self._one, visible=False)


class _ShowLoss(L.Callback):
    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress = progress
        self._task = task

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, TestTimeTraining)
        grade = pl_module.grades[-1]
        text = f"loss {_number(grade.total)}  goal {grade.p_yes[0]:.2f}"
        self._progress.update(self._task, completed=pl_module.global_step, text=text)


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "nan"


def _score(score: Scored | None) -> str:
    return "-" if score is None else f"{'right' if score.success else 'wrong'} {score.partial:.2f}"
