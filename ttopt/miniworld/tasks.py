"""Task families of the sprite world: what is asked, the scene it is asked in, and one right answer.

Movers make king moves, one cell a frame, then hold. The out-of-distribution split has longer ways, the full number of
distractors and, in half of its tasks, pairs of subject and first target colour that no training task commands.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ttopt.errors import UserError
from ttopt.miniworld.questions import At, Both, Keeps, OffWalls, One, Question, Turned, Visits
from ttopt.miniworld.world import (
    CELLS,
    COLOUR_NAMES,
    EMPTY,
    FRAMES,
    GRID,
    SHAPE_NAMES,
    SPRITES,
    WALL,
    pad,
    pad_name,
    sprite,
    sprite_colour,
    sprite_name,
    sprite_shape,
)

FAMILIES = ("move", "recolour", "maze", "two", "visit")
SPLITS = {"train": 0, "id": 1, "ood": 2, "dev_id": 3, "dev_ood": 4, "teacher_ood": 5}


@dataclass
class Actor:
    """A sprite and where it is in each frame: ``track`` (9 cells) and ``looks`` (9 sprite numbers)."""

    sprite: int
    track: list[int]
    looks: list[int]


@dataclass
class Task:
    """One instance. ``goal`` and ``process`` are the questions a perfect teacher would write."""

    family: str
    split: str
    level: int
    prompt: str
    actors: list[Actor]  # movers first
    pads: dict[int, int]  # cell -> ground number
    walls: tuple[int, ...]
    goal: Question
    process: tuple[Question, ...]
    movers: int = 1
    name: str = field(default="")

    def grounds(self) -> Tensor:
        """Ground numbers (36,) int64."""
        out = torch.full((CELLS,), EMPTY)
        for cell, ground in self.pads.items():
            out[cell] = ground
        out[list(self.walls)] = WALL
        return out

    def codes(self) -> Tensor:
        """The right answer as cell codes, (9, 36) int64."""
        out = (self.grounds() * SPRITES).repeat(FRAMES, 1)
        for actor in reversed(self.actors):
            for frame, (cell, look) in enumerate(zip(actor.track, actor.looks, strict=True)):
                out[frame, cell] = out[frame, cell] // SPRITES * SPRITES + look
        return out


def distance(a: int, b: int) -> int:
    """King moves between two cells of an empty grid."""
    return max(abs(a // GRID - b // GRID), abs(a % GRID - b % GRID))


def neighbours(cell: int) -> list[int]:
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
        for nearer in neighbours(cell):
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
        way.append(min((c for c in neighbours(way[-1]) if c in came), key=left))
    return way


class _Draw:
    """Random choices of one task, from one seeded generator."""

    def __init__(self, rng: np.random.Generator, hard: bool) -> None:
        self.rng, self.hard = rng, hard
        self.rare = hard and rng.random() < 0.5
        self.used: set[int] = set()

    def one(self, options: list[int] | list[str] | tuple[str, ...]) -> int:
        return int(self.rng.integers(len(options)))

    def colour_pair(self) -> tuple[str, str]:
        """Colour of the subject and of its target. One pair in five is left to the hard split."""
        while True:
            a, b = (int(x) for x in self.rng.integers(6, size=2))
            if a != b and ((a - b) % 6 == 3) == self.rare:
                return COLOUR_NAMES[a], COLOUR_NAMES[b]

    def shape(self) -> str:
        return SHAPE_NAMES[self.one(SHAPE_NAMES)]

    def colour_but(self, *taken: str) -> str:
        free = [c for c in COLOUR_NAMES if c not in taken]
        return free[self.one(free)]

    def cell(self, blocked: set[int] = frozenset()) -> int:  # type: ignore[assignment]
        free = [c for c in range(CELLS) if c not in self.used and c not in blocked]
        if not free:
            raise _RetryError
        cell = free[self.one(free)]
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
            cell = self.cell(blocked)
            out.append(Actor(number, [cell] * FRAMES, [number] * FRAMES))
        return out


class _RetryError(Exception):
    """The draw ran into a dead end."""


def _walk(way: list[int]) -> list[int]:
    if len(way) > FRAMES:
        raise _RetryError
    return way + [way[-1]] * (FRAMES - len(way))


def _others(draw: _Draw, least: int, most: int) -> int:
    return most if draw.hard else least + draw.one(list(range(most - least + 1)))


def _keeps(actors: list[Actor]) -> tuple[Question, ...]:
    return tuple(Keeps(a.sprite, a.track[0]) for a in actors)


def _keep_clause(rng: np.random.Generator, actors: list[Actor]) -> str:
    names = [f"the {sprite_name(a.sprite)}" for a in actors]
    if not names:
        return ""
    plural = len(names) > 1
    text = " and ".join(names)
    text = text[0].upper() + text[1:]
    verbs = ("stay", "do not move", "stay as they are") if plural else ("stays", "does not move", "stays as it is")
    return f" {text} {verbs[int(rng.integers(3))]}."


def _move(draw: _Draw, level: int) -> Task:
    rng = draw.rng
    colour, target = draw.colour_pair()
    subject = sprite(colour, draw.shape())
    start, end = draw.cell(), draw.cell()
    if distance(start, end) != level + (2 if draw.hard else 0):
        raise _RetryError
    way = shortest_way(start, end, set())
    assert way is not None
    pads = {end: pad(target)}
    if draw.hard or rng.random() < 0.7:
        pads[draw.cell()] = pad(draw.colour_but(target))
    others = draw.distractors(subject, _others(draw, 1, 2), {subject}, set(way))
    name, place = sprite_name(subject), pad_name(pads[end])
    prompt = (
        f"Move the {name} to the {place}.",
        f"The {name} goes to the {place}.",
        f"Bring the {name} onto the {place}.",
    )[int(rng.integers(3))]
    return Task(
        "move", "", level, prompt + _keep_clause(rng, others),
        [Actor(subject, _walk(way), [subject] * FRAMES), *others], pads, (),
        At(subject, pads[end], end), (One(subject), *_keeps(others)),
    )  # fmt: skip


def _recolour(draw: _Draw, level: int) -> Task:
    rng = draw.rng
    colour, target = draw.colour_pair()
    shape = draw.shape()
    subject, new = sprite(colour, shape), sprite(target, shape)
    cell = draw.cell()
    looks = [subject] * 5 + [new] * 4
    others = draw.distractors(subject, _others(draw, 1, 2), {subject, new}, set())
    pads = {}
    if level > 1:
        pads[draw.cell()] = pad(draw.colour_but())
    name = sprite_name(subject)
    prompt = (f"Paint the {name} {target}.", f"The {name} turns {target}.", f"Make the {name} {target}.")[
        int(rng.integers(3))
    ]
    return Task(
        "recolour", "", level, prompt + _keep_clause(rng, others),
        [Actor(subject, [cell] * FRAMES, looks), *others], pads, (),
        Turned(subject, new, cell), (One(new), *_keeps(others)),
    )  # fmt: skip


def _maze(draw: _Draw, level: int) -> Task:
    rng = draw.rng
    colour, target = draw.colour_pair()
    subject = sprite(colour, draw.shape())
    line, gap = 1 + draw.one(list(range(4))), draw.one(list(range(GRID)))
    upright = rng.random() < 0.5
    walls = tuple((i * GRID + line if upright else line * GRID + i) for i in range(GRID) if i != gap)
    hole = gap * GRID + line if upright else line * GRID + gap
    draw.used |= {*walls, hole}
    start, end = draw.cell(), draw.cell()
    axis = (lambda c: c % GRID) if upright else (lambda c: c // GRID)
    if (axis(start) < line) == (axis(end) < line):
        raise _RetryError
    way = shortest_way(start, end, set(walls))
    if way is None or not ((4 <= len(way) - 1 <= 5) if draw.hard else len(way) - 1 in (level + 1, 2)):
        raise _RetryError
    if draw.hard and distance(start, end) == len(way) - 1 and rng.random() < 0.7:
        raise _RetryError  # prefer ways that have to go round
    others = draw.distractors(subject, 1, {subject}, set(way))
    pads = {end: pad(target)}
    name, place = sprite_name(subject), pad_name(pads[end])
    prompt = (
        f"Move the {name} to the {place} without touching the walls.",
        f"The {name} goes through the gap to the {place}.",
        f"Bring the {name} past the walls onto the {place}.",
    )[int(rng.integers(3))]
    return Task(
        "maze", "", level, prompt + _keep_clause(rng, others),
        [Actor(subject, _walk(way), [subject] * FRAMES), *others], pads, walls,
        At(subject, pads[end], end), (One(subject), OffWalls(subject, walls), *_keeps(others)),
    )  # fmt: skip


def _two(draw: _Draw, level: int) -> Task:
    rng = draw.rng
    colour, target = draw.colour_pair()
    first = sprite(colour, draw.shape())
    while True:
        colour2, target2 = draw.colour_pair()
        second = sprite(colour2, draw.shape())
        if second != first and target2 != target:
            break
    starts, ends = (draw.cell(), draw.cell()), (draw.cell(), draw.cell())
    longest = max(distance(s, e) for s, e in zip(starts, ends, strict=True))
    if not (3 <= longest <= 4 if draw.hard else longest == min(level, 2)):
        raise _RetryError
    ways = [shortest_way(s, e, {o}) for s, e, o in zip(starts, ends, starts[::-1], strict=True)]
    if ways[0] is None or ways[1] is None:
        raise _RetryError
    tracks = [_walk(w) for w in ways if w is not None]
    if any(a == b for a, b in zip(*tracks, strict=True)) or set(tracks[0]) & set(tracks[1]):
        raise _RetryError
    others = draw.distractors(
        first, 1 if draw.hard else _others(draw, 0, 1), {first, second}, set(tracks[0]) | set(tracks[1])
    )
    pads = {ends[0]: pad(target), ends[1]: pad(target2)}
    a, b = (At(s, pads[e], e) for s, e in zip((first, second), ends, strict=True))
    na, nb, pa, pb = sprite_name(first), sprite_name(second), pad_name(a.pad), pad_name(b.pad)
    prompt = (
        f"Move the {na} to the {pa} and the {nb} to the {pb}.",
        f"The {na} goes to the {pa} and the {nb} goes to the {pb}.",
        f"Bring the {na} onto the {pa} and the {nb} onto the {pb}.",
    )[int(rng.integers(3))]
    return Task(
        "two", "", level, prompt + _keep_clause(rng, others),
        [Actor(s, t, [s] * FRAMES) for s, t in zip((first, second), tracks, strict=True)] + others,
        pads, (), Both(a, b), (One(first), One(second), *_keeps(others)), movers=2,
    )  # fmt: skip


def _visit(draw: _Draw, level: int) -> Task:
    rng = draw.rng
    colour, target = draw.colour_pair()
    subject = sprite(colour, draw.shape())
    start, middle, end = draw.cell(), draw.cell(), draw.cell()
    legs = distance(start, middle), distance(middle, end)
    if not (6 <= sum(legs) <= 7 and max(legs) <= 4 if draw.hard else max(legs) == level and sum(legs) <= 5):
        raise _RetryError
    first, second = shortest_way(start, middle, {end}), shortest_way(middle, end, set())
    if first is None or second is None:
        raise _RetryError
    track = _walk([*first, *second])  # one frame of rest on the first pad
    pads = {middle: pad(target)}
    pads[end] = pad(draw.colour_but(target))
    others = draw.distractors(subject, _others(draw, 1, 2), {subject}, set(track))
    name, pa, pb = sprite_name(subject), pad_name(pads[middle]), pad_name(pads[end])
    prompt = (
        f"Move the {name} to the {pa} and then to the {pb}.",
        f"The {name} visits the {pa} first and then the {pb}.",
        f"Bring the {name} onto the {pa} and after that onto the {pb}.",
    )[int(rng.integers(3))]
    return Task(
        "visit", "", level, prompt + _keep_clause(rng, others),
        [Actor(subject, track, [subject] * FRAMES), *others], pads, (),
        Visits(subject, (pads[middle], middle), (pads[end], end)), (One(subject), *_keeps(others)),
    )  # fmt: skip


_MAKERS = {"move": _move, "recolour": _recolour, "maze": _maze, "two": _two, "visit": _visit}


def make_task(family: str, split: str, seed: int, index: int) -> Task:
    """Task ``index`` of a family, split (see SPLITS) and seed; the same arguments give the same task."""
    if family not in _MAKERS:
        raise UserError(f"unknown miniworld family {family!r}; choose from {', '.join(FAMILIES)}")
    if split not in SPLITS:
        raise UserError(f"unknown miniworld split {split!r}; choose from {', '.join(SPLITS)}")
    rng = np.random.default_rng([seed, SPLITS[split], FAMILIES.index(family), index])
    hard = split.endswith("ood")
    level = 1 + int(rng.integers(3))
    while True:
        draw = _Draw(rng, hard)
        try:
            task = _MAKERS[family](draw, level)
        except _RetryError:
            continue
        task.split, task.name = split, f"{split}-{family}-{seed}-{index:04d}"
        return task
