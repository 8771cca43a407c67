"""Does a memory help? Adapters that may start from a bank's nearest entry against fresh ones, on the same samples.

    python -m benchmarks.bank --split ood --seed 3003 --samples 64 --bank 256

The bank is filled first, by the samples of another seed. Then every sample is optimized three times: cold, without a
bank; warm, with it; and held out, with a bank that lacks all of the sample's family, as for a task of a new kind.
Success is the scorer's; differences to cold are paired, with bootstrap intervals over samples.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from callbacks import LossThreshold
from ttopt.config.parsing import parse_fit
from ttopt.config.settings import FitSettings
from ttopt.data import miniworld
from ttopt.data.sample import Sample
from ttopt.errors import UserError, one_line
from ttopt.evaluate.statistics import SCORE, Estimate, estimate, paired
from ttopt.models.load import Models, load_models
from ttopt.models.teacher import Queries
from ttopt.optimization.algorithm import fit_batch, prepare
from ttopt.optimization.bank import Bank
from ttopt.optimization.context import Context
from ttopt.record.meter import Meter
from ttopt.record.result import Result, versions
from ttopt.record.run_folder import write_text

Row = dict[str, Any]
WAYS = ("cold", "warm", "held out")
NUMBERS = ("steps", "forwards", "accepted", "success", "found", "used")


class Evaluation:
    """Models, settings and the questions of the samples, written once."""

    def __init__(self, settings: FitSettings, batch: int) -> None:
        self.settings, self.batch = settings, batch
        self.models: Models = load_models(settings)
        self.asked: dict[str, Queries] = {}

    def groups(self, samples: Sequence[Sample]) -> Iterator[list[Sample]]:
        """Batches of one family and number of questions."""
        groups: dict[tuple[str, int], list[Sample]] = {}
        for sample in samples:
            if sample.id not in self.asked:
                self.asked[sample.id] = self.models.teacher.queries(sample)
            groups.setdefault((sample.family, len(self.asked[sample.id].all)), []).append(sample)
        for group in groups.values():
            for start in range(0, len(group), self.batch):
                yield group[start : start + self.batch]

    def fill(self, samples: Sequence[Sample], bank: Bank) -> None:
        """Optimizes ``samples``, which adds to the bank what satisfies the teacher."""
        for group in self.groups(samples):
            self.solve(group, bank)

    def solve(self, samples: Sequence[Sample], bank: Bank | None) -> list[Row]:
        """What happened to each of a batch of samples."""
        with TemporaryDirectory() as place:
            batch = []
            for sample in samples:
                folder, meter = Path(place) / sample.id, Meter(self.models.reasoner)
                folder.mkdir()
                context = Context(
                    self.models, self.settings, meter, scorer=miniworld.score, queries=self.asked[sample.id],
                    callbacks=lambda: [LossThreshold(self.settings.optimization.tau)], bank=bank,
                )  # fmt: skip
                with meter:
                    batch.append(prepare(sample, folder, context))
            rows = []
            for result in fit_batch(batch):
                if isinstance(result, Result):
                    rows.append(_row(result))
                elif not isinstance(result, UserError):
                    raise result
            return rows


def _row(result: Result) -> Row:
    o, start, score = result.optimization, result.details.get("bank"), result.score
    assert o is not None and score is not None
    return {
        "steps": o.steps,
        "forwards": result.cost.reasoner_forwards,
        "accepted": result.accepted,
        "kept": o.kept != "base",
        "success": score.success,
        "found": start is not None,
        "used": start is not None and start["used"],
        "similarity": start and start["similarity"],
    }


def without(bank: Bank, family: str) -> Bank:
    """The bank as if it had never seen ``family``: the world's sample ids are split-family-seed-number."""
    return dataclasses.replace(bank, keys={n: key for n, key in bank.keys.items() if n.split("-")[1] != family})


def run(
    evaluation: Evaluation, samples: Sequence[Sample], others: Sequence[Sample], place: Path
) -> tuple[int, list[Row]]:
    """Fills a bank in ``place`` by ``others``; returns its size and a row a sample: its id, family and each way."""
    begin = time.perf_counter()
    settings = evaluation.settings
    empty = Bank.open(settings, _made(place / "fill"), print)
    assert empty is not None
    evaluation.fill(others, empty)
    bank = Bank.open(settings, _made(place / "use"), print)
    assert bank is not None
    bank = dataclasses.replace(bank, adds=False)
    print(f"{len(bank.keys)} of {len(others)} entered the bank, {time.perf_counter() - begin:.0f} s", flush=True)
    rows: list[Row] = []
    for group in evaluation.groups(samples):
        banks = (None, bank, without(bank, group[0].family))
        found = {way: evaluation.solve(group, each) for way, each in zip(WAYS, banks, strict=True)}
        for number, sample in enumerate(group):
            ways = {way: each[number] for way, each in found.items()}
            rows.append({"sample": sample.id, "family": sample.family, **ways})
        print(f"{len(rows)}/{len(samples)} {time.perf_counter() - begin:.0f} s", flush=True)
    return len(bank.keys), rows


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Of each way, all numbers' means and their differences to cold."""
    out: dict[str, Any] = {"samples": len(rows)}
    for way in WAYS:
        out[way] = {}
        for name in NUMBERS:
            values, cold = ([float(row[each][name]) for row in rows] for each in (way, "cold"))
            ends = SCORE if name in ("success", "accepted") else None
            against = paired(values, cold, ends)
            out[way][name] = {
                "mean": _rounded(estimate(values, ends)),
                "over cold": _rounded(against.difference),
                "better / worse, p": [against.better, against.worse, round(against.p, 4)],
            }
    return out


def show(out: dict[str, Any]) -> None:
    """Prints a summary as a table."""
    for way in WAYS:
        print(f"{way}, n = {out['samples']}")
        for name, found in out[way].items():
            (mean, low, high), (gain, least, most) = found["mean"], found["over cold"]
            more = f"  over cold {gain:+.3f} [{least:+.3f}, {most:+.3f}]  higher/lower/p {found['better / worse, p']}"
            print(f"  {name:9s} {mean:7.3f} [{low:.3f}, {high:.3f}]{more if way != 'cold' else ''}")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--split", default="dev_ood", choices=["id", "ood", "dev_id", "dev_ood"])
    parser.add_argument("--seed", type=int, default=1001)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--bank", type=int, default=256, help="how many samples are optimized to fill the bank")
    parser.add_argument("--bank-seed", type=int, help="their seed, by default the next one")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--weights", type=Path, help="folder with other reasoner, teacher and light_decoder")
    parser.add_argument("--out", type=Path, help="JSON file for rows and summary")
    args, overrides = parser.parse_known_args(argv)
    parts = {"reasoner": "reasoner", "teacher": "teacher", "decoder": "light_decoder"} if args.weights else {}
    folders = [word for part, name in parts.items() for word in (f"--{part}.model", str(args.weights / name))]
    other = args.seed + 1 if args.bank_seed is None else args.bank_seed
    try:
        settings = parse_fit(["--config", "mini", "--seed", str(args.seed), *folders, *overrides])
        if other == args.seed:
            raise UserError("the bank's samples would be those that are measured; give another --bank-seed")
        with TemporaryDirectory() as place:
            bank = dataclasses.replace(settings.bank, folder=str(Path(place) / "bank"), add=True)
            evaluation = Evaluation(dataclasses.replace(settings, bank=bank), args.batch)
            samples = miniworld.samples(args.split, settings.families, args.seed, args.samples)
            others = miniworld.samples(args.split, settings.families, other, args.bank)
            size, rows = run(evaluation, samples, others, Path(place))
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    out = summary(rows)
    show(out)
    families = {
        name: summary([row for row in rows if row["family"] == name]) for name in {r["family"]: 0 for r in rows}
    }
    for name, each in families.items():
        print(f"{name}, n = {each['samples']}: " + "; ".join(f"{way} {_brief(each[way])}" for way in WAYS))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        command = {name: str(value) for name, value in vars(args).items()} | {"overrides": overrides}
        content = {"command": command, "versions": versions(), "bank": size, "summary": out, "families": families}
        write_text(args.out, json.dumps(content | {"rows": rows}, indent=1))
    return 0


def _brief(numbers: dict[str, Any]) -> str:
    return ", ".join(f"{name} {numbers[name]['mean'][0]:.2f}" for name in ("steps", "accepted", "success", "used"))


def _rounded(value: Estimate) -> list[float]:
    return [round(number, 4) for number in (value.mean, value.low, value.high)]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
