"""Heads that only training has: what each vision token shows, and where a thing named in a question is.

A vision token of the tiny vision-language models is one cell of one board, (B videos, T boards, 36 cells).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class Places(nn.Module):
    """Each thing or pad named in a question says where it is on every board."""

    def __init__(self, teacher: Teacher, boards: int) -> None:
        super().__init__()
        self.boards = boards
        self.place = nn.Linear(teacher.model.config.text_config.hidden_size, boards * (CELLS + 1))
        self.names: dict[int, tuple[bool, int]] = {}  # token -> whether it is a pad, and its ground or 1 + look
        for name in phrases():
            color, noun = name.split()
            found = (True, pad(color)) if noun == "pad" else (False, 1 + look(color, noun))
            self.names[teacher.tokenizer.convert_tokens_to_ids(name)] = found
        assert len(self.names) == LOOKS + len(COLOR_NAMES)

    def forward(self, out: PackedOutput, things: Tensor, grounds: Tensor) -> Tensor:
        """Cross-entropy over the cells and "nowhere" for the questions of one packed forward."""
        ids = out.packed.ids
        named = torch.isin(ids, torch.tensor(list(self.names), device=ids.device)).nonzero()  # (n, 2): row, token
        targets = torch.full((len(named), self.boards), CELLS, device=ids.device)
        for k, (row, token) in enumerate(named.tolist()):
            is_pad, number = self.names[int(ids[row, token])]
            there = (grounds if is_pad else things)[row] == number  # (T, 36)
            targets[k] = torch.where(there.any(1), there.long().argmax(1), CELLS)
        logits = self.place(out.hidden[named[:, 0], named[:, 1]]).unflatten(-1, (self.boards, CELLS + 1))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
