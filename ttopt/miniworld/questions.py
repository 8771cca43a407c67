"""Yes/no questions about a video of the sprite world, their wording and their truth by the rules.

Every question is phrased so that "Yes" means satisfied (VLM-as-Teacher, section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ttopt.miniworld.world import Reading, pad_name, sprite_colour, sprite_name


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


Question = At | Both | Turned | Visits | One | Keeps | OffWalls
