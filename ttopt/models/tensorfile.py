"""Writing safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes ``tensors``, on any device, with ``metadata`` in the header. Raises OSError, as all writing does, e.g. for
    a full disk."""
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, dict(metadata))
    except SafetensorError as error:
        raise OSError(str(error)) from error
