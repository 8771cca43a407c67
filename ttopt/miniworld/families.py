"""The five task families that one clip can solve: move, maze, visit, paint, two."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from ttopt.miniworld.look import BOARDS, GRID, Actor, pad, thing_name
from ttopt.miniworld.scene import MOVES, Draw, RetryError, Stop, Task, distance, painted, walking, ways


def _move(draw: Draw) -> Task:
    subject = draw.thing()
    target = draw.color_for(subject)
    start, end = draw.cell(), draw.cell()
    if not 2 <= distance(start, end) <= 5:
        raise RetryError
    found = ways(start, end, ())
    on_way = {c for way in found for c in way}
    others = draw.others([subject], 1, 3, on_way)
    grounds = draw.board({end: target}, [subject], more=2 if draw.novel else draw.pick((0, 1, 2)))
    name, place = thing_name(subject), f"{target} pad"
    prompt = draw.pick(
        (f"Move the {name} to the {place}.", f"The {name} goes to the {place}.", f"Bring the {name} onto the {place}.")
    )
    keep = draw.keep()
    choices = [[walking(subject, way), *others] for way in found]
    return Task(
        "move", prompt + keep, keep, draw.pick(choices), grounds, 1, (Stop(0, end, pad(target)),), choices=choices
    )


def _maze(draw: Draw) -> Task:
    subject = draw.thing()
    target = draw.color_for(subject)
    line = draw.pick(range(1, GRID - 1))
    upright = draw.rng.random() < 0.5
    gaps = draw.rng.permutation(GRID)[: draw.pick((1, 1, 2))]
    across = [i * GRID + line if upright else line * GRID + i for i in range(GRID)]
    walls = [cell for i, cell in enumerate(across) if i not in gaps]
    draw.used |= set(across)
    start, end = draw.cell(), draw.cell()
    axis: Callable[[int], int] = (lambda c: c % GRID) if upright else (lambda c: c // GRID)
    if (axis(start) < line) == (axis(end) < line):
        raise RetryError
    found = ways(start, end, walls)
    if not found or not 3 <= len(found[0]) - 1 <= MOVES:
        raise RetryError
    if len(found[0]) - 1 == distance(start, end) and draw.rng.random() < 0.7:
        raise RetryError  # prefer ways that have to go round
    others = draw.others([subject], 1, 2, {c for way in found for c in way})
    grounds = draw.board({end: target}, [subject], walls, more=draw.pick((0, 1)))
    name, place = thing_name(subject), f"{target} pad"
    prompt = draw.pick(
        (
            f"Move the {name} around the walls to the {place}.",
            f"The {name} goes through the gap to the {place}.",
            f"Bring the {name} past the walls onto the {place}.",
        )
    )
    keep = draw.keep()
    choices = [[walking(subject, way), *others] for way in found]
    return Task(
        "maze", prompt + keep, keep, draw.pick(choices), grounds, 1, (Stop(0, end, pad(target)),), choices=choices
    )


def _visit(draw: Draw) -> Task:
    subject = draw.thing()
    rare = draw.novel and draw.rng.random() < 0.5  # which of the two pads is the one that training keeps from it
    first = draw.color_for(subject, novel=rare)
    second = draw.color_for(subject, (first,), novel=draw.novel and not rare)
    start, middle, end = draw.cell(), draw.cell(), draw.cell()
    if distance(start, middle) < 1 or distance(start, middle) + distance(middle, end) not in (3, 4, 5, 6):
        raise RetryError
    legs = ways(start, middle, {end}), ways(middle, end, ())
    found = [a + b[1:] for a, b in product(*legs)]
    found = [way for way in found if len(way) <= BOARDS]
    if not found:
        raise RetryError
    found = [found[0], found[-1]] if len(found) > 1 else found
    others = draw.others([subject], 1, 2, {c for way in found for c in way})
    grounds = draw.board({middle: first, end: second}, [subject], more=1 if draw.novel else draw.pick((0, 1)))
    name, a, b = thing_name(subject), f"{first} pad", f"{second} pad"
    prompt = draw.pick(
        (
            f"Move the {name} to the {a} and then to the {b}.",
            f"The {name} visits the {a} first and then the {b}.",
            f"Bring the {name} onto the {a} and after that onto the {b}.",
        )
    )
    keep = draw.keep()
    choices = [[walking(subject, way), *others] for way in found]
    stops = (Stop(0, middle, pad(first)), Stop(0, end, pad(second)))
    return Task("visit", prompt + keep, keep, draw.pick(choices), grounds, 1, stops, choices=choices)


def _paint(draw: Draw) -> Task:
    count = draw.pick((1, 2))
    subjects = [draw.thing() for _ in range(count)]
    colors = [draw.color_for(subject) for subject in subjects]
    news = [painted(s, c) for s, c in zip(subjects, colors, strict=True)]
    if len({*subjects, *news}) < 2 * count:
        raise RetryError
    draw.looks |= set(news)
    cells = [draw.cell() for _ in subjects]
    others = draw.others(subjects, 1, 3, ())
    grounds = draw.board({}, subjects, more=draw.pick((1, 2)) if draw.novel else draw.pick((0, 1, 2)))
    names = [thing_name(s) for s in subjects]
    parts = draw.pick(
        (
            ("Paint", [f"the {n} {c}" for n, c in zip(names, colors, strict=True)]),
            ("", [f"the {n} turns {c}" for n, c in zip(names, colors, strict=True)]),
            ("Make", [f"the {n} {c}" for n, c in zip(names, colors, strict=True)]),
        )
    )
    text = f"{parts[0]} {' and '.join(parts[1])}.".strip()
    keep = draw.keep()
    choices = []
    for when in (2, 4):
        looks = [[s] * when + [n] * (BOARDS - when) for s, n in zip(subjects, news, strict=True)]
        choices.append([*(Actor([c] * BOARDS, row) for c, row in zip(cells, looks, strict=True)), *others])
    return Task(
        "paint", text[0].upper() + text[1:] + keep, keep, draw.pick(choices), grounds, count,
        turns=tuple(enumerate(news)), choices=choices,
    )  # fmt: skip


def _two(draw: Draw) -> Task:
    first, second = draw.thing(), draw.thing()
    colors = [draw.color_for(first)]
    colors.append(draw.color_for(second, colors))
    starts, ends = [draw.cell(), draw.cell()], [draw.cell(), draw.cell()]
    if not all(1 <= distance(s, e) <= 4 for s, e in zip(starts, ends, strict=True)):
        raise RetryError
    found = [ways(s, e, {*starts, *ends} - {s, e}) for s, e in zip(starts, ends, strict=True)]
    pairs = [(a, b) for a, b in product(*found) if not set(a) & set(b)]
    if not pairs:
        raise RetryError
    pairs = [pairs[0], pairs[-1]] if len(pairs) > 1 else pairs
    others = draw.others([first, second], 0, 1, {c for pair in pairs for way in pair for c in way})
    grounds = draw.board(dict(zip(ends, colors, strict=True)), [first, second], more=draw.pick((0, 1)))
    na, nb = thing_name(first), thing_name(second)
    pa, pb = (f"{c} pad" for c in colors)
    prompt = draw.pick(
        (
            f"Move the {na} to the {pa} and the {nb} to the {pb}.",
            f"The {na} goes to the {pa} and the {nb} goes to the {pb}.",
            f"Bring the {na} onto the {pa} and the {nb} onto the {pb}.",
        )
    )
    keep = draw.keep()
    choices = [[walking(first, a), walking(second, b), *others] for a, b in pairs]
    stops = tuple(Stop(i, e, pad(c)) for i, (e, c) in enumerate(zip(ends, colors, strict=True)))
    return Task("two", prompt + keep, keep, draw.pick(choices), grounds, 2, stops, choices=choices)


MAKERS = {"move": _move, "maze": _maze, "visit": _visit, "paint": _paint, "two": _two}
