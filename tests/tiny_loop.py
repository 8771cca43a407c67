"""A chat model that says what it is told to, and the loop around it on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from tiny import tiny_sample
from torch import Tensor

from loop import StepLoop
from loop.wording import Wording
from ttopt.config.settings import FitSettings
from ttopt.data.sample import Sample
from ttopt.models.chat import Chat, ChatError, Message, Reply
from ttopt.models.load import Models
from ttopt.optimization.context import Context
from ttopt.record.meter import Meter
from ttopt.record.result import Result, Scored

OPENINGS = {"Plan:": "plan", "Check:": "verify", "Route:": "route"}


class Scripted:
    """Answers each role's calls in turn; the last answer serves all later ones. An exception is raised."""

    name = "scripted"

    def __init__(self, **answers: Sequence[Any]) -> None:
        self.answers = {role: list(given) for role, given in answers.items()}
        self.asked: list[tuple[str, Message]] = []

    def reply(self, messages: Sequence[Message], schema: type[BaseModel] | None = None) -> Reply:
        role = OPENINGS[messages[0].text.split()[0]]
        self.asked.append((role, messages[0]))
        given = self.answers[role]
        answer = given.pop(0) if len(given) > 1 else given[0]
        if isinstance(answer, Exception):
            raise answer
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return Reply(text, 0.5, 100, 20, 0.001, self.name)

    def prompts(self, role: str) -> list[str]:
        return [message.text for asked, message in self.asked if asked == role]


def plan(instruction: str = "move the red square", remaining: int = 1, complete: bool = False) -> dict[str, Any]:
    return {
        "observation": "a pad",
        "remaining_goal": "the square",
        "task_complete": complete,
        "instruction": "" if complete else instruction,
        "target_state": "there",
        "estimated_steps_remaining": 0 if complete else remaining,
    }


def verdict(
    accept: bool, good: float = 0.0, progress: float = 0.5, suggestion: str = "go to the pad", **more: Any
) -> dict[str, Any]:
    return {
        "reason": "it goes" if accept else "it stays",
        "action_executed": accept,
        "progress": progress,
        "good_fraction": good,
        "suggestion": "" if accept else suggestion,
        "verdict": "accept" if accept else "reject",
        **more,
    }


YES, NO = verdict(True, 1.0, 1.0), verdict(False)
UNREACHABLE = ChatError("the server cannot be reached")


def solve(
    chat: Chat,
    models: Models,
    settings: FitSettings,
    folder: Path,
    sample: Sample | None = None,
    scorer: Any = None,
    videos: list[Tensor] | None = None,
    notes: list[str] | None = None,
    callbacks: Callable[[], list[Any]] = list,
    **arguments: Any,
) -> tuple[Result, dict[str, Any]]:
    """The result and the trace of one sample; ``videos`` gets the video as a scorer would."""
    if videos is not None:
        scorer = lambda sample, video: videos.append(video) or Scored(True, 1.0, {})  # noqa: E731
    note = [].append if notes is None else notes.append
    with Meter(models.reasoner) as meter:
        context = Context(models, settings, meter, chat, scorer, callbacks=callbacks, note=note)
        method = StepLoop(**{"frames_per_second": 8, **arguments})
        result = method.solve(sample or tiny_sample(), folder, context)
    return result, json.loads((folder / "trace.json").read_text())


__all__ = ["NO", "UNREACHABLE", "YES", "Scripted", "Wording", "plan", "solve", "verdict"]
