"""The Wan transformer's forward, cut where the optimization loop profits: embed, blocks i..j, head.

Equal to ``WanTransformer3DModel.forward`` of diffusers, with two differences in the work done:

* With a first frame every token has its own timestep, but only two values occur, 0 for the first frame's tokens and t
  for the rest. The stock forward projects and keeps a modulation for every token (at 121x704x1280 about 2 GB a block);
  here there are two, and the tokens are scaled in two pieces.
* The blocks before the first adapted one give the same output at every step of a sample: it can be kept and the
  forward begun there.

Shapes: B videos, N tokens in frame order, D width, L text tokens, S different timesteps (1 or 2).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class Activation:
    """A forward on its way: what enters block number ``block``, and what all blocks share."""

    block: int
    hidden: Tensor  # (B, N, D)
    text: Tensor  # (B, L, D)
    time: Tensor  # (S, D): timestep 0 first, if there are two
    modulation: Tensor  # (S, 6, D)
    first: int  # tokens with timestep 0; 0 where S is 1
    rope: tuple[Tensor, Tensor]
    grid: tuple[int, int, int]  # tokens along time, height and width

    def select(self, rows: list[int]) -> Activation:
        """Some of the videos."""
        return replace(self, hidden=self.hidden[rows], text=self.text[rows])


def embed(transformer: Any, latents: Tensor, timestep: float, text: Tensor, first_frame: bool) -> Activation:
    """What enters block 0. ``latents`` (B, C, T, h, w) and ``text`` (B, L, D) in the transformer's dtype.

    ``first_frame``: the first latent frame is a clean condition, so its tokens carry timestep 0.
    """
    hidden = transformer.patch_embedding(latents)  # (B, D, T', h', w')
    times, height, width = hidden.shape[2:]
    # fp32: bf16 would turn timestep 757 into 756.
    values = torch.tensor([0.0, timestep] if first_frame else [timestep], device=latents.device, dtype=torch.float32)
    time, modulation, text, _ = transformer.condition_embedder(values, text)
    return Activation(
        block=0,
        hidden=hidden.flatten(2).transpose(1, 2).contiguous(),
        text=text,
        time=time,
        modulation=modulation.unflatten(1, (6, -1)),
        first=height * width if first_frame else 0,
        rope=transformer.rope(latents),
        grid=(times, height, width),
    )


def advance(
    transformer: Any,
    x: Activation,
    stop: int,
    activation_checkpointing: Collection[int] = (),
    run: Callable[..., Tensor] | None = None,
) -> Activation:
    """Runs the blocks from ``x.block`` up to, not including, ``stop``.

    The activations inside the blocks whose numbers are in ``activation_checkpointing`` are not kept for the backward
    pass but computed again there: the same gradient in less memory, for one more forward of these blocks.
    ``run`` is ``run_block`` or its compiled form.
    """
    run = run or run_block
    hidden = x.hidden
    for number in range(x.block, stop):
        arguments = (transformer.blocks[number], hidden, x.text, x.modulation, x.rope, x.first)
        if number in activation_checkpointing and torch.is_grad_enabled():
            hidden = checkpoint(run, *arguments, use_reentrant=False)
        else:
            hidden = run(*arguments)
    return replace(x, block=stop, hidden=hidden)


def head(transformer: Any, x: Activation) -> Tensor:
    """The velocity (B, C, T, h, w) from what left the last block."""
    shift, scale = (transformer.scale_shift_table + x.time.unsqueeze(1)).unbind(1)  # (S, D) each
    normed = _modulate(transformer.norm_out(x.hidden.float()), scale, shift, x.first)
    frames, height, width = transformer.config["patch_size"]
    return rearrange(
        transformer.proj_out(normed.type_as(x.hidden)),
        "b (t h w) (pt ph pw c) -> b c (t pt) (h ph) (w pw)",
        t=x.grid[0], h=x.grid[1], w=x.grid[2], pt=frames, ph=height, pw=width,
    )  # fmt: skip


def run_block(
    block: nn.Module, hidden: Tensor, text: Tensor, modulation: Tensor, rope: tuple[Tensor, Tensor], first: int
) -> Tensor:
    """``WanTransformerBlock.forward`` with S modulations instead of one a token; (B, N, D) -> (B, N, D)."""
    parts: Any = block
    table = parts.scale_shift_table + modulation.float()  # (S, 6, D)
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = table.unbind(1)

    normed = _modulate(parts.norm1(hidden.float()), scale, shift, first).type_as(hidden)
    update = _times(parts.attn1(normed, None, None, rope), gate, first)
    hidden = (hidden.float() + update).type_as(hidden)

    normed = parts.norm2(hidden.float()).type_as(hidden)
    hidden = hidden + parts.attn2(normed, text, None, None)

    normed = _modulate(parts.norm3(hidden.float()), ffn_scale, ffn_shift, first).type_as(hidden)
    update = _times(parts.ffn(normed).float(), ffn_gate, first)
    return (hidden.float() + update).type_as(hidden)


def _modulate(x: Tensor, scale: Tensor, shift: Tensor, first: int) -> Tensor:
    """x (B, N, D) * (1 + scale) + shift, with row 0 of the (S, D) scales and shifts for the ``first`` tokens."""
    return _by_time(lambda piece, row: piece * (1 + scale[row]) + shift[row], x, first)


def _times(x: Tensor, gate: Tensor, first: int) -> Tensor:
    """x (B, N, D) * gate, with row 0 of the (S, D) gates for the ``first`` tokens."""
    return _by_time(lambda piece, row: piece * gate[row], x, first)


def _by_time(function: Callable[[Tensor, int], Tensor], x: Tensor, first: int) -> Tensor:
    # Two pieces instead of values gathered for every token, which the backward pass would have to keep.
    if not first:
        return function(x, 0)
    return torch.cat([function(x[:, :first], 0), function(x[:, first:], 1)], dim=1)
