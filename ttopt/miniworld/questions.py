"""Yes/no questions about a video of the sprite world, their wording and their truth by the rules.

Every question is phrased so that "Yes" means satisfied (VLM-as-Teacher, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ttopt.miniworld.world import EMPTY, NONE, SPRITES, WALL, Reading, pad_name, sprite_colour, sprite_name


@dataclass(frozen=True)
class At:
    """The sprite stands on the pad at the end."""

    sprite: int
    pad: int
    cell: int

    def text(self) -> str:
        return f"Is the {sprite_name(self.sprite)} on the {pad_name(self.pad)} at the end?"

    def truth(self, reading: Reading) -> Tensor:
        return reading.sprite[:, -1, self.cell, self.sprite]


@dataclass(frozen=True)
class Both:
    """Two sprites stand on their pads at the end."""

    first: At
    second: At

    def text(self) -> str:
        a, b = self.first, self.second
        return (
            f"Is the {sprite_name(a.sprite)} on the {pad_name(a.pad)} "
            f"and the {sprite_name(b.sprite)} on the {pad_name(b.pad)} at the end?"
        )

    def truth(self, reading: Reading) -> Tensor:
        return torch.minimum(self.first.truth(reading), self.second.truth(reading))


@dataclass(frozen=True)
class Turned:
    """The sprite in this cell has another colour at the end."""

    sprite: int
    new: int
    cell: int

    def text(self) -> str:
        return f"Has the {sprite_name(self.sprite)} turned {sprite_colour(self.new)} at the end?"

    def truth(self, reading: Reading) -> Tensor:
        return reading.sprite[:, -1, self.cell, self.new]


@dataclass(frozen=True)
class Visits:
    """The sprite stands on the first pad at some time and on the second at the end."""

    sprite: int
    first: tuple[int, int]  # pad, cell
    second: tuple[int, int]

    def text(self) -> str:
        return (
            f"Does the {sprite_name(self.sprite)} visit the {pad_name(self.first[0])} "
            f"and end on the {pad_name(self.second[0])}?"
        )

    def truth(self, reading: Reading) -> Tensor:
        visited = reading.trace[:, :-1, self.first[1], self.sprite].amax(1)
        return torch.minimum(visited, reading.sprite[:, -1, self.second[1], self.sprite])


@dataclass(frozen=True)
class AllAt:
    """Several sprites stand on their pads at the end."""

    ends: tuple[At, ...]

    def text(self) -> str:
        *most, last = (f"the {sprite_name(e.sprite)} on the {pad_name(e.pad)}" for e in self.ends)
        return f"Is {', '.join(most)} and {last} at the end?"

    def truth(self, reading: Reading) -> Tensor:
        return torch.stack([end.truth(reading) for end in self.ends]).amin(0)


@dataclass(frozen=True)
class Passes:
    """The sprite stands on the pads in this order, at some time before the end."""

    sprite: int
    stops: tuple[tuple[int, int], ...]  # pad, cell

    def text(self) -> str:
        places = " and then ".join(f"the {pad_name(ground)}" for ground, _ in self.stops)
        return f"Does the {sprite_name(self.sprite)} visit {places}?"

    def truth(self, reading: Reading) -> Tensor:
        reached = torch.ones_like(reading.trace[:, :-1, 0, 0])  # (N, T-1): passed the stops so far by this frame
        for _, cell in self.stops:
            reached = torch.minimum(reached, reading.trace[:, :-1, cell, self.sprite]).cummax(1).values
        return reached[:, -1]


@dataclass(frozen=True)
class Tours:
    """The sprite stands on the pads in this order, on the last one at the end."""

    sprite: int
    stops: tuple[tuple[int, int], ...]  # pad, cell

    def text(self) -> str:
        *most, last = (f"the {pad_name(ground)}" for ground, _ in self.stops)
        return f"Does the {sprite_name(self.sprite)} visit {' and then '.join(most)} and end on {last}?"

    def truth(self, reading: Reading) -> Tensor:
        passed = Passes(self.sprite, self.stops[:-1]).truth(reading)
        return torch.minimum(passed, reading.sprite[:, -1, self.stops[-1][1], self.sprite])


@dataclass(frozen=True)
class InOrder:
    """Each sprite stays at its start until the one before it has reached its pad."""

    ends: tuple[At, ...]
    starts: tuple[int, ...]

    def text(self) -> str:
        *most, last = (f"the {sprite_name(e.sprite)}" for e in self.ends)
        return f"Do {', '.join(most)} and {last} move one after the other?"

    def truth(self, reading: Reading) -> Tensor:
        worst = torch.ones_like(reading.trace[:, 0, 0, 0])
        for before, after, start in zip(self.ends, self.ends[1:], self.starts[1:], strict=False):
            arrived = reading.sprite[:, :, before.cell, before.sprite].cummax(1).values
            waiting = reading.sprite[:, :, start, after.sprite]
            worst = torch.minimum(worst, torch.maximum(arrived, waiting).amin(1))
        return worst


@dataclass(frozen=True)
class One:
    """Exactly one such sprite is left at the end: it neither vanished nor was copied."""

    sprite: int

    def text(self) -> str:
        return f"Is there exactly one {sprite_name(self.sprite)} at the end?"

    def truth(self, reading: Reading) -> Tensor:
        first, second = reading.sprite[:, -1, :, self.sprite].topk(2, dim=-1).values.unbind(-1)
        return torch.minimum(first, 1 - second)


@dataclass(frozen=True)
class Keeps:
    """A sprite that nobody asked to change is whole and in its place at the end."""

    sprite: int
    cell: int

    def text(self) -> str:
        return f"Is the {sprite_name(self.sprite)} still in its place at the end?"

    def truth(self, reading: Reading) -> Tensor:
        return reading.sprite[:, -1, self.cell, self.sprite]


@dataclass(frozen=True)
class OffWalls:
    """The sprite is never drawn in a wall cell."""

    sprite: int
    walls: tuple[int, ...]

    def text(self) -> str:
        return f"Does the {sprite_name(self.sprite)} stay off the walls?"

    def truth(self, reading: Reading) -> Tensor:
        return 1 - reading.sprite[:, :, list(self.walls), self.sprite].flatten(1).amax(1)


@dataclass(frozen=True)
class NothingNew:
    """At the end there is no sprite but those that the task ends with, and none of them twice."""

    looks: frozenset[int]

    def text(self) -> str:
        return "Is there no other square, triangle or cross at the end?"

    def truth(self, reading: Reading) -> Tensor:
        last = reading.sprite[:, -1]  # (N, 36, 19)
        strange = [number for number in range(NONE + 1, SPRITES) if number not in self.looks]
        twice = last[..., sorted(self.looks)].topk(2, dim=1).values[:, 1].amax(1)
        return 1 - torch.maximum(last[..., strange].flatten(1).amax(1), twice)


@dataclass(frozen=True)
class PadsStay:
    """At the end every pad is there or something stands on it, and there are no others.

    What a mover leaves in the cells that it has to cross does not count: few-step models smear it.
    """

    pads: tuple[tuple[int, int], ...]  # cell, ground
    crossed: frozenset[int] = frozenset()

    def text(self) -> str:
        return "Do all pads stay as they are?"

    def truth(self, reading: Reading) -> Tensor:
        bare = reading.sprite[:, -1, :, NONE]  # (N, 36)
        seen = reading.ground[:, -1, :, EMPTY + 1 : WALL]  # (N, 36, 6)
        new = torch.minimum(seen, bare[..., None])
        kept = torch.ones_like(bare)
        new[:, sorted(self.crossed)] = 0
        for cell, ground in self.pads:
            kept[:, cell] = torch.maximum(seen[:, cell, ground - 1], 1 - bare[:, cell])
            new[:, cell, ground - 1] = 0
        return torch.minimum(kept.amin(1), 1 - new.flatten(1).amax(1))


@dataclass(frozen=True)
class Rest:
    """At the end everything but the movers is where it was: other sprites whole and in place, pads too, none added."""

    movers: tuple[int, ...]
    others: tuple[Keeps, ...]
    pads: PadsStay

    def text(self) -> str:
        names = " and ".join(f"the {sprite_name(number)}" for number in self.movers)
        return f"Does everything but {names} stay as it is?"

    def truth(self, reading: Reading) -> Tensor:
        there = 1 - reading.sprite[..., NONE]  # (N, T, 36)
        more = (there[:, -1].sum(1) - (there[:, 0] > 0.5).sum(1)).clamp(0, 1)
        return torch.stack([1 - more, self.pads.truth(reading), *(q.truth(reading) for q in self.others)]).amin(0)


Goal = At | Both | Turned | Visits | AllAt | Passes | Tours
Question = Goal | InOrder | One | Keeps | OffWalls | NothingNew | PadsStay | Rest
