"""What every task of the sprite world is made of: actors on a grid, ways for them, and the random draw of a scene.

Movers make king moves, one cell a frame, then hold. The out-of-distribution splits ("hard" draws) have longer ways, the
full number of distractors and, in half of their tasks, pairs of subject and first target colour that no training task
commands.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ttopt.miniworld.questions import Keeps, NothingNew, PadsStay, Question, Rest
from ttopt.miniworld.world import (
    CELLS,
    COLOUR_NAMES,
    EMPTY,
    FRAMES,
    GRID,
    SHAPE_NAMES,
    SPRITES,
    WALL,
    sprite,
    sprite_colour,
    sprite_name,
    sprite_shape,
)

T = TypeVar("T")


@dataclass
class Actor:
    """A sprite and where it is in each frame: ``track`` (T cells) and ``looks`` (T sprite numbers)."""

    sprite: int
    track: list[int]
    looks: list[int]


@dataclass
class Stop:
    """A sub-goal: ``actor`` (its number) reaches ``cell``."""

    actor: int
    cell: int


@dataclass
class Task:
    """One instance. ``goal`` and ``process`` are what the scorer checks; ``questions`` what a perfect teacher asks.

    ``stops`` are the sub-goals in order (empty for tasks without ways); ``keep`` is the part of the prompt that says
    what must not change. A step of a longer task knows its ``parent`` and its ``number`` there.
    """

    family: str
    prompt: str
    keep: str
    actors: list[Actor]  # movers first
    pads: dict[int, int]  # cell -> ground number
    walls: tuple[int, ...]
    goal: Question
    process: tuple[Question, ...]
    movers: int = 1
    stops: tuple[Stop, ...] = ()
    split: str = ""
    name: str = ""
    parent: Task | None = field(default=None, repr=False)
    number: int = 0

    @property
    def questions(self) -> tuple[Question, ...]:
        """What the teacher asks: the goal, up to two rules about movers, and whether all else stays as it is."""
        rules = [question for question in self.process if not isinstance(question, Keeps)]
        return (self.goal, *rules[:2], self.rest(self.actors[: self.movers]))

    def rest(self, movers: Sequence[Actor]) -> Rest:
        """Whether everything but ``movers`` stays as it is."""
        others = keeps([actor for actor in self.actors if actor not in movers])
        return Rest(tuple(actor.sprite for actor in movers), others, self.pads_stay)

    @property
    def common(self) -> dict[str, Question]:
        """What the scorer checks of every task, beside the goal and the process rules, by the rule's name."""
        looks = frozenset(actor.looks[-1] for actor in self.actors)
        return {"nothing new": NothingNew(looks), "pads": self.pads_stay}

    @property
    def pads_stay(self) -> PadsStay:
        """Whether the pads that nothing has to cross stay, and none is new."""
        return PadsStay(tuple(sorted(self.bare_pads)), self.crossed)

    @property
    def bare_pads(self) -> list[tuple[int, int]]:
        """Cells and ground numbers of the pads that nothing has to cross."""
        crossed = self.crossed
        return [(cell, ground) for cell, ground in self.pads.items() if cell not in crossed]

    @property
    def crossed(self) -> frozenset[int]:
        """The cells in which something is at any time in the right video."""
        return frozenset(cell for actor in self.actors for cell in actor.track)

    def grounds(self) -> Tensor:
        """Ground numbers (36,) int64."""
        out = torch.full((CELLS,), EMPTY)
        for cell, ground in self.pads.items():
            out[cell] = ground
        out[list(self.walls)] = WALL
        return out

    def codes(self) -> Tensor:
        """The right answer as cell codes, (T, 36) int64."""
        out = (self.grounds() * SPRITES).repeat(len(self.actors[0].track), 1)
        for actor in reversed(self.actors):
            for frame, (cell, look) in enumerate(zip(actor.track, actor.looks, strict=True)):
                out[frame, cell] = out[frame, cell] // SPRITES * SPRITES + look
        return out


def distance(a: int, b: int) -> int:
    """King moves between two cells of an empty grid."""
    return max(abs(a // GRID - b // GRID), abs(a % GRID - b % GRID))


def neighbors(cell: int) -> list[int]:
    """Cells a king move away, diagonals first."""
    row, column = divmod(cell, GRID)
    steps = [(-1, -1), (-1, 1), (1, -1), (1, 1), (-1, 0), (1, 0), (0, -1), (0, 1)]
    cells = [(row + dr, column + dc) for dr, dc in steps]
    return [r * GRID + c for r, c in cells if 0 <= r < GRID and 0 <= c < GRID]


def shortest_way(start: int, end: int, blocked: set[int]) -> list[int] | None:
    """A shortest way of king moves from start to end (both included), diagonals first; None if there is none."""
    came: dict[int, int] = {end: end}
    queue = deque([end])
    while queue:
        cell = queue.popleft()
        for nearer in neighbors(cell):
            if nearer not in came and nearer not in blocked:
                came[nearer] = cell
                queue.append(nearer)
    if start not in came:
        return None

    def left(cell: int) -> int:
        count = 0
        while cell != end:
            cell, count = came[cell], count + 1
        return count

    way = [start]
    while way[-1] != end:
        way.append(min((c for c in neighbors(way[-1]) if c in came), key=left))
    return way


class Draw:
    """Random choices of one task, from one seeded generator."""

    def __init__(self, rng: np.random.Generator, hard: bool) -> None:
        self.rng, self.hard = rng, hard
        self.rare = hard and rng.random() < 0.5
        self.used: set[int] = set()

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def colour_pair(self) -> tuple[str, str]:
        """Colour of the subject and of its target. One pair in five is left to the hard split."""
        while True:
            a, b = (int(x) for x in self.rng.integers(6, size=2))
            if a != b and ((a - b) % 6 == 3) == self.rare:
                return COLOUR_NAMES[a], COLOUR_NAMES[b]

    def shape(self) -> str:
        return self.pick(SHAPE_NAMES)

    def colour_but(self, *taken: str) -> str:
        return self.pick([c for c in COLOUR_NAMES if c not in taken])

    def cell(self, blocked: set[int] = frozenset()) -> int:  # type: ignore[assignment]
        free = [c for c in range(CELLS) if c not in self.used and c not in blocked]
        if not free:
            raise RetryError
        cell = self.pick(free)
        self.used.add(cell)
        return cell

    def distractors(self, like: int, count: int, taken: set[int], blocked: set[int]) -> list[Actor]:
        """Sprites that share the subject's colour or shape, off its way."""
        out = []
        for _ in range(count):
            while True:
                share_colour = self.rng.random() < 0.5
                colour = sprite_colour(like) if share_colour else self.colour_but(sprite_colour(like))
                shape = self.shape() if share_colour else sprite_shape(like)
                number = sprite(colour, shape)
                if number not in taken:
                    break
            taken.add(number)
            out.append(standing(number, self.cell(blocked)))
        return out


class RetryError(Exception):
    """The draw ran into a dead end."""


def standing(number: int, cell: int) -> Actor:
    """A sprite that stays in its cell."""
    return Actor(number, [cell] * FRAMES, [number] * FRAMES)


def walking(number: int, way: list[int]) -> Actor:
    """A sprite that goes a way and then holds; RetryError if a clip is too short for it."""
    return Actor(number, walk(way), [number] * FRAMES)


def walk(way: list[int]) -> list[int]:
    """The cells of a way, frame by frame, then its end; RetryError if a clip is too short for it."""
    if len(way) > FRAMES:
        raise RetryError
    return way + [way[-1]] * (FRAMES - len(way))


def others_count(draw: Draw, least: int, most: int) -> int:
    return most if draw.hard else draw.pick(range(least, most + 1))


def keeps(actors: list[Actor]) -> tuple[Keeps, ...]:
    return tuple(Keeps(a.sprite, a.track[0]) for a in actors)


def keep_clause(rng: np.random.Generator, actors: list[Actor]) -> str:
    names = [f"the {sprite_name(a.sprite)}" for a in actors]
    if not names:
        return ""
    plural = len(names) > 1
    text = " and ".join(names)
    text = text[0].upper() + text[1:]
    verbs = ("stay", "do not move", "stay as they are") if plural else ("stays", "does not move", "stays as it is")
    return f" {text} {verbs[int(rng.integers(3))]}."
