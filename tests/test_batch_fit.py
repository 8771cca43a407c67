"""``--batch-samples``: the same folders as one by one."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import rich.console
import torch

from callbacks import standard
from ttopt.config import parse_fit
from ttopt.console import Console
from ttopt.engine import fit_all
from ttopt.errors import UserError
from ttopt.models import Models
from ttopt.reasoner import StandardDecoder
from ttopt.reasoner.adapter import read_adapter
from ttopt.result import Result
from ttopt.settings import FitSettings, MethodSettings

Make = Callable[..., FitSettings]


def run(settings: FitSettings, models: Models) -> dict[str, Path]:
    models.adapter.reset(0)
    done = fit_all(settings, Console(rich.console.Console(quiet=True)), standard, lambda _: models)
    assert not done.problems
    return {result.sample: done.folder / "samples" / result.sample for result in done.results}


def test_a_batch_writes_the_folders_that_its_samples_write_alone(
    settings: Make, models: Models, tmp_path: Path
) -> None:
    models = dataclasses.replace(models, decoder=StandardDecoder(models.reasoner.vae))
    # tau lies so that the samples stop at different steps
    common = {"limit": 2, "logging": {"wandb": "disabled", "previews_every": 1}, "teacher": {"frames": 5}}
    o = {"steps": 2, "lr": 1e-2, "tau": 0.0}
    probe = run(settings(**common, optimisation=o, run_dir=str(tmp_path / "probe")), models)
    curves = [[float(row["loss"]) for row in csv.DictReader((f / "curves.csv").open())] for f in probe.values()]
    tau = min(loss for curve in curves for loss in curve) * 1.0001
    folders = [
        run(settings(**common, optimisation=o | {"tau": tau}, batch_samples=n, run_dir=str(tmp_path / str(n))), models)
        for n in (1, 2)
    ]
    assert len(folders[0]) == 2 and list(folders[0]) == list(folders[1])
    stops = set()
    for name, alone in folders[0].items():
        together = folders[1][name]
        assert sorted(p.relative_to(alone) for p in alone.rglob("*")) == sorted(
            p.relative_to(together) for p in together.rglob("*")
        )
        a, b = Result.load(alone), Result.load(together)
        assert a.optimisation is not None and b.optimisation is not None
        assert (a.stop, a.accepted, a.seeds, a.optimisation.steps) == (
            b.stop,
            b.accepted,
            b.seeds,
            b.optimisation.steps,
        )
        assert b.optimisation.prediction_after.loss == pytest.approx(a.optimisation.prediction_after.loss, abs=1e-4)
        assert b.optimisation.video_after.loss == pytest.approx(a.optimisation.video_after.loss, abs=1e-4)
        assert (a.cost.reasoner_forwards, a.cost.vlm_calls) == (b.cost.reasoner_forwards, b.cost.vlm_calls)
        rows = [list(csv.DictReader((folder / "curves.csv").open())) for folder in (alone, together)]
        for one, other in zip(*rows, strict=True):
            assert float(one["loss"]) == pytest.approx(float(other["loss"]), abs=1e-4)
        first, second = (read_adapter(folder / "adapter")[0] for folder in (alone, together))
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, atol=2e-3, rtol=0)
        stops.add((a.stop, a.optimisation.steps))
    assert len(stops) > 1, "samples should stop differently for this test to mean anything"


def test_what_cannot_be_batched_is_refused(settings: Make, models: Models, tmp_path: Path) -> None:
    for number, (wrong, message) in enumerate(
        (
            ({"method": MethodSettings("ttopt.methods.base.Context")}, "cannot be made"),
            ({"optimisation": {"denoise_step": "all"}}, "needs optimisation.denoise_step first"),
        )
    ):
        with pytest.raises(UserError, match=message):
            run(settings(**wrong, batch_samples=2, run_dir=str(tmp_path / str(number))), models)
    with pytest.raises(UserError, match="batch_samples is 0"):
        parse_fit(["--batch-samples", "0"])
