"""Heads that only training has: what each vision token shows, and where a thing named in a question is.

A vision token of the tiny vision-language models is one cell of one board, (B videos, T boards, 36 cells).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

from training.world.look import CELLS, COLOR_NAMES, GROUNDS, LOOKS, look, pad
from training.world.reader import UNKNOWN, Seen
from training.world.tokenizer import phrases
from ttopt.models.teacher import PackedOutput, Teacher

IGNORED = -100


def contents(seen: Sequence[Seen]) -> tuple[Tensor, Tensor]:
    """Things (B, T, 36), 0 none or 1 + look, and grounds (B, T, 36); IGNORED where it cannot be told."""
    things = torch.zeros(len(seen), len(seen[0]), CELLS, dtype=torch.long)
    for row, video in zip(things, seen, strict=True):
        for board, blobs in zip(row, video.things, strict=True):
            for blob in blobs:
                board[blob.cell] = 1 + blob.look if blob.look != UNKNOWN and blob.rests else IGNORED
    grounds = torch.stack([torch.from_numpy(video.grounds) for video in seen])
    return things, grounds.masked_fill(grounds == UNKNOWN, IGNORED)


class Sight(nn.Module):
    """Each vision token names the thing and the ground in it, as it leaves the vision tower."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        width = teacher.model.config.text_config.hidden_size
        self.thing, self.ground = nn.Linear(width, 1 + LOOKS), nn.Linear(width, GROUNDS)
        self.tokens = torch.empty(0)
        teacher.model.model.visual.merger.register_forward_hook(lambda _m, _i, out: setattr(self, "tokens", out))

    def forward(self, things: Tensor, grounds: Tensor) -> Tensor:
        """Sum of the cross-entropies for the last look at videos with these contents."""
        tokens = self.tokens.unflatten(0, things.shape)
        rare = torch.ones(1 + LOOKS, device=tokens.device)
        rare[0] = 0.1
        thing = F.cross_entropy(self.thing(tokens).flatten(0, 2), things.flatten(), rare, ignore_index=IGNORED)
        ground = F.cross_entropy(self.ground(tokens).flatten(0, 2), grounds.flatten(), ignore_index=IGNORED)
        return thing + ground


@dataclass(frozen=True)
class Named:
    """The n tokens of one packed forward that name a thing or a pad: row and place (n, 2); and where what they name is,
    (n, T, 36) bool."""

    tokens: Tensor
    there: Tensor


class Names:
    """Finds the tokens that name something."""

    def __init__(self, teacher: Teacher) -> None:
        self.known: dict[int, tuple[bool, int]] = {}  # token: whether it is a pad, and its ground or 1 + look
        for name in phrases():
            color, noun = name.split()
            found = (True, pad(color)) if noun == "pad" else (False, 1 + look(color, noun))
            self.known[teacher.tokenizer.convert_tokens_to_ids(name)] = found
        assert len(self.known) == LOOKS + len(COLOR_NAMES)

    def __call__(self, out: PackedOutput, things: Tensor, grounds: Tensor) -> Named:
        ids = out.packed.ids
        tokens = torch.isin(ids, torch.tensor(list(self.known), device=ids.device)).nonzero()
        there = torch.zeros(len(tokens), *things.shape[1:], dtype=torch.bool, device=ids.device)
        for k, (row, token) in enumerate(tokens.tolist()):
            is_pad, number = self.known[int(ids[row, token])]
            there[k] = (grounds if is_pad else things)[row] == number
        return Named(tokens, there)


class Places(nn.Module):
    """Each thing or pad named in a question says where it is on every board."""

    def __init__(self, teacher: Teacher, boards: int) -> None:
        super().__init__()
        self.boards = boards
        self.place = nn.Linear(teacher.model.config.text_config.hidden_size, boards * (CELLS + 1))

    def forward(self, out: PackedOutput, named: Named) -> Tensor:
        """Cross-entropy over the cells and "nowhere" for one packed forward about the last T boards."""
        there = named.there
        targets = torch.where(there.any(2), there.long().argmax(2), CELLS)  # (n, T)
        logits = self.place(at_names(out.hidden, named)).unflatten(-1, (self.boards, CELLS + 1))
        return F.cross_entropy(logits[:, -there.shape[1] :].flatten(0, 1), targets.flatten())


class Gaze:
    """Where a name in a question looks: one head of the second layer wherever the thing is, one at the last board, one
    at the first. Without this start the attention of so small a model hardly ever begins to compare names with cells.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.last: dict[str, Any] = {}  # what went through the layer in the last forward
        attention: Any = teacher.model.model.language_model.layers[1].self_attn
        attention.register_forward_pre_hook(
            lambda _m, _a, kwargs: self.last.update(rope=kwargs["position_embeddings"]), with_kwargs=True
        )
        attention.q_norm.register_forward_hook(lambda _m, _i, out: self.last.update(queries=out))
        attention.k_norm.register_forward_hook(lambda _m, _i, out: self.last.update(keys=out))

    def __call__(self, out: PackedOutput, named: Named) -> Tensor:
        """Cross-entropy of the three heads' attention among the vision tokens, for the last packed forward."""
        there = named.there
        turned = (x.transpose(1, 2) for x in (self.last["queries"], self.last["keys"]))
        queries, keys = apply_rotary_pos_emb(*turned, *self.last["rope"])  # (B, H, S, d)
        asking = at_names(queries.transpose(1, 2), named)  # (n, H, d)
        seen = keys[:, :, out.packed.video][named.tokens[:, 0]]  # (n, H, T * 36, d)
        log = (torch.einsum("nhd,nhvd->nhv", asking, seen) / asking.shape[-1] ** 0.5).log_softmax(-1)
        ends = torch.zeros_like(there), torch.zeros_like(there)
        ends[0][:, -1], ends[1][:, 0] = there[:, -1], there[:, 0]
        losses = []
        for head, target in enumerate((there, *ends)):
            wanted = target.flatten(1).float()
            share = wanted / wanted.sum(1, keepdim=True).clamp_min(1)
            losses.append(-(share * log[:, head]).sum() / wanted.any(1).sum().clamp_min(1))
        return torch.stack(losses).mean()


def at_names(values: Tensor, named: Named) -> Tensor:
    """(B, S, ...) at the naming tokens, (n, ...)."""
    return values[named.tokens[:, 0], named.tokens[:, 1]]
