"""Heads that only training has: what a vision token shows, and where a thing named in a question is.

A vision token of the tiny vision-language models is one cell of two frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttopt.miniworld.tokenizer import CELL_NAMES, phrases
from ttopt.miniworld.world import CELLS, EMPTY, NONE, SPRITES, WALL, Reading, pad, pad_name, sprite, sprite_name
from ttopt.models.teacher import PackedOutput, Teacher


class Sight(nn.Module):
    """Each vision token says by the words' own embeddings what it is and shows.

    It should look like the sum of its name and of what is in it. To write down a cell is then to find its name and to
    copy; to say where something is, to find the thing and to copy; and to say whether a sprite has been on a pad, to
    find a token with both.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        width = teacher.model.config.text_config.hidden_size
        self.earlier, self.later, self.under, self.place = (nn.Linear(width, width) for _ in range(4))
        self.empty = nn.Parameter(torch.randn(1, width))
        self.scales = nn.Parameter(torch.full((4,), 8.0))
        self.sums = nn.ParameterList(torch.tensor([8.0, -3.0]) for _ in range(2))  # scale and bias: objects, cells
        ids = teacher.tokenizer.convert_tokens_to_ids
        sprites = [sprite_name(number) for number in range(1, SPRITES)]
        pads = [pad_name(ground) for ground in range(1, WALL)]
        self.objects, self.names = torch.tensor(ids([*sprites, *pads, "wall"])), torch.tensor(ids(CELL_NAMES))
        self.embedding = [teacher.model.model.language_model.embed_tokens]  # in a list: not a part of this module
        self.tokens = torch.empty(0)
        self.fresh = False  # the heads learn alone, so that untrained ones do not disturb a model that can see
        teacher.model.model.visual.merger.register_forward_hook(lambda _m, _i, out: setattr(self, "tokens", out))

    def forward(self, reading: Reading) -> Tensor:
        """Sum of the cross-entropies for the pictures of the last look: videos (B, T), or images as videos (B, 1)."""
        content, under = seen(reading)  # (B, T, 36), 0: empty
        (earlier, later), (under, _) = pairs(content).unbind(1), pairs(under).unbind(1)  # (N, 36), N = B * T/2
        tokens = (self.tokens.detach() if self.fresh else self.tokens).unflatten(0, earlier.shape)  # (N, 36, D)
        place = torch.arange(CELLS).expand_as(earlier)
        words = self.embedding[0].weight
        objects, names = words[self.objects], words[self.names]
        known = torch.cat([self.empty, objects])  # (26, D)
        weights = torch.ones(len(known))
        weights[0] = 0.1
        total = torch.zeros(())
        for head, scale, table, target, weight in (
            (self.earlier, self.scales[0], known, earlier, weights),
            (self.later, self.scales[1], known, later, weights),
            (self.under, self.scales[2], known, under, weights),
            (self.place, self.scales[3], names, place, None),
        ):
            logits = scale * cosines(head(tokens), table)  # (N, 36, K)
            total = total + F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight)
        there = torch.stack([F.one_hot(what.clamp_min(0), len(known)) for what in (earlier, later, under)]).amax(0)
        own = F.one_hot(place, CELLS)
        for (scale, bias), named, target in zip(self.sums, (objects, names), (there[..., 1:], own), strict=True):
            logits = scale * cosines(tokens, named) + bias
            total = total + 5 * F.binary_cross_entropy_with_logits(logits, target.float())
        return total


class Changes(nn.Module):
    """Half-way through the language model each vision token of the last frames knows whether its cell has changed."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        language = teacher.model.model.language_model
        self.changed = nn.Linear(language.config.hidden_size, 2)
        self.hidden = torch.empty(0)
        middle = language.layers[len(language.layers) // 2 - 1]
        middle.register_forward_hook(lambda _m, _i, out: setattr(self, "hidden", out))

    def forward(self, out: PackedOutput, reading: Reading) -> Tensor:
        """Cross-entropy for the videos (B, T) of one packed forward: what the last frame shows against the first."""
        content, _ = seen(reading)
        first, last = content[:, 0], content[:, -1]  # (B, 36)
        changed = (first != last).long().masked_fill(first < 0, -100)
        tokens = self.hidden[:, out.packed.video[-CELLS:]]  # (B, 36, D)
        return F.cross_entropy(self.changed(tokens).flatten(0, 1), changed.flatten(), torch.tensor([0.3, 1.0]))


class Places(nn.Module):
    """Each thing named in a question says where it is, in every other frame of the video."""

    def __init__(self, teacher: Teacher, frames: int) -> None:
        super().__init__()
        self.numbers = range(0, frames, 2)
        self.place = nn.Linear(teacher.model.config.text_config.hidden_size, len(self.numbers) * (CELLS + 1))
        self.names = {teacher.tokenizer.convert_tokens_to_ids(name): name for name in phrases()}

    def forward(self, out: PackedOutput, reading: Reading) -> Tensor:
        """Cross-entropy over the cells and "nowhere" for the questions of one packed forward about a reading (B, T)."""
        named = torch.isin(out.packed.ids, torch.tensor(list(self.names))).nonzero()  # (n, 2): row, token
        targets = torch.full((len(named), len(self.numbers)), CELLS)
        for k, (row, token) in enumerate(named.tolist()):
            colour, noun = self.names[int(out.packed.ids[row, token])].split()
            for j, frame in enumerate(self.numbers):
                if noun == "pad":
                    presence = reading.ground[row, frame, :, pad(colour)]
                else:
                    presence = reading.sprite[row, frame, :, sprite(colour, noun)]
                best = int(presence.argmax())
                if float(presence[best]) > 0.5:
                    targets[k, j] = best
        logits = self.place(out.hidden[named[:, 0], named[:, 1]]).unflatten(-1, (len(self.numbers), CELLS + 1))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def cosines(tokens: Tensor, words: Tensor) -> Tensor:
    """Cosines of tokens (..., D) and words (K, D): (..., K)."""
    return F.normalize(tokens, dim=-1) @ F.normalize(words, dim=-1).T


def seen(reading: Reading) -> tuple[Tensor, Tensor]:
    """What cells show, and what the ground is, also where something stands on it, each (N, T, 36).

    0 nothing, 1..18 a sprite, 19..24 a pad, 25 a wall, -100 a smear.
    """
    codes = reading.codes()
    what, ground = codes % SPRITES, codes // SPRITES
    under = torch.where(ground == EMPTY, 0, SPRITES - 1 + ground)
    smear = reading.sprite.amax(-1) <= 0.5
    return torch.where(what == NONE, under, what).masked_fill(smear, -100), under.masked_fill(smear, -100)


def pairs(values: Tensor) -> Tensor:
    """Values (B, T, 36) of frames, two and two, the last one again where T is odd: (B * ceil(T/2), 2, 36)."""
    even = torch.cat([values, values[:, -1:]], 1)[:, : 2 * ((values.shape[1] + 1) // 2)]
    return even.unflatten(1, (-1, 2)).flatten(0, 1)
