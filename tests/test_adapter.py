"""The adapter: zero at the start, alone in training, reproducible, and readable by diffusers under both names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file, safe_open
from tiny import tiny_reasoner_folder, tiny_sample
from torch import Tensor

from ttopt.errors import UserError
from ttopt.models.reasoner import Adapter, Condition, Reasoner, Schedule


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reasoner_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def reasoner(folder: Path) -> Reasoner:
    return Reasoner.load(folder, schedule=Schedule())


@pytest.fixture(scope="module")
def condition(reasoner: Reasoner) -> Condition:
    return reasoner.condition([tiny_sample(name) for name in "abc"])


@pytest.fixture
def adapter(reasoner: Reasoner) -> Iterator[Adapter]:
    adapter = Adapter(reasoner.transformer, rank=4, targets="attention+ffn")
    yield adapter
    adapter.remove()


def train(reasoner: Reasoner, adapter: Adapter, condition: Condition, seed: int = 0, steps: int = 3) -> None:
    """A few AdamW steps towards some target latents."""
    z1 = reasoner.noise(condition, [seed] * len(condition))
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        reasoner.predict_clean(z1, 1.0, condition).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()


def frozen_weights(reasoner: Reasoner) -> dict[str, Tensor]:
    weights = reasoner.transformer.state_dict()
    return {name.replace(".base_layer", ""): value.clone() for name, value in weights.items() if "lora_" not in name}


def test_a_fresh_adapter_changes_nothing(reasoner: Reasoner, condition: Condition) -> None:
    z1 = reasoner.noise(condition, [0, 1, 2])
    before = reasoner.generate(z1, condition)
    adapter = Adapter(reasoner.transformer, rank=4, targets="attention+ffn")
    assert torch.equal(reasoner.generate(z1, condition), before)
    assert adapter.norm() == 0.0
    train(reasoner, adapter, condition)
    assert not torch.equal(reasoner.generate(z1, condition), before)
    with adapter.disabled():
        assert torch.equal(reasoner.generate(z1, condition), before)
    assert not torch.equal(reasoner.generate(z1, condition), before)
    with adapter.disabled():
        with adapter.disabled():
            pass
        assert torch.equal(reasoner.generate(z1, condition), before), "disabled() must not enable a disabled adapter"
    adapter.remove()
    assert torch.equal(reasoner.generate(z1, condition), before)
    assert not any("lora" in name for name in reasoner.transformer.state_dict())


def test_only_the_adapter_is_trained(reasoner: Reasoner, condition: Condition) -> None:
    before = frozen_weights(reasoner)
    modules = (reasoner.vae, reasoner.text_encoder)
    others = [parameter.clone() for module in modules for parameter in module.parameters()]
    adapter = Adapter(reasoner.transformer, rank=4)
    assert not any(parameter.requires_grad for parameter in reasoner.transformer.parameters())
    assert len(adapter.parameters()) == 2 * 3 * 8  # A and B of eight projections in each of three blocks
    assert all(parameter.dtype == torch.float32 for parameter in adapter.parameters())
    train(reasoner, adapter, condition)
    adapter.reset([1])
    train(reasoner, adapter, condition)
    adapter.remove()
    after = frozen_weights(reasoner)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    now = [parameter for module in modules for parameter in module.parameters()]
    assert all(torch.equal(old, new) for old, new in zip(others, now, strict=True))
    assert not any(parameter.requires_grad for parameter in reasoner.transformer.parameters())


def test_reset_is_reproducible_and_leaves_the_global_rng_alone(adapter: Adapter) -> None:
    first, second = adapter.parameters()[:2]
    second.data.fill_(1.0)
    second.grad = torch.ones_like(second)
    state = torch.random.get_rng_state()
    adapter.reset([5])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert second.grad is None and not second.any() and adapter.norm() == 0.0
    weights = first.detach().clone()
    bound = first.shape[2] ** -0.5  # Kaiming-uniform with a = sqrt(5): uniform in +-1/sqrt(fan_in)
    assert 0.8 * bound < weights.abs().max() <= bound
    adapter.reset([6])
    assert not torch.equal(first, weights)
    adapter.reset([5])
    assert torch.equal(first, weights)


def test_two_instances_train_independently(reasoner: Reasoner, adapter: Adapter, condition: Condition) -> None:
    """Instance 2 after instance 1 gives the same weights as instance 2 alone."""
    adapter.reset([2])
    train(reasoner, adapter, condition, seed=2)
    alone = adapter.state_dict()
    adapter.reset([1])
    train(reasoner, adapter, condition, seed=1)
    adapter.reset([2])
    train(reasoner, adapter, condition, seed=2)
    assert all(torch.equal(alone[name], value) for name, value in adapter.state_dict().items())


@pytest.mark.parametrize(
    ("targets", "blocks", "count"),
    [("attention", "all", 24), ("cross_attention", "1-2", 8), ("attention+ffn", "0-0", 10)],
)
def test_targets_and_blocks(reasoner: Reasoner, targets: str, blocks: str, count: int) -> None:
    adapter = Adapter(reasoner.transformer, rank=2, targets=targets, blocks=blocks)
    assert len(set(adapter.names)) == count and len(adapter.parameters()) == 2 * count
    if targets == "cross_attention":
        assert all(".attn2." in name and not name.startswith("blocks.0.") for name in adapter.names)
    adapter.remove()


def test_a_row_is_pefts_lora(reasoner: Reasoner, condition: Condition) -> None:
    """The same update and the same gradients as peft's layers give with the same matrices."""
    adapter = Adapter(reasoner.transformer, rank=4, alpha=6.0)
    train(reasoner, adapter, condition)
    for parameter in adapter.parameters():
        parameter.grad = None
    z1, state = reasoner.noise(condition, [0, 1, 2]), adapter.state_dict()
    ours = reasoner.velocity(z1, 1.0, condition)
    ours.square().mean().backward()
    halves = [f"{name}.{half}" for name in adapter.names for half in ("lora_A", "lora_B")]
    gradients = {half: p.grad[0] for half, p in zip(halves, adapter.parameters(), strict=True)}  # type: ignore[index]
    adapter.remove()
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=6.0, target_modules=adapter.names), reasoner.transformer)
    layers = {name: reasoner.transformer.get_submodule(name) for name in adapter.names}
    for name, layer in layers.items():
        for half in ("lora_A", "lora_B"):
            getattr(layer, half)["default"].weight.data.copy_(state[f"{name}.{half}.weight"])
    theirs = reasoner.velocity(z1, 1.0, condition)
    theirs.square().mean().backward()
    for name, layer in layers.items():
        for half in ("lora_A", "lora_B"):
            found = getattr(layer, half)["default"].weight.grad
            torch.testing.assert_close(gradients[f"{name}.{half}"], found, atol=1e-7, rtol=1e-4)
        parent, _, child = name.rpartition(".")
        setattr(reasoner.transformer.get_submodule(parent), child, layer.base_layer)
    del reasoner.transformer.peft_config
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_norm_is_that_of_the_weight_update(reasoner: Reasoner, condition: Condition) -> None:
    adapter = Adapter(reasoner.transformer, rank=2, alpha=6.0)
    train(reasoner, adapter, condition)
    state = adapter.state_dict()
    updates = [3.0 * state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"] for name in adapter.names]
    expected = torch.cat([update.flatten() for update in updates]).norm()
    assert adapter.norm() == pytest.approx(float(expected), rel=1e-5)
    adapter.remove()


@pytest.mark.parametrize(("rank", "alpha", "targets"), [(4, None, "attention+ffn"), (2, 5.0, "cross_attention")])
@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "adapter_wan.safetensors"])
def test_diffusers_loads_both_formats(
    folder: Path,
    reasoner: Reasoner,
    condition: Condition,
    tmp_path: Path,
    rank: int,
    alpha: float | None,
    targets: str,
    file: str,
) -> None:
    adapter = Adapter(reasoner.transformer, rank, alpha, targets)
    train(reasoner, adapter, condition)
    adapter.save(tmp_path, {"sample": "a", "steps": 3})
    z1 = reasoner.noise(condition, [0, 1, 2])
    adapted = reasoner.velocity(z1, 1.0, condition).detach()
    adapter.remove()
    base = reasoner.velocity(z1, 1.0, condition)

    class Pipeline(WanLoraLoaderMixin):
        """The part of WanPipeline that loads LoRA files."""

        def __init__(self, transformer: WanTransformer3DModel) -> None:
            self.transformer = transformer
            self.hf_device_map = None
            self.components = {"transformer": transformer}

    fresh = Reasoner.load(folder, schedule=Schedule())
    Pipeline(fresh.transformer).load_lora_weights(str(tmp_path), weight_name=file)
    loaded = fresh.velocity(z1, 1.0, condition)
    torch.testing.assert_close(loaded, adapted, atol=1e-5, rtol=0)
    assert (loaded - base).abs().max() > 1e-3


def test_original_wan_names_are_those_of_comfyui(adapter: Adapter, tmp_path: Path) -> None:
    adapter.save(tmp_path)
    state = load_file(tmp_path / "adapter_wan.safetensors")
    modules = {name.rpartition(".alpha")[0] for name in state if name.endswith(".alpha")}
    inner = [f"{attn}.{letter}" for attn in ("self_attn", "cross_attn") for letter in "qkvo"] + ["ffn.0", "ffn.2"]
    assert modules == {f"diffusion_model.blocks.{block}.{name}" for block in range(3) for name in inner}
    assert len(state) == 3 * len(modules)
    for module in modules:
        assert float(state[f"{module}.alpha"]) == 4.0
        assert state[f"{module}.lora_A.weight"].shape[0] == state[f"{module}.lora_B.weight"].shape[1] == 4


def test_save_and_load_round_trip(reasoner: Reasoner, adapter: Adapter, condition: Condition, tmp_path: Path) -> None:
    train(reasoner, adapter, condition)
    saved = adapter.state_dict()
    adapter.save(tmp_path / "new" / "folder", {"prompt": "move", "loss": 0.2})
    adapter.reset([9])
    metadata = adapter.load(tmp_path / "new" / "folder")
    assert all(torch.equal(saved[name], value) for name, value in adapter.state_dict().items())
    assert metadata["prompt"] == "move" and metadata["loss"] == "0.2" and metadata["rank"] == "4"
    with safe_open(tmp_path / "new" / "folder" / "adapter_wan.safetensors", "pt") as file:
        assert file.metadata()["prompt"] == "move"


def test_errors_name_the_cure(reasoner: Reasoner, adapter: Adapter, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already carries an adapter"):
        Adapter(reasoner.transformer)
    with pytest.raises(UserError, match=r"pytorch_lora_weights\.safetensors is missing"):
        adapter.load(tmp_path)
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="not a safetensors file"):
        adapter.load(tmp_path)
    adapter.save(tmp_path)
    adapter.remove()
    for settings, message in [
        ({"rank": 2}, "same rank"),
        ({"rank": 4}, "same targets and blocks"),
        ({"rank": 4, "targets": "attention+ffn", "alpha": 1.0}, "alpha"),
    ]:
        other = Adapter(reasoner.transformer, **{"targets": "attention", **settings})  # type: ignore[arg-type]
        if settings == {"rank": 2}:
            other.remove()
            other = Adapter(reasoner.transformer, rank=2, alpha=4.0, targets="attention+ffn")
        with pytest.raises(UserError, match=message):
            other.load(tmp_path)
        other.remove()
    for settings in ({"targets": "all"}, {"blocks": "1-3"}, {"blocks": "2-1"}, {"blocks": "x"}, {"rank": 0}):
        with pytest.raises(UserError, match="adapter"):
            Adapter(reasoner.transformer, **settings)  # type: ignore[arg-type]


def test_bf16_base_keeps_the_adapter_in_fp32(folder: Path) -> None:
    reasoner = Reasoner.load(folder, schedule=Schedule(), dtype="bfloat16")
    condition = reasoner.condition(tiny_sample())
    adapter = Adapter(reasoner.transformer, rank=4)
    train(reasoner, adapter, condition)
    assert all(parameter.dtype == torch.float32 for parameter in adapter.parameters())
    assert reasoner.dtype == torch.bfloat16
    assert adapter.norm() > 0


# --- many adapters in one batch


@pytest.mark.parametrize("targets", ["attention", "attention+ffn"])
def test_rows_equal_adapters_of_their_own(
    reasoner: Reasoner, condition: Condition, targets: str, tmp_path: Path
) -> None:
    """Forward, gradient, clipping, AdamW steps and norms of three rows equal three separate runs."""
    seeds, z1 = [3, 4, 5], reasoner.noise(condition, [0, 1, 2])
    rate = {"lr": 1e-2, "eps": 1e-6}  # else AdamW divides the rounding of a tiny gradient by its own size
    adapter = Adapter(reasoner.transformer, rank=4, alpha=8.0, targets=targets, blocks="1-2")
    adapter.reset(seeds)
    optimizer = torch.optim.AdamW(adapter.parameters(), **rate)
    norms = torch.zeros(3)
    for _ in range(3):
        optimizer.zero_grad()
        reasoner.predict_clean(z1, 1.0, condition).square().mean((1, 2, 3, 4)).sum().backward()
        norms = adapter.clip_gradients(1e-3)
        optimizer.step()
    with torch.no_grad():
        together = reasoner.velocity(z1, 1.0, condition)
    states, distances = [adapter.state_dict(row) for row in range(3)], [adapter.norm(row) for row in range(3)]
    adapter.save(tmp_path, row=1)

    for index, seed in enumerate(seeds):
        adapter.reset([seed])
        optimizer = torch.optim.AdamW(adapter.parameters(), **rate)
        one = condition.select([index])
        for _ in range(3):
            optimizer.zero_grad()
            reasoner.predict_clean(z1[index : index + 1], 1.0, one).square().mean().backward()
            norm = torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1e-3)
            optimizer.step()
        torch.testing.assert_close(norms[index], norm, rtol=1e-4, atol=0)
        for name, value in adapter.state_dict().items():
            torch.testing.assert_close(states[index][name], value, atol=1e-5, rtol=0)
        with torch.no_grad():
            alone = reasoner.velocity(z1[index : index + 1], 1.0, one)
        torch.testing.assert_close(together[index], alone[0], atol=1e-5, rtol=0)
        assert distances[index] == pytest.approx(adapter.norm(), rel=1e-4)

    adapter.load(tmp_path)
    with torch.no_grad():
        alone = reasoner.velocity(z1[1:2], 1.0, condition.select([1]))
    torch.testing.assert_close(together[1], alone[0], atol=1e-5, rtol=0)
    adapter.remove()


def test_one_rows_clipping_is_torchs(reasoner: Reasoner, condition: Condition) -> None:
    adapter = Adapter(reasoner.transformer, rank=4)
    z1 = reasoner.noise(condition, [0, 1, 2])
    reasoner.predict_clean(z1, 1.0, condition).square().mean().backward()
    kept = [parameter.grad.clone() for parameter in adapter.parameters() if parameter.grad is not None]
    norm = adapter.clip_gradients(1e-4)
    ours = [parameter.grad for parameter in adapter.parameters()]
    for parameter, gradient in zip(adapter.parameters(), kept, strict=True):
        parameter.grad = gradient
    assert torch.equal(norm[0], torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1e-4))
    assert all(torch.equal(a, b) for a, b in zip(ours, kept, strict=True))  # type: ignore[arg-type]
    adapter.remove()


def test_matrices_lie_where_the_work_is_done(reasoner: Reasoner) -> None:
    """An offloaded transformer may be on the CPU when they are made."""
    adapter = Adapter(reasoner.transformer, rank=4, device="meta")
    adapter.remove()
    assert {parameter.device.type for parameter in adapter.parameters()} == {"meta"}


def test_only_some_rows_are_computed(reasoner: Reasoner, condition: Condition) -> None:
    adapter = Adapter(reasoner.transformer, rank=4)
    adapter.reset([7, 8, 9])
    for parameter in adapter.parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    z1 = reasoner.noise(condition, [0, 1, 2])
    with torch.no_grad():
        whole = reasoner.velocity(z1, 1.0, condition)
        with adapter.only([0, 2]):
            part = reasoner.velocity(z1[[0, 2]], 1.0, condition.select([0, 2]))
    torch.testing.assert_close(part, whole[[0, 2]], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="a batch of 2 for 3 adapters"):
        reasoner.velocity(z1[:2], 1.0, condition.select([0, 1]))
    adapter.load_state_dict(adapter.state_dict(1), row=0)
    first, second = adapter.state_dict(0), adapter.state_dict(1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(UserError, match="same rank"):
        adapter.load_state_dict({name: value[:1] for name, value in first.items()}, row=2)
    adapter.remove()
    with pytest.raises(UserError, match="adapter rank 0"):
        Adapter(reasoner.transformer, rank=0)
