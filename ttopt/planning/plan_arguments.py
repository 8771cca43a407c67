"""What ``ttopt plan`` can be told besides settings. Nothing heavy is imported, so that mistakes answer at once."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from ttopt.config.parsing import parse_fit
from ttopt.config.settings import FitSettings
from ttopt.errors import Arguments, UserError
from ttopt.planning.gpus import GPUS

MOST = 1_000_000  # samples and GPUs


def plan_parser() -> Arguments:
    """What the plan can be told besides settings."""
    parser = Arguments(
        "plan",
        "What a configuration needs on a GPU: work, memory, time, energy. Loads no weights.",
        "All settings of ttopt fit may follow, e.g. --config wan22_5b --sample.height 480 --sample.width 832",
    )
    parser.add_argument("--gpu", default="H100", help=", ".join(GPUS))
    parser.add_argument(
        "--processes", type=int, default=1, help="how many share the video model (reasoner.shard), each on a GPU"
    )
    parser.add_argument("--samples", type=int, default=100, help="how many samples the totals are for")
    parser.add_argument(
        "--gpus", type=int, nargs="*", metavar="G",
        help="simulate the queue of the samples on so many GPUs; without a number: 8 to 4,096",
    )  # fmt: skip
    parser.add_argument(
        "--steps-from", type=Path, metavar="RUN", help="a run whose samples say how many steps they take"
    )
    parser.add_argument(
        "--mean-steps", type=float,
        help="optimization steps a sample takes on average, where no run says so (the paper's 16; embedded: measured)",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", choices=("estimated", "measured"), default="estimated",
        help="of the simulated samples; measured: those of --steps-from, which ran on the same kind of GPU",
    )  # fmt: skip
    parser.add_argument("--start-seconds", type=float, default=60, help="until a worker has loaded the models")
    parser.add_argument("--slow-share", type=float, default=0.02, help="share of the workers that are slow")
    parser.add_argument("--slow-factor", type=float, default=1.5, help="how many times longer these take")
    parser.add_argument(
        "--failure-hours", type=float, default=50_000,
        help="hours between two failures of a GPU; Llama 3's training saw 419 in 54 days of 16,384 (arXiv 2407.21783)",
    )  # fmt: skip
    parser.add_argument("--gpu-price", type=float, default=2.00, help="price of a GPU for an hour")
    parser.add_argument("--kwh-price", type=float, default=0.30, help="price of a kWh")
    return parser


def parse_plan(args: Sequence[str]) -> tuple[argparse.Namespace, FitSettings]:
    """The plan's own arguments, and the settings that are planned for. Raises UserError."""
    own, rest = plan_parser().parse_known_args(list(args))
    _check(own)
    settings = parse_fit(rest)
    if settings.reasoner.shard != (own.processes > 1):
        raise UserError(
            f"--processes is {own.processes} and reasoner.shard {str(settings.reasoner.shard).lower()}; give "
            "--reasoner.shard true and --processes 2 or more, or neither"
        )
    return own, settings


def _check(own: argparse.Namespace) -> None:
    if own.gpu not in GPUS:
        raise UserError(f"--gpu {own.gpu} is not in the table; give one of {', '.join(GPUS)}")
    for name, count in (("--samples", own.samples), *(("--gpus", count) for count in own.gpus or ())):
        if not 1 <= count <= MOST:
            raise UserError(f"{name} is {count}; give 1 to {MOST:,}")
    if not 1 <= own.processes <= 1024:
        raise UserError(f"--processes is {own.processes}; give 1 to 1024")
    for name in ("mean_steps", "start_seconds", "gpu_price", "kwh_price"):
        value = getattr(own, name)
        if value is not None and not 0 <= value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} is {value}; give 0 or more")
    if not 0 <= own.slow_share <= 1:
        raise UserError(f"--slow-share is {own.slow_share}; give 0 to 1")
    if not 1 <= own.slow_factor < math.inf:
        raise UserError(f"--slow-factor is {own.slow_factor}; give 1 or more")
    if not own.failure_hours > 0:
        raise UserError(f"--failure-hours is {own.failure_hours}; give more than 0, or inf for never")
    if own.seconds == "measured" and own.steps_from is None:
        raise UserError("--seconds measured needs the run that measured them; give it as --steps-from")
    if own.mean_steps is not None and own.steps_from is not None:
        raise UserError("--mean-steps and --steps-from both say how many steps samples take; give one")
