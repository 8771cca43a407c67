"""``ttopt plan``: what a configuration needs on a GPU, as a person reads it. The estimate is ttopt/estimate.py's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ttopt.config import FitSettings, parse_fit
from ttopt.errors import Arguments, UserError
from ttopt.gpus import GPUS

if TYPE_CHECKING:
    from ttopt.estimate import Plan

GIB = 2**30


def main(args: Sequence[str]) -> int:
    """``ttopt plan``."""
    parser = Arguments(
        prog="ttopt plan",
        description="What a configuration needs on a GPU: work, memory, time, energy. Loads no weights.",
        epilog="All settings of ttopt fit may follow, e.g. --config wan22_5b --sample.height 480 --sample.width 832",
        allow_abbrev=False,
    )
    parser.add_argument("--gpu", default="H100", help=", ".join(GPUS))
    parser.add_argument("--samples", type=int, default=100, help="how many samples the totals are for")
    parser.add_argument("--mean-steps", type=float, default=16, help="optimisation steps a sample takes on average")
    parser.add_argument("--kwh-price", type=float, default=0.30, help="price of a kWh")
    own, rest = parser.parse_known_args(list(args))
    if own.gpu not in GPUS:
        raise UserError(f"--gpu {own.gpu} is not in the table; give one of {', '.join(GPUS)}")
    if own.samples < 1:
        raise UserError(f"--samples is {own.samples}; give 1 or more")
    for name, value in (("--mean-steps", own.mean_steps), ("--kwh-price", own.kwh_price)):
        if not 0 <= value < math.inf:
            raise UserError(f"{name} is {value}; give 0 or more")
    settings = parse_fit(rest)
    from ttopt.estimate import plan  # heavy: not for --help and mistakes

    found = plan(settings, GPUS[own.gpu], min(own.mean_steps, settings.optimisation.steps))
    print(report(found, own.samples, own.kwh_price))
    if not found.fits:
        print(cures(settings, found))
    return 0


def report(found: Plan, samples: int, kwh_price: float) -> str:
    """The estimate as text."""
    gpu = found.gpu
    lines = [f"One sample on one {gpu.name} ({gpu.source}); estimates, see ttopt/roofline.py", ""]
    lines += [f"tokens: {', '.join(f'{name} {count:,}' for name, count in found.tokens.items())}", ""]
    lines.append(f"{'part':14s} {'TFLOP':>9s} {'seconds':>9s} {'activations GiB':>16s}   when")
    when = dict.fromkeys(("predict", "decode", "grade", "backward"), "every step")
    when |= {"condition": "once", "queries": "once", "prefix": "once", "generate": "twice", "final decode": "twice"}
    for name, part in found.parts.items():
        lines.append(f"{name:14s} {part.flop / 1e12:9.1f} {part.seconds:9.3f} {part.peak / GIB:16.2f}   {when[name]}")
    lines += ["", f"{'weights':14s} {'GiB':>9s}"]
    lines += [f"{name:14s} {size / GIB:9.2f}" for name, size in found.weights.items()]
    seconds = samples * found.sample_seconds
    kwh = seconds * gpu.watts / 3.6e6
    lines += [
        "",
        f"memory   {_memory(found)} at most, of {gpu.memory:.0f}: {'fits' if found.fits else 'does not fit'}",
        f"seconds  {found.step_seconds:.2f} a step, {found.sample_seconds:.0f} a sample of {found.steps:g} steps",
        f"{samples} samples: {seconds / 3600:.1f} GPU hours, at most {kwh:.1f} kWh ({kwh * kwh_price:.2f} at "
        f"{kwh_price:.2f} a kWh)",
    ]
    return "\n".join(lines)


def cures(settings: FitSettings, found: Plan) -> str:
    """What to change, one more thing at a time until it fits."""
    from ttopt.estimate import plan

    lines = ["", "To make it fit, change one after the other:"]
    for name, change in CURES:
        changed = change(settings)
        if changed == settings:
            continue
        settings, now = changed, plan(changed, found.gpu, found.steps)
        lines.append(f"  {name:44s} -> {_memory(now)}, {now.step_seconds:6.2f} s a step")
        if now.fits:
            return "\n".join(lines)
    lines.append("  none of these is enough: take a larger GPU or smaller models")
    return "\n".join(lines)


def _memory(found: Plan) -> str:
    return ", ".join(f"{size / GIB:.1f} GiB on {device}" for device, size in found.memory.items())


def _change(group: str, **values: Any) -> tuple[str, Callable[[FitSettings], FitSettings]]:
    """The settings as typed, and what sets them."""
    typed = " ".join(f"--{group}.{name} {str(value).lower()}" for name, value in values.items())
    return typed, lambda settings: replace(settings, **{group: replace(getattr(settings, group), **values)})


# From what costs nothing to what changes the result.
CURES = (
    _change("reasoner", offload=True),
    _change("teacher", recompute=True),
    _change("reasoner", recompute="all"),
    _change("decoder", kind="light", shrink=1),
    _change("reasoner", float8=True),
    _change("teacher", float8=True),
    _change("reasoner", vae_dtype="bfloat16"),
    _change("sample", height=480, width=832),
)
