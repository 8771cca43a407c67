"""Transformers in one file under original names, stored as float8 or not, equal the folder that they were made from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_reasoner_folder, tiny_transformer, tiny_two_experts_folder
from torch import Tensor

from ttopt.errors import UserError
from ttopt.models.reasoner.loading import Networks, load_networks
from ttopt.models.reasoner.wan_names import original_name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reasoner_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def original(folder: Path) -> dict[str, Tensor]:
    state = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    return {original_name(name): value for name, value in state.items()}


def loaded(folder: Path, file: Path | None, dtype: str = "float32", **more: Any) -> Networks:
    return load_networks(folder, file, dtype, "float32", "cpu", **more)


def test_the_original_names_are_those_of_diffusers_own_converter(original: dict[str, Tensor], folder: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    state = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    converted = convert_wan_transformer_to_diffusers(dict(original))
    assert converted.keys() == state.keys() and all(torch.equal(converted[name], state[name]) for name in state)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_file_equals_its_folder(
    folder: Path, original: dict[str, Tensor], dtype: str, prefix: str, tmp_path: Path
) -> None:
    save_file({prefix + name: value for name, value in original.items()}, tmp_path / "wan.safetensors")
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "transformer" / "diffusion_pytorch_model.safetensors").unlink()  # needed no more
    ours = loaded(model, tmp_path / "wan.safetensors", dtype).transformer
    theirs = loaded(folder, None, dtype).transformer
    wanted = {**dict(theirs.named_parameters()), **dict(theirs.named_buffers())}
    found = {**dict(ours.named_parameters()), **dict(ours.named_buffers())}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
    assert not any(x.requires_grad for x in ours.parameters())


@pytest.mark.parametrize("scale", [None, "scale_weight", "weight_scale"])
def test_weights_stored_as_float8(folder: Path, original: dict[str, Tensor], scale: str | None, tmp_path: Path) -> None:
    state, wanted = dict(original), {}
    for name in [name for name in original if "ffn" in name and name.endswith(".weight")]:
        factor = torch.tensor(0.01 if scale else 1.0)
        state[name] = (original[name] / factor).to(torch.float8_e4m3fn)
        wanted[name] = (state[name].float() * factor).bfloat16()
        if scale:
            state[name.removesuffix("weight") + scale] = factor
            state[name.removesuffix("weight") + "scale_input"] = torch.ones(())
    state["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    save_file(state, tmp_path / "fp8.safetensors")
    found = loaded(folder, tmp_path / "fp8.safetensors", "bfloat16").transformer
    named = {original_name(name): value for name, value in found.named_parameters()}
    assert len(wanted) == 6 and all(torch.equal(named[name], value) for name, value in wanted.items())


def test_each_expert_may_be_a_file(tmp_path: Path) -> None:
    folder = tiny_two_experts_folder(tmp_path / "model")
    files = []
    for part in ("transformer", "transformer_2"):
        state = load_file(folder / part / "diffusion_pytorch_model.safetensors")
        files.append(tmp_path / f"{part}.safetensors")
        save_file({original_name(name): value for name, value in state.items()}, files[-1])
    ours, theirs = loaded(folder, files[0], low_noise_transformer=files[1]), loaded(folder, None)
    assert torch.equal(ours.transformer.proj_out.weight, theirs.transformer.proj_out.weight)
    assert torch.equal(ours.low_noise.proj_out.weight, theirs.low_noise.proj_out.weight)  # type: ignore[union-attr]


def other(**changes: Any) -> dict[str, Tensor]:
    return {original_name(name): value for name, value in tiny_transformer(**changes).state_dict().items()}


def test_a_file_of_another_model_is_named(folder: Path, original: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "wan.safetensors"
    wrong: list[tuple[dict[str, Tensor], str]] = [
        (other(layers=4), r"blocks\.3\..* is no weight of the model; give a file of the same model"),
        (other(layers=2), r"blocks\.2\..* is missing; give a whole transformer of the same model"),
        (other(in_channels=36), r"patch_embedding\.weight is \(24, 36, 1, 2, 2\), but the model's is \(24, 16"),
        (original | {"img_emb.proj.0.weight": torch.zeros(4)}, r"img_emb\.proj\.0\.weight is no weight of the model"),
        (original | {"head.head.bias": torch.full((64,), torch.nan)}, r"wan\.safetensors: proj_out\.bias holds NaN"),
    ]
    for state, expected in wrong:
        save_file(state, file)
        with pytest.raises(UserError, match=rf"^reasoner: .*{expected}"):
            loaded(folder, file)
    file.write_bytes(b"broken")
    with pytest.raises(UserError, match=r"wan\.safetensors cannot be read \(.*\); fetch it again"):
        loaded(folder, file)


def test_original_repositories_are_named_with_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Wan-AI/Wan2.2-TI2V-5B is not in the diffusers layout; give .*-5B-Diffusers$"):
        loaded(Path("Wan-AI/Wan2.2-TI2V-5B"), None)
    (tmp_path / "config.json").write_text('{"_class_name": "WanModel"}')
    with pytest.raises(UserError, match="holds original Wan weights; give the same model in the diffusers layout"):
        loaded(tmp_path, None)
