"""The rule-based scorer: pixels of all frames in, one verdict a rule out. It never sees how a video was made.

Analysis by synthesis. Each thing that belongs on the board is looked for in every frame by matched filters; the board
is drawn anew with what was found, and whatever of the frame that drawing does not explain breaks a rule. The rules:

* goal: at the end every mover stands on its pad and what was to turn has turned;
* order: pads are visited in the order of the prompt, movers go one after another where it says so;
* whole: in every frame each thing is there once, in its shape and color, and there is no other thing;
* way: movers go from cell to cell next door, along the board, at most one cell a move;
* walls: nothing ever stands on a wall;
* still: what was not asked to move stays in its place in every frame in which it is seen;
* ground: pads, walls and ground stay as they are in every frame, and nothing is smeared over them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ttopt.miniworld.look import (
    BODY,
    CELL,
    COLORS,
    GRID,
    LOOKS,
    MARGIN,
    MASKS,
    PER_MOVE,
    SHAPE_NAMES,
    ground_image,
    paint,
)
from ttopt.miniworld.scene import Task

STRIDE, FIRST = 2, 1  # things are looked for at every second pixel, from pixel 1 on
REACH = 0.45  # RGB distance at which a pixel stops looking like a color
PRESENT = 0.55  # of a perfect match
UNEXPLAINED = 0.25  # mean error of a 4x4 block that the drawing does not explain
NEAR = 2  # pixels: as good as there


@dataclass(frozen=True)
class Score:
    """``success``: every rule holds in every frame; ``last``: goal and the rest hold in the last frame, whatever was
    before; ``partial`` is the mean of the rules' partial truths in [0, 1] (a broken rule's share of good frames, .9 at
    most); ``frames``: the numbers of the frames that break a broken rule."""

    success: bool
    last: bool
    partial: float
    rules: dict[str, bool]
    frames: dict[str, list[int]]


def score_videos(task: Task, videos: Tensor) -> list[Score]:
    """Scores of several videos (N, T, 3, 96, 96) in [0, 1] of one task, T = 4k + 1."""
    return [_score(task, video.float().clamp(0, 1).cpu()) for video in videos]


def _score(task: Task, video: Tensor) -> Score:
    sight = _Sight(task, video)
    movers = sorted({stop.actor for stop in task.stops})
    truths: dict[str, Tensor] = {"goal": _goal(task, sight)}
    if task.in_turn or any(sum(s.actor == m for s in task.stops) > 1 for m in movers):
        truths["order"] = _order(task, sight)
    truths["whole"] = sight.whole.float()
    if movers:
        truths["way"] = torch.stack([_legal(sight.places[m], sight.there[m]) for m in movers]).amin(0)
    if task.walls:
        truths["walls"] = (
            torch.stack([_off(sight.places[m], task.walls) for m in movers])
            .maximum((~sight.there[movers]).float())
            .amin(0)
        )
    fixed = [i for i in range(len(task.actors)) if i not in movers]
    if fixed:
        homes = torch.tensor([_corner(task.actors[i].track[0]) for i in fixed]).unsqueeze(1)
        near = (sight.places[fixed] - homes).abs().amax(-1) <= NEAR
        truths["still"] = (near | ~sight.there[fixed]).all(0).float()
    truths["ground"] = sight.clean.float()
    rules = {name: bool((truth == 1).all()) for name, truth in truths.items()}
    parts = [1.0 if rules[name] else 0.9 * float(truth.mean()) for name, truth in truths.items()]
    last = rules["goal"] and all(bool(truths[k][-1] == 1) for k in ("whole", "still", "ground") if k in truths)
    frames = {name: _breaking(truth, len(video)) for name, truth in truths.items() if not rules[name]}
    return Score(all(rules.values()), last, sum(parts) / len(parts), rules, frames)


def _breaking(truth: Tensor, frames: int) -> list[int]:
    """The frames that break a rule by its truths (T,); what is judged by the whole video, (1,), breaks in the last."""
    if len(truth) < frames:
        return [frames - 1]
    broken: list[int] = (truth < 1).nonzero().flatten().tolist()
    return broken


class _Sight:
    """Where the task's things are: ``places`` (A, T, 2) upper left pixels, as before where one is not seen; ``turned``
    and ``there`` (A, T) whether it has its new look and is seen at all; ``whole`` and ``clean`` (T,) are the rules
    whole and ground, frame by frame."""

    def __init__(self, task: Task, video: Tensor) -> None:
        fits = _fits(video)  # (T, 24, P, P)
        times, _, side, _ = fits.shape
        # A thing is where its look fits better than every look anywhere near.
        best_near = F.max_pool2d(fits.amax(1), 5, 1, 2).unsqueeze(1)
        flat = torch.where(fits >= best_near - 1e-4, fits, -1.0).flatten(2)
        turns = dict(task.turns)
        drawn = torch.from_numpy(ground_image(task.grounds)).repeat(times, 1, 1, 1)
        covered = torch.zeros(times, side, side, dtype=torch.bool)
        corners = torch.zeros(times, side, side, dtype=torch.bool)
        self.places = torch.zeros(len(task.actors), times, 2, dtype=torch.long)
        self.turned = torch.zeros(len(task.actors), times, dtype=torch.bool)
        self.there = torch.zeros(len(task.actors), times, dtype=torch.bool)
        self.whole = torch.ones(times, dtype=torch.bool)
        grid = torch.arange(side)
        for number, actor in enumerate(task.actors):
            looks = [actor.look, *([turns[number]] if number in turns else [])]
            best, where = flat[:, looks].max(-1)  # (T, looks)
            seen, index = best.max(-1)
            where = where.gather(1, index[:, None])[:, 0]
            shown = torch.tensor(looks)[index]
            there = seen > PRESENT
            turned = index == 1
            self.there[number] = there
            self.whole &= there
            self.whole[1:] &= ~(turned[:-1] & ~turned[1:])  # what has turned stays so
            self.turned[number] = turned
            rows, columns = where // side, where % side
            for t in range(times):
                if there[t]:
                    spot = FIRST + STRIDE * int(rows[t]), FIRST + STRIDE * int(columns[t])
                    self.places[number, t] = torch.tensor(spot)
                    paint(drawn[t].numpy(), int(shown[t]), *spot)
                    near = ((grid - rows[t]).abs() * STRIDE < BODY)[:, None] & (
                        (grid - columns[t]).abs() * STRIDE < BODY
                    )
                    covered[t] |= near
                    corners[t, rows[t], columns[t]] = True
                elif t:
                    self.places[number, t] = self.places[number, t - 1]
        extra = (fits.amax(1) > PRESENT) & ~covered
        self.whole &= ~extra.flatten(1).any(1)
        error = (video - drawn.permute(0, 3, 1, 2)).abs().amax(1, keepdim=True)
        wrong = F.avg_pool2d(error, 4, 2)[:, 0] > UNEXPLAINED  # (T, 47, 47)
        about = _about(corners | extra, wrong.shape[-1])
        self.whole &= ~(wrong & about).flatten(1).any(1)
        self.clean = ~(wrong & ~about).flatten(1).any(1)


def _fits(video: Tensor) -> Tensor:
    """How well each look fits at each place, (T, 24, P, P), 1 at best: the share of its pixels that have its color,
    less the share of those around that have it too."""
    colors = torch.tensor(list(COLORS.values())).view(1, -1, 3, 1, 1)
    close = (1 - (video.unsqueeze(1) - colors).square().sum(2).sqrt() / REACH).clamp_min(0)  # (T, 6, H, W)
    masks = torch.stack([torch.from_numpy(MASKS[shape]) for shape in SHAPE_NAMES]).float().unsqueeze(1)
    kernel = masks / masks.sum((2, 3), keepdim=True) - (1 - masks) / (1 - masks).sum((2, 3), keepdim=True)
    fits = F.conv2d(close[..., FIRST:, FIRST:].flatten(0, 1).unsqueeze(1), kernel, stride=STRIDE)
    return fits.view(len(video), LOOKS, *fits.shape[-2:])


def _about(corners: Tensor, side: int) -> Tensor:
    """Blocks (T, side, side) of the error map on a thing whose corner is at one of these places (T, P, P)."""
    # Block i is pixels 2i to 2i + 3, place p is pixels 2p + 1 to 2p + 10: blocks p to p + 4, all but a pixel in it.
    grown = F.pad(corners.float(), (0, side - corners.shape[2], 0, side - corners.shape[1]))
    reach = (BODY - 2) // STRIDE
    return F.max_pool2d(F.pad(grown, (reach, 0, reach, 0)), reach + 1, 1) > 0


def _corner(cell: int) -> tuple[int, int]:
    return cell // GRID * CELL + MARGIN, cell % GRID * CELL + MARGIN


def _cells(places: Tensor) -> Tensor:
    """The cells (B,) in which a thing (T, 2) rests when a move has ended; -1 where it is in none."""
    rest = places[::PER_MOVE] - MARGIN
    index = (rest + CELL // 2) // CELL
    near = ((rest - index * CELL).abs() <= NEAR).all(-1) & (index >= 0).all(-1) & (index < GRID).all(-1)
    return torch.where(near, index[:, 0] * GRID + index[:, 1], -1)


def _legal(places: Tensor, there: Tensor) -> Tensor:
    """Frames (T,) in which a thing's way is legal; moves during which it is not seen all the time are not judged."""
    good = torch.ones(len(places))
    cells = _cells(places)
    for board in range(len(cells)):
        end = PER_MOVE * board
        if cells[board] < 0 and there[end]:
            good[end] = 0
        if not board or cells[board] < 0 or cells[board - 1] < 0 or not there[end - PER_MOVE : end + 1].all():
            continue
        a, b = (torch.tensor(_corner(int(c))) for c in cells[board - 1 : board + 1])
        between = places[end - PER_MOVE : end + 1]
        low, high = torch.minimum(a, b) - NEAR, torch.maximum(a, b) + NEAR
        along = ((between - a) * (b - a).sign()).sum(-1)
        fine = ((between >= low) & (between <= high)).all(-1)
        fine[1:] &= along[1:] >= along[:-1] - NEAR
        if (a - b).abs().sum() > CELL:
            fine[:] = False
        good[end - PER_MOVE + 1 : end + 1] *= fine[1:].float()
    return good


def _off(places: Tensor, walls: tuple[int, ...]) -> Tensor:
    """Frames (T,) in which a thing lies less than three pixels deep in any wall."""
    good = torch.ones(len(places))
    for wall in walls:
        corner = torch.tensor([wall // GRID * CELL, wall % GRID * CELL])
        deep = torch.minimum(places + BODY, corner + CELL) - torch.maximum(places, corner)
        good[(deep > 2).all(-1)] = 0
    return good


def _goal(task: Task, sight: _Sight) -> Tensor:
    """How much of the goal is reached in the end, a scalar in a tensor (1,)."""
    parts = []
    ends = {stop.actor: stop.cell for stop in task.stops}
    for actor, cell in ends.items():
        target = torch.tensor(_corner(cell))
        left = int((sight.places[actor, -1] - target).abs().max()) if sight.there[actor, -1] else CELL
        start = int((torch.tensor(_corner(task.actors[actor].track[0])) - target).abs().sum())
        walked = 1 - int((sight.places[actor, -1] - target).abs().sum()) / max(start, CELL)
        parts.append(1.0 if left <= NEAR else min(0.9, max(0.0, walked)))
    parts += [float(sight.turned[actor, -1] & sight.there[actor, -1]) for actor, _ in task.turns]
    return torch.tensor([sum(parts) / len(parts)])


def _order(task: Task, sight: _Sight) -> Tensor:
    """The share of stops that are reached in order, (1,): each when those before it have been."""
    reached, since = 0, 0
    cells = [_cells(places).tolist() for places in sight.places]
    for number, stop in enumerate(task.stops):
        times = [i for i, cell in enumerate(cells[stop.actor]) if cell == stop.cell and i >= since]
        if not times:
            break
        waits = number == 0 or not task.in_turn
        start = task.actors[stop.actor].track[0]
        if not waits and any(cell != start for cell in cells[stop.actor][: since + 1]):
            break
        reached, since = reached + 1, times[0]
    return torch.tensor([reached / len(task.stops)])
