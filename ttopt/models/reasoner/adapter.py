"""The adapter: low-rank updates (LoRA) of the frozen transformer, the only weights that are optimized.

VLM-as-Teacher (arXiv 2606.02564), Algorithm 1: phi, with zero effect at the start, one per instance. An adapter has a
row for each sample that is optimized side by side; one sample is one row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ttopt.errors import UserError
from ttopt.models.reasoner.adapter_files import ATTENTION, read_adapter, save_adapter

TARGETS = {
    "attention": tuple(f"{attn}.{name}" for attn in ("attn1", "attn2") for name in ATTENTION),
    "cross_attention": tuple(f"attn2.{name}" for name in ATTENTION),
    "attention+ffn": (
        *(f"{attn}.{name}" for attn in ("attn1", "attn2") for name in ATTENTION),
        "ffn.net.0.proj",
        "ffn.net.2",
    ),
}


def target_names(transformer: nn.Module, targets: str, blocks: str) -> list[str]:
    """Names of the linear layers to adapt, in block order.

    ``targets``: "attention" (self and cross), "cross_attention" or "attention+ffn". ``blocks``: "all" or an
    inclusive range counted from 0, such as "2-5". Raises UserError for anything else.
    """
    if targets not in TARGETS:
        raise UserError(f"adapter targets {targets!r} are not known; choose one of {', '.join(TARGETS)}")
    count = len(transformer.blocks)  # type: ignore[arg-type]
    first, last = 0, count - 1
    if blocks != "all":
        match = re.fullmatch(r"(\d+)-(\d+)", blocks)
        if match is None or not int(match[1]) <= int(match[2]) < count:
            raise UserError(f"adapter blocks {blocks!r} must be 'all' or a range within 0-{count - 1}, such as '0-1'")
        first, last = int(match[1]), int(match[2])
    return [f"blocks.{block}.{name}" for block in range(first, last + 1) for name in TARGETS[targets]]


def initial_down(seed: int, shapes: list[tuple[int, ...]]) -> list[Tensor]:
    """The A matrices a seed stands for: Kaiming-uniform as in peft, from a CPU generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    downs = [torch.empty(shape) for shape in shapes]
    for down in downs:
        nn.init.kaiming_uniform_(down, a=5**0.5, generator=generator)
    return downs


def update_norm(downs: list[Tensor], ups: list[Tensor], scale: float) -> Tensor:
    """Frobenius norm (...) of all updates scale * B @ A together, from A (..., r, in) and B (..., out, r)."""
    # ||BA||^2 = sum((B^T B) * (A A^T)): never forms an out x in matrix.
    squares = [((up.mT @ up) * (down @ down.mT)).sum((-2, -1)) for down, up in zip(downs, ups, strict=True)]
    return scale * torch.stack(squares).sum(0).clamp(min=0.0).sqrt()


class LoraLinear(nn.Module):
    """A frozen linear layer and its low-rank updates, in rows; ``Adapter`` makes and steers it.

    The matrices are no registered parameters: a trainer, a state dict or a move of the transformer leaves them alone.
    They are attributes all the same, so that compiled blocks which are adapted alike share one graph.
    """

    down: nn.Parameter  # (B, r, in) float32
    up: nn.Parameter  # (B, out, r) float32

    def __init__(self, base_layer: nn.Module, scale: float) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.scale = scale
        self.enabled = True
        self.active: list[int] | None = None

    def make(self, rows: int, rank: int, device: torch.device | str | None) -> tuple[nn.Parameter, nn.Parameter]:
        """New matrices of zeros, beside the layer where no ``device`` is named."""
        base: Any = self.base_layer
        place = base.weight.device if device is None else device
        down = nn.Parameter(torch.zeros(rows, rank, base.in_features, device=place))
        return down, nn.Parameter(torch.zeros(rows, base.out_features, rank, device=place))

    def take(self, down: nn.Parameter, up: nn.Parameter) -> None:
        """Adapts with these matrices from now on."""
        self.__dict__["down"], self.__dict__["up"] = down, up

    @property
    def weight(self) -> Tensor:
        """The frozen layer's."""
        weight: Tensor = self.base_layer.weight  # type: ignore[assignment]
        return weight

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.base_layer(x)
        if not self.enabled:
            return output
        down, up = self.down, self.up
        if len(down) == 1:
            return output + F.linear(F.linear(x, down[0].to(x.dtype)), up[0].to(x.dtype)) * self.scale
        if self.active is not None:
            down, up = down[self.active], up[self.active]  # type: ignore[assignment]
        if len(x) != len(down):
            raise ValueError(f"a batch of {len(x)} for {len(down)} adapters; disable them first")
        inner = torch.bmm(x, down.to(x.dtype).mT)  # (B, N, r)
        return torch.baddbmm(output, inner, up.to(x.dtype).mT, alpha=self.scale)  # (B, N, out)


class Adapter:
    """LoRA on a frozen transformer: y = W x + (alpha / rank) * B A x, with A and B in float32, in B independent rows.

    Item b of a batch is adapted by row b, or by the b-th of the rows of ``only``; a single row adapts every item. The
    updates are computed in the activations' precision (float32 copies of them would take 1.5 GB a block of Wan2.2-5B at
    89x704x1280). The matrices lie on ``device`` (None: beside their layers) and stay there when an offloaded
    transformer leaves. Optimizers that act element by element (AdamW) keep the rows independent; clip with
    ``clip_gradients``.

    Injects its layers once; ``reset`` starts the next instances. ``alpha`` defaults to ``rank``. Raises UserError for
    unknown ``targets`` or ``blocks``, ValueError when the transformer already carries an adapter.
    """

    def __init__(
        self,
        transformer: nn.Module,
        rank: int = 16,
        alpha: float | None = None,
        targets: str = "attention",
        blocks: str = "all",
        device: torch.device | str | None = None,
    ) -> None:
        if any(isinstance(module, LoraLinear) for module in transformer.modules()):
            raise ValueError("the transformer already carries an adapter; reset that one, or remove it first")
        if rank < 1:
            raise UserError(f"adapter rank {rank} must be at least 1")
        self.transformer = transformer
        self.rank = rank
        self.alpha = float(rank if alpha is None else alpha)
        self.targets = targets
        self.blocks = blocks
        self.names = target_names(transformer, targets, blocks)
        self._device = device
        self._layers = [LoraLinear(transformer.get_submodule(name), self.alpha / rank) for name in self.names]
        self._downs: list[nn.Parameter] = []
        self._ups: list[nn.Parameter] = []
        self.reset([0])
        for name, layer in zip(self.names, self._layers, strict=True):  # last: where memory runs out, nothing is left
            _put(transformer, name, layer.train(transformer.training))

    def __len__(self) -> int:
        """How many rows."""
        return len(self._downs[0])

    @property
    def first_block(self) -> int:
        """Number of the first adapted block; what enters it is the same for every adapter."""
        return int(self.names[0].split(".")[1])

    def parameters(self) -> list[nn.Parameter]:
        """The float32 matrices, (B, r, in) and (B, out, r) alternately; nothing else is trainable."""
        return [parameter for pair in zip(self._downs, self._ups, strict=True) for parameter in pair]

    @torch.no_grad()
    def reset(self, seeds: Sequence[int]) -> None:
        """Starts new instances, a row for each seed: B = 0 (no effect), A as the seed says, the same on every device.

        Another number of rows makes new parameters, so call it before a trainer takes them.
        """
        if not self._downs or len(self) != len(seeds):
            self._make(len(seeds))
        shapes = [tuple(down.shape[1:]) for down in self._downs]
        for row, seed in enumerate(seeds):
            for down, value in zip(self._downs, initial_down(seed, shapes), strict=True):
                down[row].copy_(value)
        for up in self._ups:
            up.zero_()
        for parameter in self.parameters():
            parameter.grad = None
        self._set(active=None)

    def _make(self, rows: int) -> None:
        made = [layer.make(rows, self.rank, self._device) for layer in self._layers]
        self._downs, self._ups = [down for down, _ in made], [up for _, up in made]
        for layer, matrices in zip(
            self._layers, made, strict=True
        ):  # only now: where memory runs out, the old ones stay
            layer.take(*matrices)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Context in which the transformer behaves exactly as without the adapter, for batches of any size."""
        was_enabled = self._layers[0].enabled
        self._set(enabled=False)
        try:
            yield
        finally:
            self._set(enabled=was_enabled)

    @contextmanager
    def only(self, rows: Sequence[int]) -> Iterator[None]:
        """Context in which forwards, and the backward passes that follow, are for these rows."""
        self._set(active=None if len(rows) == len(self) else list(rows))
        try:
            yield
        finally:
            self._set(active=None)

    def _set(self, **state: Any) -> None:
        for layer in self._layers:
            for name, value in state.items():
                setattr(layer, name, value)

    def remove(self) -> None:
        """Puts the original layers back; the adapter is of no use afterwards. Doing it twice is harmless."""
        for name, layer in zip(self.names, self._layers, strict=True):
            _put(self.transformer, name, layer.base_layer)

    def state_dict(self, row: int = 0) -> dict[str, Tensor]:
        """CPU copies, float32: ``blocks.0.attn1.to_q.lora_A.weight`` (r, in), ``.lora_B.weight`` (out, r)."""
        state: dict[str, Tensor] = {}
        for name, down, up in zip(self.names, self._downs, self._ups, strict=True):
            state[f"{name}.lora_A.weight"] = down[row].detach().cpu().clone()
            state[f"{name}.lora_B.weight"] = up[row].detach().cpu().clone()
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor], row: int = 0) -> None:
        """Takes the matrices of a ``state_dict`` with the same rank, targets and blocks; else UserError."""
        check_state(state, self.state_dict(row))
        for name, down, up in zip(self.names, self._downs, self._ups, strict=True):
            down[row].copy_(state[f"{name}.lora_A.weight"])
            up[row].copy_(state[f"{name}.lora_B.weight"])

    @torch.no_grad()
    def norm(self, row: int = 0) -> float:
        """Frobenius norm of all of a row's updates (alpha / rank) * B @ A together: how far it has gone."""
        downs, ups = [down[row].detach() for down in self._downs], [up[row].detach() for up in self._ups]
        return float(update_norm(downs, ups, self.alpha / self.rank))

    def has_effect(self, row: int = 0) -> bool:
        """Whether a row changes anything: a fresh one does not."""
        return self.norm(row) != 0

    @torch.no_grad()
    def clip_gradients(self, max_norm: float) -> Tensor:
        """Clips each row's gradient by itself, as clip_grad_norm_ would; returns the norms (B,)."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        norms = []
        for row in range(len(self)):
            own = [gradient[row] for gradient in gradients]
            norms.append(torch.stack([torch.linalg.vector_norm(gradient) for gradient in own]).norm())
            factor = (max_norm / (norms[-1] + 1e-6)).clamp(max=1.0)
            for gradient in own:
                gradient.mul_(factor)
        return torch.stack(norms)

    def save(self, folder: str | Path, metadata: Mapping[str, Any] | None = None, row: int = 0) -> None:
        """Writes a row under two names: diffusers' and original Wan's (which ComfyUI reads).

        ``pytorch_lora_weights.safetensors`` loads with ``pipeline.load_lora_weights(folder)``;
        ``adapter_wan.safetensors`` has an explicit alpha per layer. ``metadata`` goes into both headers.
        """
        save_adapter(folder, self.state_dict(row), self.rank, self.alpha, metadata)

    def load(self, folder: str | Path, row: int = 0) -> dict[str, str]:
        """Reads an adapter written by ``save`` into a row and returns its metadata.

        Raises UserError when the file is missing or made with another rank, alpha, targets or blocks.
        """
        state, metadata = read_adapter(folder)
        if float(metadata.get("alpha", self.alpha)) != self.alpha:
            raise UserError(
                f"{folder}: made with alpha {metadata['alpha']}, but the adapter has {self.alpha}; set alpha"
            )
        self.load_state_dict(state, row)
        return metadata


def _put(transformer: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(transformer.get_submodule(parent), child, layer)


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise UserError unless names and shapes agree."""
    if state.keys() != expected.keys():
        odd = sorted(state.keys() ^ expected.keys())
        raise UserError(f"adapter weights do not fit (first difference: {odd[0]}); use the same targets and blocks")
    for name, value in expected.items():
        if state[name].shape != value.shape:
            shapes = f"{tuple(state[name].shape)}, expected {tuple(value.shape)}"
            raise UserError(f"adapter weight {name} is {shapes}; use the same rank and the same model")
