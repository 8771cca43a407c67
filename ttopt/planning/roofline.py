"""How much work and memory a computation needs, found by running it on tensors without data (device "meta").

Every operation is counted as it would run on a GPU one after the other: its FLOP at a part of the peak rate, or its
bytes at a part of the bandwidth, whichever takes longer (the roofline model, Williams et al., CACM 52(4), 2009).
Memory is what is alive at each moment, as PyTorch's allocator would see it, weights not included.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ttopt.planning.gpus import Gpu

# Parts of the peak that large operations reach, measured on an H200 (benchmarks/README.md).
MATRIX, ATTENTION, CONVOLUTION, BANDWIDTH = 0.75, 0.53, 0.50, 0.85
# What compiled layers leave of the time of memory-bound operations, and of the activations that are kept.
FUSED, KEPT = 0.35, 0.85
FLOAT8 = 7  # bytes a weight that turning it into bfloat16 moves, in each pass
LAUNCH = 4e-6  # seconds no operation is quicker than


@dataclass
class Work:
    """Of a part: floating-point operations, estimated seconds, and the most bytes alive at one moment."""

    flop: float = 0.0
    seconds: float = 0.0
    peak: int = 0


class Roofline(TorchDispatchMode):
    """``with roofline, roofline.part("decode"): ...`` fills ``roofline.parts["decode"]``."""

    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu
        self.compiled = False
        self.float8: set[int] = set()  # storages of the weights that are kept so, by ``storage_key``
        self.parts: dict[str, Work] = {}
        self.alive = 0
        self._work = Work()
        self._known: dict[int, weakref.ref[Any]] = {}

    @contextmanager
    def part(self, name: str, compiled: bool = False) -> Iterator[None]:
        """What runs inside belongs to ``name``; a name that comes again goes on adding.

        ``compiled``: its layers are, so that memory-bound operations run fused.
        """
        outer, self._work = self._work, self.parts.setdefault(name, Work())
        self.compiled = compiled
        self._work.peak = max(self._work.peak, self.alive)
        try:
            with self, _fused_attention(self):
                yield
        finally:
            self._work, self.compiled = outer, False

    def add(self, flop: float, moved: float, rate: float) -> None:
        """One operation: ``flop`` at ``rate`` FLOP/s, ``moved`` bytes."""
        self._work.flop += flop
        seconds = max(flop / rate, moved / (BANDWIDTH * self.gpu.bandwidth), LAUNCH)
        self._work.seconds += seconds * (FUSED if self.compiled and not flop else 1.0)

    def unrounding(self, weights: int) -> float:
        """Seconds in which that many float8 weights are turned into bfloat16."""
        return FLOAT8 * weights / (BANDWIDTH * self.gpu.bandwidth)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        sources = {storage_key(x) for x in inputs}
        new = [x for x in outputs if storage_key(x) not in sources]
        for x in new:
            self._hold(x)
        if not new and not func._schema.is_mutable:
            return out  # a view
        flop = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out) if _counted(func) else 0
        moved = sum(x.numel() * x.element_size() for x in (*inputs, *outputs))
        self.add(flop, moved, self._rate(func, inputs))
        if flop and (rounded := [x for x in inputs if storage_key(x) in self.float8]):
            self._work.seconds += self.unrounding(sum(x.numel() for x in rounded))
        return out

    def _rate(self, func: Any, inputs: list[Tensor]) -> float:
        conv = "convolution" in str(func)
        half = bool(inputs) and inputs[0].element_size() <= 2
        # PyTorch lets cuDNN use TF32 for float32 convolutions, but not cuBLAS for matrix products.
        peak = self.gpu.bf16 if half else self.gpu.tf32 if conv else self.gpu.fp32
        return peak * (CONVOLUTION if conv else MATRIX)

    def _hold(self, x: Tensor) -> None:
        storage, key = x.untyped_storage(), storage_key(x)
        if key in self._known:
            return
        size = storage.nbytes()

        def release(_: Any) -> None:
            self.alive -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, release)
        self.alive += size
        self._work.peak = max(self._work.peak, self.alive)


def storage_key(x: Tensor) -> int:
    """The same for all views of a tensor."""
    return x.untyped_storage()._cdata


def _counted(func: Any) -> bool:
    return func._overloadpacket in flop_registry


class _Attention(torch.autograd.Function):
    """A fused attention kernel's inputs, outputs and FLOP; the backward pass recomputes the scores."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, add: Callable[[float, Tensor], None]
    ) -> Tensor:
        ctx.add, ctx.flop = add, (2.0 if causal else 4.0) * q.numel() * k.shape[-2]
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        add(ctx.flop, q)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, _ = ctx.saved_tensors
        ctx.add(2.5 * ctx.flop, q)
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None, None


def _fused_attention(roofline: Roofline) -> Any:
    """Stands in for scaled_dot_product_attention, which on the meta device would form the whole score matrix.

    Replaced by name: a TorchFunctionMode is not active inside backward(), where recomputed layers run.
    """

    def add(flop: float, q: Tensor) -> None:
        peak = roofline.gpu.bf16 if q.element_size() <= 2 else roofline.gpu.fp32
        roofline.add(flop, 0, peak * ATTENTION)

    def attention(query: Tensor, key: Tensor, value: Tensor, *, is_causal: bool = False, **kwargs: Any) -> Any:
        return _Attention.apply(query, key, value, is_causal, add)  # type: ignore[no-untyped-call]

    return mock.patch.object(F, "scaled_dot_product_attention", attention)
