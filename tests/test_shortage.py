"""Too little memory while the models are loaded: one sentence that says whose memory, whatever part asked for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors import SafetensorError
from transformers import Qwen3VLForConditionalGeneration, UMT5EncoderModel

from ttopt.config.settings import FitSettings
from ttopt.errors import UserError, is_out_of_memory
from ttopt.models.load import load_models
from ttopt.models.reasoner import light_decoder

NO_ROOM = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:135] . DefaultCPUAllocator: can't allocate memory: you tried to .."
)


@pytest.mark.parametrize(
    "error, short",
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (NO_ROOM, True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried ..."), True),
        (OSError(12, "Cannot allocate memory"), True),
        (SafetensorError("Cannot allocate memory (os error 12)"), True),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_shortages_of_every_kind_are_told_from_other_errors(error: Exception, short: bool) -> None:
    assert is_out_of_memory(error) is short


PARTS = [
    (WanTransformer3DModel, "from_pretrained"),
    (AutoencoderKLWan, "from_pretrained"),
    (UMT5EncoderModel, "from_pretrained"),
    (Qwen3VLForConditionalGeneration, "from_pretrained"),
    (light_decoder, "load_file"),
]


@pytest.mark.parametrize("owner, name", PARTS, ids=[owner.__name__ for owner, _ in PARTS])
@pytest.mark.parametrize(
    "error, whose",
    [(MemoryError(), "CPU"), (NO_ROOM, "CPU"), (torch.OutOfMemoryError("CUDA out of memory"), "GPU")],
    ids=["MemoryError", "allocator", "CUDA"],
)
def test_a_shortage_in_each_part(
    owner: Any, name: str, error: Exception, whose: str, settings: Callable[..., FitSettings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(owner, name, full)
    with pytest.raises(UserError, match=f"^loading the models: the {whose}'s memory is too small; "):
        load_models(settings())


def test_a_rank_that_no_memory_holds(settings: Callable[..., FitSettings]) -> None:
    with pytest.raises(UserError, match="the CPU's memory is too small; give smaller models or a smaller adapter.rank"):
        load_models(settings(adapter={"rank": 2**42}))
