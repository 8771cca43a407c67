"""The cut forward against the stock one: two modulations, a kept prefix, recomputed blocks; values and gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_reasoner_folder, tiny_sample
from torch import Tensor

from ttopt.models.reasoner import Adapter, Condition, Reasoner, Schedule


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reasoner_folder(tmp_path_factory.mktemp("tiny"))


def trained(reasoner: Reasoner, blocks: str = "all") -> Adapter:
    """An adapter that acts."""
    adapter = Adapter(reasoner.transformer, rank=4, targets="attention+ffn", blocks=blocks)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return adapter


def stock_velocity(reasoner: Reasoner, latents: Tensor, sigma: float, condition: Condition) -> Tensor:
    """diffusers' forward with one timestep a token, as its pipeline calls it."""
    latents = reasoner.impose_first_frame(latents, condition)
    b, _, frames, height, width = latents.shape
    tokens = (height // 2) * (width // 2)
    timestep = torch.full((b, frames * tokens), 1000 * sigma)
    if condition.first_frame is None:
        timestep = timestep[:, 0]
    else:
        timestep[:, :tokens] = 0
    out: Tensor = reasoner.transformer(latents.to(reasoner.dtype), timestep, condition.text, return_dict=False)[0]
    return out.float()


@pytest.mark.parametrize("image", [True, False], ids=["per-token timesteps", "one timestep"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_velocity_and_gradients_equal_the_stock_forward(folder: Path, image: bool, dtype: str) -> None:
    reasoner = Reasoner.load(folder, schedule=Schedule(), dtype=dtype)
    adapter = trained(reasoner)
    condition = reasoner.condition([tiny_sample("a", image=image), tiny_sample("b", "a blue cross", image=image)])
    z = reasoner.noise(condition, [0, 1]).requires_grad_()
    weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    results = []
    for velocity in (reasoner.velocity, lambda *args: stock_velocity(reasoner, *args)):
        u = velocity(z, 0.7565, condition)
        results.append([u.detach(), *torch.autograd.grad((u * weight).sum(), [z, *adapter.parameters()])])
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for ours, stock in zip(*results, strict=True):
        assert (ours - stock).abs().max() <= tolerance * stock.abs().max().clamp(min=1)


def test_no_modulation_per_token_is_computed_or_kept(folder: Path) -> None:
    """What the backward pass keeps shrinks by more than the per-token scales and gates of every block."""
    reasoner = Reasoner.load(folder, schedule=Schedule())
    Adapter(reasoner.transformer, rank=4)
    condition = reasoner.condition(tiny_sample())
    z = reasoner.noise(condition, [0])

    def kept(velocity: object) -> int:
        storages: dict[int, int] = {}

        def pack(value: Tensor) -> Tensor:
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            u = velocity(z, 1.0, condition)  # type: ignore[operator]
        assert u.requires_grad
        return sum(storages.values())

    tokens, width, blocks = 27, 24, 3
    saved = kept(lambda *args: stock_velocity(reasoner, *args)) - kept(reasoner.velocity)
    assert saved > blocks * 4 * tokens * width * 4


@pytest.mark.parametrize("blocks, first", [("1-2", 1), ("2-2", 2), ("all", 0)])
def test_a_kept_prefix_changes_nothing(folder: Path, blocks: str, first: int) -> None:
    """Three optimization steps with and without it, value and gradient; only blocks k..L run again."""
    reasoner = Reasoner.load(folder, schedule=Schedule())
    adapter = Adapter(reasoner.transformer, rank=4, blocks=blocks)
    assert adapter.first_block == first
    condition = reasoner.condition(tiny_sample())
    z1 = reasoner.noise(condition, [0])
    histories = []
    for cached in (True, False):
        adapter.reset([0])
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
        ran: list[int] = []
        hooks = [
            block.ffn.register_forward_hook(lambda *_, number=number, ran=ran: ran.append(number))
            for number, block in enumerate(reasoner.transformer.blocks)
        ]
        prefix = None
        if cached:
            with torch.no_grad():
                prefix = reasoner.prefix(z1, 1.0, condition, adapter.first_block)
        history: list[Tensor] = []
        for _ in range(3):
            z0 = reasoner.predict_clean(z1, 1.0, condition, prefix)
            optimizer.zero_grad()
            z0.square().mean().backward()
            history += [z0.detach(), *(parameter.grad.clone() for parameter in adapter.parameters())]  # type: ignore[union-attr]
            optimizer.step()
        histories.append(history)
        for hook in hooks:
            hook.remove()
        again = [0, 1, 2][first:] * 3
        assert ran == ([0, 1, 2][:first] + again if cached else [0, 1, 2] * 3)
    for with_prefix, without in zip(*histories, strict=True):
        torch.testing.assert_close(with_prefix, without, atol=1e-7, rtol=1e-6)


def test_a_kept_prefix_serves_batched_adapters(folder: Path) -> None:
    reasoner = Reasoner.load(folder, schedule=Schedule())
    adapter = Adapter(reasoner.transformer, rank=4, blocks="1-2")
    adapter.reset([0, 1])
    for parameter in adapter.parameters():
        parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(3))
    condition = reasoner.condition([tiny_sample("a"), tiny_sample("b")])
    z1 = reasoner.noise(condition, [0, 1])
    with torch.no_grad():
        prefix = reasoner.prefix(z1, 1.0, condition, adapter.first_block)
        wanted = reasoner.velocity(z1, 1.0, condition)
        torch.testing.assert_close(reasoner.velocity(z1, 1.0, condition, prefix), wanted, atol=1e-6, rtol=0)
