"""LoRA files of others, e.g. those that distil a model to few steps: read, checked and merged into a transformer.

Public files spell the same update in many ways: diffusers' or original layer names, a trainer's prefix, ``lora_A`` or
``lora_down``, names with underscores, whole differences (``diff``, ``diff_b``, ``diff_m``) beside low-rank ones. Every
tensor of a file finds its place in the model, or its key is named in an error; the file's header is enough for that.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ttopt.errors import UserError, brief, is_out_of_memory
from ttopt.models.reasoner.wan_names import original_name

Shapes = Mapping[str, tuple[int, ...]]  # of a transformer's parameters, by diffusers' names

PREFIXES = (
    *("base_model.model.", "model.diffusion_model.", "diffusion_model.", "pipe.dit.", "dit.", "transformer.", "model."),
    *("lora_unet__", "lora_unet_"),
)
_ADAPTER = r"(?:\.(?!weight$|bias$)\w+)?"  # peft's name of an adapter, as in lora_A.default.weight
PARTS = {  # what the end of a key says the tensor is
    "down": rf"\.(?:lora_A{_ADAPTER}|lora_down|lora\.down|lora_linear_layer\.down)(?:\.weight)?",
    "up": rf"\.(?:lora_B{_ADAPTER}|lora_up|lora\.up|lora_linear_layer\.up)(?:\.weight)?",
    "up_bias": rf"\.(?:lora_B{_ADAPTER}|lora_up)\.bias",
    "alpha": r"\.alpha",
    "diff": r"\.diff",
    "diff_b": r"\.diff_b",
    "diff_m": r"(?:^|\.)diff_m",  # LightX2V's and Kijai's: of the modulation
    **{f"lokr_{part}": rf"\.lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
}
MATRICES = {"down", "up", *(part for part in PARTS if part.startswith("lokr_"))}
DORA = re.compile(r"\.(dora_scale|lora_magnitude_vector\b.*)$")
IMAGE = re.compile(r"(^|[._])(k_img|v_img|norm_k_img|img_emb|add_[kv]_proj|norm_added_k|image_embedder)([._]|$)")
MODULATION = ("modulation", "scale_shift_table")


@dataclass(frozen=True)
class Addition:
    """What a file adds to one parameter, before its strength: made of the tensors ``keys`` by ``make``."""

    parameter: str
    keys: tuple[str, ...]
    make: Callable[..., Tensor]  # of the tensors in float32


class LoraFile:
    """A LoRA whose every tensor has a place among a transformer's parameters.

    Reads the header, the alphas and whether all values are finite. Raises UserError naming the key that is of another
    model, of a kind that cannot be merged, or without its other half; a LoRA's layers for the image embedding are left
    out with a warning where the model has none.
    """

    def __init__(self, file: Path, strength: float, shapes: Shapes) -> None:
        self.file = file
        self.strength = strength
        with self.open() as tensors:
            self._shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}
            metadata = tensors.metadata() or {}
        self._peft = _peft_config(file, metadata)
        self._model = shapes
        self.additions = [
            addition for layer, parts in self._layers().items() for addition in self._additions(layer, parts)
        ]
        if not self.additions:
            raise self._unfit("it holds nothing for this transformer")
        self._check_values()

    @contextmanager
    def open(self) -> Iterator[Any]:
        """The file's tensors, read when asked for. Raises UserError for what is no safetensors file."""
        try:
            with safe_open(self.file, framework="pt") as tensors:
                yield tensors
        except (SafetensorError, OSError) as error:
            if is_out_of_memory(error):
                raise
            raise self._unfit(brief(error)) from error

    @property
    def by_parameter(self) -> Mapping[str, list[Addition]]:
        found: dict[str, list[Addition]] = {}
        for addition in self.additions:
            found.setdefault(addition.parameter, []).append(addition)
        return found

    def _unfit(self, why: str) -> UserError:
        return UserError(
            f"reasoner: the LoRA {self.file} does not fit the model ({why}); give another (docs/models.md)"
        )

    @cached_property
    def _places(self) -> dict[str, str]:
        """Each layer and parameter of the model by all its spellings."""
        found = {}
        for name in self._model:
            for place in (name, name.rpartition(".")[0]):
                for spelled in (place, original_name(place)):
                    found[spelled] = found[spelled.replace(".", "_")] = place
        return found

    def _layers(self) -> dict[str, dict[str, str]]:
        """The keys of each layer or parameter by what they are of it."""
        layers: dict[str, dict[str, str]] = {}
        left_out = []
        for key in sorted(self._shapes):
            if DORA.search(key):
                raise self._unfit(f"{key} is DoRA's, which cannot be merged here")
            found = [(part, match) for part, end in PARTS.items() if (match := re.search(f"{end}$", key))]
            part, match = found[0] if found else ("", None)
            place = self._place(key[: match.start()] if match else key, part)
            if place is None and IMAGE.search(key):
                left_out.append(key)
            elif match is None:
                raise self._unfit(f"{key} is of no kind that can be merged: not LoRA's, LoKr's or a difference")
            elif place is None:
                raise self._unfit(f"the model has no layer for {key}; it is a LoRA for another model")
            elif part in MATRICES and (len(self._shapes[key]) < 2 or 0 in self._shapes[key]):
                raise self._unfit(f"{key} {self._shapes[key]} is no matrix")
            elif part in layers.setdefault(place, {}):
                raise self._unfit(f"{key} and {layers[place][part]} are the same part of the same layer")
            else:
                layers[place][part] = key
        if left_out:
            warnings.warn(
                f"the LoRA {self.file}: {len(left_out)} tensors are for an image embedding, which this model does not "
                f"have, and are left out (the first is {left_out[0]})",
                stacklevel=2,
            )
        return layers

    def _place(self, stem: str, part: str) -> str | None:
        """The layer or parameter that a key's beginning names."""
        ends = MODULATION if part == "diff_m" else ("",)
        while True:
            for end in ends:
                for joint in "._":
                    if place := self._places.get(f"{stem}{joint}{end}".strip("._") if end else stem):
                        return place
            prefix = next((prefix for prefix in PREFIXES if f"{stem}.".startswith(prefix)), None)
            if prefix is None:
                return None
            stem = stem[len(prefix) :]

    def _additions(self, layer: str, parts: dict[str, str]) -> Iterator[Addition]:
        is_layer = layer not in self._model
        weight, bias = (f"{layer}.weight", f"{layer}.bias") if is_layer else (layer, "")
        alpha = parts.pop("alpha", None)
        scaled = False
        for first, second in (("down", "up"), ("up", "down"), ("up_bias", "up")):
            if first in parts and second not in parts:
                raise self._unfit(f"{parts[first]} is there without its other half")
        if "down" in parts:
            down, up, up_bias = parts.pop("down"), parts.pop("up"), parts.pop("up_bias", None)
            scale, scaled = self._scale(layer, alpha, self._shapes[down][0]), True
            yield self._low_rank(weight, down, up, scale)
            if up_bias is not None:
                yield self._whole(bias, up_bias, scale)
        lokr = {part: parts.pop(part) for part in list(parts) if part.startswith("lokr_")}
        if lokr:
            scaled = True
            yield self._kronecker(layer, weight, lokr, alpha)
        if alpha is not None and not scaled:
            raise self._unfit(f"{alpha} is there without what it scales")
        for part, key in parts.items():
            yield self._whole(bias if part == "diff_b" else weight, key)

    def _whole(self, parameter: str, key: str, scale: float = 1.0) -> Addition:
        self._check_shape(parameter, key, self._shapes[key])
        return Addition(parameter, (key,), lambda diff: scale * diff)

    def _low_rank(self, parameter: str, down: str, up: str, scale: float) -> Addition:
        (rank, *inner), (outer, *ranks) = self._shapes[down], self._shapes[up]
        target = self._shape(parameter, down)
        if math.prod(ranks) != rank or (outer, math.prod(inner)) != (target[0], math.prod(target[1:])):
            raise self._other_model(f"{up} {self._shapes[up]} and {down} {self._shapes[down]}", parameter)
        return Addition(
            parameter, (down, up), lambda down, up: (scale * (up.flatten(1) @ down.flatten(1))).view(target)
        )

    def _kronecker(self, layer: str, parameter: str, keys: dict[str, str], alpha: str | None) -> Addition:
        factors: list[list[str]] = []  # each one tensor, or two to be multiplied
        for name in ("lokr_w1", "lokr_w2"):
            factor = [keys[part] for part in (name, f"{name}_a", f"{name}_b") if part in keys]
            if len(factor) != (1 if name in keys else 2):
                raise self._unfit(f"{min(keys.values())} is there without its other half")
            factors.append(factor)
        (one, two), target = factors, self._shape(parameter, factors[0][0])
        rows = math.prod(self._shapes[factor[0]][0] for factor in factors)
        columns = math.prod(math.prod(self._shapes[factor[-1]][1:]) for factor in factors)
        if (rows, columns) != (target[0], math.prod(target[1:])):
            raise self._other_model(f"{one[0]} and {two[0]} together ({rows}, {columns})", parameter)
        ranks = [self._shapes[factor[1]][0] for factor in factors if len(factor) == 2]
        scale = self._scale(layer, alpha, ranks[0]) if ranks else 1.0  # as its trainer, LyCORIS, has it

        def make(*tensors: Tensor) -> Tensor:
            halves = tensors[: len(one)], tensors[len(one) :]
            first, second = (torch.linalg.multi_dot([x.flatten(1) for x in half]) if len(half) == 2 else
                             half[0].flatten(1) for half in halves)  # fmt: skip
            return (scale * torch.kron(first, second)).view(target)

        return Addition(parameter, (*one, *two), make)

    def _shape(self, parameter: str, key: str) -> tuple[int, ...]:
        if parameter not in self._model:
            raise self._unfit(f"the model has no parameter for {key}; it is a LoRA for another model")
        return self._model[parameter]

    def _check_shape(self, parameter: str, key: str, shape: tuple[int, ...]) -> None:
        if self._shape(parameter, key) != shape:
            raise self._other_model(f"{key} {shape}", parameter)

    def _other_model(self, what: str, parameter: str) -> UserError:
        return self._unfit(f"{what} cannot change {parameter} {self._model[parameter]}; it is a LoRA for another model")

    def _scale(self, layer: str, alpha: str | None, rank: int) -> float:
        """alpha / rank, alpha being the file's own, that of its trainer's configuration, or the rank."""
        if alpha is None:
            return self._peft.scale(layer, rank)
        with self.open() as tensors:
            value = tensors.get_tensor(alpha)
        if value.numel() != 1:
            raise self._unfit(f"{alpha} is {tuple(value.shape)}, not one number")
        return float(value) / rank

    def _check_values(self) -> None:
        with self.open() as tensors:
            for key in (key for addition in self.additions for key in addition.keys):
                if not tensors.get_tensor(key).float().isfinite().all():
                    raise self._unfit(f"{key} holds NaN or Inf")


@dataclass(frozen=True)
class _Peft:
    """peft's configuration, where a file or its folder has one."""

    alpha: float | None = None
    alphas: Mapping[str, float] | None = None
    root: bool = False  # divide by the rank's square root

    def scale(self, layer: str, rank: int) -> float:
        alpha = self.alpha
        for pattern, value in (self.alphas or {}).items():
            if any(re.fullmatch(rf"(.*\.)?({pattern})", name) for name in (layer, original_name(layer))):
                alpha = value
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.root else rank)


def _peft_config(file: Path, metadata: Mapping[str, str]) -> _Peft:
    """Of the header (as diffusers writes it) or of the adapter_config.json beside the file (as peft does)."""
    beside = file.with_name("adapter_config.json")
    try:
        if "lora_adapter_metadata" in metadata:
            found = json.loads(metadata["lora_adapter_metadata"])
        elif file.name == "adapter_model.safetensors" and beside.is_file():
            found = json.loads(beside.read_text(encoding="utf-8"))
        else:
            return _Peft()
        settings = {key.removeprefix("transformer."): value for key, value in found.items()}
        alpha, alphas = settings.get("lora_alpha"), settings.get("alpha_pattern") or {}
        return _Peft(
            None if alpha is None else float(alpha),
            {pattern: float(value) for pattern, value in alphas.items()},
            bool(settings.get("use_rslora")),
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"reasoner: the LoRA {file}: its trainer's configuration cannot be read ({brief(error)}); fetch it again"
        ) from error


@torch.no_grad()
def merge(transformer: nn.Module, loras: Sequence[LoraFile]) -> None:
    """Adds the LoRAs to the weights for good, in order, each with its strength; rounded once, to the weights' dtype."""
    with ExitStack() as files:
        opened = [(lora, files.enter_context(lora.open()), lora.by_parameter) for lora in loras]
        for name in dict.fromkeys(name for _, _, additions in opened for name in additions):
            parameter = transformer.get_parameter(name)
            total = parameter.float()
            for lora, tensors, additions in opened:
                for addition in additions.get(name, ()):
                    values = [tensors.get_tensor(key).float() for key in addition.keys]
                    total = total + lora.strength * addition.make(*values)
            parameter.copy_(total)
