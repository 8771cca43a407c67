"""Many samples in one batch give what they give one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_reasoner_folder
from tiny_fit import fit
from torch import Tensor

from callbacks import LossThreshold
from ttopt.config.settings import OptimizationSettings
from ttopt.data.sample import Sample
from ttopt.models.reasoner import Adapter, Reasoner, Schedule, StandardDecoder
from ttopt.optimization.training import TestTimeTraining
from ttopt.record.result import ACCEPTED, ALL_STEPS, NON_FINITE


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory: pytest.TempPathFactory) -> Reasoner:
    folder: Path = tmp_path_factory.mktemp("reasoner")
    tiny_reasoner_folder(folder)
    return Reasoner.load(folder, schedule=Schedule())


@pytest.fixture
def adapter(reasoner: Reasoner) -> Iterator[Adapter]:
    adapter = Adapter(reasoner.transformer)
    yield adapter
    adapter.remove()


def distance(latents: Tensor, goal: Tensor) -> Tensor:
    return (latents - goal).square().mean((1, 2, 3, 4))


class Distance:
    """A reward that knows its samples."""

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets

    def __call__(self, frames: Tensor, latents: Tensor) -> Tensor:
        return distance(latents, self.targets)[:, None]

    def select(self, rows: Sequence[int]) -> Distance:
        return Distance(self.targets[list(rows)])


def test_a_batch_equals_its_samples_one_by_one_and_stops_each_by_itself(
    reasoner: Reasoner, adapter: Adapter, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 32, 32, generator=generator)
    samples = [Sample(f"s{i}", "move the red square", image, 5, 8, 32, 32) for i, image in enumerate(images)]
    condition = reasoner.condition(samples)
    z1 = reasoner.noise(condition, [1, 2, 3])
    target = torch.randn(z1.shape, generator=generator)
    start = distance(reasoner.predict_clean(z1, 1.0, condition), target)
    settings = OptimizationSettings(steps=4, lr=3e-3, tau=float(start[1]) * 0.995)
    adapter.reset([7, 8, 9])
    decoder = StandardDecoder(reasoner.vae)
    batch = TestTimeTraining(reasoner, adapter, decoder, Distance(target), condition, z1, range(5), settings)
    fit(batch, tmp_path, LossThreshold(settings.tau))
    states = [adapter.state_dict(i) for i in range(3)]
    assert len({row.kept.step for row in batch.rows}) > 1, "they should stop differently for this test to mean anything"

    for i in range(3):
        adapter.reset([7 + i])
        optimizer = torch.optim.AdamW(adapter.parameters(), settings.lr, weight_decay=0.0)
        for step in range(settings.steps + 1):
            loss = distance(reasoner.predict_clean(z1[i : i + 1], 1.0, condition.select([i])), target[i : i + 1])[0]
            if loss <= settings.tau or step == settings.steps:
                break
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(adapter.parameters(), settings.clip_norm)
            optimizer.step()
        assert step == batch.rows[i].kept.step
        assert loss.item() == pytest.approx(batch.rows[i].kept.total, abs=1e-5)
        for name, value in adapter.state_dict().items():
            # AdamW divides a tiny gradient by its own size, so rounding shows more in single weights than in the loss.
            torch.testing.assert_close(states[i][name], value, atol=1e-4, rtol=0)


class Scripted:
    """A reward whose losses are multiplied at some steps: ``factors[i][step]`` of row i."""

    def __init__(self, factors: Sequence[dict[int, float]]) -> None:
        self.factors = factors
        self.rows = list(range(len(factors)))
        self.computed: list[list[int]] = []

    def select(self, rows: Sequence[int]) -> Scripted:
        self.rows = list(rows)
        return self

    def __call__(self, frames: Tensor, latents: Tensor) -> Tensor:
        step = len(self.computed)
        self.computed.append(self.rows)
        factor = torch.tensor([self.factors[row].get(step, 1.0) for row in self.rows])
        return (latents.square().mean((1, 2, 3, 4)) * factor)[:, None]


def batch_of(
    reasoner: Reasoner, adapter: Adapter, folder: Path, factors: list[dict[int, float]], steps: int, tau: float
) -> tuple[TestTimeTraining, Tensor, list[list[int]]]:
    """Three rows with a scripted reward: the training, the predictions of the kept weights, the rows of each step."""
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    samples = [Sample(f"s{i}", "move the red square", image, 5, 8, 32, 32) for i, image in enumerate(images)]
    condition = reasoner.condition(samples)
    z1, reward = reasoner.noise(condition, [1, 2, 3]), Scripted(factors)
    adapter.reset([7, 8, 9])
    settings = OptimizationSettings(steps=steps, lr=3e-3, tau=tau)
    decoder: Any = lambda z, _: z  # noqa: E731
    training = TestTimeTraining(reasoner, adapter, decoder, reward, condition, z1, range(5), settings)
    fit(training, folder, LossThreshold(tau))
    with torch.no_grad():
        predicted = training.predict()
    for row, mine in zip(training.rows, predicted):
        if row.stop != NON_FINITE and row.frames is not None:
            torch.testing.assert_close(row.frames, mine), "the kept weights are those of the kept prediction"
    return training, predicted, reward.computed


def test_one_row_that_breaks_keeps_its_best_weights_and_disturbs_no_other(
    reasoner: Reasoner, adapter: Adapter, tmp_path: Path
) -> None:
    fine, predicted, _ = batch_of(reasoner, adapter, tmp_path, [{}, {}, {}], 4, 0.0)
    nan, inf = float("nan"), float("inf")
    broken, again, computed = batch_of(reasoner, adapter, tmp_path, [{}, {2: nan}, {0: inf}], 4, 0.0)
    assert [row.stop for row in broken.rows] == [ALL_STEPS, NON_FINITE, NON_FINITE]
    assert [row.kept.step for row in broken.rows] == [4, 1, 0]
    assert computed == [[0, 1, 2], [0, 1], [0, 1], [0], [0]], "what has stopped is not computed any more"
    assert broken.rows[0].kept.total == pytest.approx(fine.rows[0].kept.total, abs=1e-6)
    assert broken.rows[1].kept.total == pytest.approx(fine.rows[1].grades[1].total, abs=1e-6)
    torch.testing.assert_close(again[0], predicted[0], atol=1e-5, rtol=0)


def test_satisfied_by_the_last_step_is_accepted(reasoner: Reasoner, adapter: Adapter, tmp_path: Path) -> None:
    low = {3: 1e-3}  # only after the last step
    training, _, computed = batch_of(reasoner, adapter, tmp_path, [low, {}, {1: 1e-3}], 3, 0.05)
    frames = training.rows[2].frames
    assert frames is not None and frames.untyped_storage().nbytes() == frames.nbytes, "not the batch's of that step"
    assert [row.stop for row in training.rows] == [ACCEPTED, ALL_STEPS, ACCEPTED]
    assert computed == [[0, 1, 2], [0, 1, 2], [0, 1], [0, 1]]
    assert [row.kept.step for row in training.rows] == [3, 3, 1]


def test_recomputed_blocks_know_which_rows_are_left(
    reasoner: Reasoner, adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plain, _ = batch_of(reasoner, adapter, tmp_path, [{}, {1: 0.0}, {}], steps=3, tau=0.0)
    monkeypatch.setattr(reasoner, "activation_checkpointing", (0, 1))
    training, again, computed = batch_of(reasoner, adapter, tmp_path, [{}, {1: 0.0}, {}], steps=3, tau=0.0)
    assert training.rows[1].stop == ACCEPTED and computed[-1] == [0, 2]
    torch.testing.assert_close(again, plain)
