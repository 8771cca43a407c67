"""A transformer in one .safetensors file, as ComfyUI's users have it: original Wan names, perhaps stored as float8."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ttopt.errors import UserError, brief, is_out_of_memory
from ttopt.models.reasoner.wan_names import original_name

# Beside the weights: the scales of float8 ones, which are applied, and what only concerns computing in float8.
SCALE = re.compile(r"\.(scale_weight|weight_scale)$")
HINT = re.compile(r"(^|\.)(scaled_fp8|scale_input|input_scale|comfy_quant)$")


def find_weights(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, str], dict[str, str]]:
    """The file's key of each weight, by diffusers' names, and those of their scales; from the file's header alone.

    Raises UserError naming what is missing, is of another shape, or belongs to another model.
    """
    places = {spelled: name for name in shapes for spelled in (name, original_name(name))}
    weights: dict[str, str] = {}
    scales: dict[str, str] = {}
    try:
        with safe_open(file, framework="pt") as tensors:
            found = {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}
    except (SafetensorError, OSError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"reasoner: {file} cannot be read ({brief(error)}); fetch it again") from error
    for key, shape in found.items():
        plain = key.removeprefix("model.").removeprefix("diffusion_model.")
        scaled = SCALE.sub(".weight", plain)
        if HINT.search(plain):
            continue
        name = places.get(scaled)
        if name is None:
            raise UserError(
                f"reasoner: {file}: {key} is no weight of the model; give a file of the same model (docs/models.md)"
            )
        if scaled != plain:
            scales[name] = key
        elif shape != shapes[name]:
            raise UserError(
                f"reasoner: {file}: {key} is {shape}, but the model's is {shapes[name]}; give a file of the same model "
                "(docs/models.md)"
            )
        else:
            weights[name] = key
    for name in shapes:
        if name not in weights:
            raise UserError(
                f"reasoner: {file}: {original_name(name)} is missing; give a whole transformer of the same model"
            )
    return weights, scales


def load_single(file: Path, like: WanTransformer3DModel, dtype: torch.dtype) -> WanTransformer3DModel:
    """The transformer of a file, of the same sizes as ``like``; what diffusers keeps in float32 stays so.

    Raises UserError as ``find_weights``.
    """
    weights, scales = find_weights(file, {name: tuple(x.shape) for name, x in like.named_parameters()})
    with init_empty_weights():  # the rotary table, which no file holds, is computed
        network = WanTransformer3DModel.from_config(like.config)
    kept = network._keep_in_fp32_modules or []
    state: dict[str, Tensor] = {}
    with safe_open(file, framework="pt") as tensors:
        for name, key in weights.items():
            value = tensors.get_tensor(key)
            if name in scales:
                scale = tensors.get_tensor(scales[name]).float()
                value = value.float() * (scale.view(-1, *[1] * (value.dim() - 1)) if scale.numel() > 1 else scale)
            stays = any(part in name.split(".") for part in kept)
            state[name] = value.to(torch.float32 if stays else dtype)
    network.load_state_dict(state, assign=True)
    return network
