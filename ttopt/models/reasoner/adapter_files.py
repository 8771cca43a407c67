"""Adapters as files: in diffusers' names, and in the original Wan names that ComfyUI reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ttopt.errors import UserError
from ttopt.models.reasoner.wan_names import original_name
from ttopt.models.tensorfile import save_tensors

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
WAN_FILE = "adapter_wan.safetensors"


def save_adapter(
    folder: str | Path,
    state: Mapping[str, Tensor],
    rank: int,
    alpha: float,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write an ``Adapter.state_dict`` as the two files described in ``Adapter.save``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_diffusers(folder / DIFFUSERS_FILE, state, rank, alpha, metadata)

    wan: dict[str, Tensor] = {}
    for module in _modules(state):
        name = f"diffusion_model.{original_name(module)}"
        wan[f"{name}.lora_A.weight"] = state[f"{module}.lora_A.weight"]
        wan[f"{name}.lora_B.weight"] = state[f"{module}.lora_B.weight"]
        wan[f"{name}.alpha"] = torch.tensor(alpha)
    save_tensors(folder / WAN_FILE, wan, _header(rank, alpha, metadata))


def save_diffusers(
    file: Path, state: Mapping[str, Tensor], rank: int, alpha: float, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write an ``Adapter.state_dict`` as the one file that diffusers reads, see ``Adapter.save``."""
    peft_config = {"r": rank, "lora_alpha": alpha, "target_modules": _modules(state)}
    diffusers_config = json.dumps({f"transformer.{key}": value for key, value in peft_config.items()})
    tensors = {f"transformer.{name}": value for name, value in state.items()}
    save_tensors(file, tensors, {**_header(rank, alpha, metadata), "lora_adapter_metadata": diffusers_config})


def _modules(state: Mapping[str, Tensor]) -> list[str]:
    return sorted({name.rpartition(".lora_")[0] for name in state})


def _header(rank: int, alpha: float, metadata: Mapping[str, Any] | None) -> dict[str, str]:
    header = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    return header | {"format": "pt", "rank": str(rank), "alpha": str(alpha)}


def read_adapter(place: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """State dict and metadata of ``save_adapter``'s folder or ``save_diffusers``' file. Raises UserError."""
    file = Path(place) if Path(place).is_file() else Path(place) / DIFFUSERS_FILE
    if not file.is_file():
        raise UserError(f"{file} is missing; give the adapter folder of a result")
    try:
        with safe_open(file, framework="pt") as tensors:
            metadata = tensors.metadata() or {}
        return {name.removeprefix("transformer."): value for name, value in load_file(file).items()}, metadata
    except SafetensorError as error:
        raise UserError(f"{file} is not a safetensors file ({error})") from error
