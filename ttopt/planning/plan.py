"""``ttopt plan``: what a configuration needs on a GPU and on many, as a person reads it.

The estimate is ttopt/planning/estimate.py's, the simulation of many GPUs ttopt/planning/simulate.py's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ttopt.config.checks import check
from ttopt.config.settings import EMBEDDED, FitSettings
from ttopt.errors import UserError
from ttopt.planning.estimate import Requirements, plan
from ttopt.planning.gpus import GPUS
from ttopt.planning.needed import missing
from ttopt.planning.simulate import SimulatedWorkers, Workload, bound, simulate
from ttopt.planning.step_counts import PAPER_MEAN, StepCounts, even, of_run, shipped, work_of_run

GIB = 2**30
MANY = tuple(2**power for power in range(3, 13))  # GPUs: 8 to 4,096
DRAWS = 100_000  # samples that are simulated for a row of the table, at most 20 times all of them


def show(asked: tuple[argparse.Namespace, FitSettings]) -> int:
    """``ttopt plan``, of what ``parse_plan`` has read."""
    own, settings = asked
    counts = step_counts(own, settings)
    found = plan(settings, GPUS[own.gpu], counts.mean, own.processes)
    texts = [report(found, own.samples, own.kwh_price), files(settings)]
    if not found.fits:
        texts.append(cures(settings, found))
    if own.gpus is not None:
        texts.append(many(found, counts, own, settings))
    print("\n".join(texts))
    return 0


def step_counts(own: argparse.Namespace, settings: FitSettings) -> StepCounts:
    """How many steps samples take: of a run, of a given mean, or what is known of these models. Raises UserError."""
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
    work, time, space = _units(found)
    titles = f"{work.name:>9s} {time.name:>9s} {f'activations {space.name}':>16s}"
    lines.append(f"{'part':14s} {titles}   when")
    when = dict.fromkeys(("predict", "decode", "grade", "backward"), "every step")
    when |= {"condition": "once", "queries": "once", "prefix": "once", "generate": "twice", "final decode": "twice"}
    for name, part in found.parts.items():
        sizes = f"{part.flop / work.size:9.1f} {part.seconds / time.size:9.3f} {part.peak / space.size:16.2f}"
        lines.append(f"{name:14s} {sizes}   {when[name]}")
    lines.append(f"{'a step':14s} {found.step_flop / work.size:9.1f} {found.step_seconds / time.size:9.3f}")
    lines += ["", f"{'weights':14s} {space.name:>9s}"]
    lines += [f"{name:14s} {size / space.size:9.2f}" for name, size in found.weights.items()]
    seconds = samples * found.sample_seconds * found.gpus
    kwh = seconds * gpu.watts / 3.6e6
    lines += [
        "",
        f"memory   {_memory(found)} at most, of {gpu.memory:.0f}: {'fits' if found.fits else 'does not fit'}",
        f"seconds  {_number(found.step_seconds, 2)} a step, {_number(found.sample_seconds, 0)} a sample of "
        f"{found.steps:.3g} steps",
        f"{samples} samples: {_number(seconds / 3600, 1)} GPU hours, at most {_number(kwh, 1)} kWh "
        f"({_number(kwh * kwh_price, 2)} at {kwh_price:.2f} a kWh)",
    ]
    return "\n".join(lines)


def files(settings: FitSettings) -> str:
    """What ``ttopt fetch`` would load. The hub is not asked: only its cache is looked into."""
    to_load = ", ".join(f"{one.setting} {one.name}" for one in missing(settings))
    if not to_load:
        return "files    all here"
    return f"files    not here yet: {to_load}; 'ttopt fetch' with the same settings says their sizes and loads them"


class Unit(NamedTuple):
    """What a column counts in."""

    name: str
    size: float


def _units(found: Requirements) -> tuple[Unit, Unit, Unit]:
    """Of work, time and memory, small enough for what is planned not to be a table of zeros."""
    largest = max(found.weights.values(), default=0)
    return (
        Unit("TFLOP", 1e12) if found.step_flop >= 1e12 else Unit("GFLOP", 1e9),
        Unit("seconds", 1.0) if found.step_seconds >= 0.05 else Unit("ms", 1e-3),
        Unit("GiB", GIB) if largest >= GIB / 4 else Unit("MiB", 2**20),
    )


def _number(value: float, digits: int) -> str:
    """With so many digits behind the point; a small one with two that are no zeros."""
    return f"{value:.{digits}f}" if value >= 10 ** (1 - digits) or value == 0 else f"{value:.2g}"


def many(found: Requirements, counts: StepCounts, own: argparse.Namespace, settings: FitSettings) -> str:
    """The simulated runs of all samples as a table over numbers of GPUs. Raises UserError."""
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
    def said(size: float) -> str:
        return f"{size / GIB:.1f} GiB" if size >= GIB / 4 else f"{size / 2**20:.1f} MiB"

    return ", ".join(f"{said(size)} on {device}" for device, size in found.memory.items())


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
