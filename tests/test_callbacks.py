"""Each callback alone in a Trainer."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tiny_fit import FRAMES, fit, prepare

import callbacks
from callbacks import LossThreshold, Previews, RewardCurves, SaveAdapter
from callbacks.reward_curves import draw
from ttopt.config.settings import FitSettings, LoggingSettings
from ttopt.errors import UserError
from ttopt.models.load import Models
from ttopt.record.result import ACCEPTED


def test_loss_threshold(models: Models, tmp_path: Path) -> None:
    module = fit(prepare(models), tmp_path, LossThreshold(100.0))
    assert (module.rows[0].stop, len(module.rows[0].grades)) == (ACCEPTED, 1)
    assert list(tmp_path.iterdir()) == [], "nothing is written without a callback that writes"
    with pytest.raises(UserError, match="a loss is never below 0; give 0.22"):
        LossThreshold(-0.1)


def test_reward_curves(models: Models, tmp_path: Path) -> None:
    curves = RewardCurves(tau=0.22)
    module = fit(prepare(models, steps=2), tmp_path, curves)
    with (tmp_path / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("step", "loss", "loss_goal", "loss_process_1", "loss_process_2"),
        *("p_yes_goal", "p_yes_process_1", "p_yes_process_2"),
    ]
    assert [int(row["step"]) for row in rows] == [0, 1, 2]
    for row, grade in zip(rows, module.rows[0].grades, strict=True):
        assert float(row["loss"]) == grade.total
        assert float(row["p_yes_goal"]) == pytest.approx(math.exp(-float(row["loss_goal"])))
    assert Image.open(tmp_path / "curves.png").size[0] > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.csv", "curves.png"]

    other = tmp_path / "other"
    other.mkdir()
    fit(prepare(models, steps=1), other, curves)
    assert len((other / "curves.csv").read_text().splitlines()) == 3, "the same callback can be used again"


def test_reward_curves_with_a_loss_that_is_not_finite(models: Models, tmp_path: Path) -> None:
    module = prepare(models, reward=lambda frames, latents: latents.mean().reshape(1, 1) * math.nan)
    fit(module, tmp_path, RewardCurves())
    assert (tmp_path / "curves.csv").read_text().splitlines()[1] == "0,nan,nan,nan"
    assert not (tmp_path / "curves.png").exists(), "one point is no curve"
    draw(module.rows[0].grades * 2, 0.2, tmp_path / "two.png")
    assert Image.open(tmp_path / "two.png").size[0] > 500


def test_previews(models: Models, tmp_path: Path) -> None:
    fit(prepare(models, steps=5), tmp_path, Previews(every=2))
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names == ["step_0000.png", "step_0002.png", "step_0004.png", "step_0005.png"]
    assert Image.open(tmp_path / "previews" / "step_0005.png").size == (48 * len(FRAMES), 48)
    with pytest.raises(UserError):
        Previews(every=0)


def test_save_adapter(models: Models, tmp_path: Path) -> None:
    module = fit(prepare(models, steps=2), tmp_path, SaveAdapter())
    kept = [parameter.detach().clone() for parameter in module.lora]
    models.adapter.reset([9])
    metadata = models.adapter.load(tmp_path / "adapter")
    assert all(torch.equal(a, b) for a, b in zip(kept, models.adapter.parameters()))
    assert metadata["steps"] == "2" and float(metadata["loss"]) == module.rows[0].kept.total
    with safe_open(tmp_path / "adapter" / "adapter_wan.safetensors", framework="pt") as file:
        assert all(name.startswith("diffusion_model.blocks.") for name in file.keys())


def test_standard_set() -> None:
    assert [type(c) for c in callbacks.standard(FitSettings())] == [LossThreshold, RewardCurves, SaveAdapter, Previews]
    quiet = FitSettings(logging=LoggingSettings(previews_every=0))
    assert Previews not in [type(c) for c in callbacks.standard(quiet)]
