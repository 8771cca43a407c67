"""Many samples in one batch give what they give one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_reasoner_folder

from ttopt.config.settings import OptimizationSettings
from ttopt.data.sample import Sample
from ttopt.models.reasoner import Adapter, BatchedAdapter, Reasoner, Schedule, StandardDecoder
from ttopt.optimization.batched import BatchResult, BatchReward, optimize_batch
from ttopt.record.result import ACCEPTED, ALL_STEPS, NON_FINITE


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory: pytest.TempPathFactory) -> Reasoner:
    folder: Path = tmp_path_factory.mktemp("reasoner")
    tiny_reasoner_folder(folder)
    return Reasoner.load(folder, schedule=Schedule())


def test_a_batch_equals_its_samples_one_by_one_and_stops_each_by_itself(reasoner: Reasoner) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 32, 32, generator=generator)
    samples = [Sample(f"s{i}", "move the red square", image, 5, 8, 32, 32) for i, image in enumerate(images)]
    condition = reasoner.condition(samples)
    z1 = reasoner.noise(condition, [1, 2, 3])
    target = torch.randn(z1.shape, generator=generator)
    decoder = StandardDecoder(reasoner.vae)

    def distance(latents: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return (latents - goal).square().mean((1, 2, 3, 4))

    start = distance(reasoner.predict_clean(z1, 1.0, condition), target)
    settings = OptimizationSettings(steps=4, lr=3e-3, tau=float(start[1]) * 0.995)
    adapter = BatchedAdapter(reasoner.transformer, 3)
    adapter.reset([7, 8, 9])
    batch = optimize_batch(
        reasoner, adapter, decoder, lambda _, z: distance(z, target), condition, z1, range(5), settings
    )
    states = [adapter.state_dict(i) for i in range(3)]
    adapter.remove()
    assert len(set(batch.steps)) > 1, "the instances should stop at different steps for this test to mean anything"

    single = Adapter(reasoner.transformer)
    for i in range(3):
        single.reset(7 + i)
        optimizer = torch.optim.AdamW(single.parameters(), settings.lr, weight_decay=0.0)
        for step in range(settings.steps + 1):
            loss = distance(reasoner.predict_clean(z1[i : i + 1], 1.0, condition.select([i])), target[i : i + 1])[0]
            if loss <= settings.tau or step == settings.steps:
                break
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(single.parameters(), settings.clip_norm)
            optimizer.step()
        assert step == batch.steps[i]
        assert loss.item() == pytest.approx(batch.losses[i], abs=1e-5)
        for name, value in single.state_dict().items():
            # AdamW divides a tiny gradient by its own size, so rounding shows more in single weights than in the loss.
            torch.testing.assert_close(states[i][name], value, atol=1e-4, rtol=0)
    single.remove()


def batch_of(
    reasoner: Reasoner, losses: list[dict[int, float]], steps: int, tau: float
) -> tuple[BatchResult, list[list[str]], list[list[int]]]:
    """Three instances whose loss is multiplied at some steps: ``losses[i][step]``."""
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    samples = [Sample(f"s{i}", "move the red square", image, 5, 8, 32, 32) for i, image in enumerate(images)]
    condition = reasoner.condition(samples)
    z1 = reasoner.noise(condition, [1, 2, 3])
    calls = iter(range(steps + 1))
    computed: list[list[int]] = []

    def reward(_: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        step = next(calls)
        factor = torch.tensor([losses[number].get(step, 1.0) for number in chosen])
        return z.square().mean((1, 2, 3, 4)) * factor

    chosen = [0, 1, 2]

    def reward_of(numbers: list[int]) -> BatchReward:
        chosen[:] = numbers
        computed.append(numbers)
        return reward

    adapter = BatchedAdapter(reasoner.transformer, 3)
    adapter.reset([7, 8, 9])
    settings = OptimizationSettings(steps=steps, lr=3e-3, tau=tau)
    result = optimize_batch(
        reasoner, adapter, lambda z, _: z, reward, condition, z1, range(5), settings, reward_of=reward_of
    )
    with torch.no_grad():
        again = reasoner.predict_clean(z1, 1.0, condition)
    adapter.remove()
    assert torch.equal(again, result.predictions), "the kept weights are those of the kept predictions"
    return result, [instance.stop for instance in result.instances], computed


def test_one_instance_that_breaks_keeps_its_best_weights_and_disturbs_no_other(reasoner: Reasoner) -> None:
    fine, _, _ = batch_of(reasoner, [{}, {}, {}], 4, 0.0)
    nan, inf = float("nan"), float("inf")
    broken, stops, computed = batch_of(reasoner, [{}, {2: nan}, {0: inf}], 4, 0.0)
    assert stops == [[ALL_STEPS], [NON_FINITE], [NON_FINITE]]
    assert broken.steps == [4, 1, 0]
    assert computed == [[0, 1], [0, 1], [0], [0]], "what has stopped is not computed any more"
    assert broken.losses[0] == pytest.approx(fine.losses[0], abs=1e-6)
    assert broken.losses[1] == pytest.approx(fine.instances[1].grades[1].total, abs=1e-6)
    torch.testing.assert_close(broken.predictions[0], fine.predictions[0], atol=1e-5, rtol=0)


def test_satisfied_by_the_last_step_is_accepted(reasoner: Reasoner) -> None:
    low = {3: 1e-3}  # only after the last step
    result, stops, computed = batch_of(reasoner, [low, {}, {1: 1e-3}], 3, 0.05)
    assert stops == [[ACCEPTED], [ALL_STEPS], [ACCEPTED]]
    assert computed == [[0, 1], [0, 1]]
    assert result.accepted == [True, False, True] and result.steps == [3, 3, 1]


def test_recomputed_blocks_know_which_instances_are_left(reasoner: Reasoner, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _, _ = batch_of(reasoner, [{}, {1: 0.0}, {}], steps=3, tau=0.0)
    monkeypatch.setattr(reasoner, "activation_checkpointing", (0, 1))
    again, stops, computed = batch_of(reasoner, [{}, {1: 0.0}, {}], steps=3, tau=0.0)
    assert stops[1] == [ACCEPTED] and computed[-1] == [0, 2]
    torch.testing.assert_close(again.predictions, plain.predictions)
