"""Many adapters in one forward: B instances optimized side by side as one batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ttopt.errors import UserError
from ttopt.models.reasoner.adapter import check_state, initial_down, target_names, update_norm
from ttopt.models.reasoner.float8 import Float8Linear


class BatchedAdapter:
    """B independent LoRAs on one frozen transformer; item b of a batch is adapted by LoRA b.

    Equal to running ``Adapter`` on one item at a time with the same rank, alpha, targets and blocks.
    Optimizers that act element by element (AdamW) keep the instances independent; clip with
    ``clip_gradients``. The updates are added by forward hooks, so the transformer's own modules stay as they
    are. While the adapter is enabled, every forward must have batch size B; or as many as ``active`` names, the
    instances that a forward is for. The matrices lie on ``device`` (None: beside their layers), where the work is done:
    unlike ``Adapter``'s they do not come and go with an offloaded transformer.
    """

    def __init__(
        self,
        transformer: nn.Module,
        size: int,
        rank: int = 16,
        alpha: float | None = None,
        targets: str = "attention",
        blocks: str = "all",
        device: torch.device | str | None = None,
    ) -> None:
        if rank < 1:
            raise UserError(f"adapter rank {rank} must be at least 1")
        self.size = size
        self.rank = rank
        self.alpha = float(rank if alpha is None else alpha)
        self.targets = targets
        self.blocks = blocks
        self.names = target_names(transformer, targets, blocks)
        self._enabled = True
        self.active: list[int] | None = None
        self._downs: list[nn.Parameter] = []
        self._ups: list[nn.Parameter] = []
        layers = []
        for name in self.names:
            layer = transformer.get_submodule(name)
            layer = getattr(layer, "base_layer", layer)  # under a peft layer, if there is one
            assert isinstance(layer, (nn.Linear, Float8Linear))
            layers.append(layer)
            place = layer.weight.device if device is None else device
            self._downs.append(nn.Parameter(torch.zeros(size, rank, layer.in_features, device=place)))
            self._ups.append(nn.Parameter(torch.zeros(size, layer.out_features, rank, device=place)))
        self.reset(range(size))
        # Last: if memory runs out above, nothing is left behind.
        self._hooks = [layer.register_forward_hook(self._hook(index)) for index, layer in enumerate(layers)]

    def _hook(self, index: int) -> Any:
        def add_update(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not self._enabled:
                return output
            down: Tensor = self._downs[index]
            up: Tensor = self._ups[index]
            if self.active is not None:
                down, up = down[self.active], up[self.active]
            if inputs[0].shape[0] != len(down):
                raise ValueError(f"a batch of {inputs[0].shape[0]} for {len(down)} adapters; disable them first")
            x = inputs[0]
            inner = torch.bmm(x, down.to(x.dtype).mT)  # (B, N, r)
            return torch.baddbmm(output, inner, up.to(x.dtype).mT, alpha=self.alpha / self.rank)  # (B, N, out)

        return add_update

    @property
    def first_block(self) -> int:
        """Number of the first adapted block."""
        return int(self.names[0].split(".")[1])

    def parameters(self) -> list[nn.Parameter]:
        """The float32 matrices, (B, r, in) and (B, out, r) alternately."""
        return [parameter for pair in zip(self._downs, self._ups, strict=True) for parameter in pair]

    @torch.no_grad()
    def reset(self, seeds: Sequence[int]) -> None:
        """Start new instances: instance b gets exactly the weights that ``Adapter.reset(seeds[b])`` gives."""
        if len(seeds) != self.size:
            raise ValueError(f"{len(seeds)} seeds for {self.size} instances")
        shapes = [tuple(down.shape[1:]) for down in self._downs]
        for index, seed in enumerate(seeds):
            for down, value in zip(self._downs, initial_down(seed, shapes), strict=True):
                down[index].copy_(value)
        for up in self._ups:
            up.zero_()
        for parameter in self.parameters():
            parameter.grad = None

    def enable(self) -> None:
        """Let the adapters act (the state after construction)."""
        self._enabled = True

    def disable(self) -> None:
        """Make the transformer behave exactly as without the adapters, for any batch size."""
        self._enabled = False

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Context in which the transformer behaves as without the adapters."""
        was_enabled, self._enabled = self._enabled, False
        try:
            yield
        finally:
            self._enabled = was_enabled

    def remove(self) -> None:
        """Take the hooks off the transformer; the adapter is of no use afterwards."""
        for hook in self._hooks:
            hook.remove()

    def state_dict(self, index: int) -> dict[str, Tensor]:
        """Instance ``index`` as an ``Adapter.state_dict``: copies on the CPU."""
        state: dict[str, Tensor] = {}
        for name, down, up in zip(self.names, self._downs, self._ups, strict=True):
            state[f"{name}.lora_A.weight"] = down[index].detach().cpu().clone()
            state[f"{name}.lora_B.weight"] = up[index].detach().cpu().clone()
        return state

    @torch.no_grad()
    def load_state_dict(self, index: int, state: Mapping[str, Tensor]) -> None:
        """Give instance ``index`` the weights of an ``Adapter.state_dict``; UserError if they do not fit."""
        check_state(state, self.state_dict(index))
        for name, down, up in zip(self.names, self._downs, self._ups, strict=True):
            down[index].copy_(state[f"{name}.lora_A.weight"])
            up[index].copy_(state[f"{name}.lora_B.weight"])

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Per instance, the Frobenius norm of all its weight updates together; (B,) float32."""
        downs, ups = [down.detach() for down in self._downs], [up.detach() for up in self._ups]
        return update_norm(downs, ups, self.alpha / self.rank)

    @torch.no_grad()
    def clip_gradients(self, max_norm: float) -> Tensor:
        """Clip each instance's gradient by itself, as clip_grad_norm_ would; returns the norms (B,)."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        norms: Tensor = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)  # (B,)
        factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, 1, 1))
        return norms
