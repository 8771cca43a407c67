"""Wrong videos of a task, as cell codes, each with the rules it must break.

Used as an independent check of the scorer, as teacher training data, and as wrong futures in distillation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ttopt.miniworld.scene import Actor, Task, shortest_way
from ttopt.miniworld.world import (
    CELLS,
    COLOUR_NAMES,
    EMPTY,
    FRAMES,
    SHAPE_NAMES,
    SPRITES,
    WALL,
    sprite,
    sprite_colour,
    sprite_shape,
)

Rules = frozenset[str]
Corrupted = tuple[Tensor, Rules] | None  # codes (9, 36), names of the rules that must fail


def _drawn(task: Task, actors: list[Actor]) -> Tensor:
    return dataclasses.replace(task, actors=actors).codes()


def _still(actor: Actor) -> Actor:
    return Actor(actor.sprite, [actor.track[0]] * FRAMES, [actor.looks[0]] * FRAMES)


def _free(task: Task, rng: np.random.Generator) -> int:
    taken = {c for a in task.actors for c in a.track} | set(task.pads) | set(task.walls)
    free = [c for c in range(CELLS) if c not in taken]
    return int(rng.choice(free))


def _new_look(number: int, rng: np.random.Generator, shape: bool) -> int:
    if shape:
        options = [sprite(sprite_colour(number), s) for s in SHAPE_NAMES]
    else:
        options = [sprite(c, sprite_shape(number)) for c in COLOUR_NAMES]
    return int(rng.choice([o for o in options if o != number]))


def _to(actor: Actor, cell: int) -> Actor:
    way = shortest_way(actor.track[0], cell, set()) or [actor.track[0]]
    return Actor(actor.sprite, (way + [way[-1]] * FRAMES)[:FRAMES], actor.looks)


def nothing_happens(task: Task, rng: np.random.Generator) -> Corrupted:
    return _drawn(task, [_still(a) for a in task.actors]), frozenset({"goal"})


def wrong_place(task: Task, rng: np.random.Generator) -> Corrupted:
    if task.family == "recolour":
        return None
    actors = list(task.actors)
    which = int(rng.integers(task.movers))
    actors[which] = _to(actors[which], _free(task, rng))
    return _drawn(task, actors), frozenset({"goal"})


def stops_short(task: Task, rng: np.random.Generator) -> Corrupted:
    if task.family == "recolour":
        return None
    actors = list(task.actors)
    which = int(rng.integers(task.movers))
    track = actors[which].track
    stop = int(rng.integers(1, max(2, next(i for i, c in enumerate(track) if c == track[-1]))))
    if track[stop] == track[-1]:
        return None
    actors[which] = Actor(actors[which].sprite, track[:stop] + [track[stop]] * (FRAMES - stop), actors[which].looks)
    return _drawn(task, actors), frozenset({"goal"})


def wrong_pad(task: Task, rng: np.random.Generator) -> Corrupted:
    others = [c for c in task.pads if c != task.actors[0].track[-1]]
    if task.family not in ("move", "two", "visit") or not others:
        return None
    actors = list(task.actors)
    actors[0] = _to(actors[0], int(rng.choice(others)))
    if task.movers == 2:
        actors[1] = _to(actors[1], task.actors[0].track[-1])
    return _drawn(task, actors), frozenset({"goal"})


def mover_vanishes(task: Task, rng: np.random.Generator) -> Corrupted:
    codes = task.codes()
    start = int(rng.integers(2, FRAMES))
    actor = task.actors[int(rng.integers(task.movers))]
    for frame in range(start, FRAMES):
        codes[frame, actor.track[frame]] -= codes[frame, actor.track[frame]] % SPRITES
    return codes, frozenset({"goal", "one"})


def mover_copied(task: Task, rng: np.random.Generator) -> Corrupted:
    codes = task.codes()
    actor = task.actors[int(rng.integers(task.movers))]
    cell = actor.track[0] if task.family != "recolour" and rng.random() < 0.6 else _free(task, rng)
    if cell == actor.track[-1]:
        return None
    start = int(rng.integers(1, FRAMES - 1))
    codes[start:, cell] = codes[start:, cell] // SPRITES * SPRITES + actor.looks[-1]
    return codes, frozenset({"one"})


def mover_repainted(task: Task, rng: np.random.Generator) -> Corrupted:
    actors = list(task.actors)
    which = int(rng.integers(task.movers))
    new = _new_look(actors[which].looks[-1], rng, shape=False)
    if task.family == "recolour" and new == actors[which].sprite:
        return None
    start = int(rng.integers(1, FRAMES))
    looks = actors[which].looks[:start] + [new] * (FRAMES - start)
    actors[which] = Actor(actors[which].sprite, actors[which].track, looks)
    return _drawn(task, actors), frozenset({"goal", "one"})


def mover_reshaped(task: Task, rng: np.random.Generator) -> Corrupted:
    actors = list(task.actors)
    which = int(rng.integers(task.movers))
    start = int(rng.integers(1, FRAMES))
    new = _new_look(actors[which].looks[-1], rng, shape=True)
    looks = actors[which].looks[:start] + [new] * (FRAMES - start)
    actors[which] = Actor(actors[which].sprite, actors[which].track, looks)
    return _drawn(task, actors), frozenset({"goal", "one"})


def _other(task: Task, rng: np.random.Generator) -> int | None:
    return int(rng.integers(task.movers, len(task.actors))) if len(task.actors) > task.movers else None


def other_vanishes(task: Task, rng: np.random.Generator) -> Corrupted:
    which = _other(task, rng)
    if which is None:
        return None
    codes, start = task.codes(), int(rng.integers(1, FRAMES))
    cell = task.actors[which].track[0]
    codes[start:, cell] = codes[start:, cell] // SPRITES * SPRITES
    return codes, frozenset({f"keeps {which}"})


def other_moves(task: Task, rng: np.random.Generator) -> Corrupted:
    which = _other(task, rng)
    if which is None:
        return None
    actors = list(task.actors)
    actors[which] = _to(actors[which], _free(task, rng))
    return _drawn(task, actors), frozenset({f"keeps {which}"})


def _other_look(task: Task, rng: np.random.Generator, shape: bool) -> Corrupted:
    which = _other(task, rng)
    if which is None:
        return None
    actors, start = list(task.actors), int(rng.integers(1, FRAMES))
    old = actors[which]
    new = _new_look(old.sprite, rng, shape)
    if any(new == a.looks[-1] for a in actors):
        return None
    actors[which] = Actor(old.sprite, old.track, old.looks[:start] + [new] * (FRAMES - start))
    return _drawn(task, actors), frozenset({f"keeps {which}"})


def other_repainted(task: Task, rng: np.random.Generator) -> Corrupted:
    return _other_look(task, rng, shape=False)


def other_reshaped(task: Task, rng: np.random.Generator) -> Corrupted:
    return _other_look(task, rng, shape=True)


def wrong_actor(task: Task, rng: np.random.Generator) -> Corrupted:
    which = _other(task, rng)
    if which is None or task.family not in ("move", "maze", "visit"):
        return None
    actors = list(task.actors)
    end = actors[0].track[-1]
    actors[0] = _still(actors[0])
    actors[which] = _to(actors[which], end)
    return _drawn(task, actors), frozenset({"goal", f"keeps {which}"})


def through_wall(task: Task, rng: np.random.Generator) -> Corrupted:
    if task.family != "maze":
        return None
    actors = list(task.actors)
    start, end = actors[0].track[0], actors[0].track[-1]
    wall = int(rng.choice(list(task.walls)))
    first, second = shortest_way(start, wall, set()), shortest_way(wall, end, set())
    if first is None or second is None or len(first) + len(second) - 1 > FRAMES:
        return None
    way = first + second[1:]
    actors[0] = Actor(actors[0].sprite, way + [end] * (FRAMES - len(way)), actors[0].looks)
    return _drawn(task, actors), frozenset({"walls"})


def skips_first(task: Task, rng: np.random.Generator) -> Corrupted:
    if task.family != "visit":
        return None
    first, end = list(task.pads)
    way = shortest_way(task.actors[0].track[0], end, {first})
    if way is None:
        return None
    actors = list(task.actors)
    actors[0] = Actor(actors[0].sprite, (way + [end] * FRAMES)[:FRAMES], actors[0].looks)
    return _drawn(task, actors), frozenset({"goal"})


def wrong_order(task: Task, rng: np.random.Generator) -> Corrupted:
    if task.family != "visit":
        return None
    first, end = list(task.pads)
    one = shortest_way(task.actors[0].track[0], end, {first})
    two = shortest_way(end, first, set())
    if one is None or two is None or len(one) + len(two) - 1 > FRAMES:
        return None
    way = one + two[1:]
    actors = list(task.actors)
    actors[0] = Actor(actors[0].sprite, way + [first] * (FRAMES - len(way)), actors[0].looks)
    return _drawn(task, actors), frozenset({"goal"})


def only_one_moves(task: Task, rng: np.random.Generator) -> Corrupted:
    if task.movers != 2:
        return None
    actors = list(task.actors)
    which = int(rng.integers(2))
    actors[which] = _still(actors[which])
    return _drawn(task, actors), frozenset({"goal"})


def something_appears(task: Task, rng: np.random.Generator) -> Corrupted:
    codes = task.codes()
    used = {a.looks[-1] for a in task.actors} | {a.sprite for a in task.actors}
    new = int(rng.choice([s for s in range(1, SPRITES) if s not in used]))
    cell, start = _free(task, rng), int(rng.integers(1, FRAMES))
    codes[start:, cell] = codes[start:, cell] // SPRITES * SPRITES + new
    return codes, frozenset({"nothing new"})


def other_copied(task: Task, rng: np.random.Generator) -> Corrupted:
    which = _other(task, rng)
    if which is None:
        return None
    codes, start = task.codes(), int(rng.integers(1, FRAMES))
    cell = _free(task, rng)
    codes[start:, cell] = codes[start:, cell] // SPRITES * SPRITES + task.actors[which].sprite
    return codes, frozenset({"nothing new"})


def pad_erased(task: Task, rng: np.random.Generator) -> Corrupted:
    return _other_ground(task, rng, [cell for cell, _ in task.bare_pads], [EMPTY])


def pad_repainted(task: Task, rng: np.random.Generator) -> Corrupted:
    return _other_ground(task, rng, [cell for cell, _ in task.bare_pads], range(EMPTY + 1, WALL))


def pad_appears(task: Task, rng: np.random.Generator) -> Corrupted:
    return _other_ground(task, rng, [_free(task, rng)], range(EMPTY + 1, WALL))


def _other_ground(task: Task, rng: np.random.Generator, cells: list[int], grounds: Sequence[int]) -> Corrupted:
    if not cells:
        return None
    codes, start = task.codes(), int(rng.integers(1, FRAMES))
    cell = int(rng.choice(cells))
    ground = int(rng.choice([g for g in grounds if g != task.pads.get(cell)]))
    codes[start:, cell] = codes[start:, cell] % SPRITES + ground * SPRITES
    return codes, frozenset({"pads"})


def old_stays_too(task: Task, rng: np.random.Generator) -> Corrupted:
    if task.family != "recolour":
        return None
    codes, start = task.codes(), int(rng.integers(1, FRAMES))
    cell = _free(task, rng)
    codes[start:, cell] = codes[start:, cell] // SPRITES * SPRITES + task.actors[0].sprite
    return codes, frozenset({"nothing new"})


CORRUPTIONS: dict[str, Callable[[Task, np.random.Generator], Corrupted]] = {
    f.__name__: f
    for f in (
        nothing_happens, wrong_place, stops_short, wrong_pad, mover_vanishes, mover_copied, mover_repainted,
        mover_reshaped, other_vanishes, other_moves, other_repainted, other_reshaped, wrong_actor, through_wall,
        skips_first, wrong_order, only_one_moves, something_appears, other_copied, pad_erased, pad_repainted,
        pad_appears, old_stays_too,
    )
}  # fmt: skip


def drawn(task: Task, rng: np.random.Generator, right: float) -> Tensor:
    """Codes (9, 36) of the right video with probability ``right``, else of a wrong one."""
    return task.codes() if rng.random() < right else corrupt(task, rng)[1]


def with_copies(codes: Tensor, rng: np.random.Generator) -> Tensor:
    """The codes (T, 36) with one or two things of the last frame in an empty cell too, from some frame on."""
    codes = codes.clone()
    for _ in range(int(rng.integers(1, 3))):
        free = (codes == 0).all(0).nonzero()[:, 0].numpy()
        things = codes[-1][(codes[-1] > 0) & (codes[-1] < WALL * SPRITES)].numpy()
        codes[int(rng.integers(1, len(codes))) :, int(rng.choice(free))] = int(rng.choice(things))
    return codes


def corrupt(task: Task, rng: np.random.Generator) -> tuple[str, Tensor, Rules]:
    """A random applicable corruption: its name, the codes (9, 36) and the rules that must fail."""
    names = list(CORRUPTIONS)
    while True:
        name = names[int(rng.integers(len(names)))]
        made = CORRUPTIONS[name](task, rng)
        if made is not None and not torch.equal(made[0], task.codes()):
            return name, *made
