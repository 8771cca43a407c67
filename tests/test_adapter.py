"""The adapter: zero at the start, alone in training, reproducible, and readable by diffusers under both names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors.torch import load_file, safe_open
from tiny import tiny_reasoner_folder, tiny_sample
from torch import Tensor

from ttopt.errors import UserError
from ttopt.models.reasoner import Adapter, BatchedAdapter, Condition, Reasoner, Schedule


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
    adapter.disable()
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
    trainable = [parameter for parameter in reasoner.transformer.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trainable} == {id(parameter) for parameter in adapter.parameters()}
    assert len(adapter.parameters()) == 2 * 3 * 8  # A and B of eight projections in each of three blocks
    assert all(parameter.dtype == torch.float32 for parameter in adapter.parameters())
    train(reasoner, adapter, condition)
    adapter.reset(1)
    adapter.to("cpu")
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
    adapter.reset(5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert second.grad is None and not second.any() and adapter.norm() == 0.0
    weights = first.detach().clone()
    bound = first.shape[1] ** -0.5  # Kaiming-uniform with a = sqrt(5): uniform in +-1/sqrt(fan_in)
    assert 0.8 * bound < weights.abs().max() <= bound
    adapter.reset(6)
    assert not torch.equal(first, weights)
    adapter.reset(5)
    assert torch.equal(first, weights)


def test_two_instances_train_independently(reasoner: Reasoner, adapter: Adapter, condition: Condition) -> None:
    """Instance 2 after instance 1 gives the same weights as instance 2 alone."""
    adapter.reset(2)
    train(reasoner, adapter, condition, seed=2)
    alone = adapter.state_dict()
    adapter.reset(1)
    train(reasoner, adapter, condition, seed=1)
    adapter.reset(2)
    train(reasoner, adapter, condition, seed=2)
    assert all(torch.equal(alone[name], value) for name, value in adapter.state_dict().items())


@pytest.mark.parametrize(
    ("targets", "blocks", "count"),
    [("attention", "all", 24), ("cross_attention", "1-2", 8), ("attention+ffn", "0-0", 10)],
)
def test_targets_and_blocks(reasoner: Reasoner, targets: str, blocks: str, count: int) -> None:
    adapter = Adapter(reasoner.transformer, rank=2, targets=targets, blocks=blocks)
    names = {name for name, _ in reasoner.transformer.named_parameters() if "lora_A" in name}
    assert len(adapter.names) == len(names) == count
    if targets == "cross_attention":
        assert all(".attn2." in name and not name.startswith("blocks.0.") for name in names)
    adapter.remove()


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
    adapter.reset(9)
    metadata = adapter.load(tmp_path / "new" / "folder")
    assert all(torch.equal(saved[name], value) for name, value in adapter.state_dict().items())
    assert metadata["prompt"] == "move" and metadata["loss"] == "0.2" and metadata["rank"] == "4"
    with safe_open(tmp_path / "new" / "folder" / "adapter_wan.safetensors", "pt") as file:
        assert file.metadata()["prompt"] == "move"


def test_errors_name_the_cure(reasoner: Reasoner, adapter: Adapter, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="already carries a LoRA"):
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
def test_batched_adapter_equals_one_by_one(
    reasoner: Reasoner, condition: Condition, tmp_path: Path, targets: str
) -> None:
    """Forward, gradient, clipping, AdamW steps and norms of three instances equal three separate runs."""
    seeds, z1 = [3, 4, 5], reasoner.noise(condition, [0, 1, 2])
    batched = BatchedAdapter(reasoner.transformer, 3, rank=4, alpha=8.0, targets=targets, blocks="1-2")
    batched.reset(seeds)
    optimizer = torch.optim.AdamW(batched.parameters(), lr=1e-2)
    norms = torch.zeros(3)
    for _ in range(3):
        optimizer.zero_grad()
        reasoner.predict_clean(z1, 1.0, condition).square().mean((1, 2, 3, 4)).sum().backward()
        norms = batched.clip_gradients(1e-3)
        optimizer.step()
    with torch.no_grad():
        together = reasoner.velocity(z1, 1.0, condition)
    states, distances = [batched.state_dict(index) for index in range(3)], batched.norms()
    batched.remove()

    adapter = Adapter(reasoner.transformer, rank=4, alpha=8.0, targets=targets, blocks="1-2")
    for index, seed in enumerate(seeds):
        adapter.reset(seed)
        optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
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
        assert float(distances[index]) == pytest.approx(adapter.norm(), rel=1e-4)

    # One instance of a batch can be exported, saved and loaded as an adapter of its own.
    adapter.load_state_dict(states[1])
    adapter.save(tmp_path)
    with torch.no_grad():
        alone = reasoner.velocity(z1[1:2], 1.0, condition.select([1]))
    torch.testing.assert_close(together[1], alone[0], atol=1e-5, rtol=0)
    adapter.remove()


def test_batched_matrices_lie_where_the_work_is_done(reasoner: Reasoner) -> None:
    """An offloaded transformer may be on the CPU when they are made."""
    batched = BatchedAdapter(reasoner.transformer, 2, rank=4, device="meta")
    batched.remove()
    assert {parameter.device.type for parameter in batched.parameters()} == {"meta"}


def test_batched_reset_gives_each_instance_the_adapters_weights(reasoner: Reasoner, condition: Condition) -> None:
    adapter = Adapter(reasoner.transformer, rank=4)
    batched = BatchedAdapter(reasoner.transformer, 2, rank=4)  # may lie under an unused adapter
    batched.reset([7, 8])
    for index, seed in enumerate([7, 8]):
        adapter.reset(seed)
        state = batched.state_dict(index)
        assert state.keys() == adapter.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in adapter.state_dict().items())
    with batched.disabled():
        train(reasoner, adapter, condition)
    batched.load_state_dict(0, adapter.state_dict())
    assert all(torch.equal(batched.state_dict(0)[name], value) for name, value in adapter.state_dict().items())
    two = condition.select([0, 1])
    z1 = reasoner.noise(two, [0, 1])
    adapter.disable()
    with torch.no_grad(), batched.disabled():
        base = reasoner.velocity(z1, 1.0, two)
    with torch.no_grad():
        changed = reasoner.velocity(z1, 1.0, two)
    assert not torch.equal(changed[0], base[0])
    torch.testing.assert_close(changed[1], base[1], atol=1e-6, rtol=0)  # instance 1 is still zero
    with pytest.raises(ValueError, match="seeds"):
        batched.reset([1])
    with pytest.raises(ValueError, match="batch of 3"):
        reasoner.velocity(reasoner.noise(condition, [0, 1, 2]), 1.0, condition)
    with pytest.raises(UserError, match="same rank"):
        batched.load_state_dict(0, {name: value[:1] for name, value in adapter.state_dict().items()})
    batched.remove()
    adapter.remove()
    with torch.no_grad():
        assert torch.equal(reasoner.velocity(z1, 1.0, two), base)
