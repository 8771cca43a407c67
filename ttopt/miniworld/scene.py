"""What every task of the world is made of: things on a board, right ways for them, and the random draw of a scene.

Things move to a cell next door (no diagonals), one cell a move, and stand still when they have arrived. Where several
ways are right, a task knows them all: ``choices``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ttopt.miniworld.look import (
    BOARDS,
    CELLS,
    COLOR_NAMES,
    GRID,
    LOOKS,
    WALL,
    Actor,
    Film,
    adjacent,
    color_of,
    look,
    pad,
    shape_of,
)
from ttopt.miniworld.novelty import held_out_color

T = TypeVar("T")
MOVES = BOARDS - 1  # in one clip


class RetryError(Exception):
    """The draw ran into a dead end."""


@dataclass(frozen=True)
class Stop:
    """A sub-goal: actor number ``actor`` stands on ``cell``, whose pad is ``ground``."""

    actor: int
    cell: int
    ground: int


@dataclass
class Task:
    """One instance. ``stops`` and ``turns`` are the goal: where movers must stand, in order, and what must turn.

    ``actors`` hold one right answer, the movers first; ``choices`` all right answers that a film may show, that one
    among them. Things without stops stay in their cells, things without turns keep their looks. ``keep`` is the part of
    the prompt that says so. A single step of a longer task knows its ``parent`` and its ``number`` there.
    """

    family: str
    prompt: str
    keep: str
    actors: list[Actor]
    grounds: NDArray[np.int64]  # (36,)
    movers: int
    stops: tuple[Stop, ...] = ()
    turns: tuple[tuple[int, int], ...] = ()  # actor, new look
    choices: list[list[Actor]] = field(default_factory=list, repr=False)
    in_turn: bool = False  # one mover goes after the other
    split: str = ""
    name: str = ""
    parent: Task | None = field(default=None, repr=False)
    number: int = 0

    @property
    def boards(self) -> int:
        return len(self.actors[0].track)

    @property
    def walls(self) -> tuple[int, ...]:
        return tuple(int(c) for c in np.flatnonzero(self.grounds == WALL))

    def film(self, actors: list[Actor] | None = None) -> Film:
        """The right answer, or what these actors do in its place."""
        chosen = self.actors if actors is None else actors
        return Film(chosen, np.repeat(self.grounds[None], len(chosen[0].track), 0))


def distance(a: int, b: int) -> int:
    """Moves between two cells of a board without obstacles."""
    return abs(a // GRID - b // GRID) + abs(a % GRID - b % GRID)


def neighbors(cell: int) -> list[int]:
    return [c for c in (cell + 1, cell - 1, cell + GRID, cell - GRID) if 0 <= c < CELLS and adjacent(cell, c)]


def ways(start: int, end: int, blocked: Collection[int], most: int = 2) -> list[list[int]]:
    """Up to ``most`` shortest ways (both ends included), those with the fewest turns; none if the end is cut off."""
    left = {end: 0}
    ring = [end]
    while ring and start not in left:
        ring = [c for cell in ring for c in neighbors(cell) if c not in left and c not in blocked]
        for cell in ring:
            left[cell] = min(left[c] for c in neighbors(cell) if c in left) + 1
    if start not in left:
        return []
    found = [[start]]
    for _ in range(left[start]):
        found = [
            [*way, c] for way in found for c in neighbors(way[-1]) if left.get(c, CELLS) == left[way[-1]] - 1
        ]  # fmt: skip
    turns = [sum(b - a != c - b for a, b, c in zip(way, way[1:], way[2:])) for way in found]
    return [way for way, count in zip(found, turns, strict=True) if count == min(turns)][:most]


def walk(way: Sequence[int], boards: int = BOARDS) -> list[int]:
    """The cells of a way, board by board, then its end; RetryError if a clip is too short for it."""
    if len(way) > boards:
        raise RetryError
    return [*way, *[way[-1]] * (boards - len(way))]


def standing(number: int, cell: int, boards: int = BOARDS) -> Actor:
    """A thing that stays in its cell."""
    return Actor([cell] * boards, [number] * boards)


def walking(number: int, way: Sequence[int]) -> Actor:
    """A thing that goes a way and then stands still; RetryError if a clip is too short for it."""
    return Actor(walk(way), [number] * BOARDS)


class Draw:
    """Random choices of one task, from one seeded generator.

    ``novel``: every command pairs a thing with the color that training keeps from it, and the board is fuller.
    """

    def __init__(self, rng: np.random.Generator, novel: bool) -> None:
        self.rng, self.novel = rng, novel
        self.used: set[int] = set()  # cells
        self.looks: set[int] = set()

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def thing(self) -> int:
        """A look that is not on the board yet."""
        number = self.pick([n for n in range(LOOKS) if n not in self.looks])
        self.looks.add(number)
        return number

    def color_for(self, number: int, taken: Collection[str] = (), novel: bool | None = None) -> str:
        """A color that thing ``number`` may be sent to or painted in this split; RetryError if it is taken."""
        kept = held_out_color(number)
        novel = self.novel if novel is None else novel
        options = [kept] if novel else [c for c in COLOR_NAMES if c not in (kept, color_of(number))]
        options = [c for c in options if c not in taken]
        if not options:
            raise RetryError
        return self.pick(options)

    def cell(self, blocked: Collection[int] = ()) -> int:
        free = [c for c in range(CELLS) if c not in self.used and c not in blocked]
        if not free:
            raise RetryError
        cell = self.pick(free)
        self.used.add(cell)
        return cell

    def others(self, like: Sequence[int], least: int, most: int, blocked: Collection[int]) -> list[Actor]:
        """Things that share color or shape with one of ``like``, off the ways; novel boards hold more than others."""
        out = []
        for _ in range(most + 1 if self.novel else self.pick(range(least, most + 1))):
            twin = self.pick(like)
            alike = [
                n for n in range(LOOKS)
                if n not in self.looks and (color_of(n) == color_of(twin) or shape_of(n) == shape_of(twin))
            ]  # fmt: skip
            number = self.pick(alike)
            self.looks.add(number)
            out.append(standing(number, self.cell(blocked)))
        return out

    def board(
        self, pads: dict[int, str], movers: Sequence[int], walls: Collection[int] = (), more: int = 0
    ) -> NDArray[np.int64]:
        """Ground numbers (36,) with these pads, ``more`` of other colors, and walls.

        No mover meets a further pad of its own color: the two could not be told apart.
        """
        grounds = np.zeros(CELLS, np.int64)
        for cell, color in pads.items():
            grounds[cell] = pad(color)
        free = [c for c in COLOR_NAMES if c not in pads.values() and c not in map(color_of, movers)]
        for _ in range(more):
            color = self.pick(free)
            free.remove(color)
            grounds[self.cell()] = pad(color)
        grounds[list(walls)] = WALL
        return grounds

    def keep(self) -> str:
        """The end of a prompt: that nothing else may change, or nothing, which means the same."""
        return self.pick(("", " Nothing else changes.", " Everything else stays."))


def painted(number: int, color: str) -> int:
    """The look of a thing painted in another color."""
    return look(color, shape_of(number))
