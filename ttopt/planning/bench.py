"""``ttopt bench``: one optimization step, the plain way against ours, feature by feature.

The plain way is what a straightforward program on the same libraries does: diffusers' own forward with a timestep for
every token, the standard VAE, one teacher forward a question, everything computed again in every step. Each row
of the table adds one feature to the row above. A feature marked * changes the result on purpose (another decoder, fewer
adapted blocks); all others must not, which is checked against the plain way with the same starred features.

``--size mini`` measures the embedded models, ``--size 5b`` models as large as Wan2.2-TI2V-5B and Qwen3-VL-4B with
random weights, which cost the same.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ttopt.optimization.reward import multi_vqa_loss
from ttopt.planning import bench_models
from ttopt.planning.bench_arguments import Way
from ttopt.planning.bench_models import Bench, machine
from ttopt.record.result import versions
from ttopt.record.timing import PartTimer

PARTS = ("reasoner", "decoder", "teacher", "optimizer")
EXACT = 1e-4  # losses of exact features may differ by this


@dataclass(frozen=True)
class Row:
    """Medians over steps."""

    name: str
    seconds: dict[str, float]  # by part, forward and backward
    peak_mb: dict[str, float]
    loss: float  # before the last step
    difference: float  # to the plain way with the same starred features

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def measure(bench: Bench, way: Way, steps: int) -> tuple[list[dict[str, float]], dict[str, float], list[float]]:
    """Seconds of each part in each step, peak memory of each part, and every step's loss."""
    reasoner, numbers = bench.reasoner, bench.frame_numbers
    bench.prepare(keep=way.keep, compiled=way.compiled)
    adapter = bench.adapter(late=way.late)
    optimizer = torch.optim.AdamW(adapter.parameters(), bench.lr, weight_decay=0.0)
    decoder = bench.small if way.small else bench.light if way.light else bench.standard
    assert decoder is not None
    grade = bench.teacher.yes_losses if way.packed else bench.teacher.yes_losses_separate
    prefix = None
    seconds, peak, losses = [], dict.fromkeys(PARTS, 0.0), []
    try:
        if way.prefix:
            with torch.no_grad():
                prefix = reasoner.prefix(bench.z1, 1.0, bench.condition, adapter.first_block)
        for _ in range(steps):
            timer = PartTimer(reasoner.device)
            with timer("reasoner"):
                if way.two_times:
                    latents = reasoner.predict_clean(bench.z1, 1.0, bench.condition, prefix)
                else:
                    latents = bench.stock_prediction()
            # The graph is cut between the parts, so that each part's backward pass is timed with its forward.
            cut = latents.detach().requires_grad_()
            with timer("decoder"):
                frames = decoder(cut, numbers)
            shown = frames.detach().requires_grad_()
            with timer("teacher"):
                total = multi_vqa_loss(grade(shown, [bench.questions], bench.fps, numbers))
                total.sum().backward()
            with timer("decoder"):
                frames.backward(shown.grad)
            with timer("reasoner"):
                optimizer.zero_grad()
                latents.backward(cut.grad)
            with timer("optimizer"):
                torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
                optimizer.step()
            losses.append(total.item())
            seconds.append(timer.seconds())
            peak = {part: max(peak[part], value) for part, value in timer.peak_mb().items()}
    finally:  # also when memory runs out: the next way brings an adapter of its own
        adapter.remove()
    return seconds, peak, losses


def run(bench: Bench, ways: Sequence[Way], steps: int, say: Callable[[str], None] = print) -> list[Row]:
    """One row a way. The first step warms up and is not timed."""
    import torch

    plain: dict[Way, float] = {}
    rows = []
    for way in ways:
        say(f"measuring: {way.name}")
        reference = Way("plain", light=way.light, late=way.late, small=way.small)
        try:
            if replace(way, name=reference.name) != reference and reference not in plain:
                plain[reference] = measure(bench, reference, steps + 1)[2][-1]
            seconds, peak, losses = measure(bench, way, steps + 1)
            plain.setdefault(reference, losses[-1])
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            rows.append(Row(f"{way.name}: out of memory", dict.fromkeys(PARTS, math.nan), {}, math.nan, math.nan))
            continue
        median = {part: statistics.median(step[part] for step in seconds[1:]) for part in PARTS}
        rows.append(Row(way.name, median, peak, losses[-1], abs(losses[-1] - plain[reference])))
        say(f"  {rows[-1].total:.3f} s a step, {max(peak.values()):.0f} MiB at most")
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    head = ["way", *(f"{part} s (MiB)" for part in PARTS), "step s", "times faster", "peak MiB", "loss", "differs by"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        parts = " | ".join(f"{row.seconds[part]:.3f} ({row.peak_mb.get(part, math.nan):.0f})" for part in PARTS)
        lines.append(
            f"| {row.name} | {parts} | {row.total:.3f} | {rows[0].total / row.total:.2f} | "
            f"{max(row.peak_mb.values(), default=math.nan):.0f} | {row.loss:.5f} | {row.difference:.1e} |"
        )
    return "\n".join(lines)


def show(asked: tuple[argparse.Namespace, Sequence[Way]]) -> int:
    """``ttopt bench``, of what ``parse_bench`` has read."""
    own, ways = asked
    bench = bench_models.mini() if own.size == "mini" else bench_models.real_size(own.height, own.width, own.frames)
    rows = run(bench, ways, own.steps)
    print(f"\n{bench.title}; {machine(bench.reasoner.device)}\n\n{table(rows)}\n\n* changes the result on purpose")
    if own.out:
        own.out.parent.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"command": {**vars(own), "out": str(own.out)}, "title": bench.title}
        content |= {
            "machine": machine(bench.reasoner.device),
            "versions": versions(),
            "rows": [asdict(r) for r in rows],
        }
        own.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    wrong = [row.name for row in rows if row.difference > EXACT * (1 if own.size == "mini" else 1000)]
    if wrong:
        print(f"the loss changed where it must not: {', '.join(wrong)}")
    return 1 if wrong else 0
