"""The README's tables, in Markdown, from what measure.sh has left: python benchmarks/tables.py runs/measure

What is not measured yet is left out. Below each table stand the numbers that the text around it quotes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttopt.evaluate.comparison import TABLE, Comparison, load_comparison
from ttopt.evaluate.statistics import Estimate, failures_cut, interval, paired
from ttopt.evaluate.table import Row, agrees, rows

SPLITS = ("id", "ood")
EFFECT = {
    "static (first frame repeated)": "static",
    "single": "single",
    "Pass@5, the teacher picks": "pass@5",
    "Pass@16 (more than equal wall time), the teacher picks": "pass@16",
    "best of 20, the scorer picks": "oracle of 20",
    "the starting noise, of up to four, not optimized": "start",
    "**teacher LoRA**": "ours",
    "its few-step video, always (the paper's rule)": "keep last",
    "its one-step prediction, always": "ours, one-step",
    "oracle loss instead of the teacher (first 64 samples)": "ceiling",
    "the right video after the VAE": "round trip",
}


def p_value(p: float, digits: int = 3) -> str:
    """p as the tables say it."""
    least = 10.0**-digits
    return f"< {least:.{digits}f}".replace("0.", ".") if p < least else f"{p:.{digits}f}"


def line(*cells: str) -> str:
    """One row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def stored(row: dict[str, Any], mean: str, ends: str) -> Estimate:
    """An estimate that the evaluation has written down."""
    low, high = row[ends]
    return Estimate(row[mean], low, high, row["n"])


def cut(samples: Sequence[dict[str, float]]) -> str:
    """The share of single's failures that the adapter does without, and its interval."""
    found = failures_cut([row["ours"] for row in samples], [row["single"] for row in samples])
    return f"{found.mean:.0%} [{found.low:.0%}, {found.high:.0%}]".replace("%", " %")


def effect(files: Sequence[Path]) -> None:
    """Does it help? One column a split."""
    found = [json.loads(file.read_text()) for file in files]
    sums = [each["summary"] for each in found]
    for title, name in EFFECT.items():
        cells = []
        for each in sums:
            row = each[name]
            cell = interval(stored(row, "success", "interval"))
            if name not in ("static", "single"):
                cell += ", " + interval(stored(row, "gain", "gain_interval"), "+")
            cells.append(cell)
        print(line(title, *cells))
    ours = [each["ours"] for each in sums]
    tests = (f"{each['repaired']} / {each['broken']}, {p_value(each['p'])}" for each in ours)
    print(line("repaired / broken samples, McNemar p", *tests))
    print(line("single's failures cut by", *(cut(each["rows"]) for each in found)))
    reached = (f"{each['accepted']:.2f}; {each['hacked, ours']:.3f}" for each in sums)
    print(line("runs that reach tau; of these wrong by the scorer (hacked)", *reached))
    print(line("optimization steps", *(f"{each['steps']:.2f}" for each in sums)))
    print(line("Pass@k of equal wall time: k", *(f"{each['pass@k of equal time']:.1f}" for each in sums)))
    print(line("right questions written by the teacher", *(f"{each['right queries']:.3f}" for each in sums)))
    print(f"failures cut over all: {cut([row for each in found for row in each['rows']])}")
    for file, each in zip(files, found, strict=True):
        samples = each["rows"]
        for name in ("pass@16", "oracle of 20", "round trip"):
            against = paired([row["ours"] for row in samples], [row[name] for row in samples])
            difference = interval(against.difference, "+")
            print(f"{file.stem}: over {name} {difference}, {against.better} / {against.worse}, {p_value(against.p)}")
        for family in sorted({row["family"] for row in samples}):
            mine = [row for row in samples if row["family"] == family]
            means = {n: round(float(np.mean([row[n] for row in mine])), 3) for n in ("round trip", "single", "ours")}
            missed = sum(not row["ours"] and not row["accepted"] for row in mine)
            hacked = sum(not row["ours"] and bool(row["accepted"]) for row in mine)
            print(f"{file.stem}: {family} n {len(mine)} {means}, failed without tau {missed}, hacked {hacked}")


def opened(folder: Path) -> Comparison | None:
    """A comparison that has run; None if there is none yet."""
    return load_comparison(folder) if (folder / TABLE).exists() else None


def comparison(out: Path) -> None:
    """Compare: success in and out of distribution; costs of the latter, wall seconds of the run without company."""
    found = {split: opened(out / f"compare-{split}") for split in SPLITS}
    wall = opened(out / "wall")
    timed = {row.method: row for row in wall.table} if wall else {}
    if all(found.values()):
        for pair in zip(*(each.table for each in found.values() if each), strict=True):
            print(compared(pair[0].method, pair, timed))
    lora = [opened(out / f"compare-lora-{split}") for split in SPLITS]
    if all(lora):
        singles, pair = zip(*(each.table for each in lora if each), strict=True)
        there = ", ".join(f"{row.score.mean:.2f}" for row in singles)
        print(compared(f"{pair[0].method} ({pair[0].score.n} samples a split; single there {there})", pair, timed))
    for split, each in found.items():
        if each is None:
            continue
        for row in rows(each.entries, "Pass@10", str):
            if row.method == "teacher LoRA" and row.gain:
                test = f"{row.gain.better} / {row.gain.worse}, p {p_value(row.gain.p, 2)}"
                print(f"{split}: teacher LoRA over Pass@10 {interval(row.gain.difference, '+', 2)}, {test}")
        for row in each.table:
            print(f"{split}: {row.method} accepted {row.accepted} hacked {row.hacked} {families(row)}")


def compared(title: str, pair: Sequence[Row], timed: dict[str, Row]) -> str:
    """One method's row: both splits, then what it costs."""
    cells = []
    for row in pair:
        gain = row.gain
        cells.append(interval(row.score, digits=2))
        cells.append(f"{interval(gain.difference, '+', 2)}, p {p_value(gain.p, 2)}" if gain else "")
    seconds = timed.get(pair[1].method, pair[1]).wall_seconds
    return line(title, *cells, number(pair[1].generated_seconds), number(pair[1].reasoner_forwards, 0), number(seconds))


def families(row: Row) -> dict[str, float]:
    """Success by family."""
    return {family: round(value, 2) for family, value in row.by_family.items()}


def number(value: float | None, digits: int = 2) -> str:
    """Empty where nothing is known."""
    return "" if value is None else f"{value:.{digits}f}"


def loop(out: Path) -> None:
    """Step by step: success, against single, what is accepted and wrong, costs; then success by family."""
    found = opened(out / "loop")
    table = found.table if found else []
    for row in table:
        gain = row.gain
        against = (
            (interval(gain.difference, "+"), f"{gain.better} / {gain.worse}, {p_value(gain.p)}") if gain else ("", "")
        )
        title = row.method + (f" ({len(row.failed)} unreadable)" if row.failed else "")
        costs = (number(row.generated_seconds), number(row.wall_seconds))
        print(line(title, interval(row.score), *against, number(row.hacked), *costs))
    for row in table:
        print(row.method, families(row))


def ablations(out: Path) -> None:
    """What each part is worth, beside the paper's differences."""
    found = opened(out / "ablations")
    table = found.table if found else []
    for row in table:
        cells = ["", "", number(row.steps, 1) or "-", "", ""]
        if row.gain:
            cells[0] = interval(row.gain.difference, "+")
            cells[1] = f"{row.gain.better} / {row.gain.worse}, {row.gain.p:.2f}"
            if row.paper is not None:
                theirs = row.paper - (table[0].paper or 0.0)
                cells[3:] = f"{theirs:+.3f}", sign(row, table[0], theirs)
        print(line(row.method, interval(row.score), *cells))


def sign(row: Row, full: Row, theirs: float) -> str:
    """Whether the difference has the paper's sign, and "unsure" where its interval holds 0."""
    known = agrees(row, full)
    if known != "unsure" or row.gain is None or row.gain.difference.mean == 0:
        return known
    return ("yes" if row.gain.difference.mean * theirs > 0 else "no") + ", unsure"


def main() -> None:
    """Prints what is there."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/measure")
    files = [out / f"effect-{split}.json" for split in SPLITS]
    if all(file.exists() for file in files):
        effect(files)
    for table in (comparison, loop, ablations):
        print()
        table(out)


if __name__ == "__main__":
    main()
