"""The command line: ``python -m ttopt <command>``. Heavy imports wait until the settings are known to be right."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence

from ttopt import __version__
from ttopt.errors import UserError

USAGE = """\
usage: ttopt <command> [settings]

commands:
  fit        optimise videos at test time, one adapter per sample

  ttopt <command> --help lists a command's settings; ttopt --version prints the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0, or 2 with one line on stderr for what the user can mend."""
    args = list(sys.argv[1:] if argv is None else argv)
    commands = {"fit": fit}
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
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def fit(args: Sequence[str]) -> int:
    """``ttopt fit``: optimise a data set's samples, or one of one's own."""
    from ttopt.config import parse_fit

    settings = parse_fit(args)
    _quiet()
    from callbacks import standard
    from ttopt.console import Console
    from ttopt.engine import fit_all

    console = Console()
    try:
        run = fit_all(settings, console, standard)
    except KeyboardInterrupt:
        print("interrupted; finished samples are kept, continue with the same --run-dir", file=sys.stderr)
        return 130
    if run.results:
        console.summary(run.results)
    console.print(f"results: {run.folder}")
    for problem in run.problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if run.problems else 0


def _quiet() -> None:
    """Libraries keep their news and progress bars to themselves; errors still come as exceptions."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("WANDB_SILENT", "true")
