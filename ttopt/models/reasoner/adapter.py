"""The adapter: a low-rank update (LoRA) of the frozen transformer, the only thing that is optimized.

VLM-as-Teacher (arXiv 2606.02564), Algorithm 1: phi, with zero effect at the start, one per instance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ttopt.errors import UserError
from ttopt.models.reasoner.wan_names import original_name
from ttopt.models.tensorfile import save_tensors

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TARGETS = {
    "attention": tuple(f"{attn}.{name}" for attn in ("attn1", "attn2") for name in ATTENTION),
    "cross_attention": tuple(f"attn2.{name}" for name in ATTENTION),
    "attention+ffn": (
        *(f"{attn}.{name}" for attn in ("attn1", "attn2") for name in ATTENTION),
        "ffn.net.0.proj",
        "ffn.net.2",
    ),
}
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
WAN_FILE = "adapter_wan.safetensors"


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


class MixedPrecisionLora(LoraLinear):
    """peft's LoRA layer, computing in the activations' precision with the float32 matrices' roundings.

    peft casts every input to float32 and keeps each copy for the backward pass: 1.5 GB a block of Wan2.2-5B at
    89x704x1280. The same as peft's where the activations are float32.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return out
        down, up = self.lora_A["default"].weight, self.lora_B["default"].weight
        return out + F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype)) * self.scaling["default"]


class Adapter:
    """LoRA on a frozen transformer: y = W x + (alpha / rank) * B A x, with A and B in float32.

    Injects its layers once; ``reset`` starts the next instance. ``alpha`` defaults to ``rank``. Raises
    UserError for unknown ``targets`` or ``blocks``, ValueError when the transformer already carries a LoRA.
    """

    def __init__(
        self,
        transformer: nn.Module,
        rank: int = 16,
        alpha: float | None = None,
        targets: str = "attention",
        blocks: str = "all",
    ) -> None:
        if any(isinstance(module, LoraLayer) for module in transformer.modules()):
            raise ValueError("the transformer already carries a LoRA; reset or remove that adapter instead")
        if rank < 1:
            raise UserError(f"adapter rank {rank} must be at least 1")
        self.transformer = transformer
        self.rank = rank
        self.alpha = float(rank if alpha is None else alpha)
        self.targets = targets
        self.blocks = blocks
        self.names = target_names(transformer, targets, blocks)
        config = LoraConfig(r=rank, lora_alpha=self.alpha, target_modules=self.names)  # type: ignore[arg-type]
        training = transformer.training
        inject_adapter_in_model(config, transformer)
        transformer.train(training)
        self._layers = [transformer.get_submodule(name) for name in self.names]
        for layer in self._layers:
            layer.__class__ = MixedPrecisionLora
        # peft creates the matrices in the base weights' dtype; training needs float32.
        self._downs = [layer.lora_A["default"].weight for layer in self._layers]  # type: ignore[index,union-attr]
        self._ups = [layer.lora_B["default"].weight for layer in self._layers]  # type: ignore[index,union-attr]
        for parameter in self.parameters():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        self.reset(0)

    @property
    def first_block(self) -> int:
        """Number of the first adapted block; what enters it is the same for every adapter."""
        return int(self.names[0].split(".")[1])

    def parameters(self) -> list[nn.Parameter]:
        """The float32 LoRA matrices, (r, in) and (out, r) alternately; nothing else is trainable."""
        return [parameter for pair in zip(self._downs, self._ups, strict=True) for parameter in pair]

    @torch.no_grad()
    def reset(self, seed: int) -> None:
        """Start a new instance: B = 0 (no effect), A as ``seed`` says, the same on every device."""
        shapes = [tuple(down.shape) for down in self._downs]
        for down, value in zip(self._downs, initial_down(seed, shapes), strict=True):
            down.copy_(value)
        for up in self._ups:
            up.zero_()
        for parameter in self.parameters():
            parameter.grad = None

    def to(self, device: torch.device | str) -> None:
        """Move the matrices, which stay the same Parameter objects (a trainer may have left them on the CPU)."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(device)

    def enable(self) -> None:
        """Let the adapter act (the state after construction)."""
        self._switch(True)

    def disable(self) -> None:
        """Make the transformer behave exactly as without the adapter."""
        self._switch(False)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Context in which the transformer behaves as without the adapter."""
        was_enabled = not self._layers[0].disable_adapters
        self.disable()
        try:
            yield
        finally:
            self._switch(was_enabled)

    def _switch(self, enabled: bool) -> None:
        for layer in self._layers:
            layer.enable_adapters(enabled)  # type: ignore[operator]

    def remove(self) -> None:
        """Put the original layers back; the adapter is of no use afterwards. Doing it twice is harmless."""
        for name, layer in zip(self.names, self._layers, strict=True):
            parent, _, child = name.rpartition(".")
            setattr(self.transformer.get_submodule(parent), child, layer.base_layer)
        if hasattr(self.transformer, "peft_config"):
            del self.transformer.peft_config

    def state_dict(self) -> dict[str, Tensor]:
        """CPU copies, float32: ``blocks.0.attn1.to_q.lora_A.weight`` (r, in), ``.lora_B.weight`` (out, r)."""
        state: dict[str, Tensor] = {}
        for name, down, up in zip(self.names, self._downs, self._ups, strict=True):
            state[f"{name}.lora_A.weight"] = down.detach().cpu().clone()
            state[f"{name}.lora_B.weight"] = up.detach().cpu().clone()
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the matrices of a ``state_dict`` with the same rank, targets and blocks; else UserError."""
        check_state(state, self.state_dict())
        for name, down, up in zip(self.names, self._downs, self._ups, strict=True):
            down.copy_(state[f"{name}.lora_A.weight"])
            up.copy_(state[f"{name}.lora_B.weight"])

    @torch.no_grad()
    def norm(self) -> float:
        """Frobenius norm of all updates (alpha / rank) * B @ A together: how far the adapter has gone."""
        downs, ups = [down.detach() for down in self._downs], [up.detach() for up in self._ups]
        return float(update_norm(downs, ups, self.alpha / self.rank))

    def save(self, folder: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Write the adapter under two names: diffusers' and original Wan's (which ComfyUI reads).

        ``pytorch_lora_weights.safetensors`` loads with ``pipeline.load_lora_weights(folder)``;
        ``adapter_wan.safetensors`` has an explicit alpha per layer. ``metadata`` goes into both headers.
        """
        save_adapter(folder, self.state_dict(), self.rank, self.alpha, metadata)

    def load(self, folder: str | Path) -> dict[str, str]:
        """Read an adapter written by ``save`` and return its metadata.

        Raises UserError when the file is missing or made with another rank, alpha, targets or blocks.
        """
        state, metadata = read_adapter(folder)
        if float(metadata.get("alpha", self.alpha)) != self.alpha:
            raise UserError(
                f"{folder}: made with alpha {metadata['alpha']}, but the adapter has {self.alpha}; set alpha"
            )
        self.load_state_dict(state)
        return metadata


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise UserError unless names and shapes agree."""
    if state.keys() != expected.keys():
        odd = sorted(state.keys() ^ expected.keys())
        raise UserError(f"adapter weights do not fit (first difference: {odd[0]}); use the same targets and blocks")
    for name, value in expected.items():
        if state[name].shape != value.shape:
            shapes = f"{tuple(state[name].shape)}, expected {tuple(value.shape)}"
            raise UserError(f"adapter weight {name} is {shapes}; use the same rank and the same model")


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
