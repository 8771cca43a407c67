"""What the commands of ``python -m ttopt`` do with their settings; returns exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from ttopt.config.comparison import CompareSettings
from ttopt.config.report import ReportSettings
from ttopt.config.settings import FitSettings
from ttopt.errors import one_line
from ttopt.evaluate.compare import compare as run_comparison
from ttopt.evaluate.compare import show
from ttopt.evaluate.report import write_report
from ttopt.models.distributed import is_rank_zero, joined
from ttopt.record.result import Result
from ttopt.run.console import Console
from ttopt.run.run import MakeCallbacks, fit_all

T = TypeVar("T")
INTERRUPTED = 130


def fit(settings: FitSettings, callbacks: MakeCallbacks) -> int:
    """Optimizes a data set's samples, or a sample of the user's own, and writes the page."""
    return _fit(settings, callbacks, Console.summary)


def demo(settings: FitSettings, callbacks: MakeCallbacks) -> int:
    """The same, and says in words what became of each sample."""
    return _fit(settings, callbacks, Console.story)


def _fit(settings: FitSettings, callbacks: MakeCallbacks, tell: Callable[[Console, Sequence[Result]], None]) -> int:
    def work() -> int:
        with joined(settings) as own:
            console = Console(quiet=not is_rank_zero())
            run = fit_all(own, console, callbacks)
            if not is_rank_zero():  # process 0 tells the rest
                return 0
            if run.results:
                tell(console, run.results)
                console.print(f"page: {write_report(run.folder, console.print)}")
            console.print(f"results: {run.folder}")
            return _exit_code(run.problems)

    code = _resumable(work)
    return INTERRUPTED if code is None else code


def compare(settings: CompareSettings, callbacks: MakeCallbacks) -> int:
    """Runs methods on the same samples, or scores videos that exist, and shows the table."""
    console = Console()
    found = _resumable(lambda: run_comparison(settings, console, callbacks))
    if found is None:
        return INTERRUPTED
    show(found, console)
    return _exit_code(found.problems)


def report(settings: ReportSettings) -> int:
    """Writes the page of a folder of results again."""
    page = write_report(Path(settings.run_dir), lambda text: print(f"note: {one_line(text)}", file=sys.stderr))
    print(f"page: {page}")
    return 0


def _resumable(work: Callable[[], T]) -> T | None:
    """What a run makes; None, and how to go on, if it is interrupted."""
    try:
        return work()
    except KeyboardInterrupt:
        print("interrupted; finished samples are kept, continue with the same --run-dir", file=sys.stderr)
        return None


def _exit_code(problems: Sequence[str]) -> int:
    """Tells the problems of a run: 2 if there are any, else 0."""
    for problem in problems:
        print(f"error: {one_line(problem)}", file=sys.stderr)
    return 2 if problems else 0
