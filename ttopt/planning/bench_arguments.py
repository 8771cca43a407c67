"""The ways that ``ttopt bench`` compares, and what it can be told. Nothing heavy is imported."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ttopt.errors import Arguments, UserError


@dataclass(frozen=True)
class Way:
    """How a step is computed. ``light`` and ``late`` change the result, the others only the work."""

    name: str
    packed: bool = False  # all questions in one teacher forward
    two_times: bool = False  # two time modulations, not one a token
    light: bool = False  # the light decoder, not the standard VAE
    late: bool = False  # adapters on the later half of the blocks only
    prefix: bool = False  # what enters the first adapted block is computed once a sample
    small: bool = False  # frames half as high and wide for the teacher
    keep: bool = False  # all activations are kept for the backward pass, where there are enough to matter
    compiled: bool = False  # the transformer's blocks and the teacher's layers are compiled


WAYS = (
    way := Way("plain"),
    way := replace(way, name="+ packed questions", packed=True),
    way := replace(way, name="+ two time modulations", two_times=True),
    way := replace(way, name="+ light decoder *", light=True),
    way := replace(way, name="+ later half adapted *", late=True),
    way := replace(way, name="+ kept prefix", prefix=True),
)
LARGE_WAYS = (  # what makes sense for large models only
    way := replace(way, name="+ smaller frames *", small=True),
    way := replace(way, name="+ kept activations", keep=True),
    way := replace(way, name="+ compiled layers", compiled=True),
)


def bench_parser() -> Arguments:
    """What the bench can be told."""
    parser = Arguments(
        "bench",
        "One optimization step, the plain way against ours.",
    )
    parser.add_argument(
        "--size", choices=["mini", "5b"], default="mini", help="embedded models, or random 5B and 4B ones"
    )
    parser.add_argument("--steps", type=int, default=5, help="timed steps a row")
    parser.add_argument("--height", type=int, default=704, help="5b only")
    parser.add_argument("--width", type=int, default=1280, help="5b only")
    parser.add_argument("--frames", type=int, default=89, help="5b only")
    parser.add_argument("--ways", default="", help="only the rows whose names match this regular expression")
    parser.add_argument("--out", type=Path, help="JSON file for the rows, the machine and the versions")
    return parser


def parse_bench(args: Sequence[str]) -> tuple[argparse.Namespace, list[Way]]:
    """The bench's arguments, and the ways that they ask for. Raises UserError."""
    own = bench_parser().parse_args(list(args))
    if own.steps < 1:
        raise UserError(f"--steps is {own.steps}; give 1 or more")
    available = WAYS if own.size == "mini" else WAYS + LARGE_WAYS
    try:
        ways = [way for way in available if re.search(own.ways, way.name)]
    except re.error as error:
        raise UserError(f"--ways {own.ways} is no regular expression ({error}); give e.g. packed") from error
    if not ways:
        raise UserError(f"--ways {own.ways} matches no row; there are {', '.join(way.name for way in available)}")
    return own, ways
