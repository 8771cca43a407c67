"""The command line: ``python -m ttopt <command>``. Heavy imports wait until the settings are known to be right."""

from __future__ import annotations

import difflib
import gc
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from ttopt.config.version import __version__
from ttopt.errors import UserError, one_line

# Read when torch is loaded, which is later. OpenMP threads that spin while they wait for one whose core is taken by
# another program made a run several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class Command(NamedTuple):
    """What a command consists of, by dotted names: only what is called is imported, and the worker after the parser."""

    help: str
    parse: str  # arguments -> settings
    work: str  # settings (and what makes the standard callbacks, which the package itself does not know) -> exit code
    callbacks: str | None = None
    quiet: bool = True  # libraries show no progress of their own
    heavy: bool = True  # loads what takes seconds, and says so
    check: str | None = None  # settings -> None; refuses with few libraries what would be refused with many


CALLBACKS = "ttopt.config.lookup.standard_callbacks"
COMMANDS = {
    "fit": Command(
        "optimize videos at test time, one adapter per sample",
        "ttopt.config.parsing.parse_fit", "ttopt.evaluate.commands.fit", CALLBACKS,
        check="ttopt.run.refusals.refuse",
    ),
    "demo": Command(
        "six samples in a minute: what the frozen model does with them, and what optimizing repairs",
        "ttopt.config.parsing.parse_demo", "ttopt.evaluate.commands.demo", CALLBACKS,
    ),
    "compare": Command(
        "methods on the same samples: one table and one page",
        "ttopt.config.comparison.parse_compare", "ttopt.evaluate.commands.compare", CALLBACKS,
        check="ttopt.run.refusals.refuse",
    ),
    "evaluate": Command(
        "the same table and page for videos that exist, of any system",
        "ttopt.config.comparison.parse_evaluate", "ttopt.evaluate.commands.compare", CALLBACKS,
    ),
    "report": Command(
        "the page of a run or a comparison, from its folder",
        "ttopt.config.report.parse_report", "ttopt.evaluate.commands.report",
    ),
    "app": Command(
        "a page in the browser on which samples are optimized and looked at",
        "ttopt.config.app.parse_app", "ttopt.evaluate.app.start.start",
    ),
    "fetch": Command(
        "what a configuration needs from the hub, and its download",
        "ttopt.planning.fetch_arguments.parse_fetch", "ttopt.planning.fetch.show", quiet=False,
    ),
    "push": Command(
        "the adapter of a sample on the hub, with a model card",
        "ttopt.run.push.parse_push", "ttopt.run.push.push", heavy=False,
    ),
    "plan": Command(
        "what a configuration needs on a GPU, without loading weights",
        "ttopt.planning.plan_arguments.parse_plan", "ttopt.planning.plan.show",
    ),
    "bench": Command(
        "one optimization step, the plain way against ours",
        "ttopt.planning.bench_arguments.parse_bench", "ttopt.planning.bench.show",
    ),
    "completion": Command(
        "the script with which a shell completes settings by the tab key",
        "ttopt.run.completion.parse_completion", "ttopt.run.completion.show", heavy=False,
    ),
}  # fmt: skip
USAGE = f"""\
usage: ttopt <command> [settings]

commands:
{chr(10).join(f"  {name:10s} {command.help}" for name, command in COMMANDS.items())}

  ttopt <command> --help lists a command's usual settings, --help-all all; ttopt --version prints the version.
  Settings come from YAML files (--config), which can name code that is then imported: read a stranger's first."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0, 2 with one line on stderr for what the user can mend, 130 if it is
    interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if not args or args[0] in {"-h", "--help", "help"}:
            print(USAGE)
            return 0 if args else 2
        if args[0] == "--version":
            print(__version__)
            return 0
        return _run(args[0], args[1:])
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is None:
            raise
        said = one_line(f"{error.filename}: {error.strerror}")
        print(f"error: {said}; give another path, or mend this one", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _run(name: str, args: Sequence[str]) -> int:
    """Runs one command. Raises UserError for one that does not exist."""
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        found = f"the nearest is {nearest[0]} (--help lists all)" if nearest else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"{name!r} is no command; {found}")
    command = COMMANDS[name]
    settings = _named(command.parse)(args)
    if command.quiet:
        _quiet()
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
    if command.heavy and first and "torch" not in sys.modules:
        print("loading libraries ...", flush=True)
    if command.check is not None:
        _named(command.check)(settings)
    with _not_collecting():
        work = _named(command.work)
    made_of = [settings] if command.callbacks is None else [settings, _named(command.callbacks)]
    code: int = work(*made_of)
    return code


@contextmanager
def _not_collecting() -> Iterator[None]:
    """Imports make objects that stay: to look for garbage among them takes up to a fifth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _named(dotted: str) -> Any:
    """What has this dotted name; its module is imported."""
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _quiet() -> None:
    """Libraries keep their news and progress bars to themselves; errors still come as exceptions."""
    for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
        os.environ.setdefault(name, "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("WANDB_SILENT", "true")


if __name__ == "__main__":
    sys.exit(main())
