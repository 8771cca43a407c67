"""What a perfect planner, verifier and router of the step loop would reply about a task of the sprite world.

The tiny vision-language model is trained on these replies (loop/prompts/mini holds the wording of the requests) and
measured against them. A verdict first writes down what is seen, cell by cell, and then answers one yes/no question
after the other, in the words that the teacher has learnt; it is only their conjunction.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from ttopt.miniworld.multistep import action
from ttopt.miniworld.questions import (
    AllAt,
    At,
    Both,
    InOrder,
    Keeps,
    NothingNew,
    OffWalls,
    One,
    PadsStay,
    Passes,
    Question,
    Tours,
    Turned,
    Visits,
)
from ttopt.miniworld.scene import Stop, Task, distance
from ttopt.miniworld.tokenizer import CELL_NAMES
from ttopt.miniworld.world import (
    CELLS,
    EMPTY,
    FRAMES,
    NONE,
    SPRITES,
    WALL,
    Reading,
    pad_name,
    sprite_colour,
    sprite_name,
)

PLAN = "Plan: {prompt} Done: {done} Step {step} of {steps}."
VERIFY = "Check: {action} Task: {prompt}"
ROUTE = "Route: {action} Task: {prompt} Wrong: {reason}"
NOTHING = "nothing."
SPRITE_NAMES = {sprite_name(number) for number in range(NONE + 1, SPRITES)}
PAD_NAMES = {pad_name(ground) for ground in range(EMPTY + 1, WALL)}
FATES = ("still", "moved", "other", "copy")  # of what the last frame shows
SEEN = [0, 2, 4, 6, 8]  # frames of a clip that the verifier is shown, four a second


@dataclass(frozen=True)
class Check:
    """One atomic fact about a video, whether it holds, and what to tell the reasoner if it does not."""

    text: str
    holds: bool
    suggestion: str
    evidence: str = ""  # what to compare: "c3 red square", the cell in question and what it shows at the end


def checks(task: Task, reading: Reading) -> list[Check]:
    """All that the scorer checks about a task, fact by fact, for a reading of one video (N = 1)."""
    out: list[Check] = []
    subject = sprite_name(task.actors[0].sprite)

    def add(question: Question, suggestion: str) -> None:
        truth = float(question.truth(reading)) > 0.5
        out.append(Check(question.text(), truth, suggestion, evidence(question, reading)))

    def at(end: At) -> None:
        add(end, f"The {sprite_name(end.sprite)} goes to the {pad_name(end.pad)}.")

    goal = task.goal
    if isinstance(goal, At):
        at(goal)
    elif isinstance(goal, Both):
        at(goal.first)
        at(goal.second)
    elif isinstance(goal, AllAt):
        for end in goal.ends:
            at(end)
    elif isinstance(goal, Turned):
        add(goal, f"The {subject} turns {sprite_colour(goal.new)}.")
    elif isinstance(goal, (Visits, Tours)):
        places = (goal.first, goal.second) if isinstance(goal, Visits) else goal.stops
        *by, (last, cell) = places
        for number, (ground, _) in enumerate(by, start=1):
            add(Passes(goal.sprite, places[:number]), f"The {subject} goes to the {pad_name(ground)}.")
        at(At(goal.sprite, last, cell))
    # what stays comes in the order of its cells, as the grid before it lists them
    for question in sorted(task.process, key=lambda q: q.cell if isinstance(q, Keeps) else -1):
        if isinstance(question, One):
            add(question, out[0].suggestion)
        elif isinstance(question, OffWalls):
            add(question, f"The {subject} goes through the gap.")
        elif isinstance(question, InOrder):
            add(question, "")
        elif isinstance(question, Keeps):
            add(question, f"The {sprite_name(question.sprite)} stays.")
    for question in task.common.values():
        add(question, out[0].suggestion)
    return out


def evidence(question: Question, reading: Reading) -> str:
    """What decides a question, for a reading (N = 1): each cell that it is about, and what is there at the end."""
    last = reading.sprite[0, -1]  # (36, 19)
    if isinstance(question, (At, Turned, Keeps)):
        return f"{CELL_NAMES[question.cell]} {at_end(reading, question.cell)}"
    if isinstance(question, One):
        return " ".join(CELL_NAMES[cell] for cell in (last[:, question.sprite] > 0.5).nonzero()[:, 0]) or "nothing"
    if isinstance(question, Passes):
        return " ".join(CELL_NAMES[cell] for _, cell in question.stops)
    if isinstance(question, OffWalls):
        touched = (reading.sprite[0, :, :, question.sprite] > 0.5).any(0)  # (36,)
        return " ".join(CELL_NAMES[cell] for cell in sorted(question.walls) if touched[cell]) or "nothing"
    if isinstance(question, NothingNew):
        return odd(question, reading)
    if isinstance(question, PadsStay):
        return pads(question, reading)
    return ""


def odd(question: NothingNew, reading: Reading) -> str:
    """Sprites of the last frame that should not be there, or are there again: "a1 red cross b2 red cross"."""
    missing, found = set(question.looks), []
    for cell, number in (reading.sprite[0, -1] > 0.5).nonzero().tolist():
        if number in missing:
            missing.remove(number)
        elif number != NONE:
            found.append(f"{CELL_NAMES[cell]} {sprite_name(number)}")
    return " ".join(found) or "nothing"


def pads(question: PadsStay, reading: Reading) -> str:
    """The pads and what is there at the end, then those that are new: "d5 green pad green pad, e1 red pad"."""
    known = dict(question.pads)
    old = " ".join(f"{CELL_NAMES[cell]} {pad_name(ground)} {at_end(reading, cell)}" for cell, ground in question.pads)
    at = {cell: at_end(reading, cell) for cell in range(CELLS) if cell not in {*known, *question.crossed}}
    new = " ".join(f"{CELL_NAMES[cell]} {name}" for cell, name in at.items() if name in PAD_NAMES)
    return f"{old}, {new or 'nothing'}" if old else new or "nothing"


def grid(reading: Reading, frame: int) -> str:
    """Each cell of a frame of a reading (N = 1) and what it shows, row by row: "a1 b1 red square c1 d1 wall ..."."""
    cells = (f"{CELL_NAMES[cell]} {shown(reading, frame, cell)}".rstrip() for cell in range(CELLS))
    return " ".join(cells) + "."


def ending(reading: Reading) -> str:
    """The last frame (N = 1) as ``grid`` tells it, and how each sprite and pad got there since the first one.

    "still" was in this place, "moved" elsewhere, "other" nowhere, "copy" is in a cell told before too.
    """
    start = [shown(reading, 0, cell) for cell in range(CELLS)]
    told, met = [], set()
    for cell in range(CELLS):
        name, fate = shown(reading, -1, cell), ""
        if name in SPRITE_NAMES | PAD_NAMES:
            fate = "still" if start[cell] == name else "moved" if name in start else "other"
            fate = "copy" if name in met else fate
            met |= {name} & SPRITE_NAMES
        told.append(f"{CELL_NAMES[cell]} {name} {fate}".rstrip())
    return " ".join(told) + "."


def at_end(reading: Reading, cell: int) -> str:
    """What a cell of the last frame shows, or "nothing" (N = 1)."""
    return shown(reading, -1, cell) or "nothing"


def shown(reading: Reading, frame: int, cell: int) -> str:
    """What a cell shows: a sprite, a pad, "wall", "" if it is empty, "?" if it is a smear (N = 1)."""
    sprites, ground = reading.sprite[0, frame, cell], reading.ground[0, frame, cell]  # (19,), (8,)
    best, under = int(sprites.argmax()), int(ground.argmax())
    if float(sprites[best]) <= 0.5:
        return "?"
    if best != NONE:
        return sprite_name(best)
    if under == EMPTY or float(ground[under]) <= 0.5:
        return ""
    return "wall" if under == WALL else pad_name(under)


def motion(task: Task, reading: Reading) -> str:
    """Where each mover is in the frames that a verifier is shown (N = 1): "red square a1 a1 b2 c3 c3, ..."."""
    ways = []
    frames = SEEN if reading.sprite.shape[1] == FRAMES else range(reading.sprite.shape[1])  # or it has only these
    for actor in task.actors[: task.movers]:
        here = where(reading, actor.sprite)
        cells = ("?" if here[frame] is None else CELL_NAMES[here[frame] or 0] for frame in frames)
        ways.append(f"{sprite_name(actor.sprite)} {' '.join(cells)}")
    return ", ".join(ways) + "."


def reason(found: list[Check]) -> str:
    """The checks as text: "Is the red square on the cyan pad at the end? c3 red square: Yes. Is there ..."."""
    return " ".join(f"{c.text}{f' {c.evidence}:' * bool(c.evidence)} {'Yes' if c.holds else 'No'}." for c in found)


def verdict(task: Task, reading: Reading) -> dict[str, object]:
    """The perfect verifier's reply about a clip of ``task`` (N = 1)."""
    found = checks(task, reading)
    accept = all(c.holds for c in found)
    wrong = next((c.suggestion for c in found if not c.holds), "")
    return {
        "seen": f"First: {grid(reading, 0)} End: {ending(reading)} Motion: {motion(task, reading)}",
        "reason": reason(found),
        "action_executed": found[0].holds,
        "progress": 1.0 if accept else progress(task, reading),
        "good_fraction": 1.0 if accept else good_fraction(task, reading),
        "suggestion": wrong,
        "verdict": "accept" if accept else "reject",
    }


def where(reading: Reading, sprite: int) -> list[int | None]:
    """The cell in which a sprite is seen in each frame, or None (N = 1)."""
    best = reading.trace[0, :, :, sprite].max(1)
    return [int(c) if v > 0.5 else None for v, c in zip(best.values, best.indices, strict=True)]


def progress(task: Task, reading: Reading) -> float:
    """How much of the last mover's way to its stop it has made, 0.0 to 1.0 in tenths."""
    if not task.stops:
        return float(float(task.goal.truth(reading)) > 0.5)
    stop = task.stops[-1]
    here = where(reading, task.actors[stop.actor].sprite)[-1]
    start = distance(task.actors[stop.actor].track[0], stop.cell)
    if here is None:
        return 0.0
    return round(max(0, start - distance(here, stop.cell)) / max(1, start), 1)


def good_fraction(task: Task, reading: Reading) -> float:
    """The share of frames before the first mistake, 0.0 to 0.9 in tenths."""
    frames = reading.sprite.shape[1]
    good = frames
    for question in task.process:
        if isinstance(question, Keeps):
            fine = reading.sprite[0, :, question.cell, question.sprite] > 0.5
        elif isinstance(question, OffWalls):
            fine = reading.sprite[0, :, list(question.walls), question.sprite].amax(1) < 0.5
        else:
            continue
        good = min(good, int(fine.long().cumprod(0).sum()))
    if task.stops:
        target, nearest = task.stops[0].cell, 99
        actor = task.actors[task.stops[0].actor]
        for frame, cell in enumerate(where(reading, actor.sprite)):
            if cell is None:
                continue
            away = distance(cell, target)
            if away > nearest and not task.walls:
                good = min(good, frame)
                break
            nearest = min(nearest, away)
    elif float(task.goal.truth(reading)) < 0.5:
        good = min(good, 5)
    seen, ground = reading.sprite[0], reading.ground[0]  # (T, 36, 19), (T, 36, 8)
    looks = sorted({look for actor in task.actors for look in actor.looks})
    strange = [s for s in range(1, SPRITES) if s not in looks]
    fine = (seen[..., strange].flatten(1).amax(1) < 0.5) & (seen[..., looks].topk(2, dim=1).values[:, 1].amax(1) < 0.5)
    for cell, number in task.bare_pads:
        fine &= (ground[:, cell, number] > 0.5) | (seen[:, cell, NONE] <= 0.5)
    good = min(good, int(fine.long().cumprod(0).sum()))
    for actor in task.actors[: task.movers]:  # gone for good
        here = reading.trace[0][:, :, sorted(set(actor.looks))].flatten(1).amax(1) > 0.5
        if not here[-1]:
            good = min(good, int(here.nonzero().max()) + 1 if here.any() else 0)
    return min(0.9, int(10 * good / frames) / 10)


def plan(task: Task, done: int, reading: Reading, step: int, steps: int) -> dict[str, object]:
    """The perfect planner's reply when ``done`` stops are reported as completed, for a reading (N = 1) of one frame.

    Where the last of them is not true in that frame, it is done again.
    """
    seen = f"Now: {grid(reading, 0)}"
    fine = done == 0 or in_place(task, done, reading, 0)
    stops = task.stops or (Stop(0, task.actors[0].track[0]),)
    observation = ""
    if done:
        question = _question(task, stops[done - 1])
        observation = f"{question.text()} {whereabouts(question, reading)}: {'Yes' if fine else 'No'}."
        done -= not fine
    if done == len(stops):
        return {
            "seen": seen, "observation": observation, "task_complete": True, "instruction": "", "target_state": "",
            "estimated_steps_remaining": 0,
        }  # fmt: skip
    now = stops[done:] if step >= steps else stops[done : done + 1]
    return {
        "seen": seen,
        "observation": observation,
        "task_complete": False,
        "instruction": action(task, now if task.stops else ()),
        "target_state": _state(task, now[-1]),
        "estimated_steps_remaining": len(stops) - done,
    }


def whereabouts(question: At | Turned, reading: Reading) -> str:
    """Where what a question names is seen in one frame (N = 1): "red square c3, cyan pad nothing"."""
    if isinstance(question, Turned):
        return _places(sprite_name(question.new), reading)
    return f"{_places(sprite_name(question.sprite), reading)}, {_places(pad_name(question.pad), reading)}"


def _places(name: str, reading: Reading) -> str:
    cells = [CELL_NAMES[cell] for cell in range(CELLS) if shown(reading, 0, cell) == name]
    return f"{name} {' '.join(cells) or 'nothing'}"


def done_text(task: Task, done: int) -> str:
    """The completed instructions as the planner is shown them."""
    if not task.stops:
        return task.prompt if done else NOTHING
    return " ".join(action(task, (stop,)) for stop in task.stops[:done]) or NOTHING


def route(task: Task, found: list[Check], lost: bool) -> dict[str, object]:
    """The perfect router's reply after repeated rejects: split what has several stops, give up what is lost."""
    several = len(task.stops) > 1
    wrong = next((c.suggestion for c in found if not c.holds), "")
    return {
        "action": "fallback" if lost else "split" if several else "regen",
        "suggestion": wrong,
        "reason": next((c.text for c in found if not c.holds), ""),
        "estimated_steps": len(task.stops) if several else 1,
    }


def is_lost(task: Task, reading: Reading) -> bool:
    """True if the first stop's mover is not seen in the first frame (N = 1)."""
    actor = task.actors[task.stops[0].actor if task.stops else 0]
    return where(reading, actor.sprite)[0] is None


def as_text(reply: dict[str, object]) -> str:
    return json.dumps(reply)


def in_place(task: Task, done: int, reading: Reading, frame: int) -> bool:
    """Whether the last of ``done`` stops is true in a frame of a reading (N = 1)."""
    if not task.stops:
        assert isinstance(task.goal, Turned)
        return float(reading.sprite[0, frame, task.goal.cell, task.goal.new]) > 0.5
    stop = task.stops[done - 1]
    return float(reading.sprite[0, frame, stop.cell, task.actors[stop.actor].sprite]) > 0.5


def evolved(task: Task, rng: np.random.Generator) -> str:
    """The task's prompt, at random without its keep clause or with suggestions as a verifier would append them."""
    prompt = task.prompt
    if task.parent is not None and task.keep and rng.random() < 0.4:
        prompt = prompt.removesuffix(task.keep)
    for _ in range(int(rng.choice([0, 0, 0, 0, 1, 1, 2]))):
        others = task.actors[task.movers :]
        subject = sprite_name(task.actors[0].sprite)
        if others and rng.random() < 0.6:
            prompt += f" The {sprite_name(others[int(rng.integers(len(others)))].sprite)} stays."
        elif isinstance(task.goal, At):
            prompt += f" The {subject} goes to the {pad_name(task.goal.pad)}."
        elif isinstance(task.goal, Turned):
            prompt += f" The {subject} turns {sprite_colour(task.goal.new)}."
        else:
            prompt += f" The {subject} stays as it is."
    return prompt


def _state(task: Task, stop: Stop) -> str:
    if not task.stops:
        assert isinstance(task.goal, Turned)
        return f"the {sprite_name(task.actors[0].sprite)} {sprite_colour(task.goal.new)}"
    return f"the {sprite_name(task.actors[stop.actor].sprite)} on the {pad_name(task.pads[stop.cell])}"


def _question(task: Task, stop: Stop) -> At | Turned:
    if not task.stops:
        assert isinstance(task.goal, Turned)
        return task.goal
    return At(task.actors[stop.actor].sprite, task.pads[stop.cell], stop.cell)
