"""Many samples in one batch give what they give one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_reasoner_folder

from ttopt.batched import optimise_batch
from ttopt.config import OptimisationSettings
from ttopt.reasoner import Adapter, BatchedAdapter, Reasoner, Schedule, StandardDecoder
from ttopt.sample import Sample


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
    settings = OptimisationSettings(steps=4, lr=3e-3, tau=float(start[1]) * 0.995)
    adapter = BatchedAdapter(reasoner.transformer, 3)
    adapter.reset([7, 8, 9])
    batch = optimise_batch(
        reasoner, adapter, decoder, lambda _, z: distance(z, target), condition, z1, range(5), settings
    )
    states = [adapter.state_dict(i) for i in range(3)]
    adapter.remove()
    assert len(set(batch.steps)) > 1, "the instances should stop at different steps for this test to mean anything"

    single = Adapter(reasoner.transformer)
    for i in range(3):
        single.reset(7 + i)
        optimiser = torch.optim.AdamW(single.parameters(), settings.lr, weight_decay=0.0)
        for step in range(settings.steps + 1):
            loss = distance(reasoner.predict_clean(z1[i : i + 1], 1.0, condition.select([i])), target[i : i + 1])[0]
            if loss <= settings.tau or step == settings.steps:
                break
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(single.parameters(), settings.clip_norm)
            optimiser.step()
        assert step == batch.steps[i]
        assert loss.item() == pytest.approx(batch.losses[i], abs=1e-5)
        for name, value in single.state_dict().items():
            # AdamW divides a tiny gradient by its own size, so rounding shows more in single weights than in the loss.
            torch.testing.assert_close(states[i][name], value, atol=1e-4, rtol=0)
    single.remove()
