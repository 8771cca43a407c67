"""Which noise the optimization starts from, and whose video is kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import tiny_sample
from tiny_fit import fit_sample
from torch import Tensor

from ttopt.config.settings import FitSettings
from ttopt.data.find import given_queries
from ttopt.models.load import Models
from ttopt.optimization.algorithm import choose
from ttopt.optimization.noise import best_noise
from ttopt.optimization.seeds import noise_name, seed_of

Make = Callable[..., FitSettings]


def test_each_sample_starts_from_its_own_best_noise(models: Models) -> None:
    condition = models.reasoner.condition([tiny_sample("a"), tiny_sample("b")])
    seeds = [[1, 2, 3], [4, 5, 6]]
    values = {3: 0.2, 4: 0.1, 5: 0.05}  # the best of the first, and the first that tau lets pass of the second
    noises = {s: models.reasoner.noise(condition, [s, s])[0] for row in seeds for s in row}

    def losses(clean: Tensor, rows: list[int]) -> Tensor:
        assert len(clean) == len(rows)
        return torch.tensor([values.get(_seed(x), 1.0) for x in clean])

    def _seed(clean: Tensor) -> int:
        return min(noises, key=lambda s: float((predictions[s] - clean).abs().sum()))

    predictions = {}
    for s, z1 in noises.items():
        both = models.reasoner.predict_clean(torch.stack([z1, z1]), 1.0, condition)
        predictions[s] = both[0 if s < 4 else 1]
    z1, chosen, tried = best_noise(models.reasoner, condition, seeds, losses, 0.15)
    assert chosen == [3, 4] and tried == [3, 1]
    assert torch.equal(z1, torch.stack([noises[3], noises[4]]))


def test_one_noise_is_taken_as_it_is_and_never_graded(models: Models) -> None:
    condition = models.reasoner.condition(tiny_sample())
    z1, chosen, tried = best_noise(models.reasoner, condition, [[7]], lambda clean, rows: pytest.fail("graded"), 0.1)
    assert chosen == [7] and tried == [0] and torch.equal(z1, models.reasoner.noise(condition, [7]))


@pytest.mark.parametrize(("keep", "kept"), [("last", "adapter"), ("accepted", "base")])
def test_a_run_that_never_reaches_tau_keeps_what_the_settings_say(
    models: Models, settings: Make, tmp_path: Path, keep: str, kept: str
) -> None:
    s = settings(optimization={"steps": 2, "lr": 0.1, "keep": keep, "starts": 3})
    result = fit_sample(tiny_sample(), models, s, tmp_path, queries=given_queries(s))
    assert result.optimization is not None and result.optimization.kept == kept
    assert (result.optimization.drift["psnr"] == 100) == (kept == "base")
    candidates = [seed_of(s.seed, result.sample, noise_name(k)) for k in range(3)]
    assert result.seeds["noise"] in candidates


def test_the_better_video_has_the_lower_loss(models: Models, settings: Make, tmp_path: Path) -> None:
    s = settings(optimization={"steps": 3, "keep": "better"})
    o = fit_sample(tiny_sample(), models, s, tmp_path, queries=given_queries(s)).optimization
    assert o is not None
    assert o.video_after.loss <= o.video_before.loss
    assert (o.kept == "base") == (o.video_after == o.video_before)


def test_three_videos_are_made_and_counted_where_the_prediction_may_be_kept(
    models: Models, settings: Make, tmp_path: Path
) -> None:
    s = settings(optimization={"steps": 3, "lr": 0.1, "keep": "best"})
    result = fit_sample(tiny_sample(), models, s, tmp_path, queries=given_queries(s))
    o = result.optimization
    assert o is not None and result.cost.generated_seconds == pytest.approx(3 * 9 / 8, abs=1e-3)
    assert o.video_after.loss <= o.video_before.loss


@pytest.mark.parametrize(
    ("keep", "accepted", "losses", "kept"),
    [
        ("last", False, (0.1, 0.5), "adapter"),
        ("accepted", False, (0.5, 0.1), "base"),
        ("accepted", True, (0.1, 0.5), "adapter"),
        ("better", False, (0.5, 0.1), "adapter"),
        ("better", True, (0.5, 0.5), "base"),
        ("better", True, (0.5, math.nan), "base"),
        ("best", False, (0.5, 0.4, 0.3), "prediction"),
        ("best", False, (0.5, 0.4, math.nan), "adapter"),
    ],
)
def test_the_choose(keep: str, accepted: bool, losses: tuple[float, ...], kept: str) -> None:
    assert choose(keep, accepted, dict(zip(("base", "adapter", "prediction"), losses, strict=False))) == kept
