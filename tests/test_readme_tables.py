"""The README's rows say what the result files say."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from test_table import entries, family

from benchmarks import tables
from benchmarks.effect import summary
from ttopt.evaluate.statistics import Estimate, Paired
from ttopt.evaluate.table import rows


def test_effect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    found = []
    for i in range(40):
        row: dict[str, float | str] = {name: float(rng.random() < 0.7) for name in tables.EFFECT.values()}
        row |= {"ours": 1.0, "accepted": 1.0, "steps": 2.0, "right queries": 1.0, "misread cells": 0.0, "noises": 2.0}
        row["family"] = "two" if i % 2 else "move"
        found.append(row)
    content = {"rows": found, "summary": summary(found) | {"pass@k of equal time": 7.0}}  # type: ignore[arg-type]
    file = tmp_path / "effect-id.json"
    file.write_text(json.dumps(content))
    tables.effect([file])
    said = dict(text.strip("| ").split(" | ") for text in capsys.readouterr().out.splitlines() if text.startswith("|"))
    assert said["single's failures cut by"].startswith("100 % [")
    assert said["**teacher LoRA**"].startswith("1.000 [0.91, 1.00], +0.")
    single = np.mean([float(row["single"]) for row in found])
    assert said["single"].startswith(f"{single:.3f} [")


@pytest.mark.parametrize(
    ("difference", "paper", "expected"),
    [(-0.1, 0.6, "yes"), (0.1, 0.6, "no"), (-0.1, 0.7, "equal"), (-0.0, 0.6, "unsure"), (-0.01, 0.6, "yes, unsure")],
)
def test_sign(difference: float, paper: float, expected: str) -> None:
    (full,) = rows({"full": entries([1, 0])}, "full", family, {"full": 0.7})
    about = Estimate(difference, difference - 0.05, difference + 0.05, 2)
    part = dataclasses.replace(full, gain=Paired(about, 1, 1, 1.0), paper=paper)
    assert tables.sign(part, full, paper - 0.7) == expected
