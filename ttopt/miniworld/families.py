"""The five task families that one clip can solve: move, recolour, maze, two, visit."""

from __future__ import annotations

from ttopt.miniworld.questions import At, Both, OffWalls, One, Turned, Visits
from ttopt.miniworld.scene import (
    Actor,
    Draw,
    RetryError,
    Stop,
    Task,
    distance,
    keep_clause,
    keeps,
    others_count,
    shortest_way,
    walk,
    walking,
)
from ttopt.miniworld.world import FRAMES, GRID, pad, pad_name, sprite, sprite_name


def _move(draw: Draw, level: int) -> Task:
    rng = draw.rng
    colour, target = draw.colour_pair()
    subject = sprite(colour, draw.shape())
    start, end = draw.cell(), draw.cell()
    if distance(start, end) != level + (2 if draw.hard else 0):
        raise RetryError
    way = shortest_way(start, end, set())
    assert way is not None
    pads = {end: pad(target)}
    if draw.hard or rng.random() < 0.7:
        pads[draw.cell()] = pad(draw.colour_but(target))
    others = draw.distractors(subject, others_count(draw, 1, 2), {subject}, set(way))
    name, place = sprite_name(subject), pad_name(pads[end])
    prompt = draw.pick(
        (
            f"Move the {name} to the {place}.",
            f"The {name} goes to the {place}.",
            f"Bring the {name} onto the {place}.",
        )
    )
    keep = keep_clause(rng, others)
    return Task(
        "move", prompt + keep, keep,
        [walking(subject, way), *others], pads, (),
        At(subject, pads[end], end), (One(subject), *keeps(others)), stops=(Stop(0, end),),
    )  # fmt: skip


def _recolour(draw: Draw, level: int) -> Task:
    rng = draw.rng
    colour, target = draw.colour_pair()
    shape = draw.shape()
    subject, new = sprite(colour, shape), sprite(target, shape)
    cell = draw.cell()
    looks = [subject] * 5 + [new] * 4
    others = draw.distractors(subject, others_count(draw, 1, 2), {subject, new}, set())
    pads = {}
    if level > 1:
        pads[draw.cell()] = pad(draw.colour_but())
    name = sprite_name(subject)
    prompt = draw.pick((f"Paint the {name} {target}.", f"The {name} turns {target}.", f"Make the {name} {target}."))
    keep = keep_clause(rng, others)
    return Task(
        "recolour", prompt + keep, keep,
        [Actor(subject, [cell] * FRAMES, looks), *others], pads, (),
        Turned(subject, new, cell), (One(new), *keeps(others)),
    )  # fmt: skip


def _maze(draw: Draw, level: int) -> Task:
    rng = draw.rng
    colour, target = draw.colour_pair()
    subject = sprite(colour, draw.shape())
    line, gap = draw.pick(range(1, 5)), draw.pick(range(GRID))
    upright = rng.random() < 0.5
    walls = tuple((i * GRID + line if upright else line * GRID + i) for i in range(GRID) if i != gap)
    hole = gap * GRID + line if upright else line * GRID + gap
    draw.used |= {*walls, hole}
    start, end = draw.cell(), draw.cell()
    axis = (lambda c: c % GRID) if upright else (lambda c: c // GRID)
    if (axis(start) < line) == (axis(end) < line):
        raise RetryError
    way = shortest_way(start, end, set(walls))
    if way is None or not ((4 <= len(way) - 1 <= 5) if draw.hard else len(way) - 1 in (level + 1, 2)):
        raise RetryError
    if draw.hard and distance(start, end) == len(way) - 1 and rng.random() < 0.7:
        raise RetryError  # prefer ways that have to go round
    others = draw.distractors(subject, 1, {subject}, set(way))
    pads = {end: pad(target)}
    name, place = sprite_name(subject), pad_name(pads[end])
    prompt = draw.pick(
        (
            f"Move the {name} to the {place} without touching the walls.",
            f"The {name} goes through the gap to the {place}.",
            f"Bring the {name} past the walls onto the {place}.",
        )
    )
    keep = keep_clause(rng, others)
    return Task(
        "maze", prompt + keep, keep,
        [walking(subject, way), *others], pads, walls,
        At(subject, pads[end], end), (One(subject), OffWalls(subject, walls), *keeps(others)), stops=(Stop(0, end),),
    )  # fmt: skip


def _two(draw: Draw, level: int) -> Task:
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
        raise RetryError
    ways = [shortest_way(s, e, {o}) for s, e, o in zip(starts, ends, starts[::-1], strict=True)]
    if ways[0] is None or ways[1] is None:
        raise RetryError
    tracks = [walk(w) for w in ways if w is not None]
    if any(a == b for a, b in zip(*tracks, strict=True)) or set(tracks[0]) & set(tracks[1]):
        raise RetryError
    others = draw.distractors(
        first, 1 if draw.hard else others_count(draw, 0, 1), {first, second}, set(tracks[0]) | set(tracks[1])
    )
    pads = {ends[0]: pad(target), ends[1]: pad(target2)}
    a, b = (At(s, pads[e], e) for s, e in zip((first, second), ends, strict=True))
    na, nb, pa, pb = sprite_name(first), sprite_name(second), pad_name(a.pad), pad_name(b.pad)
    prompt = draw.pick(
        (
            f"Move the {na} to the {pa} and the {nb} to the {pb}.",
            f"The {na} goes to the {pa} and the {nb} goes to the {pb}.",
            f"Bring the {na} onto the {pa} and the {nb} onto the {pb}.",
        )
    )
    keep = keep_clause(rng, others)
    return Task(
        "two", prompt + keep, keep,
        [Actor(s, t, [s] * FRAMES) for s, t in zip((first, second), tracks, strict=True)] + others,
        pads, (), Both(a, b), (One(first), One(second), *keeps(others)), movers=2,
        stops=(Stop(0, ends[0]), Stop(1, ends[1])),
    )  # fmt: skip


def _visit(draw: Draw, level: int) -> Task:
    rng = draw.rng
    colour, target = draw.colour_pair()
    subject = sprite(colour, draw.shape())
    start, middle, end = draw.cell(), draw.cell(), draw.cell()
    legs = distance(start, middle), distance(middle, end)
    if not (sum(legs) == 5 and max(legs) == 4 if draw.hard else max(legs) == level and sum(legs) <= 5):
        raise RetryError
    first, second = shortest_way(start, middle, {end}), shortest_way(middle, end, set())
    if first is None or second is None:
        raise RetryError
    track = walk([*first, middle, *second])  # three frames on the first pad
    pads = {middle: pad(target)}
    pads[end] = pad(draw.colour_but(target))
    others = draw.distractors(subject, others_count(draw, 1, 2), {subject}, set(track))
    name, pa, pb = sprite_name(subject), pad_name(pads[middle]), pad_name(pads[end])
    prompt = draw.pick(
        (
            f"Move the {name} to the {pa} and then to the {pb}.",
            f"The {name} visits the {pa} first and then the {pb}.",
            f"Bring the {name} onto the {pa} and after that onto the {pb}.",
        )
    )
    keep = keep_clause(rng, others)
    return Task(
        "visit", prompt + keep, keep,
        [Actor(subject, track, [subject] * FRAMES), *others], pads, (),
        Visits(subject, (pads[middle], middle), (pads[end], end)), (One(subject), *keeps(others)),
        stops=(Stop(0, middle), Stop(0, end)),
    )  # fmt: skip


MAKERS = {"move": _move, "recolour": _recolour, "maze": _maze, "two": _two, "visit": _visit}
