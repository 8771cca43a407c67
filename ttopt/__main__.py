"""The command line: ``python -m ttopt <command>``. Heavy imports wait until the settings are known to be right."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from ttopt import __version__
from ttopt.errors import UserError, one_line

if TYPE_CHECKING:
    from ttopt.config.comparison import CompareSettings
    from ttopt.config.settings import FitSettings

# Read when torch is loaded, which is later. OpenMP threads that spin while they wait for one whose core is taken by
# another program made a run several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

T = TypeVar("T")

USAGE = """\
usage: ttopt <command> [settings]

commands:
  fit        optimize videos at test time, one adapter per sample
  compare    methods on the same samples: one table and one page
  evaluate   the same table and page for videos that exist, of any system
  report     the page of a run or a comparison, from its folder
  fetch      what a configuration needs from the hub, and its download
  plan       what a configuration needs on a GPU, without loading weights
  bench      one optimization step, the plain way against ours

  ttopt <command> --help lists a command's settings; ttopt --version prints the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0, or 2 with one line on stderr for what the user can mend."""
    args = list(sys.argv[1:] if argv is None else argv)
    commands = {
        "fit": fit,
        "compare": compare,
        "evaluate": evaluate,
        "report": report,
        "fetch": fetch,
        "plan": plan,
        "bench": bench,
    }
    try:
        if not args or args[0] in {"-h", "--help", "help"}:
            print(USAGE)
            return 0 if args else 2
        if args[0] == "--version":
            print(__version__)
            return 0
        if args[0] not in commands:
            nearest = difflib.get_close_matches(args[0], commands, n=1, cutoff=0) or ["fit"]
            raise UserError(f"{args[0]!r} is no command; the nearest is {nearest[0]} (--help lists all)")
        return commands[args[0]](args[1:])
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        said = one_line(f"{error.filename}: {error.strerror}")
        print(f"error: {said}; give another path, or mend this one", file=sys.stderr)
        return 2


def fit(args: Sequence[str]) -> int:
    """``ttopt fit``: optimize a data set's samples, or one of one's own."""
    from ttopt.config.parsing import parse_fit

    settings = parse_fit(args)
    _quiet()
    from ttopt.models.distributed import joined

    def work() -> int:
        with joined(settings) as own:
            return _fit(own)

    code = _resumable(work)
    return 130 if code is None else code


def _fit(settings: FitSettings) -> int:
    from callbacks import standard
    from ttopt.models.distributed import is_rank_zero
    from ttopt.run.console import Console
    from ttopt.run.run import fit_all

    console = Console(quiet=not is_rank_zero())
    run = fit_all(settings, console, standard)
    if not is_rank_zero():  # process 0 tells the rest
        return 0
    if run.results:
        from ttopt.evaluate.report import write_report

        console.summary(run.results)
        console.print(f"page: {write_report(run.folder)}")
    console.print(f"results: {run.folder}")
    return _exit_code(run.problems)


def fetch(args: Sequence[str]) -> int:
    """``ttopt fetch``: download what a configuration needs."""
    from ttopt.planning.fetch import main as run

    return run(args)


def plan(args: Sequence[str]) -> int:
    """``ttopt plan``: estimate work, memory, time and energy."""
    _quiet()
    from ttopt.planning.plan import main as run

    return run(args)


def bench(args: Sequence[str]) -> int:
    """``ttopt bench``: measure one optimization step, feature by feature."""
    _quiet()
    from ttopt.planning.bench import main as run

    return run(args)


def compare(args: Sequence[str]) -> int:
    """``ttopt compare``: methods on the same samples."""
    from ttopt.config.comparison import parse_compare

    return _compare(parse_compare(args))


def evaluate(args: Sequence[str]) -> int:
    """``ttopt evaluate``: score videos that exist."""
    from ttopt.config.comparison import parse_evaluate

    return _compare(parse_evaluate(args))


def _compare(settings: CompareSettings) -> int:
    _quiet()
    from callbacks import standard
    from ttopt.evaluate.compare import compare, show
    from ttopt.run.console import Console

    console = Console()
    found = _resumable(lambda: compare(settings, console, standard))
    if found is None:
        return 130
    show(found, console)
    return _exit_code(found.problems)


def report(args: Sequence[str]) -> int:
    """``ttopt report``: rebuild a page from a folder of results."""
    from pathlib import Path

    from ttopt.config.report import parse_report

    folder = Path(parse_report(args).run_dir)
    from ttopt.evaluate.report import write_report

    print(f"page: {write_report(folder)}")
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


def _quiet() -> None:
    """Libraries keep their news and progress bars to themselves; errors still come as exceptions."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("WANDB_SILENT", "true")


if __name__ == "__main__":
    sys.exit(main())
