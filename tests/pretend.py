"""Pretended devices on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

CPU = torch.device("cpu")


class PretendedDevices(TorchFunctionMode):
    """Every tensor lies somewhere, by name only; an operation on tensors from different places fails, as it would.

    Exempt are, as on real devices, indices, scalars and copying. ``moved``: from where, to where and what shape.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moved: list[tuple[str, str, tuple[int, ...]]] = []
        self._place = WeakTensorKeyDictionary()

    def put(self, network: nn.Module, device: str) -> None:
        for tensor in (*network.parameters(), *network.buffers()):
            self._place[tensor] = torch.device(device)

    def place(self, tensor: Tensor) -> torch.device:
        found: torch.device = self._place.get(tensor, CPU)
        return found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return self.place(args[0])
        wanted = kwargs.pop("device", None)
        if func == torch.Tensor.to:
            rest: list[Any] = []
            for value in args[1:]:
                if isinstance(value, (str, torch.device)):
                    wanted = value
                elif isinstance(value, Tensor):
                    wanted = self.place(value)
                    rest.append(value.dtype)
                else:
                    rest.append(value)
            args = (args[0], *(rest or ([] if kwargs else [args[0].dtype])))
        elif func == torch.Tensor.cpu:
            wanted = CPU
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if func in (torch.Tensor.__getitem__, torch.Tensor.copy_):
            tensors = tensors[:1]
        places = {self.place(tensor) for tensor in tensors if tensor.dim()} or {self.place(x) for x in tensors[:1]}
        assert len(places) <= 1, f"{func} of tensors on {places}"
        here = places.pop() if places else CPU
        result = func(*args, **kwargs)
        there = here if wanted is None else torch.device(wanted)
        if tensors and there != here:
            result = result.clone()  # a tensor of its own
            self.moved.append((str(here), str(there), tuple(result.shape)))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and there != self.place(value):
                self._place[value] = there
        return result
