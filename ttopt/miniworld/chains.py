"""Task families that one clip is too short for, and their division into steps that it is long enough for.

tour: one thing visits three pads in order. relay: three things go to their pads, one after another.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ttopt.miniworld.look import Actor, color_of, pad, pad_name, thing_name
from ttopt.miniworld.scene import MOVES, Draw, RetryError, Stop, Task, distance, standing, walking, ways


def action(task: Task, stops: tuple[Stop, ...]) -> str:
    """The instruction that brings a task from stop to stop, in the words that the reasoner is trained on."""
    if not stops:  # paint
        return task.prompt
    around = " around the walls" if task.walls else ""
    parts: list[str] = []
    for number, stop in enumerate(stops):
        name, place = thing_name(task.actors[stop.actor].look), pad_name(stop.ground)
        if number and stop.actor == stops[number - 1].actor:
            parts[-1] += f" and then to the {place}"
        else:
            parts.append(f"the {name}{around} to the {place}")
    return f"Move {' and '.join(parts)}.{task.keep}"


def legs(task: Task) -> list[Task]:
    """One task a stop, each starting where the one before ends; RetryError where a way is blocked or too long."""
    if not task.stops:
        return [task]
    here = [actor.track[0] for actor in task.actors]
    out = []
    for number, stop in enumerate(task.stops):
        blocked = {*task.walls, *(cell for i, cell in enumerate(here) if i != stop.actor)}
        subject = task.actors[stop.actor].look
        blocked |= {int(c) for c in np.flatnonzero(task.grounds == pad(color_of(subject)))}
        found = ways(here[stop.actor], stop.cell, blocked)
        if not found:
            raise RetryError
        rest = [standing(a.look, here[i]) for i, a in enumerate(task.actors) if i != stop.actor]
        choices = [[walking(subject, way), *rest] for way in found]
        out.append(
            Task(
                "maze" if task.walls else "move", action(task, (stop,)), task.keep, choices[0], task.grounds, 1,
                (Stop(0, stop.cell, stop.ground),), choices=choices, split=task.split, name=f"{task.name}-{number}",
                parent=task, number=number,
            )
        )  # fmt: skip
        here[stop.actor] = stop.cell
    return out


def _finished(task: Task) -> Task:
    """The task with the right answers of its steps, one after the other; RetryError unless it needs several clips."""
    parts = legs(task)
    lengths = [len(set(part.actors[0].track)) - 1 for part in parts]
    if sum(lengths) <= MOVES or min(lengths) < 2 or max(lengths) > 5:
        raise RetryError
    tracks: list[list[int]] = [[] for _ in task.actors]
    for part in parts:
        for number, actor in enumerate(task.actors):
            (moved,) = (a for a in part.actors if a.look == actor.look)
            tracks[number] += moved.track[1:] if tracks[number] else moved.track
    actors = [Actor(t, [a.look] * len(t)) for a, t in zip(task.actors, tracks, strict=True)]
    return dataclasses.replace(task, actors=actors, choices=[actors])


def _tour(draw: Draw) -> Task:
    subject = draw.thing()
    rare = draw.pick(range(3)) if draw.novel else 3
    colors: list[str] = []
    for number in range(3):
        colors.append(draw.color_for(subject, colors, novel=number == rare))
    start, cells = draw.cell(), [draw.cell() for _ in range(3)]
    if min(distance(a, b) for a, b in zip([start, *cells], cells)) < 2:
        raise RetryError
    others = draw.others([subject], 1, 2, ())
    grounds = draw.board(dict(zip(cells, colors, strict=True)), [subject])
    name, (a, b, c) = thing_name(subject), (f"{color} pad" for color in colors)
    prompt = draw.pick(
        (
            f"Move the {name} to the {a}, then to the {b} and then to the {c}.",
            f"The {name} visits the {a} first, then the {b} and then the {c}.",
            f"Bring the {name} onto the {a}, after that onto the {b} and after that onto the {c}.",
        )
    )
    keep = draw.keep()
    stops = tuple(Stop(0, cell, pad(color)) for cell, color in zip(cells, colors, strict=True))
    return _finished(Task("tour", prompt + keep, keep, [standing(subject, start), *others], grounds, 1, stops))


def _relay(draw: Draw) -> Task:
    subjects = [draw.thing() for _ in range(3)]
    colors: list[str] = []
    for subject in subjects:
        colors.append(draw.color_for(subject, colors))
    starts, cells = [draw.cell() for _ in range(3)], [draw.cell() for _ in range(3)]
    others = draw.others(subjects, 0, 0, ())
    grounds = draw.board(dict(zip(cells, colors, strict=True)), subjects)
    (x, y, z), (a, b, c) = (thing_name(s) for s in subjects), (f"{color} pad" for color in colors)
    prompt = draw.pick(
        (
            f"Move the {x} to the {a}, then the {y} to the {b} and then the {z} to the {c}.",
            f"First the {x} goes to the {a}, then the {y} goes to the {b} and then the {z} goes to the {c}.",
            f"Bring the {x} onto the {a}, after that the {y} onto the {b} and after that the {z} onto the {c}.",
        )
    )
    keep = draw.keep()
    actors = [standing(s, cell) for s, cell in zip(subjects, starts, strict=True)]
    stops = tuple(Stop(i, cell, pad(color)) for i, (cell, color) in enumerate(zip(cells, colors, strict=True)))
    return _finished(Task("relay", prompt + keep, keep, [*actors, *others], grounds, 3, stops, in_turn=True))


MAKERS = {"tour": _tour, "relay": _relay}
