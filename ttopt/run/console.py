"""What a person sees: progress while samples are optimized, and the table at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L
import rich.console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ttopt.data.sample import Sample
from ttopt.errors import printable
from ttopt.optimization.training import TestTimeTraining
from ttopt.record.result import Result, Scored

TABLE_WIDTH = 160  # when the output is a file, not a terminal
KEPT = {"base": "frozen", "adapter": "adapter", "prediction": "prediction"}  # whose video it is that is judged
SHOWN = 4  # samples that are worked on, by name


class Console:
    """A terminal or a file. Lines in a file are never broken to 80 columns."""

    def __init__(self, output: rich.console.Console | None = None, quiet: bool = False) -> None:
        plain = rich.console.Console(quiet=quiet)
        self.output = output or (plain if plain.is_terminal else rich.console.Console(width=TABLE_WIDTH, quiet=quiet))

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
            yield self.live(progress, len(samples), steps)

    def live(self, progress: Progress, samples: int, steps: int) -> LiveSteps:
        """What is told how far the samples are."""
        return LiveSteps(progress, samples, steps)

    def summary(self, results: Sequence[Result]) -> None:
        """The table of all samples."""
        table = Table(title="Test-time optimization", title_justify="left")
        for name in ("sample", "family", "split"):
            table.add_column(name, overflow="fold")
        for name in ("steps", "loss before → after"):
            table.add_column(name, justify="right")
        table.add_column("kept")
        table.add_column("why it stopped")
        table.add_column("scorer before → after")
        for name in ("video s", "seconds"):
            table.add_column(name, justify="right")
        for r in results:
            o = r.optimization
            table.add_row(
                r.sample,
                escape(printable(r.family)) or "-",
                escape(printable(r.split)) or "-",
                str(o.steps) if o else f"{r.details['clips']} clips" if "clips" in r.details else "-",
                f"{_number(o.video_before.loss)} → {_number(o.video_after.loss)}" if o else "-",
                KEPT.get(o.kept, escape(printable(o.kept))) if o else "-",
                escape(printable(r.stop)),
                _scores(r),
                f"{r.cost.generated_seconds:.1f}",
                f"{r.seconds['total']:.1f}",
            )
        self.output.print(table)
        self._counts(results)

    def story(self, results: Sequence[Result]) -> None:
        """What was asked, what the frozen model did wrong and what came of it, sample by sample."""
        for r in results:
            self.print(f"\n{r.sample}: {r.prompt}")
            for name, score in (("frozen", r.optimization and r.optimization.score_before), ("optimized", r.score)):
                if score is not None:
                    self.print(f"  {name}: {_judged(score)}")
            if r.optimization:
                o = r.optimization
                self.print(f"  {o.steps} steps, loss {_number(o.video_before.loss)} → {_number(o.video_after.loss)}")
        self.print("")
        self._counts(results)

    def _counts(self, results: Sequence[Result]) -> None:
        """How many are right before and after, by the scorer, if there is one."""
        after = [r.score.success for r in results if r.score]
        both = [
            (r.optimization.score_before.success, r.score.success, r.optimization.steps)
            for r in results
            if r.score and r.optimization and r.optimization.score_before
        ]
        if after:
            was = f"{sum(was for was, _, _ in both)} of {len(both)} → " if both else ""
            self.output.print(f"right by the scorer: {was}{sum(after)} of {len(after)}{_changes(both)}")

    def print(self, text: str) -> None:
        self.output.print(escape(printable(text)), soft_wrap=True, highlight=False)


def _judged(score: Scored) -> str:
    """A score in words: right, or the rules that are broken."""
    broken = [score.words.get(rule, rule) for rule, holds in score.rules.items() if not holds]
    return "right" if score.success else "wrong. " + " ".join(f"{words} No." for words in broken)


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
        self._progress.update(self._one, text=escape(text), visible=True)

    def note(self, text: str) -> None:
        self._progress.console.print(escape(printable(text)), soft_wrap=True, highlight=False)

    def at_work(self, names: Sequence[str]) -> None:
        """Which samples are worked on at the same time."""
        shown = ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)
        text = f"{len(names)} at work: {shown}" if names else "waiting for workers"
        self._progress.update(self._all, text=escape(text))
        self._progress.update(self._one, visible=False)

    def finished(self, result: Result, skipped: bool = False) -> None:
        self._advance()
        how = "finished earlier" if skipped else f"{result.seconds['total']:.1f} s"
        what, o = result.stop, result.optimization
        if o is not None:
            before, after = _number(o.prediction_before.loss), _number(o.prediction_after.loss)
            what = f"loss {before} → {after} in {o.steps} steps ({result.stop})"
        self.note(f"{self._count}/{self._total} {result.sample}: {what}, {how}")

    def failed(self, sample: Sample, why: str) -> None:
        self._advance()
        self.note(f"{self._count}/{self._total} {sample.id}: not optimized: {why}")

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
        grades = [row.grades[-1] for row in pl_module.open_rows or pl_module.rows]
        loss, goal = (sum(values) / len(grades) for values in zip(*((g.total, g.p_yes[0]) for g in grades)))
        text = f"loss {_number(loss)}  goal {goal:.2f}"
        self._progress.update(self._task, completed=pl_module.steps, text=text)


def _changes(both: Sequence[tuple[bool, bool, int]]) -> str:
    """What became of the frozen model's videos: right before, right after, steps."""
    if not both:
        return ""
    steps = [steps for was, now, steps in both if now and not was]
    broken = sum(was and not now for was, now, _ in both)
    without = f" ({steps.count(0)} without a step)" if steps.count(0) else ""
    return f"; {len(steps)} repaired{without}, {broken} broken"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "nan"


def _scores(result: Result) -> str:
    if result.score is None:
        return "-"
    o = result.optimization
    return f"{_score(o.score_before)} → {_score(result.score)}" if o else _score(result.score)


def _score(score: Scored | None) -> str:
    return "-" if score is None else f"{'right' if score.success else 'wrong'} {score.partial:.2f}"
