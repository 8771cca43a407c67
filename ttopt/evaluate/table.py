"""From results to a table: one row a method, all on the same samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torchmetrics.aggregation import MeanMetric

from ttopt.evaluate.statistics import Estimate, Paired, estimate, failures_cut, paired
from ttopt.record.result import Result


@dataclass(frozen=True)
class Judged:
    """A finished video in the eyes of the teacher and beside the reference method's video."""

    p_yes: list[float] | None  # of the sample's questions, goal first; None: there are none
    ssim: float | None  # to the reference's video; None: of another length
    psnr: float | None

    @property
    def satisfied(self) -> float | None:
        """The share of questions whose answer is rather Yes."""
        return None if not self.p_yes else sum(p > 0.5 for p in self.p_yes) / len(self.p_yes)


@dataclass(frozen=True)
class Entry:
    """One method on one sample. ``result`` None: it could not be done. ``official`` is a benchmark's own score.

    ``left_out`` says why it counts nowhere: it is not done yet, or what lies there cannot be read. ``problem`` says why
    it has no video or verdict.
    """

    result: Result | None
    judged: Judged | None = None
    official: float | None = None
    left_out: str = ""
    problem: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)  # the benchmark's numbers by metric

    @property
    def failed(self) -> bool:
        """Whether there is no usable video."""
        return self.result is None or bool(self.result.error)

    @property
    def why(self) -> str:
        """Why it counts 0."""
        if self.result is None:
            return self.problem or "could not be done"
        return self.result.error or self.problem or "no verdict"


@dataclass(frozen=True)
class Row:
    """One method. Means are over its samples; None where nothing is known."""

    method: str
    score: Estimate  # what the table's name says; a sample without a usable video or a verdict counts 0
    gain: Paired | None  # over the reference, on the same samples; None: this is the reference
    failures_cut: Estimate | None  # share of the reference's failures that are gone; None also if it has none
    failed: list[str]  # samples that count 0 for want of a usable video or a verdict
    left_out: list[str]  # samples that count nowhere: not done yet, or unreadable
    partial: float | None
    satisfied: float | None
    steps: float | None
    accepted: float | None  # share that the method's own judge accepted
    hacked: float | None  # of these, the share that the scorer refuses
    unstepped: float | None  # how many of the better samples took no optimization step; None: nothing is optimized
    ssim: float | None  # drift from the reference's video
    psnr: float | None
    first_frame_ssim: float | None
    lora_norm: float | None
    generated_seconds: float | None
    reasoner_forwards: float | None
    wall_seconds: float | None
    vlm_calls: float | None
    equal_time: float | None  # how many of the reference's videos take as long
    by_family: dict[str, float]
    counted: dict[str, int]  # how many samples are behind partial, satisfied, accepted and hacked
    paper: float | None = None


Entries = Mapping[str, Mapping[str, Entry]]  # method -> sample -> entry
SUCCESS, BENCHMARK, QUESTIONS = "success", "benchmark score", "questions satisfied"  # what a table's score may be


def score_of(entry: Entry, name: str) -> float | None:
    """An entry's score in [0, 1]; 0 without a usable video or a verdict, None where it is left out or no question
    could be asked about it."""
    if entry.left_out:
        return None
    if entry.failed or entry.result is None:
        return 0.0
    if name == SUCCESS:
        return float(entry.result.score is not None and entry.result.score.success)
    if name == BENCHMARK:
        return entry.official or 0.0
    return entry.judged.satisfied if entry.judged else None


def _unjudged(entry: Entry, name: str) -> bool:
    """Whether it counts 0 whatever its video shows."""
    if entry.left_out:
        return False
    if entry.failed or entry.result is None:
        return True
    return {SUCCESS: entry.result.score is None, BENCHMARK: entry.official is None}.get(name, False)


def rows(
    entries: Entries,
    reference: str,
    family: Callable[[str], str],
    papers: Mapping[str, float | None] | None = None,
    name: str = SUCCESS,
) -> list[Row]:
    """The table of the score ``name``. ``family`` gives a sample's family. A method is compared with ``reference`` on
    the samples that both have a score for; both must be in ``entries``."""
    scores = {m: _known({s: score_of(e, name) for s, e in samples.items()}) for m, samples in entries.items()}
    base_seconds = mean(_cost(entries[reference].values(), "wall_seconds"))
    found = []
    for method, samples in entries.items():
        mine, base = scores[method], scores[reference]
        common = [s for s in mine if s in base]
        pair = [mine[s] for s in common], [base[s] for s in common]
        gain, cut = (None, None) if method == reference else (paired(*pair), failures_cut(*pair))
        seconds = mean(_cost(samples.values(), "wall_seconds"))
        good = [e.result for e in samples.values() if e.result is not None and not e.failed]
        judged = [e.judged for e in samples.values() if e.judged is not None and not e.failed]
        steps = {s: e.result.optimization.steps for s, e in samples.items() if e.result and e.result.optimization}
        shares = _shares(samples.values(), entries)
        families = sorted({family(s) for s in mine})
        found.append(
            Row(
                method=method,
                score=estimate(list(mine.values())),
                gain=gain,
                failures_cut=cut if cut and cut.n else None,
                failed=[s for s, entry in samples.items() if _unjudged(entry, name)],
                left_out=[s for s, entry in samples.items() if entry.left_out],
                **{share: mean(values) for share, values in shares.items()},
                steps=mean(r.optimization.steps for r in good if r.optimization),
                unstepped=sum(mine[s] > base[s] and steps.get(s) == 0 for s in common) if gain and steps else None,
                ssim=mean(j.ssim for j in judged),
                psnr=mean(j.psnr for j in judged),
                first_frame_ssim=mean(r.first_frame_ssim for r in good),
                lora_norm=mean(r.optimization.lora_norm for r in good if r.optimization),
                generated_seconds=mean(_cost(samples.values(), "generated_seconds")),
                reasoner_forwards=mean(_cost(samples.values(), "reasoner_forwards")),
                wall_seconds=seconds,
                vlm_calls=mean(_cost(samples.values(), "vlm_calls")),
                equal_time=seconds / base_seconds if seconds and base_seconds else None,
                by_family={f: mean(v for s, v in mine.items() if family(s) == f) for f in families},
                counted={share: len(values) for share, values in shares.items()},
                paper=(papers or {}).get(method),
            )
        )
    return found


def _shares(mine: Iterable[Entry], entries: Entries) -> dict[str, list[float]]:
    """The numbers behind a method's shares. A sample without a usable video counts 0 in each that is known at all: the
    scorer's partial score, the questions, and whether the method's own judge accepted."""
    there = [entry for entry in mine if not entry.left_out]
    everyone = [entry for samples in entries.values() for entry in samples.values()]
    good = [(entry, entry.result) for entry in there if entry.result is not None and not entry.failed]
    lost = [0.0] * (len(there) - len(good))
    partial = [result.score.partial for _, result in good if result.score]
    satisfied = [entry.judged.satisfied for entry, _ in good if entry.judged and entry.judged.satisfied is not None]
    accepted = [float(result.accepted) for _, result in good if result.accepted is not None]
    hacked = [float(not result.score.success) for _, result in good if result.accepted and result.score]
    scored = any(entry.result and entry.result.score for entry in everyone)
    asked = any(entry.judged and entry.judged.satisfied is not None for entry in everyone)
    return {
        "partial": partial + lost if scored else [],
        "satisfied": satisfied + lost if asked else [],
        "accepted": accepted + lost if accepted else [],
        "hacked": hacked,
    }


def _known(scores: Mapping[str, float | None]) -> dict[str, float]:
    return {sample: score for sample, score in scores.items() if score is not None}


def _cost(entries: Iterable[Entry], unit: str) -> list[float]:
    """What was spent, failures included: they were paid for."""
    return [float(getattr(entry.result.cost, unit)) for entry in entries if entry.result is not None]


def mean(values: Iterable[float | None], empty: Any = None) -> Any:
    """The mean of what is known and finite; ``empty`` if nothing is."""
    known = [float(value) for value in values if value is not None and math.isfinite(value)]
    if not known:
        return empty
    metric = MeanMetric(sync_on_compute=False)  # the other processes do not come here
    metric.update(torch.tensor(known, dtype=torch.float64))
    return float(metric.compute())


def agrees(row: Row, reference: Row) -> str:
    """Whether an ablation moves the score as in the paper: "yes", "no", "unsure" (our interval holds 0), "equal" (the
    paper's does not move), or "" without a paper's number."""
    if row.paper is None or reference.paper is None or row.gain is None:
        return ""
    difference, theirs = row.gain.difference, row.paper - reference.paper
    if theirs == 0:
        return "equal"
    if difference.low <= 0 <= difference.high:
        return "unsure"
    return "yes" if difference.mean * theirs > 0 else "no"


def columns(table: Sequence[Row]) -> list[str]:
    """The numeric columns of ``table`` that hold anything."""
    return [n for n in NUMBERS if any(getattr(row, n) is not None for row in table)]


NUMBERS = {
    "satisfied": "questions satisfied",
    "steps": "steps",
    "hacked": "hacked",
    "unstepped": "better without a step",
    "generated_seconds": "video seconds",
    "reasoner_forwards": "forwards",
    "wall_seconds": "wall seconds",
    "vlm_calls": "VLM calls",
    "equal_time": "× reference's time",
    "accepted": "accepted",
    "partial": "partial score",
    "ssim": "SSIM to reference",
    "psnr": "PSNR to reference",
    "first_frame_ssim": "first-frame SSIM",
    "lora_norm": "LoRA norm",
}
