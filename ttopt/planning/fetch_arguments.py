"""What ``ttopt fetch`` can be told besides settings. Nothing heavy is imported, so that mistakes answer at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ttopt.config.parsing import parse_fit
from ttopt.config.settings import FitSettings
from ttopt.errors import Arguments


def fetch_parser() -> Arguments:
    """What fetch can be told besides settings."""
    parser = Arguments(
        "fetch",
        "Downloads what a configuration needs from the hub, and says what is missing or does not fit.",
        "All settings of ttopt fit may follow, e.g. --config wan22_5b --teacher.model Qwen/Qwen3-VL-8B-Instruct",
    )
    parser.add_argument("--list", action="store_true", help="only say what is needed, and whether it fits together")
    return parser


def parse_fetch(args: Sequence[str]) -> tuple[argparse.Namespace, FitSettings]:
    """The command's own arguments, and the settings whose files are wanted. Raises UserError."""
    own, rest = fetch_parser().parse_known_args(list(args))
    return own, parse_fit(rest)
