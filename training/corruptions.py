"""Wrong films of a task, each with the rules that it must break: they check the scorers and train teachers."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ttopt.miniworld.look import (
    ABSENT,
    CELLS,
    COLOR_NAMES,
    EMPTY,
    LOOKS,
    SHAPE_NAMES,
    WALL,
    Actor,
    Film,
    color_of,
    look,
    shape_of,
)
from ttopt.miniworld.scene import Task, neighbors, ways

Rng = np.random.Generator
Corrupted = tuple[Film, frozenset[str]] | None  # None: not possible in this task


def _free(task: Task, rng: Rng) -> int:
    taken = {c for choice in [task.actors, *task.choices] for a in choice for c in a.track}
    return int(rng.choice([c for c in range(CELLS) if c not in taken and task.grounds[c] == EMPTY]))


def _board(task: Task, rng: Rng, first: int = 1) -> int:
    """A board from which on something is wrong."""
    return int(rng.integers(first, task.boards))


def _mover(task: Task, rng: Rng) -> int:
    return int(rng.integers(task.movers))


def _other(task: Task, rng: Rng) -> int | None:
    return int(rng.integers(task.movers, len(task.actors))) if len(task.actors) > task.movers else None


def _new_look(task: Task, number: int, rng: Rng, same_color: bool) -> int:
    """A look that nothing in the task has: another shape in the same color or the other way round, if there is one."""
    taken = {n for a in task.actors for n in a.looks}
    shapes = [n for s in SHAPE_NAMES if (n := look(color_of(number), s)) not in taken]
    colors = [n for c in COLOR_NAMES if (n := look(c, shape_of(number))) not in taken]
    first, second = (shapes, colors) if same_color else (colors, shapes)
    return int(rng.choice(first or second or [n for n in range(LOOKS) if n not in taken]))


def _filled(track: list[int], boards: int) -> list[int]:
    return (track + [track[-1]] * boards)[:boards]


def nothing_happens(task: Task, rng: Rng) -> Corrupted:
    actors = [Actor([a.track[0]] * task.boards, [a.look] * task.boards) for a in task.actors]
    return task.film(actors), frozenset({"goal"})


def stops_short(task: Task, rng: Rng) -> Corrupted:
    """A mover stops somewhere on its way, or a thing does not turn."""
    film = task.film(copy.deepcopy(task.actors))
    actor = film.actors[_mover(task, rng)]
    if task.turns:
        actor.looks = [actor.look] * task.boards
        return film, frozenset({"goal"})
    stop = int(rng.integers(0, actor.track.index(actor.track[-1])))
    if actor.track[stop] == actor.track[-1]:
        return None
    actor.track = _filled(actor.track[: stop + 1], task.boards)
    return film, frozenset({"goal"})


def wrong_pad(task: Task, rng: Rng) -> Corrupted:
    """A mover goes to another pad, or a thing turns another color."""
    film = task.film(copy.deepcopy(task.actors))
    number = _mover(task, rng)
    actor = film.actors[number]
    if task.turns:
        new = _new_look(task, actor.looks[-1], rng, same_color=False)
        actor.looks = [new if shown == actor.looks[-1] else shown for shown in actor.looks]
        return film, frozenset({"goal", "whole"})
    pads = [int(c) for c in np.flatnonzero((task.grounds != EMPTY) & (task.grounds != WALL)) if c != actor.track[-1]]
    if not pads:
        return None
    blocked = {c for i, a in enumerate(task.actors) for c in a.track if i != number} | set(task.walls)
    found = ways(actor.track[0], int(rng.choice(pads)), blocked)
    if not found or len(found[0]) > task.boards:
        return None
    actor.track = _filled(found[0], task.boards)
    return film, frozenset({"goal"})


def wrong_order(task: Task, rng: Rng) -> Corrupted:
    """The second pad without the first."""
    if task.family not in ("visit", "tour"):
        return None
    film = task.film(copy.deepcopy(task.actors))
    actor = film.actors[0]
    blocked = {a.track[0] for a in task.actors[1:]} | {task.stops[0].cell}
    found = ways(actor.track[0], task.stops[-1].cell, blocked)
    if not found or len(found[0]) > task.boards:
        return None
    actor.track = _filled(found[0], task.boards)
    return film, frozenset({"order"})


def through_wall(task: Task, rng: Rng) -> Corrupted:
    """A mover takes the way that there would be without walls."""
    if not task.walls:
        return None
    film = task.film(copy.deepcopy(task.actors))
    actor = film.actors[0]
    found = ways(actor.track[0], actor.track[-1], {a.track[0] for a in task.actors[1:]})
    found = [way for way in found if set(way) & set(task.walls)]
    if not found:
        return None
    actor.track = _filled(found[0], task.boards)
    return film, frozenset({"walls"})


def jumps(task: Task, rng: Rng) -> Corrupted:
    """A mover leaves out a cell or more of its way."""
    film = task.film(copy.deepcopy(task.actors))
    actor = film.actors[_mover(task, rng)]
    if task.turns or len(set(actor.track)) < 3:
        return None
    way = actor.track[: actor.track.index(actor.track[-1]) + 1]
    cut = int(rng.integers(1, len(way) - 1))
    if task.family in ("visit", "tour", "relay") and way[cut] in {s.cell for s in task.stops}:
        return None
    actor.track = _filled(way[:cut] + way[cut + 1 :], task.boards)
    return film, frozenset({"way"})


def mover_vanishes(task: Task, rng: Rng) -> Corrupted:
    film = task.film(copy.deepcopy(task.actors))
    actor, start = film.actors[_mover(task, rng)], _board(task, rng)
    actor.track[start:] = [ABSENT] * (task.boards - start)
    return film, frozenset({"goal", "whole"})


def mover_blinks(task: Task, rng: Rng) -> Corrupted:
    """A mover is away for one board in the middle."""
    film = task.film(copy.deepcopy(task.actors))
    film.actors[_mover(task, rng)].track[int(rng.integers(1, task.boards - 1))] = ABSENT
    return film, frozenset({"whole"})


def mover_copied(task: Task, rng: Rng) -> Corrupted:
    """A second one appears, or stays behind at the start."""
    film = task.film(copy.deepcopy(task.actors))
    actor, start = film.actors[_mover(task, rng)], _board(task, rng)
    cell = actor.track[0] if not task.turns and rng.random() < 0.5 else _free(task, rng)
    track = [ABSENT if i < start or cell == actor.track[i] else cell for i in range(task.boards)]
    if all(c == ABSENT for c in track):
        return None
    film.actors.append(Actor(track, list(actor.looks)))
    return film, frozenset({"whole"})


def mover_repainted(task: Task, rng: Rng) -> Corrupted:
    return _relooked(task, rng, same_color=False)


def mover_reshaped(task: Task, rng: Rng) -> Corrupted:
    return _relooked(task, rng, same_color=True)


def _relooked(task: Task, rng: Rng, same_color: bool) -> Corrupted:
    film = task.film(copy.deepcopy(task.actors))
    actor, start = film.actors[_mover(task, rng)], _board(task, rng)
    new = _new_look(task, actor.looks[-1], rng, same_color)
    end = task.boards if rng.random() < 0.5 else start + 1
    actor.looks[start:end] = [new] * (end - start)
    return film, frozenset({"whole"})


def other_vanishes(task: Task, rng: Rng) -> Corrupted:
    which = _other(task, rng)
    if which is None:
        return None
    film, start = task.film(copy.deepcopy(task.actors)), _board(task, rng)
    film.actors[which].track[start:] = [ABSENT] * (task.boards - start)
    return film, frozenset({"whole"})


def other_changes(task: Task, rng: Rng) -> Corrupted:
    """Another thing takes another look, for one board or for good."""
    which = _other(task, rng)
    if which is None:
        return None
    film, start = task.film(copy.deepcopy(task.actors)), _board(task, rng)
    actor = film.actors[which]
    end = task.boards if rng.random() < 0.5 else start + 1
    actor.looks[start:end] = [_new_look(task, actor.look, rng, bool(rng.random() < 0.5))] * (end - start)
    return film, frozenset({"whole"})


def other_moves(task: Task, rng: Rng) -> Corrupted:
    which = _other(task, rng)
    if which is None:
        return None
    film, start = task.film(copy.deepcopy(task.actors)), _board(task, rng)
    actor = film.actors[which]
    taken = {c for a in task.actors for c in a.track} | set(task.walls)
    free = [c for c in neighbors(actor.track[0]) if c not in taken]
    if not free:
        return None
    actor.track[start:] = [int(rng.choice(free))] * (task.boards - start)
    return film, frozenset({"still"})


def thing_appears(task: Task, rng: Rng) -> Corrupted:
    film, start = task.film(copy.deepcopy(task.actors)), _board(task, rng)
    new = _new_look(task, task.actors[0].looks[-1], rng, bool(rng.random() < 0.5))
    film.actors.append(Actor([ABSENT] * start + [_free(task, rng)] * (task.boards - start), [new] * task.boards))
    return film, frozenset({"whole"})


def _ground(task: Task, rng: Rng, change: Callable[[NDArray[np.int64]], None]) -> Film:
    film, start = task.film(copy.deepcopy(task.actors)), _board(task, rng)
    end = task.boards if rng.random() < 0.5 else start + 1
    for grounds in film.grounds[start:end]:
        change(grounds)
    return film


def pad_changes(task: Task, rng: Rng) -> Corrupted:
    """A pad takes another color or vanishes, for one board or for good."""
    pads = np.flatnonzero((task.grounds != EMPTY) & (task.grounds != WALL))
    if not len(pads):
        return None
    cell = int(rng.choice(pads))
    new = int(rng.choice([g for g in range(WALL) if g != task.grounds[cell]]))
    return _ground(task, rng, lambda grounds: grounds.__setitem__(cell, new)), frozenset({"ground"})


def pad_appears(task: Task, rng: Rng) -> Corrupted:
    cell, new = _free(task, rng), int(rng.integers(1, WALL))
    return _ground(task, rng, lambda grounds: grounds.__setitem__(cell, new)), frozenset({"ground"})


def wall_changes(task: Task, rng: Rng) -> Corrupted:
    if not task.walls:
        return None
    cell = int(rng.choice(task.walls))
    return _ground(task, rng, lambda grounds: grounds.__setitem__(cell, EMPTY)), frozenset({"ground"})


CORRUPTIONS: dict[str, Callable[[Task, Rng], Corrupted]] = {
    f.__name__: f
    for f in (
        nothing_happens, stops_short, wrong_pad, wrong_order, through_wall, jumps, mover_vanishes, mover_blinks,
        mover_copied, mover_repainted, mover_reshaped, other_vanishes, other_changes, other_moves, thing_appears,
        pad_changes, pad_appears, wall_changes,
    )
}  # fmt: skip


def corrupt(task: Task, rng: Rng) -> tuple[str, Film, frozenset[str]]:
    """A random corruption that is possible: its name, film and the rules that it breaks."""
    while True:
        name = str(rng.choice(list(CORRUPTIONS)))
        made = CORRUPTIONS[name](task, rng)
        if made is not None:
            return name, *made
