"""Heads that only training has: what each vision token shows, and where a thing named in a question is.

A vision token of the tiny vision-language models is one cell of one board, (B videos, T boards, 36 cells).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb

from ttopt.miniworld.look import CELLS, COLOR_NAMES, GROUNDS, LOOKS, adjacent, look, pad
from ttopt.miniworld.reader import UNKNOWN, Seen
from ttopt.miniworld.words import phrases
from ttopt.models.teacher import PackedOutput, Teacher
from ttopt.models.teacher.packing import at

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


class Attention:
    """The queries and keys (B, H, S, d) of one attention layer in the last forward, turned by the rotary positions."""

    def __init__(self, teacher: Teacher, layer: int) -> None:
        self.last: dict[str, Any] = {}
        attention: Any = teacher.model.model.language_model.layers[layer].self_attn
        attention.register_forward_pre_hook(
            lambda _m, _a, kwargs: self.last.update(rope=kwargs["position_embeddings"]), with_kwargs=True
        )
        attention.q_norm.register_forward_hook(lambda _m, _i, out: self.last.update(queries=out))
        attention.k_norm.register_forward_hook(lambda _m, _i, out: self.last.update(keys=out))

    def turned(self) -> tuple[Tensor, Tensor]:
        queries, keys = (x.transpose(1, 2) for x in (self.last["queries"], self.last["keys"]))
        both: tuple[Tensor, Tensor] = apply_rotary_pos_emb(queries, keys, *self.last["rope"])
        return both


class Gaze:
    """Where a name in a question looks: one head of the second layer wherever the thing is, one at the last board, one
    at the first. Without this start the attention of so small a model hardly ever begins to compare names with cells.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.attention = Attention(teacher, 1)

    def __call__(self, out: PackedOutput, named: Named) -> Tensor:
        """Cross-entropy of the three heads' attention among the vision tokens, for the last packed forward."""
        there = named.there
        queries, keys = self.attention.turned()
        asking = at_names(queries.transpose(1, 2), named)  # (n, H, d)
        seen = keys[:, :, out.packed.video][named.tokens[:, 0]]  # (n, H, T * 36, d)
        log = (torch.einsum("nhd,nhvd->nhv", asking, seen) / asking.shape[-1] ** 0.5).log_softmax(-1)
        ends = torch.zeros_like(there), torch.zeros_like(there)
        ends[0][:, -1], ends[1][:, 0] = there[:, -1], there[:, 0]
        targets = enumerate((there, *ends))
        return torch.stack([attention_loss(log[:, head], target.flatten(1)) for head, target in targets]).mean()


class Changes(nn.Module):
    """What vision tokens learn about time. In the first layer one head looks at a token's own cell on the board before,
    one at it on the first board; in the second layer one head looks where the same thing was on the board before. After
    two layers a token says what has changed in its cell, after three whether its thing came here in a legal way.
    """

    near: Tensor  # (36, 36) bool: cells that are one or next door

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        width, layers = teacher.model.config.text_config.hidden_size, teacher.model.model.language_model.layers
        self.flags = nn.ModuleList([nn.Linear(width, 5), nn.Linear(width, 1)])
        self.attentions = [Attention(teacher, 0), Attention(teacher, 1)]
        self.hidden: dict[int, Tensor] = {}
        for number, layer in enumerate((1, 2)):
            layers[layer].register_forward_hook(partial(self._keep, number))
        near = [[adjacent(a, b) or a == b for b in range(CELLS)] for a in range(CELLS)]
        self.register_buffer("near", torch.tensor(near), persistent=False)

    def _keep(self, number: int, _module: nn.Module, _inputs: object, out: Any) -> None:
        self.hidden[number] = out[0] if isinstance(out, tuple) else out

    def forward(self, out: PackedOutput, things: Tensor, grounds: Tensor) -> Tensor:
        """Sum of the cross-entropies, for the last packed forward about videos with these contents (B, T, 36)."""
        batch, boards, cells = things.shape
        if boards == 1:
            return torch.zeros((), device=things.device)
        video = out.packed.video
        own = torch.arange(boards * cells, device=things.device)
        later = own >= cells
        board, cell = own // cells, own % cells
        shown, before = things.flatten(1), things.roll(1, 1).flatten(1)
        same = (shown[:, :, None] == shown[:, None]) & (shown > 0)[:, :, None]  # (B, V, V)
        was = same & (board[:, None] == board + 1)
        at_before, at_first = own[:, None] == own + cells, later[:, None] & (cell[:, None] == own)
        losses = []
        for attention, heads in zip(self.attentions, ({0: at_before, 1: at_first}, {3: was}), strict=True):
            queries, keys = attention.turned()
            for head, target in heads.items():
                asking, seen = queries[:, head, video], keys[:, head, video]
                log = asking @ seen.transpose(1, 2) / asking.shape[-1] ** 0.5
                log = log.masked_fill(own > own[:, None], -1e4).log_softmax(-1)
                losses.append(attention_loss(log, target.expand(batch, -1, -1)))
        first = things[:, :1].expand_as(things).flatten(1), grounds[:, :1].expand_as(grounds).flatten(1)
        ground, ground_before = grounds.flatten(1), grounds.roll(1, 1).flatten(1)
        twin = (same & (board[:, None] == board) & (own[:, None] > own)).any(2)
        pairs = ((shown, before), (ground, ground_before), (shown, first[0]), (ground, first[1]))
        wanted = torch.stack([*(a != b for a, b in pairs), twin], 2).float()
        known = torch.stack([*((a >= 0) & (b >= 0) for a, b in pairs), shown >= 0], 2) & later[:, None]
        legal = (was & self.near.repeat(boards, boards)).any(2)
        for number, (target, mask) in enumerate(
            ((wanted, known), (~legal[..., None], ((shown > 0) & later)[..., None]))
        ):
            hidden = self.hidden[number][:, video]
            logits = self.flags[number](F.layer_norm(hidden, hidden.shape[-1:]))
            rare = torch.full((logits.shape[-1],), 8.0, device=logits.device)
            each = F.binary_cross_entropy_with_logits(logits, target.float(), pos_weight=rare, reduction="none")
            losses.append((each * mask).sum() / mask.sum().clamp_min(1))
        return torch.stack(losses).sum()


class Faults(nn.Module):
    """The answer's token says of each board whether the question's rule holds there: seven answers in place of one."""

    def __init__(self, teacher: Teacher, boards: int) -> None:
        super().__init__()
        self.holds = nn.Linear(teacher.model.config.text_config.hidden_size, boards)

    def forward(self, out: PackedOutput, holds: Tensor) -> Tensor:
        """Cross-entropy for one packed forward; ``holds`` (B, Q, T) about the last T boards."""
        at_answers = at(out.hidden, out.packed.answers[..., 0])
        logits = self.holds(at_answers)[..., -holds.shape[2] :]
        return F.binary_cross_entropy_with_logits(logits, holds)


def attention_loss(log: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of log attention (n, ..., V) with an even spread over what is wanted, bool of the same shape, over
    the rows that want anything."""
    share = wanted / wanted.sum(-1, keepdim=True).clamp_min(1)
    return -(share * log).sum() / wanted.any(-1).sum().clamp_min(1)


def at_names(values: Tensor, named: Named) -> Tensor:
    """(B, S, ...) at the naming tokens, (n, ...)."""
    return values[named.tokens[:, 0], named.tokens[:, 1]]
