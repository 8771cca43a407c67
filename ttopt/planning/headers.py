"""Weights on the hub, checked before they are downloaded: a safetensors file's header says what it holds."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.utils import SafetensorsFileMetadata

from ttopt.errors import UserError, brief


def header(repository: str, file: str) -> SafetensorsFileMetadata:
    """Names, kinds and shapes of a file's tensors, read from the hub without the tensors. Raises UserError."""
    try:
        return HfApi().parse_safetensors_file_metadata(repository, file)
    except Exception as error:  # the hub raises many kinds
        raise UserError(f"the hub does not give the header of {repository}/{file} ({brief(error)})") from error


def stand_in(repository: str, file: str, folder: Path) -> Path:
    """The file in the hub's cache, or one under ``folder`` with the same header and nothing but zeros behind it.

    It takes no room on the disk where there are sparse files. Raises UserError.
    """
    here = try_to_load_from_cache(repository, file)
    if isinstance(here, str):
        return Path(here)
    found = header(repository, file)
    content: dict[str, object] = {"__metadata__": found.metadata} if found.metadata else {}
    for name, tensor in found.tensors.items():
        content[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": tensor.data_offsets}
    text = json.dumps(content).encode()
    end = max((tensor.data_offsets[1] for tensor in found.tensors.values()), default=0)
    path = folder / repository / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(8 + len(text) + end)
    return path
