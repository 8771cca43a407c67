"""Task families that one clip is too short for, and their division into steps that it is long enough for.

tour: one object visits three pads in order. relay: three objects go to their pads, one after another. doors: one object
passes the gaps of two walls on its way to a pad. Each has three stops, and more moves than a clip has frames.
"""

from __future__ import annotations

import dataclasses

from ttopt.miniworld.questions import AllAt, At, InOrder, OffWalls, One, Question, Tours
from ttopt.miniworld.scene import (
    Actor,
    Draw,
    RetryError,
    Stop,
    Task,
    keep_clause,
    keeps,
    shortest_way,
    standing,
    walking,
)
from ttopt.miniworld.world import GRID, pad, pad_name, sprite, sprite_name

LONGEST = 8  # moves in one clip


def action(task: Task, stops: tuple[Stop, ...]) -> str:
    """The instruction that brings a task from stop to stop, in the words the reasoner is trained on."""
    if not stops:  # recolour
        return task.prompt
    walls = " without touching the walls" if task.walls else ""
    parts: list[str] = []
    for number, stop in enumerate(stops):
        name, place = sprite_name(task.actors[stop.actor].sprite), pad_name(task.pads[stop.cell])
        if number and stop.actor == stops[number - 1].actor:
            parts[-1] += f" and then to the {place}"
        else:
            parts.append(f"the {name} to the {place}")
    return f"Move {' and '.join(parts)}{walls}.{task.keep}"


def legs(task: Task) -> list[Task]:
    """One task a stop, each starting where the one before ends; RetryError where a way is blocked or too long."""
    if not task.stops:
        return [task]
    here = [actor.track[0] for actor in task.actors]
    out = []
    for number, stop in enumerate(task.stops):
        subject = task.actors[stop.actor].sprite
        blocked = {*task.walls, *(cell for i, cell in enumerate(here) if i != stop.actor)}
        way = shortest_way(here[stop.actor], stop.cell, blocked)
        if way is None:
            raise RetryError
        moving = walking(subject, way)
        rest = [standing(a.sprite, here[i]) for i, a in enumerate(task.actors) if i != stop.actor]
        walls: tuple[Question, ...] = (OffWalls(subject, task.walls),) if task.walls else ()
        out.append(
            Task(
                "maze" if task.walls else "move", action(task, (stop,)), task.keep, [moving, *rest], task.pads,
                task.walls, At(subject, task.pads[stop.cell], stop.cell), (One(subject), *walls, *keeps(rest)),
                stops=(Stop(0, stop.cell),), split=task.split, name=f"{task.name}-{number}", parent=task, number=number,
            )
        )  # fmt: skip
        here[stop.actor] = stop.cell
    return out


def _joined(task: Task, parts: list[Task]) -> Task:
    """The task with the right answer of all its steps, one clip after the other without the shared frames."""
    tracks: list[list[int]] = [[] for _ in task.actors]
    for part in parts:
        for number, actor in enumerate(task.actors):
            (moved,) = (a for a in part.actors if a.sprite == actor.sprite)
            tracks[number] += moved.track[1:] if tracks[number] else moved.track
    actors = [Actor(a.sprite, t, [a.sprite] * len(t)) for a, t in zip(task.actors, tracks, strict=True)]
    return dataclasses.replace(task, actors=actors)


def _pads(draw: Draw, targets: list[str], cells: list[int]) -> dict[int, int]:
    if len(set(targets)) < len(targets):
        raise RetryError
    return {cell: pad(colour) for cell, colour in zip(cells, targets, strict=True)}


def _finished(task: Task, draw: Draw) -> Task:
    """The task with its answer; RetryError unless its ways are right: together more moves than a clip has.

    Each step has up to three moves in distribution and up to four out of it, as in the one-clip families.
    """
    parts = legs(task)
    moves = [len(set(part.actors[0].track)) - 1 for part in parts]
    if sum(moves) <= LONGEST or max(moves) != 3 + draw.hard:
        raise RetryError
    return _joined(task, parts)


def _tour(draw: Draw, level: int) -> Task:
    rng = draw.rng
    colour, target = draw.colour_pair()
    subject = sprite(colour, draw.shape())
    start, cells = draw.cell(), [draw.cell() for _ in range(3)]
    pads = _pads(draw, [target, draw.colour_but(target), draw.colour_but(target)], cells)
    others = draw.distractors(subject, 1 + draw.hard, {subject}, set())
    keep = keep_clause(rng, others)
    name, (a, b, c) = sprite_name(subject), (pad_name(p) for p in pads.values())
    prompt = draw.pick(
        (
            f"Move the {name} to the {a}, then to the {b} and then to the {c}.",
            f"The {name} visits the {a} first, then the {b} and then the {c}.",
            f"Bring the {name} onto the {a}, after that onto the {b} and after that onto the {c}.",
        )
    )
    places = tuple((ground, cell) for cell, ground in pads.items())
    task = Task(
        "tour", prompt + keep, keep, [standing(subject, start), *others], pads, (),
        Tours(subject, places), (One(subject), *keeps(others)), stops=tuple(Stop(0, cell) for cell in cells),
    )  # fmt: skip
    return _finished(task, draw)


def _relay(draw: Draw, level: int) -> Task:
    rng = draw.rng
    colour, target = draw.colour_pair()
    subjects, targets = [sprite(colour, draw.shape())], [target]
    while len(subjects) < 3:
        colour, target = draw.colour_pair()
        subjects.append(sprite(colour, draw.shape()))
        targets.append(target)
    if len(set(subjects)) < 3:
        raise RetryError
    starts, cells = [draw.cell() for _ in range(3)], [draw.cell() for _ in range(3)]
    pads = _pads(draw, targets, cells)
    others = draw.distractors(subjects[0], int(draw.hard), set(subjects), set())
    keep = keep_clause(rng, others)
    (x, y, z), (a, b, c) = (sprite_name(s) for s in subjects), (pad_name(p) for p in pads.values())
    prompt = draw.pick(
        (
            f"Move the {x} to the {a}, then the {y} to the {b} and then the {z} to the {c}.",
            f"First the {x} goes to the {a}, then the {y} goes to the {b} and then the {z} goes to the {c}.",
            f"Bring the {x} onto the {a}, after that the {y} onto the {b} and after that the {z} onto the {c}.",
        )
    )
    ends = tuple(At(s, pads[cell], cell) for s, cell in zip(subjects, cells, strict=True))
    actors = [standing(s, cell) for s, cell in zip(subjects, starts, strict=True)]
    task = Task(
        "relay", prompt + keep, keep, [*actors, *others], pads, (), AllAt(ends),
        (*(One(s) for s in subjects), InOrder(ends, tuple(starts)), *keeps(others)), movers=3,
        stops=tuple(Stop(i, cell) for i, cell in enumerate(cells)),
    )  # fmt: skip
    return _finished(task, draw)


def _doors(draw: Draw, level: int) -> Task:
    rng = draw.rng
    colour, target = draw.colour_pair()
    subject = sprite(colour, draw.shape())
    lines = draw.pick((1, 2)), draw.pick((3, 4))
    if lines[1] - lines[0] < 2:
        raise RetryError
    gaps = draw.pick(range(GRID)), draw.pick(range(GRID))
    upright = rng.random() < 0.5

    def cell(line: int, place: int) -> int:
        return place * GRID + line if upright else line * GRID + place

    holes = [cell(line, gap) for line, gap in zip(lines, gaps, strict=True)]
    walls = tuple(cell(line, i) for line, gap in zip(lines, gaps, strict=True) for i in range(GRID) if i != gap)
    draw.used |= {*walls, *holes}
    start, end = draw.cell(), draw.cell()
    side = (lambda c: c % GRID) if upright else (lambda c: c // GRID)
    if side(start) > lines[0] or side(end) < lines[1]:
        raise RetryError
    pads = _pads(draw, [target, draw.colour_but(target), draw.colour_but(target)], [*holes, end])
    others = draw.distractors(subject, int(draw.hard or rng.random() < 0.5), {subject}, set())
    keep = keep_clause(rng, others)
    name, (a, b, c) = sprite_name(subject), (pad_name(p) for p in pads.values())
    prompt = draw.pick(
        (
            f"Move the {name} to the {a} and the {b} and then to the {c} without touching the walls.",
            f"The {name} goes through the {a} and the {b} to the {c}.",
            f"Bring the {name} past the walls by the {a} and the {b} onto the {c}.",
        )
    )
    places = tuple((pads[c], c) for c in (*holes, end))
    task = Task(
        "doors", prompt + keep, keep, [standing(subject, start), *others], pads, walls,
        Tours(subject, places), (One(subject), OffWalls(subject, walls), *keeps(others)),
        stops=tuple(Stop(0, c) for c in (*holes, end)),
    )  # fmt: skip
    return _finished(task, draw)


MAKERS = {"tour": _tour, "relay": _relay, "doors": _doors}
