"""What a perfect planner, verifier and router of the step loop would reply about a task of the world.

The chat model is trained on these replies (loop/prompts/mini holds the wording of the requests) and measured against
them. A verdict answers one yes/no question after the other, in the words that the teacher has learned; the rest of it
follows from the answers. What a video shows is told by ``Seen``: of a rendered film from what it was made of, of any
other by the reader. The verifier sees every board of a clip.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ttopt.miniworld import second
from ttopt.miniworld.chains import action
from ttopt.miniworld.look import pad_name, thing_name
from ttopt.miniworld.questions import Question, questions
from ttopt.miniworld.reader import Seen
from ttopt.miniworld.scene import Stop, Task, distance

PLAN = "Plan: {prompt} Done: {done} Step {step} of {steps}."
VERIFY = "Check: {action} Task: {prompt}"
ROUTE = "Route: {action} Task: {prompt} Wrong: {reason}"
NOTHING = "nothing."
PROCESS = ("whole", "way", "walls", "still", "ground")  # rules that hold on every board of a right clip


@dataclass(frozen=True)
class Checked:
    """A question and whether its answer is Yes."""

    question: Question
    holds: bool


def checks(task: Task, seen: Seen) -> list[Checked]:
    """The answers to all questions about a task."""
    return [Checked(question, question.truth(seen)) for question in questions(task)]


def reason(found: list[Checked]) -> str:
    """The answers as text: "Is the red square on the blue pad at the end? Yes. Does ...? No."."""
    return " ".join(f"{c.question.text} {'Yes' if c.holds else 'No'}." for c in found)


def verdict(task: Task, seen: Seen) -> dict[str, object]:
    """The perfect verifier's reply about a clip of ``task``."""
    found = checks(task, seen)
    accept = all(c.holds for c in found)
    return {
        "reason": reason(found),
        "action_executed": found[0].holds,
        "progress": 1.0 if accept else progress(task, seen),
        "good_fraction": 1.0 if accept else good_fraction(task, seen),
        "suggestion": suggestion(found),
        "verdict": "accept" if accept else "reject",
    }


def suggestion(found: list[Checked]) -> str:
    """The repair of the first question whose answer is No; empty if there is none."""
    return next((c.question.repair for c in found if not c.holds), "")


def progress(task: Task, seen: Seen) -> float:
    """How much of its way the last mover has made at the end, 0.0 to 1.0 in tenths; painting is all or nothing."""
    if not task.stops:
        return float(second.judge(task, seen)["goal"])
    stop = task.stops[-1]
    here = where(seen, task.actors[stop.actor].look, len(seen) - 1)
    whole = distance(task.actors[stop.actor].track[0], stop.cell)
    return 0.0 if here is None else round(max(0, whole - distance(here, stop.cell)) / max(1, whole), 1)


def good_fraction(task: Task, seen: Seen) -> float:
    """The share of the boards before the first mistake, 0.0 to 0.9 in tenths."""
    good = 0
    for boards in range(1, len(seen) + 1):
        rules = second.judge(task, seen[:boards])
        if not all(rules.get(rule, True) for rule in PROCESS):
            break
        good = boards
    return min(0.9, int(10 * good / len(seen)) / 10)


def where(seen: Seen, look: int, board: int) -> int | None:
    """The cell in which a thing lies on a board, or None."""
    return next((blob.cell for blob in seen.things[board] if blob.look == look), None)


def plan(task: Task, done: int, seen: Seen, step: int, steps: int) -> dict[str, object]:
    """The perfect planner's reply when ``done`` stops are said to be reached and the last board of ``seen`` is shown.

    Where the last of them is not true there, it is done again.
    """
    stops = task.stops or (Stop(0, task.actors[0].track[0], 0),)
    observation = ""
    if done:
        fine = in_place(task, done, seen)
        observation = f"{_asked(task, done)} {'Yes' if fine else 'No'}."
        done -= not fine
    if done == len(stops):
        return {
            "observation": observation, "task_complete": True, "instruction": "", "target_state": "",
            "estimated_steps_remaining": 0,
        }  # fmt: skip
    now = stops[done:] if step >= steps else stops[done : done + 1]
    return {
        "observation": observation,
        "task_complete": False,
        "instruction": action(task, now if task.stops else ()),
        "target_state": _state(task, now[-1]),
        "estimated_steps_remaining": len(stops) - done,
    }


def in_place(task: Task, done: int, seen: Seen) -> bool:
    """Whether the last of ``done`` stops is true on the last board."""
    if not task.stops:
        return all(new in [blob.look for blob in seen.things[-1]] for _, new in task.turns)
    stop = task.stops[done - 1]
    return where(seen, task.actors[stop.actor].look, len(seen) - 1) == stop.cell


def done_text(task: Task, done: int) -> str:
    """The completed instructions as the planner is shown them."""
    if not task.stops:
        return task.prompt if done else NOTHING
    return " ".join(action(task, (stop,)) for stop in task.stops[:done]) or NOTHING


def route(task: Task, found: list[Checked], lost: bool) -> dict[str, object]:
    """The perfect router's reply after repeated rejects: split what has several stops, give up what is lost."""
    several = len(task.stops) > 1
    return {
        "action": "fallback" if lost else "split" if several else "regen",
        "suggestion": suggestion(found),
        "reason": next((c.question.text for c in found if not c.holds), ""),
        "estimated_steps": len(task.stops) if several else 1,
    }


def is_lost(task: Task, seen: Seen) -> bool:
    """Whether the first stop's mover is not on the first board."""
    return where(seen, task.actors[task.stops[0].actor if task.stops else 0].look, 0) is None


def as_text(reply: dict[str, object]) -> str:
    return json.dumps(reply)


def _asked(task: Task, done: int) -> str:
    if not task.stops:
        return questions(task)[0].text
    stop = task.stops[done - 1]
    return f"Is the {thing_name(task.actors[stop.actor].look)} on the {pad_name(stop.ground)}?"


def _state(task: Task, stop: Stop) -> str:
    if not task.stops:
        turned = [thing_name(new) for _, new in task.turns]
        return "the " + " and the ".join(turned)
    return f"the {thing_name(task.actors[stop.actor].look)} on the {pad_name(stop.ground)}"
