"""LoRA files of others: every spelling gives the same weights, and what cannot be merged is named."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_transformer
from torch import Tensor, nn

from ttopt.errors import UserError
from ttopt.models.reasoner.lora import LoraFile, merge
from ttopt.models.reasoner.wan_names import original_name

RANK, ALPHA, STRENGTH = 4, 2.0, 0.75
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def transformer() -> nn.Module:
    torch.manual_seed(0)
    return tiny_transformer(layers=2)


@pytest.fixture(scope="module")
def pairs(transformer: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B for every layer with a matrix, by diffusers' names."""
    found = {}
    for name, weight in transformer.named_parameters():
        if name.endswith(".weight") and weight.dim() > 1:
            b = torch.randn(weight.shape[0], RANK, *[1] * (weight.dim() - 2))
            found[name.removesuffix(".weight")] = torch.randn(RANK, *weight.shape[1:]), b
    assert len(found) == 27  # eight projections and two of the ffn a block, and seven outside
    return found


@pytest.fixture(scope="module")
def differences(transformer: nn.Module) -> State:
    """Of every parameter that is no matrix: biases, norms, modulations."""
    return {name: torch.randn_like(x) for name, x in transformer.named_parameters() if not is_matrix(name, x)}


def is_matrix(name: str, weight: Tensor) -> bool:
    return name.endswith(".weight") and weight.dim() > 1


def shapes_of(transformer: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in transformer.named_parameters()}


def merged(transformer: nn.Module, *files: tuple[Path, float]) -> State:
    copy = tiny_transformer(layers=2)
    copy.load_state_dict(transformer.state_dict())
    merge(copy, [LoraFile(file, strength, shapes_of(copy)) for file, strength in files])
    return {name: x.detach() for name, x in copy.named_parameters()}


def kohya(name: str) -> str:
    return "lora_unet_" + original_name(name).replace(".", "_")


def prefixed(prefix: str, rename: Callable[[str], str] = original_name) -> Callable[[str], str]:
    return lambda name: prefix + rename(name)


def same(name: str) -> str:
    return name


SPELLINGS: dict[str, tuple[Callable[[str], str], str, str]] = {  # layer, A and B
    "diffusers": (prefixed("transformer.", same), "lora_A.weight", "lora_B.weight"),
    "diffusers, adapter's name": (prefixed("transformer.", same), "lora_A.default.weight", "lora_B.default.weight"),
    "diffusers, no prefix": (same, "lora_A.weight", "lora_B.weight"),
    "diffusers, old": (prefixed("transformer.", same), "lora.down.weight", "lora.up.weight"),
    "transformer. with original names": (prefixed("transformer."), "lora_A.weight", "lora_B.weight"),
    "ComfyUI": (prefixed("diffusion_model."), "lora_down.weight", "lora_up.weight"),
    "ComfyUI, A and B": (prefixed("diffusion_model."), "lora_A.weight", "lora_B.weight"),
    "model.diffusion_model.": (prefixed("model.diffusion_model."), "lora_A.weight", "lora_B.weight"),
    "kohya, musubi": (kohya, "lora_down.weight", "lora_up.weight"),
    "kohya, two _": (lambda name: kohya(name).replace("unet_", "unet__"), "lora_down.weight", "lora_up.weight"),
    "DiffSynth": (original_name, "lora_A.default.weight", "lora_B.default.weight"),
    "DiffSynth, pipe": (prefixed("pipe.dit."), "lora_A.default.weight", "lora_B.default.weight"),
    "peft": (prefixed("base_model.model."), "lora_A.weight", "lora_B.weight"),
    "peft, diffusers' names": (prefixed("base_model.model.", same), "lora_A.weight", "lora_B.weight"),
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_every_spelling_gives_the_same_weights(
    spelling: str, alpha: float | None, transformer: nn.Module, pairs: dict[str, tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    spelled, down, up = SPELLINGS[spelling]
    state = {}
    for name, (a, b) in pairs.items():
        state |= {f"{spelled(name)}.{down}": a, f"{spelled(name)}.{up}": b}
        if alpha is not None:
            state[f"{spelled(name)}.alpha"] = torch.tensor(alpha)
    save_file(state, tmp_path / "lora.safetensors")
    found = merged(transformer, (tmp_path / "lora.safetensors", STRENGTH))
    scale = 1.0 if alpha is None else alpha / RANK
    for name, weight in transformer.named_parameters():
        a, b = pairs.get(name.removesuffix(".weight"), (None, None))
        if a is None or b is None:
            assert torch.equal(found[name], weight)
        else:
            delta = (b.flatten(1) @ a.flatten(1)).view_as(weight)
            assert torch.equal(found[name], weight + STRENGTH * (scale * delta)), name


def difference_key(name: str, spelled: Callable[[str], str]) -> str:
    """ComfyUI's, where a modulation is the difference of its block."""
    if name.endswith("scale_shift_table"):
        block = name.removesuffix("scale_shift_table").removesuffix(".") or "head"
        return spelled(block) + ".diff_m"
    return spelled(name.rpartition(".")[0]) + (".diff_b" if name.endswith(".bias") else ".diff")


@pytest.mark.parametrize("names", ["diff_m", "modulation.diff"])
@pytest.mark.parametrize(
    "spelled", [prefixed("diffusion_model."), prefixed("transformer.", same), kohya, original_name]
)
def test_whole_differences_are_added(
    names: str, spelled: Callable[[str], str], transformer: nn.Module, differences: State, tmp_path: Path
) -> None:
    keys = {name: difference_key(name, spelled) for name in differences}
    if names == "modulation.diff":
        keys |= {name: f"{spelled(name)}.diff" for name in keys if name.endswith("scale_shift_table")}
    whole = ("patch_embedding.weight", "proj_out.weight")  # Kijai's and LightX2V's hold the difference of these too
    given = differences | {name: torch.randn_like(transformer.get_parameter(name)) for name in whole}
    keys |= {name: difference_key(name, spelled) for name in whole}
    save_file({keys[name]: value for name, value in given.items()}, tmp_path / "lora.safetensors")
    found = merged(transformer, (tmp_path / "lora.safetensors", STRENGTH))
    for name, weight in transformer.named_parameters():
        wanted = weight + STRENGTH * given[name] if name in given else weight
        assert torch.equal(found[name], wanted), name


def test_loras_are_added_in_order_and_rounded_once(transformer: nn.Module, tmp_path: Path) -> None:
    low = tiny_transformer(layers=2).to(torch.bfloat16)
    name = "blocks.0.attn1.to_q.weight"
    before = low.get_parameter(name).detach().float()
    total, loras = before, []
    for number, strength in enumerate((1.0, -0.25, 3e-3)):
        file = tmp_path / f"{number}.safetensors"
        a, b = torch.randn(RANK, 24).half(), torch.randn(24, RANK).half()
        save_file({"blocks.0.attn1.to_q.lora_A.weight": a, "blocks.0.attn1.to_q.lora_B.weight": b}, file)
        total = total + strength * (b.float() @ a.float())
        loras.append(LoraFile(file, strength, shapes_of(low)))
    merge(low, loras)
    assert torch.equal(low.get_parameter(name), total.to(torch.bfloat16))


@pytest.mark.parametrize("header", [True, False], ids=["diffusers' header", "peft's file"])
def test_alpha_of_the_trainers_configuration(header: bool, transformer: nn.Module, tmp_path: Path) -> None:
    settings = {"r": RANK, "lora_alpha": 8, "alpha_pattern": {"self_attn.k": 16}, "use_rslora": True}
    state = {}
    for layer in ("q", "k"):
        state[f"blocks.0.self_attn.{layer}.lora_A.weight"] = torch.randn(RANK, 24)
        state[f"blocks.0.self_attn.{layer}.lora_B.weight"] = torch.randn(24, RANK)
    file = tmp_path / "adapter_model.safetensors"
    in_header = {f"transformer.{key}": value for key, value in settings.items()}
    save_file(state, file, {"lora_adapter_metadata": json.dumps(in_header)} if header else None)
    if not header:
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    found = merged(transformer, (file, 1.0))
    for layer, alpha in (("q", 8), ("k", 16)):
        weight = transformer.get_parameter(f"blocks.0.attn1.to_{layer}.weight")
        a, b = (state[f"blocks.0.self_attn.{layer}.lora_{one}.weight"] for one in "AB")
        assert torch.equal(found[f"blocks.0.attn1.to_{layer}.weight"], weight + alpha / math.sqrt(RANK) * (b @ a))


@pytest.mark.parametrize("halves", [False, True])
def test_lokr(halves: bool, transformer: nn.Module, tmp_path: Path) -> None:
    one, two = torch.randn(4, 4), torch.randn(6, 6)
    a, b = torch.randn(6, 2), torch.randn(2, 6)
    name = "transformer.blocks.0.attn1.to_q"
    state = {f"{name}.lokr_w1": one, f"{name}.alpha": torch.tensor(1.0)}
    state |= {f"{name}.lokr_w2_a": a, f"{name}.lokr_w2_b": b} if halves else {f"{name}.lokr_w2": two}
    save_file(state, tmp_path / "lokr.safetensors")
    delta = 0.5 * torch.kron(one, a @ b) if halves else torch.kron(one, two)
    weight = transformer.get_parameter("blocks.0.attn1.to_q.weight")
    found = merged(transformer, (tmp_path / "lokr.safetensors", 1.0))["blocks.0.attn1.to_q.weight"]
    torch.testing.assert_close(found, weight + delta, atol=1e-6, rtol=0)


def test_what_is_for_an_image_embedding_is_left_out_with_one_warning(transformer: nn.Module, tmp_path: Path) -> None:
    """LightX2V's public LoRA for the low-noise expert of Wan2.2-I2V-A14B has such layers, which that model lacks."""
    fine = {"diffusion_model.blocks.0.cross_attn.k.lora_down.weight": torch.randn(RANK, 24),
            "diffusion_model.blocks.0.cross_attn.k.lora_up.weight": torch.randn(24, RANK)}  # fmt: skip
    more = {
        "diffusion_model.blocks.0.cross_attn.k_img.lora_down.weight": torch.randn(RANK, 24),
        "diffusion_model.blocks.0.cross_attn.k_img.lora_up.weight": torch.randn(24, RANK),
        "diffusion_model.blocks.0.cross_attn.k_img.alpha": torch.tensor(1.0),
        "diffusion_model.blocks.0.cross_attn.v_img.diff_b": torch.randn(24),
        "diffusion_model.blocks.0.cross_attn.norm_k_img.diff": torch.randn(24),
        "diffusion_model.img_emb.proj.0.diff": torch.randn(7),
        "lora_unet_blocks_0_cross_attn_v_img.lora_down.weight": torch.randn(RANK, 24),
    }
    for name, state in (("fine", fine), ("both", fine | more), ("only", more)):
        save_file(state, tmp_path / f"{name}.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wanted = merged(transformer, (tmp_path / "fine.safetensors", 1.0))
    with pytest.warns(
        UserWarning, match="7 tensors are for an image embedding, which this model does not have"
    ) as said:
        found = merged(transformer, (tmp_path / "both.safetensors", 1.0))
    assert len(said) == 1 and all(torch.equal(found[name], wanted[name]) for name in wanted)
    with pytest.warns(UserWarning), pytest.raises(UserError, match="it holds nothing for this transformer"):
        merged(transformer, (tmp_path / "only.safetensors", 1.0))


A, B = "diffusion_model.blocks.0.self_attn.q.lora_A.weight", "diffusion_model.blocks.0.self_attn.q.lora_B.weight"
Q = "diffusion_model.blocks.0.self_attn.q"
REFUSED: dict[str, tuple[State, str]] = {  # what is added to a good pair or put in its place; the end of the error
    "DoRA, ComfyUI": ({f"{Q}.dora_scale": torch.ones(24, 1)}, f"{Q}.dora_scale is DoRA's, which cannot be merged here"),
    "DoRA, peft": ({f"{Q}.lora_magnitude_vector": torch.ones(24)}, f"{Q}.lora_magnitude_vector is DoRA's"),
    "DoRA, peft, named": ({f"{Q}.lora_magnitude_vector.default.weight": torch.ones(24)}, "default.weight is DoRA's"),
    "A alone": ({B: torch.empty(0)}, f"{A} is there without its other half"),
    "B alone": ({A: torch.empty(0)}, f"{B} is there without its other half"),
    "alpha alone": ({f"{Q[:-1]}k.alpha": torch.tensor(1.0)}, "self_attn.k.alpha is there without what it scales"),
    "alpha of many numbers": ({f"{Q}.alpha": torch.ones(2)}, f"{Q}.alpha is (2,), not one number"),
    "NaN in A": ({A: torch.full((4, 24), math.nan)}, f"{A} holds NaN or Inf"),
    "Inf in a difference": ({f"{Q}.diff_b": torch.full((24,), math.inf)}, f"{Q}.diff_b holds NaN or Inf"),
    "wider A": ({A: torch.zeros(4, 32)}, f"{A} (4, 32) cannot change blocks.0.attn1.to_q.weight (24, 24); it is a"),
    "longer B": ({B: torch.zeros(48, 4)}, "cannot change blocks.0.attn1.to_q.weight (24, 24); it is a LoRA for"),
    "other ranks": ({A: torch.zeros(2, 24)}, "cannot change blocks.0.attn1.to_q.weight (24, 24); it is a LoRA for"),
    "no matrix": ({A: torch.zeros(4)}, f"{A} (4,) is no matrix"),
    "rank 0": ({A: torch.zeros(0, 24), B: torch.zeros(24, 0)}, f"{A} (0, 24) is no matrix"),
    "longer bias": ({f"{Q}.diff_b": torch.zeros(25)}, f"{Q}.diff_b (25,) cannot change blocks.0.attn1.to_q.bias (24,)"),
    "no such block": ({A.replace("0", "7"): torch.zeros(4, 24)}, f"the model has no layer for {A.replace('0', '7')}"),
    "no such kind": ({f"{Q}.hada_w1_a": torch.zeros(4, 4)}, f"{Q}.hada_w1_a is of no kind that can be merged"),
    "the weight itself": ({f"{Q}.weight": torch.zeros(24, 24)}, f"{Q}.weight is of no kind that can be merged"),
    "no such bias": ({"diffusion_model.blocks.0.self_attn.norm_q.diff_b": torch.zeros(24)}, "has no parameter for"),
    "text encoder": ({"lora_te_layers_0.lora_down.weight": torch.zeros(4, 8)}, "the model has no layer for lora_te_"),
    "twice": ({A.replace("diffusion_model.", ""): torch.zeros(4, 24)}, "are the same part of the same layer"),
    "half of LoKr": ({f"{Q}.lokr_w1": torch.zeros(4, 4)}, f"{Q}.lokr_w1 is there without its other half"),
    "small LoKr": ({f"{Q}.lokr_w1": torch.zeros(4, 4), f"{Q}.lokr_w2": torch.zeros(5, 6)}, "together (20, 24) cannot"),
    "bias of nothing": ({Q.replace("q", "k") + ".lora_B.bias": torch.zeros(24)}, "k.lora_B.bias is there without"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_cannot_be_merged_is_named(wrong: str, transformer: nn.Module, tmp_path: Path) -> None:
    changes, expected = REFUSED[wrong]
    state = {A: torch.zeros(RANK, 24), B: torch.zeros(24, RANK)} | changes
    alone = " alone" in wrong
    save_file({k: v for k, v in state.items() if v.numel() or not alone}, tmp_path / "lora.safetensors")
    with pytest.raises(UserError) as error:
        LoraFile(tmp_path / "lora.safetensors", 1.0, shapes_of(transformer))
    said = str(error.value)
    assert said.startswith(f"reasoner: the LoRA {tmp_path / 'lora.safetensors'} does not fit the model (")
    assert expected in said and said.endswith("); give another (docs/models.md)")
