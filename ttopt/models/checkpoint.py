"""Files of weights: which file a weight lies in, and whether all values are numbers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from ttopt.errors import UserError


def shards(folder: Path, stem: str) -> dict[str, str]:
    """The file's name for each weight, from ``stem``.safetensors.index.json; empty where all are in one file.

    Raises UserError.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return {}
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{index} cannot be read ({error}); fetch it again") from error


@torch.no_grad()
def check_finite(network: nn.Module, what: str, place: Path, stem: str) -> None:
    """Raises UserError for a weight that holds NaN or Inf, naming it and its file in the folder (or file) ``place``."""
    for name, values in network.state_dict().items():
        if values.is_floating_point() and not is_finite(values):
            file = place / shards(place, stem).get(name, f"{stem}.safetensors")
            raise UserError(f"{what}: {file if file.is_file() else place}: {name} holds NaN or Inf; fetch it again")


def is_finite(values: Tensor) -> bool:
    """Whether there is no NaN or Inf, in one pass over the values and without a copy of them."""
    if values.element_size() == 1:  # float8 cannot be summed
        values = values.to(torch.bfloat16)
    # Both outlive a sum, in which finite values hardly ever overflow.
    return bool(values.sum(dtype=torch.float32).isfinite()) or bool(values.isfinite().all())
