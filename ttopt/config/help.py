"""What ``--help`` and ``--help-all`` print, for 80 columns."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from ttopt.config.yaml_text import without_none

NARROWEST, WIDEST = 40, 100  # columns
INDENT = "      "
NOTHING = object()  # null is a default
# What most people ever set, by dotted name.
USUAL = (
    "config", "sample.prompt", "sample.image", "limit", "families", "dataset", "root", "seed", "optimization.steps",
    "optimization.tau", "batch_samples", "run_dir",
)  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One line of the help, and the text under it."""

    name: str  # dotted; "" for the title of a group
    text: str
    kind: Any = None  # its type
    default: Any = NOTHING


def usual(options: list[Option], own: Collection[str]) -> list[Option]:
    """Those that most people need, in the order of USUAL, and the command's ``own``."""
    by_name = {option.name: option for option in options}
    return [by_name[name] for name in (*USUAL, *(name for name in by_name if name in own))]


def page(command: str, what: str, options: list[Option], short: Mapping[str, str], more: str = "") -> str:
    """The whole text. ``short`` has the short names of settings; ``more`` is said at the end."""
    width = min(max(shutil.get_terminal_size((80, 24)).columns, NARROWEST), WIDEST) - 1
    lines = [f"usage: ttopt {command} [settings]", "", *textwrap.wrap(what, width), ""]
    for option in options:
        lines += _lines(option, width, [name for name, whole in short.items() if whole == option.name])
    return "\n".join([*lines, "", *textwrap.wrap(more, width)] if more else lines).rstrip()


def _lines(option: Option, width: int, short: list[str]) -> Iterator[str]:
    if not option.name:
        yield from ["", *textwrap.wrap(f"{option.text.rstrip('.')}:", width), ""]
        return
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in [*short, option.name])
    default = "" if option.default is NOTHING else f"  (default: {_text(option.default)})"
    yield from textwrap.wrap(f"  {flags} {_kind(option.kind)}{default}".rstrip(), width, subsequent_indent=INDENT)
    yield from textwrap.wrap(" ".join(option.text.split()), width, initial_indent=INDENT, subsequent_indent=INDENT)


def _kind(hint: Any) -> str:
    """A type as a person reads it: INTEGER, {id,ood}, ..."""
    hint = without_none(hint)
    if hint is None:
        return ""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"{{{','.join(map(str, inner))}}}"
    if origin is list:
        return "LIST"
    if hint is bool:
        return "{true,false}"
    if inner:  # a union
        return " or ".join(_kind(one) for one in inner)
    return {int: "INTEGER", float: "NUMBER", str: "TEXT"}.get(hint, "MAPPING")


def _text(value: Any) -> str:
    """A default as it would be typed."""
    if isinstance(value, str):
        return value or "''"
    return json.dumps(value, default=str)
