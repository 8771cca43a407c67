"""The sentence that a page opens with, and which of its samples come first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ttopt.evaluate.table import SUCCESS, Row, mean
from ttopt.record.result import Result

REPAIRED, BROKEN = "repaired", "broken"


@dataclass(frozen=True)
class Headline:
    """``counts``: how many samples, and which outcome the filter knows them by ("": none)."""

    sentence: str
    counts: Sequence[tuple[str, str]] = ()
    note: str = ""
    method: str = ""  # whose result it is


Pair = tuple[str, str]  # the outcomes of one sample, by the reference and by a method


def change(before: str, after: str) -> str:
    """What became of a sample: repaired, broken, or "" where neither can be said."""
    if "out" in (before, after) or "done" in (before, after):
        return ""
    if (before == "right") == (after == "right"):
        return ""
    return REPAIRED if after == "right" else BROKEN


def rank(before: str | None, after: str) -> int:
    """Repaired samples come first, then the broken, the wrong, and the right."""
    changed = "" if before is None else change(before, after)
    return {REPAIRED: 0, BROKEN: 1}.get(changed, 3 if after == "right" else 2)


def of_comparison(table: Sequence[Row], reference: str, score: str, pairs: dict[str, list[Pair]]) -> Headline:
    """The best method beside the reference; ``pairs`` are their outcomes by method."""
    base = next(row for row in table if row.method == reference)
    others = [row for row in table if row.gain and row.gain.difference.n]
    if not others:
        right = f"{round(base.score.mean * base.score.n)} of {base.score.n} right"
        known = right if score == SUCCESS else f"{score} {base.score.mean:.2f}"
        return Headline(f"{reference}: {known}" if base.score.n else "Nothing is scored yet", method=reference)
    best = max(others, key=lambda row: row.score.mean)
    assert best.gain is not None
    p = "p < 0.001" if best.gain.p < 0.001 else f"p {best.gain.p:.3f}"
    note = f"Compared with {reference} on the same samples: {p}."
    if len(others) > 1:
        note += f" None of the other {len(others) - 1} methods in the table has a higher {score}."
    if score == SUCCESS:
        found = of_pairs(pairs[best.method])
        return Headline(f"{best.method}: {found.sentence}", found.counts, note, best.method)
    sentence = f"{best.method}: {score} {base.score.mean:.2f} → {best.score.mean:.2f}"
    counts = [(f"{best.gain.better} better", ""), (f"{best.gain.worse} worse", "")]
    return Headline(sentence, counts, note, best.method)


def of_pairs(pairs: Sequence[Pair]) -> Headline:
    """Right before and after, and what became of the others; what is left out counts nowhere."""
    known = [pair for pair in pairs if "out" not in pair]
    before, after = (sum(pair[side] == "right" for pair in known) for side in (0, 1))
    changes = [change(*pair) for pair in known]
    counts = [(f"{changes.count(kind)} {kind}", kind) for kind in (REPAIRED, BROKEN)]
    return Headline(f"{before} → {after} of {len(known)} right", counts)


def of_run(results: Sequence[Result], pairs: Sequence[Pair], method: str) -> Headline:
    """A run's result by its scorer; without one, by the teacher. ``pairs``: the outcomes of the optimized samples."""
    scored = [result for result in results if result.score]
    right = sum(result.score.success for result in scored if result.score)
    known = [pair for pair in pairs if "done" not in pair]
    if known:
        found = of_pairs(known)
        sentence = found.sentence if len(known) == len(scored) else f"{right} of {len(scored)} right"
        note = (
            "Right by the data set’s scorer, which no model sees. Frozen: the video model without the adapter, from "
            "the same noise."
        )
        return Headline(sentence, found.counts, note, method)
    if scored:
        return Headline(
            f"{right} of {len(scored)} right", note="Right by the scorer, which no model sees.", method=method
        )
    return Headline(_unscored(results), method=method)


def _unscored(results: Sequence[Result]) -> str:
    judged = [result.accepted for result in results if result.accepted is not None]
    losses = [(r.optimization.video_before.loss, r.optimization.video_after.loss) for r in results if r.optimization]
    before, after = (mean(pair[side] for pair in losses) for side in (0, 1))
    changed = "" if None in (before, after) else f", loss {before:.3f} → {after:.3f}"
    if judged:
        who = "the teacher" if losses else "the method’s own judge"
        return f"{sum(judged)} of {len(judged)} accepted by {who}{changed}"
    return f"{len(results)} {'video' if len(results) == 1 else 'videos'}{changed}"
