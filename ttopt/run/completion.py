"""``ttopt completion``: the script with which a shell completes commands, settings and their values by the tab key."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

import shtab

from ttopt.config.app import app_parser
from ttopt.config.comparison import CompareSettings, EvaluateSettings
from ttopt.config.files import CONFIG_FOLDERS
from ttopt.config.parsing import CONFIG, SHORT, options_of
from ttopt.config.report import ReportSettings
from ttopt.config.settings import FitSettings
from ttopt.config.yaml_text import without_none
from ttopt.errors import UserError
from ttopt.planning.bench_arguments import bench_parser
from ttopt.planning.fetch_arguments import fetch_parser
from ttopt.planning.plan_arguments import plan_parser
from ttopt.run.push import push_parser

SHELLS = ("bash", "zsh", "tcsh")
SETTINGS: dict[str, type] = {
    "fit": FitSettings, "app": FitSettings, "compare": CompareSettings, "evaluate": EvaluateSettings,
    "report": ReportSettings, "plan": FitSettings, "fetch": FitSettings,
}  # fmt: skip
ARGUMENTS = {"app": app_parser, "plan": plan_parser, "bench": bench_parser, "fetch": fetch_parser, "push": push_parser}
FILES, FOLDERS = {"sample.image", "judge_prompt"}, {"run_dir", "root", "bank.folder", "chat.prompts"}


def parse_completion(args: Sequence[str]) -> str:
    """The shell that is asked for. Raises UserError."""
    if list(args) in (["-h"], ["--help"]):
        print(f'usage: ttopt completion {{{",".join(SHELLS)}}}\n\nBash: eval "$(ttopt completion bash)"')
        raise SystemExit(0)
    if len(args) != 1 or args[0] not in SHELLS:
        raise UserError(f"completion {' '.join(args)}: give one shell, {', '.join(SHELLS)}")
    return args[0]


def show(shell: str) -> int:
    """Prints the script."""
    print(shtab.complete(parser(), shell))
    return 0


def parser() -> argparse.ArgumentParser:
    """All commands with all of their options."""
    whole = argparse.ArgumentParser("ttopt")
    commands = whole.add_subparsers()
    for name in dict.fromkeys((*SETTINGS, *ARGUMENTS)):
        command = commands.add_parser(
            name, parents=[ARGUMENTS[name]()] if name in ARGUMENTS else [], add_help=False, help=name
        )
        if name in SETTINGS:
            _add(command, SETTINGS[name])
    commands.add_parser("completion", add_help=False, help="completion").add_argument("shell", choices=SHELLS)
    return whole


def _add(command: argparse.ArgumentParser, group: type) -> None:
    """The settings of a group, with their short names."""
    short = {whole: name for name, whole in SHORT.items()} if issubclass(group, FitSettings) else {}
    for option in options_of(group):
        if not option.name:
            continue
        flags = [f"--{name.replace('_', '-')}" for name in (option.name, short.get(option.name)) if name]
        action = command.add_argument(
            *flags, help=option.text.split(". ")[0][:60], choices=_choices(option.name, option.kind)
        )
        if option.name in FILES | FOLDERS:
            action.complete = shtab.FILE if option.name in FILES else shtab.DIRECTORY  # type: ignore[attr-defined]


def _choices(name: str, kind: Any) -> list[str] | None:
    """The words that a setting can be; None: any."""
    if name == CONFIG:
        return sorted({file.stem for folder in CONFIG_FOLDERS for file in folder.glob("*.yaml")})
    kind = without_none(kind)
    if kind is bool:
        return ["true", "false"]
    return [str(choice) for choice in get_args(kind)] if get_origin(kind) is Literal else None
