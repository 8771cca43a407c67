"""``ttopt plan``: what a configuration needs on a GPU and on many, as a person reads it.

The estimate is ttopt/planning/estimate.py's, the simulation of many GPUs ttopt/planning/simulate.py's.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttopt.config.checks import check
from ttopt.config.parsing import parse_fit
from ttopt.config.settings import EMBEDDED, FitSettings
from ttopt.errors import Arguments, UserError
from ttopt.planning.gpus import GPUS

if TYPE_CHECKING:
    from ttopt.planning.estimate import Requirements
    from ttopt.planning.step_counts import StepCounts

GIB = 2**30
MANY = tuple(2**power for power in range(3, 13))  # GPUs: 8 to 4,096
MOST = 1_000_000  # samples and GPUs
DRAWS = 100_000  # samples that are simulated for a row of the table, at most 20 times all of them


def show(asked: tuple[argparse.Namespace, FitSettings]) -> int:
    """``ttopt plan``, of what ``parse_plan`` has read."""
    own, settings = asked
    from ttopt.planning.estimate import plan  # heavy: not for --help and mistakes

    counts = step_counts(own, settings)
    found = plan(settings, GPUS[own.gpu], counts.mean, own.processes)
    texts = [report(found, own.samples, own.kwh_price)]
    if not found.fits:
        texts.append(cures(settings, found))
    if own.gpus is not None:
        texts.append(many(found, counts, own, settings))
    print("\n".join(texts))
    return 0


def parse_plan(args: Sequence[str]) -> tuple[argparse.Namespace, FitSettings]:
    """The plan's own arguments, and the settings that are planned for. Raises UserError."""
    parser = Arguments(
        prog="ttopt plan",
        description="What a configuration needs on a GPU: work, memory, time, energy. Loads no weights.",
        epilog="All settings of ttopt fit may follow, e.g. --config wan22_5b --sample.height 480 --sample.width 832",
        allow_abbrev=False,
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
    own, rest = parser.parse_known_args(list(args))
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


def step_counts(own: argparse.Namespace, settings: FitSettings) -> StepCounts:
    """How many steps samples take: of a run, of a given mean, or what is known of these models. Raises UserError."""
    from ttopt.planning.step_counts import PAPER_MEAN, even, of_run, shipped

    most = settings.optimization.steps
    if own.steps_from is not None:
        return of_run(own.steps_from, most)
    if own.mean_steps is not None:
        return even(own.mean_steps, most, "the given mean")
    if settings.reasoner.model == settings.teacher.model == EMBEDDED:
        return shipped(most)
    return even(PAPER_MEAN, most, "the paper's mean")


def report(found: Requirements, samples: int, kwh_price: float) -> str:
    """The estimate as text."""
    gpu = found.gpu
    shared = ", which share the video model's weights" * (found.processes > 1)
    number = "one" if found.processes == 1 else str(found.processes)
    lines = [f"One sample on {number} {gpu.name}{shared} ({gpu.source}); estimates, see ttopt/planning/roofline.py", ""]
    lines += [f"tokens: {', '.join(f'{name} {count:,}' for name, count in found.tokens.items())}", ""]
    lines.append(f"{'part':14s} {'TFLOP':>9s} {'seconds':>9s} {'activations GiB':>16s}   when")
    when = dict.fromkeys(("predict", "decode", "grade", "backward"), "every step")
    when |= {"condition": "once", "queries": "once", "prefix": "once", "generate": "twice", "final decode": "twice"}
    for name, part in found.parts.items():
        lines.append(f"{name:14s} {part.flop / 1e12:9.1f} {part.seconds:9.3f} {part.peak / GIB:16.2f}   {when[name]}")
    lines.append(f"{'a step':14s} {found.step_flop / 1e12:9.1f} {found.step_seconds:9.3f}")
    lines += ["", f"{'weights':14s} {'GiB':>9s}"]
    lines += [f"{name:14s} {size / GIB:9.2f}" for name, size in found.weights.items()]
    seconds = samples * found.sample_seconds * found.gpus
    kwh = seconds * gpu.watts / 3.6e6
    lines += [
        "",
        f"memory   {_memory(found)} at most, of {gpu.memory:.0f}: {'fits' if found.fits else 'does not fit'}",
        f"seconds  {found.step_seconds:.2f} a step, {found.sample_seconds:.0f} a sample of {found.steps:.3g} steps",
        f"{samples} samples: {seconds / 3600:.1f} GPU hours, at most {kwh:.1f} kWh ({kwh * kwh_price:.2f} at "
        f"{kwh_price:.2f} a kWh)",
    ]
    return "\n".join(lines)


def many(found: Requirements, counts: StepCounts, own: argparse.Namespace, settings: FitSettings) -> str:
    """The simulated runs of all samples as a table over numbers of GPUs. Raises UserError."""
    import numpy as np

    from ttopt.planning.simulate import SimulatedWorkers, Workload, bound, simulate
    from ttopt.planning.step_counts import work_of_run

    if own.seconds == "measured":
        known = work_of_run(own.steps_from)
    else:
        once, same = found.sample_seconds - found.steps * found.step_seconds, np.ones(len(counts.steps))
        known = Workload(once * same, found.step_seconds * same, counts.steps)
    each = found.gpus  # of a worker
    draws = max(1, min(20, DRAWS // own.samples))
    lines = [
        "",
        f"{own.samples:,} samples, {each} {found.gpu.name} each, one after the other: means of {draws} simulations",
        f"steps    {counts.source}: {counts.mean:.1f} on average; seconds {own.seconds}",
        f"assumed  {own.start_seconds:g} s to load the models, {100 * own.slow_share:g} % of the workers "
        f"{own.slow_factor:g} times slower, a failure of a GPU every {own.failure_hours:,g} hours",
        f"price    {own.gpu_price:.2f} an hour for every GPU until the last sample ends",
        "",
        f"{'GPUs':>7s} {'hours':>9s} {'busy':>6s} {'failures':>9s} {'GPU hours':>10s} {'price':>11s}   bounded by",
    ]
    for gpus in own.gpus or MANY:
        if gpus < each:
            raise UserError(f"--gpus is {gpus}, but a sample needs {each}; give {each} or more")
        workers = SimulatedWorkers(
            gpus // each, own.start_seconds, own.slow_share, own.slow_factor, own.failure_hours / each
        )
        outcomes, bounds = [], []
        for draw in range(draws):
            picked = np.random.default_rng((settings.seed, draw)).choice(len(known.once), own.samples, p=counts.weights)
            work = Workload(known.once[picked], known.step[picked], known.steps[picked])
            outcomes.append(simulate(work, workers, settings.logging.state_every, settings.seed + draw))
            bounds.append(bound(work, workers))
        hours = sum(outcome.makespan for outcome in outcomes) / draws / 3600
        busy = sum(outcome.busy for outcome in outcomes) / draws / 3600 / (workers.count * hours)
        failures = sum(outcome.failures for outcome in outcomes) / draws
        lines.append(
            f"{gpus:7,d} {hours:9.2f} {busy:6.0%} {failures:9.1f} {gpus * hours:10,.1f} "
            f"{gpus * hours * own.gpu_price:11,.2f}   {max(bounds, key=bounds.count)}"
        )
    return "\n".join(lines)


def cures(settings: FitSettings, found: Requirements) -> str:
    """What to change, one more thing at a time until it fits."""
    lines = ["", "To make it fit, change one after the other:"]
    for name, now in helping(settings, found):
        lines.append(f"  {name:44s} -> {_memory(now)}, {now.step_seconds:6.2f} s a step")
        if now.fits:
            return "\n".join(lines)
    lines.append("  none of these is enough: take a larger GPU or smaller models")
    return "\n".join(lines)


def helping(settings: FitSettings, found: Requirements) -> Iterator[tuple[str, Requirements]]:
    """What lowers the memory of the plan ``found``, one more thing at a time: as it is typed, and the plan with it."""
    from ttopt.planning.estimate import plan

    for name, change in (*CURES, *CURES):  # what does not help at first may help after others
        changed = change(settings)
        if changed == settings or not _allowed(changed):
            continue
        now = plan(changed, found.gpu, found.steps, found.processes)
        if max(now.memory.values()) < max(found.memory.values()):
            settings, found = changed, now
            yield name, now


def _allowed(settings: FitSettings) -> bool:
    try:
        check(settings)
    except UserError:
        return False
    return True


def _memory(found: Requirements) -> str:
    return ", ".join(f"{size / GIB:.1f} GiB on {device}" for device, size in found.memory.items())


def _change(group: str, **values: Any) -> tuple[str, Callable[[FitSettings], FitSettings]]:
    """The settings as typed, and what sets them."""
    typed = " ".join(f"--{group}.{name} {str(value).lower()}" for name, value in values.items())
    return typed, lambda settings: replace(settings, **{group: replace(getattr(settings, group), **values)})


# From what costs nothing to what changes the result.
CURES = (
    _change("reasoner", offload=True),
    _change("teacher", activation_checkpointing=True),
    _change("reasoner", activation_checkpointing="all"),
    _change("decoder", kind="light", shrink=1),
    _change("reasoner", float8=True),
    _change("teacher", float8=True),
    _change("reasoner", vae_dtype="bfloat16"),
    _change("sample", height=480, width=832),
)
