"""Yes/no questions about a video of the world, their wording and their truth by what is seen in every frame.

Every question is phrased so that "Yes" means satisfied (VLM-as-Teacher, section 3.2). Truths are judged on ``Seen``:
of a rendered film by what it was made of, of any other video by the reader, which the scorer does not share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ttopt.miniworld import second
from ttopt.miniworld.look import color_of, pad_name, thing_name
from ttopt.miniworld.reader import Seen
from ttopt.miniworld.scene import Task

KEEP = "Nothing else changes."


@dataclass(frozen=True)
class Question:
    """``about``: goal, one, walls, order or rest; ``rules``: those of the scorers that it covers; ``repair``: what to
    add to a prompt after a video that fails it."""

    about: str
    text: str
    truth: Callable[[Seen], bool]
    rules: frozenset[str]
    repair: str


def questions(task: Task) -> tuple[Question, ...]:
    """What a perfect teacher asks: the goal first, then two or three rules about the process."""
    names = [f"the {thing_name(a.look)}" for a in task.actors[: task.movers]]
    out: list[Question] = []

    def ask(about: str, text: str, truth: Callable[[Seen], bool], rules: set[str], repair: str) -> None:
        out.append(Question(about, text, truth, frozenset(rules), repair))

    ask("goal", _goal_text(task), lambda seen: _goal(task, seen), {"goal"}, _goal_repair(task))
    if task.in_turn:
        text = f"Do {', '.join(names[:-1])} and {names[-1]} move one after the other?"
        repair = f"{_sentence(names[0])} goes first."
        ask("order", text, lambda seen: _rule(task, seen, "order"), {"order"}, repair)
    elif len(task.stops) > task.movers:
        places = [f"the {pad_name(stop.ground)}" for stop in task.stops]
        repair = f"{_sentence(names[0])} goes to {places[0]} first."
        text = f"Does {names[0]} visit {' before '.join(places)}?"
        ask("order", text, lambda seen: _rule(task, seen, "order"), {"order"}, repair)
    if task.walls:
        repair = f"{_sentence(names[0])} goes through the gap."
        ask("walls", f"Does {names[0]} stay off the walls?", lambda seen: _rule(task, seen, "walls"), {"walls"}, repair)
    if task.stops:
        verb = "Is" if len(names) == 1 else "Are"
        text = f"{verb} there exactly one {_ones(task)} all the time, moving cell by cell?"
    else:
        text = f"{'Does' if len(names) == 1 else 'Do'} {' and '.join(names)} keep shape and place all the time?"
    ask("one", text, lambda seen: _whole(task, seen), {"whole", "way"}, KEEP)
    text = f"Does everything but {' and '.join(names)} stay as it is all the time?"
    ask("rest", text, lambda seen: _rest(task, seen), {"whole", "still", "ground"}, KEEP)
    return tuple(out)


def rule_words(task: Task) -> dict[str, str]:
    """What each of the scorer's rules asks about a video, for people."""
    own = {question.about: question.text for question in questions(task)}
    names = " and ".join(f"the {thing_name(a.look)}" for a in task.actors[: task.movers])
    verb = "Does" if task.movers == 1 else "Do"
    return {
        "goal": own["goal"],
        "order": own.get("order", ""),
        "whole": "Is everything there exactly once, in its color and shape, all the time?",
        "way": f"{verb} {names} move cell by cell?",
        "walls": own.get("walls", ""),
        "still": "Does what nobody asked to move stay in its place?",
        "ground": "Do the pads, the walls and the ground stay as they are?",
    }


def repaired_prompt(task: Task, rng: np.random.Generator, chances: Sequence[float] = (0.0, 0.7, 0.3)) -> str:
    """The prompt with none, one or two of the repairs that a verifier would add, with these chances."""
    repairs = list(dict.fromkeys(q.repair for q in questions(task)))
    order = [repairs[int(i)] for i in rng.permutation(len(repairs))]
    count = int((rng.random() < np.cumsum(chances[:0:-1])).sum())  # below the first of them two, below the last one
    return " ".join([task.prompt, *order[:count]])


def _sentence(name: str) -> str:
    return name[0].upper() + name[1:]


def _goal_repair(task: Task) -> str:
    if task.turns:
        actor, new = task.turns[-1]
        return f"The {thing_name(task.actors[actor].look)} turns {color_of(new)}."
    stop = task.stops[-1]
    return f"The {thing_name(task.actors[stop.actor].look)} goes to the {pad_name(stop.ground)}."


def _ones(task: Task) -> str:
    return " and one ".join(thing_name(a.look) for a in task.actors[: task.movers])


def _goal_text(task: Task) -> str:
    if task.turns:
        parts = [f"the {thing_name(task.actors[a].look)} turned {color_of(new)}" for a, new in task.turns]
        return f"{'Has' if len(parts) == 1 else 'Have'} {' and '.join(parts)} at the end?"
    ends = {stop.actor: stop.ground for stop in task.stops}
    *most, last = (f"the {thing_name(task.actors[a].look)} on the {pad_name(g)}" for a, g in ends.items())
    return f"Is {', '.join(most)}{' and ' if most else ''}{last} at the end?"


def _rule(task: Task, seen: Seen, name: str) -> bool:
    return second.judge(task, seen)[name]


def _goal(task: Task, seen: Seen) -> bool:
    return _rule(task, seen, "goal")


def _whole(task: Task, seen: Seen) -> bool:
    """Whether each mover is there once in every frame, in one of its looks, and goes a legal way."""
    turns = dict(task.turns)
    for number in range(task.movers):
        look = task.actors[number].look
        looks = {look, turns.get(number, look)}
        counts = [sum(blob.look in looks for blob in blobs) for blobs in seen.things]
        if any(count != 1 for count in counts):
            return False
    rules = second.judge(task, seen)
    return rules.get("way", True) and (bool(task.stops) or rules["still"])


def _rest(task: Task, seen: Seen) -> bool:
    """Whether all that does not move is there in every frame, in its place and look, and nothing else is."""
    turns = dict(task.turns)
    mine = {n for i in range(task.movers) for n in (task.actors[i].look, turns.get(i, task.actors[i].look))}
    others = {actor.look: actor.track[0] for actor in task.actors[task.movers :]}
    for blobs in seen.things:
        found = [blob for blob in blobs if blob.look not in mine]
        if sorted(blob.look for blob in found) != sorted(others):
            return False
        if any(blob.cell != others[blob.look] or not blob.rests for blob in found):
            return False
    return second.judge(task, seen)["ground"]
