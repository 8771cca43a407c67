"""Settings that trade memory, seconds and installed packages, without changing what is computed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from ttopt.errors import UserError
from ttopt.models.compiling import allow_variants
from ttopt.models.reasoner import forward

RunBlock = Callable[..., Tensor]


def block_range(text: str, count: int, setting: str) -> range:
    """Blocks by name: "none", "all", or an inclusive range counted from 0 such as "2-5". Raises UserError."""
    if text in ("none", "all"):
        return range(count if text == "all" else 0)
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None or not int(match[1]) <= int(match[2]) < count:
        raise UserError(f"{setting} is {text!r}; give all, none, or a range within 0-{count - 1} such as '0-1'")
    return range(int(match[1]), int(match[2]) + 1)


def compiled_block() -> RunBlock:
    """The transformer's block, compiled once for all blocks of one shape; the first steps are slow."""
    run: RunBlock = torch.compile(forward.run_block, dynamic=False)
    # Blocks differ in which linears carry a LoRA, in needing gradients and in the modulation's rows.
    allow_variants()
    return run


@contextmanager
def visiting(network: nn.Module, device: torch.device) -> Iterator[None]:
    """A frozen network works on the device meanwhile; its weights stay in the CPU's memory, so none is copied back."""
    homes: list[dict[str, Any]] = [
        tensors for module in network.modules() for tensors in (module._parameters, module._buffers)
    ]
    resting = [(home, name, x, x.data) for home in homes for name, x in home.items() if x is not None]
    try:
        network.to(device)  # may run out of memory half way
        yield
    finally:
        for home, name, x, data in resting:  # ``to`` gives weights other data, and replaces buffers
            x.data = data
            home[name] = x


@torch.no_grad()
def change_places(leaving: nn.Module, arriving: nn.Module) -> None:
    """Two frozen networks change places: ``leaving`` on the GPU and ``arriving`` in the CPU's memory.

    Where their weights are of the same sizes, tensor by tensor into each other's memory: neither place needs
    room for both, the CPU's has nothing to allocate, and LoRA matrices stay.
    """
    here, there = _frozen(leaving), _frozen(arriving)
    if {name: (x.shape, x.dtype) for name, x in here.items()} != {
        name: (x.shape, x.dtype) for name, x in there.items()
    }:
        device = next(leaving.parameters()).device
        leaving.to("cpu")
        arriving.to(device)
        return
    with ExitStack() as undo:  # if memory runs out half way
        for name, one in here.items():
            _exchange(one, there[name])
            undo.callback(_exchange, there[name], one)
        undo.pop_all()


def _exchange(leaving: Tensor, arriving: Tensor) -> None:
    arrived = arriving.data.to(leaving.device, copy=True)
    arriving.data.copy_(leaving.data)
    leaving.data, arriving.data = arriving.data, arrived


def _frozen(network: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers by the names that they have without an adapter."""
    named = [*network.named_parameters(), *network.named_buffers()]
    return {name.replace(".base_layer", ""): x for name, x in named if "lora_" not in name}


def set_attention(transformer: Any, backend: str) -> None:
    """Makes all attention use one of diffusers' backends, e.g. native, flash, _flash_3, xformers.

    Raises UserError if it is not known, not installed, or cannot do a forward and a backward pass here.
    """
    if backend.endswith("_hub"):
        raise UserError(f"reasoner.attention {backend} would run code from the hub; give native, flash or xformers")
    try:
        transformer.set_attention_backend(backend)
        _try(backend, transformer.patch_embedding.weight, transformer.config["attention_head_dim"])
    except (ImportError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        transformer.set_attention_backend("native")
        lines = str(error).strip().splitlines() or ["it gives no reason"]
        device = transformer.patch_embedding.weight.device.type
        install = "; pip install -e '.[gpu]' has it" if backend == "xformers" else ""
        raise UserError(
            f"reasoner.attention {backend} cannot be used on this {device} ({lines[0]}){install}; or give native"
        ) from error


def _try(backend: str, like: Tensor, width: int) -> None:
    q = torch.zeros(1, 64, 2, width, device=like.device, dtype=like.dtype, requires_grad=True)
    out: Tensor = dispatch_attention_fn(q, q, q, backend=backend)
    torch.autograd.grad(out.sum(), q)
