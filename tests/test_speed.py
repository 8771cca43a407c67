"""Memory and speed settings: none of them changes the result, and what cannot be had is said clearly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from tiny import tiny_reasoner_folder, tiny_sample, tiny_transformer, tiny_two_experts_folder
from tiny_fit import prepare
from torch import Tensor

from ttopt.config.checks import check
from ttopt.config.parsing import parse_fit
from ttopt.config.settings import FitSettings, LoraSettings
from ttopt.errors import UserError
from ttopt.models.load import load_models, load_teacher, sources
from ttopt.models.reasoner import Adapter, LightDecoder, Reasoner, Schedule, speed
from ttopt.models.reasoner import forward as cut
from ttopt.models.reasoner.float8 import Float8Linear, to_float8
from ttopt.models.reasoner.recipe import size_warning
from ttopt.models.reasoner.speed import block_range, change_places, set_attention, visiting

Make = Callable[..., FitSettings]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reasoner_folder(tmp_path_factory.mktemp("tiny"))


def loss_and_gradients(settings: FitSettings) -> list[Tensor]:
    """Of one step of the whole chain, from an adapter that acts."""
    module = prepare(load_models(settings))
    generator = torch.Generator().manual_seed(0)
    for parameter in module.lora:
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    _, total = module.losses()
    total.sum().backward()
    return [total.detach(), *(parameter.grad for parameter in module.lora if parameter.grad is not None)]


def test_recomputing_changes_nothing_and_keeps_less(settings: Make) -> None:
    frames = {"frames": 5}
    plain = loss_and_gradients(settings(teacher=frames))
    saving = settings(
        reasoner={"activation_checkpointing": "1-2", "offload": True, "attention": "_native_math"},
        teacher=frames | {"activation_checkpointing": True},
    )
    for value, wanted in zip(loss_and_gradients(saving), plain, strict=True):
        torch.testing.assert_close(value, wanted, atol=1e-5, rtol=1e-4)


def test_blocks_compile_whole_and_once_for_each_kind() -> None:
    """Traced without a break; blocks that are adapted alike share one graph."""
    torch.manual_seed(0)
    transformer = tiny_transformer(layers=7).requires_grad_(False)
    adapter = Adapter(transformer, rank=4, blocks="2-6")
    for parameter in adapter.parameters():
        parameter.data.normal_(0, 0.2)
    latents, text = torch.randn(1, 16, 3, 6, 6), torch.randn(1, 16, 8)
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def velocity(run: Any) -> Tensor:
        x = cut.embed(transformer, latents, 1000.0, text, first_frame=True)
        return cut.head(transformer, cut.advance(transformer, x, 7, run=run))

    torch._dynamo.reset()
    results = []
    for run in (None, torch.compile(cut.run_block, backend=count, fullgraph=True, dynamic=False)):
        u = velocity(run)
        results.append([u.detach(), *torch.autograd.grad(u.square().sum(), adapter.parameters())])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)
    # Not adapted; adapted behind an input without gradient; adapted.
    assert len(graphs) == 3
    torch._dynamo.reset()


def test_the_teachers_layers_are_compiled_if_asked_for(
    settings: Callable[..., FitSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: None)
    assert [load_teacher(settings(teacher={"compile": on})).compiled for on in (False, True)] == [False, True]


def test_a_float8_teacher_grades_nearly_the_same(settings: Callable[..., FitSettings]) -> None:
    frames, asked = torch.rand(1, 9, 3, 48, 48), [["is the red cross whole ?"]]
    plain, rounded = (load_teacher(settings(teacher={"float8": on})) for on in (False, True))
    difference = rounded.yes_losses(frames, asked, 8, range(9)) - plain.yes_losses(frames, asked, 8, range(9))
    assert 0 < difference.abs().max() < 0.2
    assert sum(isinstance(module, Float8Linear) for module in rounded.model.modules()) > 10


def test_a_visiting_network_leaves_its_weights_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)).requires_grad_(False)
    before = {name: (x.data_ptr(), x.clone()) for name, x in network.state_dict(keep_vars=True).items()}
    with pytest.raises(ZeroDivisionError), visiting(network, torch.device("meta")):
        assert {x.device.type for x in network.state_dict().values()} == {"meta"}
        raise ZeroDivisionError
    monkeypatch.setattr(network[1], "_apply", lambda *args, **kwargs: 1 / 0)  # as if memory ran out half way
    with pytest.raises(ZeroDivisionError), visiting(network, torch.device("meta")):
        pass
    for name, x in network.state_dict(keep_vars=True).items():
        assert x.data_ptr() == before[name][0] and torch.equal(x, before[name][1])


def test_float8_keeps_the_adapter_and_rounds_a_little(folder: Path) -> None:
    reasoner = Reasoner.load(folder, schedule=Schedule(), dtype="bfloat16")
    adapter = Adapter(reasoner.transformer, rank=4)
    condition = reasoner.condition(tiny_sample())
    z1 = reasoner.noise(condition, [0])
    wanted = reasoner.velocity(z1, 1.0, condition).detach()
    to_float8(reasoner.transformer, "blocks.")
    assert isinstance(reasoner.transformer.blocks[0].attn1.to_q.base_layer, Float8Linear)
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    got = reasoner.velocity(z1, 1.0, condition)
    assert 0 < (got.detach() - wanted).norm() < 0.1 * wanted.norm()
    gradients = torch.autograd.grad(got.square().sum(), adapter.parameters())
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    assert any(bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize("bias", [True, False])
def test_a_float8_layer_is_the_layer_with_rounded_weights(bias: bool) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(24, 16, bias=bias).requires_grad_(False)
    linear.weight *= torch.logspace(-6, 3, 16)[:, None]
    linear.weight[3] = 0.0
    layer = Float8Linear(linear)
    rounded = layer.weight.float() * layer.scale[:, None]
    assert torch.isfinite(rounded).all()
    # Half of the last of four bits; the smallest numbers of a row have fewer.
    bound = linear.weight.abs() / 16 + linear.weight.abs().amax(1, keepdim=True) / 2**16
    assert ((rounded - linear.weight).abs() <= bound).all()
    x = torch.randn(2, 5, 24, requires_grad=True)
    wanted = torch.nn.functional.linear(x, rounded, linear.bias)
    (expected,) = torch.autograd.grad(wanted.cos().sum(), x)
    (found,) = torch.autograd.grad(layer(x).cos().sum(), x)
    torch.testing.assert_close(layer(x), wanted)
    torch.testing.assert_close(found, expected)


def test_a_float8_layer_keeps_no_larger_weight_for_the_backward_pass() -> None:
    layer = Float8Linear(torch.nn.Linear(32, 64).bfloat16())
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        layer(torch.randn(3, 32, dtype=torch.bfloat16, requires_grad=True))
    assert sum(x.numel() * x.element_size() for x in kept) < 32 * 64 + 1000


@pytest.mark.parametrize(
    "backend, message",
    [
        ("xformers", r"cannot be used on this cpu .*pip install -e '.\[gpu\]'"),
        ("flash", "cannot be used on this cpu"),
        ("flash_hub", "would run code from the hub"),
        ("abacus", "cannot be used .*must be one of the following"),
    ],
)
def test_attention_backends_that_cannot_be_had(backend: str, message: str) -> None:
    transformer = tiny_transformer()
    with pytest.raises(UserError, match=message) as error:
        set_attention(transformer, backend)
    assert "\n" not in str(error.value)


def test_offloaded_parts_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On one device moving means nothing, so the moves themselves are watched."""
    reasoner = Reasoner.load(tiny_two_experts_folder(tmp_path), schedule=Schedule((1.0, 0.5)), offload=True)
    assert reasoner.low_noise is not None
    moves: list[str] = []
    monkeypatch.setattr(reasoner.text_encoder, "to", lambda place: moves.append(f"text {place}"))
    condition = reasoner.condition(tiny_sample())
    assert moves == ["text cpu"]  # to the reasoner's device, which is the CPU here; nothing is copied back
    kept = reasoner.generate(reasoner.noise(condition, [0]), condition)
    assert kept.isfinite().all()


def test_the_needed_expert_changes_places_with_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasoner = Reasoner.load(tiny_two_experts_folder(tmp_path), schedule=Schedule((1.0, 0.5)), offload=True)
    high, low = reasoner.transformer, reasoner.low_noise
    places, arrived = {high: torch.device("cpu"), low: torch.device("cuda")}, []  # the GPU is the CPU here

    def change(leaving: WanTransformer3DModel, arriving: WanTransformer3DModel) -> None:
        places[leaving], places[arriving] = places[arriving], places[leaving]
        arrived.append("low" if arriving is low else "high")

    monkeypatch.setattr(WanTransformer3DModel, "device", property(lambda network: places[network]))
    monkeypatch.setattr("ttopt.models.reasoner.reasoner.change_places", change)
    condition = reasoner.condition(tiny_sample())
    for _ in range(2):
        reasoner.generate(reasoner.noise(condition, [0]), condition)
    assert arrived == ["low", "high", "low"]


def _half_way(one: WanTransformer3DModel, other: WanTransformer3DModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out at the 20th weight."""
    places, exchange = iter(range(10_000)), speed._exchange

    def full(leaving: Tensor, arriving: Tensor) -> None:
        if next(places) == 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        exchange(leaving, arriving)

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(speed, "_exchange", full)
        change_places(one, other)


@pytest.mark.parametrize("float8", [False, True])
def test_changing_places_moves_memory_not_values(float8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    one, other = tiny_transformer(layers=2), tiny_transformer(layers=2)
    adapter = Adapter(one, rank=4, blocks="1-1")
    if float8:
        to_float8(one, "blocks.")
        to_float8(other, "blocks.")
    before = [{name: x.clone() for name, x in network.state_dict().items()} for network in (one, other)]
    memory = [network.blocks[0].ffn.net[2].weight.data_ptr() for network in (one, other)]
    matrices = [x.data_ptr() for x in adapter.parameters()]
    change_places(one, other)
    assert one.blocks[0].ffn.net[2].weight.data_ptr() == memory[1] != memory[0]
    assert [x.data_ptr() for x in adapter.parameters()] == matrices
    change_places(other, one)
    for network, wanted in zip((one, other), before, strict=True):
        assert all(torch.equal(x, wanted[name]) for name, x in network.state_dict().items())
    memory = [x.data_ptr() for x in other.parameters()]
    _half_way(one, other, monkeypatch)
    assert [x.data_ptr() for x in other.parameters()] == memory
    for network, wanted in zip((one, other), before, strict=True):
        assert all(torch.equal(x, wanted[name]) for name, x in network.state_dict().items())
    larger = tiny_transformer(layers=3)
    change_places(one, larger)  # nothing to pair: moved whole
    assert all(torch.equal(x, before[0][name]) for name, x in one.state_dict().items())


@pytest.mark.parametrize(
    ("height", "width", "nearest"), [(704, 1280, ""), (480, 832, "704x1280"), (832, 480, "1280x704")]
)
def test_sizes_off_the_recipe_are_named_with_the_nearest_good_one(height: int, width: int, nearest: str) -> None:
    wan = SimpleNamespace(config={"in_channels": 48}, blocks=range(30))
    advice = size_warning(wan, height, width)
    assert (advice is None) == (not nearest)
    if advice is not None:
        assert f"off the recipe of Wan2.2-TI2V-5B; the nearest good size is {nearest}" in advice
    assert size_warning(tiny_transformer(), height, width) is None


def test_a_size_off_the_recipe_warns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasoner = Reasoner.load(folder, schedule=Schedule())
    monkeypatch.setattr("ttopt.models.reasoner.recipe.RECIPES", {(16, 3): ("Tiny", ((64, 64),))})
    with pytest.warns(UserWarning, match="sample a: 48x48 .* nearest good size is 64x64"):
        reasoner.condition(tiny_sample())


def test_a_shrinking_light_decoder(folders: dict[str, Path]) -> None:
    latents = torch.randn(1, 16, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert LightDecoder.load(folders["light"], shrink=1)(latents, [0, 8]).shape == (1, 2, 3, 24, 24)
    assert LightDecoder.load(folders["light"], shrink=2)(latents, [0, 8]).shape == (1, 2, 3, 12, 12)
    with pytest.raises(UserError, match="doubles only 2 times"):
        LightDecoder.load(folders["light"], shrink=3)
    with pytest.raises(UserError, match="decoder.shrink is 1 for the standard decoder"):
        check(parse_fit(["--decoder.kind", "standard", "--decoder.shrink", "1"]))


def test_block_ranges() -> None:
    assert list(block_range("all", 3, "x")) == [0, 1, 2] and list(block_range("none", 3, "x")) == []
    assert list(block_range("1-2", 3, "x")) == [1, 2]
    for wrong in ("2-1", "0-3", "1", ""):
        with pytest.raises(UserError, match="x is"):
            block_range(wrong, 3, "x")


def test_a_gpu_that_is_too_small_points_to_the_plan(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Reasoner, "load", full)
    with pytest.raises(UserError, match="memory is too small; 'ttopt plan'"):
        load_models(settings())


def test_what_is_loaded_is_said(settings: Make) -> None:
    reasoner = {"model": "a/b", "transformer": "c", "dtype": "bfloat16", "loras": [LoraSettings("d/e/f.safetensors")]}
    line = sources(settings(reasoner=reasoner))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = f"a/b, its transformer from c, with the LoRA d/e/f.safetensors x 1 (bfloat16, VAE float32, {device})"
    assert loaded in line and f"(float32, {device})" in line and "\n" not in line


@pytest.mark.parametrize("group, name", [("reasoner", "dtype"), ("reasoner", "vae_dtype"), ("teacher", "dtype")])
def test_a_precision_that_the_gpu_lacks_is_refused(
    settings: Make, monkeypatch: pytest.MonkeyPatch, group: str, name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "T4")
    devices = {"reasoner": {"device": "cuda"}, "teacher": {"device": "cuda"}}
    wanted = devices | {group: {"device": "cuda", name: "bfloat16"}}
    with pytest.raises(UserError, match=rf"{group}.{name} is bfloat16, which T4 lacks; give float16"):
        load_models(settings(**wanted))
