"""A second scorer, written from the rules' words: it judges what reader.py reads and shares no code with the first.

It exists to check the first: where the two disagree, one of them is wrong. The rules are those of scorer.py.
"""

from __future__ import annotations

from torch import Tensor

from ttopt.miniworld.look import CELL, EMPTY, GRID, WALL
from ttopt.miniworld.reader import UNKNOWN, Blob, Seen, read
from ttopt.miniworld.scene import Task

STRAY = 8  # pixels in one cell, close together, that belong to nothing
Rules = dict[str, bool]


def judge_videos(task: Task, videos: Tensor) -> list[Rules]:
    """Verdicts by rule for several videos (N, T, 3, 96, 96) of one task."""
    return [judge(task, read(video)) for video in videos]


def judge(task: Task, seen: Seen) -> Rules:
    """Verdicts by rule."""
    follows = _follow(task, seen)
    rules = {"goal": _goal(task, follows), "whole": follows is not None and _counts(task, seen)}
    moving = {stop.actor for stop in task.stops}
    if follows is None:
        follows = [[None] * len(seen) for _ in task.actors]
    if task.in_turn or len(task.stops) > len(moving):
        rules["order"] = _order(task, follows, seen.per_move)
    if moving:
        rules["way"] = all(_steps(follows[actor], seen.per_move) for actor in moving)
    if task.walls:
        rules["walls"] = not any(_touches(blob, task) for actor in moving for blob in follows[actor])
    rest = [a for a in range(len(task.actors)) if a not in moving]
    if rest:
        rules["still"] = all(_stays(follows[a], task.actors[a].track[0]) for a in rest)
    rules["ground"] = _ground(task, seen)
    return rules


def _counts(task: Task, seen: Seen) -> bool:
    """Whether each frame shows exactly the things that it should, some of them perhaps turned, and never back."""
    turns = dict(task.turns)
    done: set[int] = set()
    for blobs in seen.things:
        shown = sorted(blob.look for blob in blobs)
        if len(shown) != len(task.actors):
            return False
        for number, actor in enumerate(task.actors):
            options = [actor.look] if number not in turns else [turns[number], actor.look]
            found = [o for o in options if o in shown]
            if not found:
                return False
            shown.remove(found[0])
            if found[0] != actor.look:
                done.add(number)
            elif number in done:
                return False
    return True


def _follow(task: Task, seen: Seen) -> list[list[Blob | None]] | None:
    """Each actor's blob in every frame (None where there is none); None if an actor is never seen at all."""
    turns = dict(task.turns)
    out: list[list[Blob | None]] = []
    for number, actor in enumerate(task.actors):
        looks = {actor.look, turns.get(number, actor.look)}
        row = [next((b for b in blobs if b.look in looks), None) for blobs in seen.things]
        if not any(row):
            return None
        out.append(row)
    return out


def _goal(task: Task, follows: list[list[Blob | None]] | None) -> bool:
    if follows is None:
        return False
    targets = {stop.actor: stop.cell for stop in task.stops}
    for actor, cell in targets.items():
        last = follows[actor][-1]
        if last is None or last.cell != cell or not last.rests:
            return False
    return all((last := follows[actor][-1]) is not None and last.look == new for actor, new in task.turns)


def _steps(row: list[Blob | None], per_move: int) -> bool:
    """Whether a thing rests in a cell whenever a move ends, and slides to one next door, or not at all, in between."""
    for start in range(0, len(row) - 1, per_move):
        part = [blob for blob in row[start : start + per_move + 1] if blob is not None]
        if len(part) <= per_move:
            continue  # not there all the time: another rule's business
        a, b = part[0], part[-1]
        if not (a.rests and b.rests):
            return False
        down, right = b.cell // GRID - a.cell // GRID, b.cell % GRID - a.cell % GRID
        if abs(down) + abs(right) > 1:
            return False
        gone = 0.0
        for blob in part:
            dy, dx = blob.y - a.y, blob.x - a.x
            ahead, aside = (dy * down + dx * right), (dx if down else dy if right else max(abs(dy), abs(dx)))
            if abs(aside) > 3 or not -3 <= ahead <= CELL + 3 or ahead < gone - 3:
                return False
            gone = max(gone, ahead)
    return True


def _touches(blob: Blob | None, task: Task) -> bool:
    """Whether a thing's middle part lies over a wall."""
    if blob is None:
        return False
    for wall in task.walls:
        top, left = wall // GRID * CELL, wall % GRID * CELL
        if top - 2.5 < blob.y < top + CELL + 2.5 and left - 2.5 < blob.x < left + CELL + 2.5:
            return True
    return False


def _stays(row: list[Blob | None], cell: int) -> bool:
    return all(blob.cell == cell and blob.rests for blob in row if blob is not None)


def _order(task: Task, follows: list[list[Blob | None]], per_move: int) -> bool:
    """Whether the stops are reached one after the other, and who has to wait has not moved before."""
    board = 0
    for number, stop in enumerate(task.stops):
        row = follows[stop.actor][::per_move]
        if task.in_turn and number:
            home = task.actors[stop.actor].track[0]
            if any(blob is None or blob.cell != home or not blob.rests for blob in row[: board + 1]):
                return False
        while board < len(row):
            blob = row[board]
            if blob is not None and blob.cell == stop.cell and blob.rests:
                break
            board += 1
        else:
            return False
    return True


def _ground(task: Task, seen: Seen) -> bool:
    """Whether every cell that is not hidden shows the ground that it should in every frame, and nothing else does."""
    for blobs, grounds, stray in zip(seen.things, seen.grounds, seen.stray, strict=True):
        if stray > STRAY:
            return False
        hidden = {
            int(y // CELL) * GRID + int(x // CELL)
            for blob in blobs if not blob.rests
            for y in (blob.y - 5, blob.y + 5) for x in (blob.x - 5, blob.x + 5)
        }  # fmt: skip
        for cell, (wanted, found) in enumerate(zip(task.grounds, grounds, strict=True)):
            if wanted == found or found == UNKNOWN:
                continue
            if cell in hidden and found == EMPTY and wanted != WALL:
                continue  # half a pad under something in between two cells may be too little to name
            return False
    return True
