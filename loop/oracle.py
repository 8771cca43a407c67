"""The loop with a perfect planner and verifier: what is left to gain for the chat model, on the embedded world only.

A bound, not a method: it looks at the scorer's side of a sample, which no model may see.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel

from training import dialogues
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.miniworld.chains import action, legs
from ttopt.miniworld.reader import read
from ttopt.miniworld.scene import Task
from ttopt.models.chat import Message, Reply
from ttopt.optimization.context import Context
from ttopt.record.result import Result

from .engine import StepLoop


class WorldChat:
    """Answers the requests of loop/prompts/mini by the world's own rules, from what is seen in the images."""

    name = "the world's rules"

    def __init__(self, task: Task) -> None:
        self.task = task
        self.legs = {leg.prompt: leg for leg in legs(task)}

    def reply(self, messages: Sequence[Message], schema: type[BaseModel] | None = None) -> Reply:
        text, seen = messages[0].text, read(torch.stack(messages[0].images), boards=True)
        said: dict[str, object]
        if planned := re.fullmatch(r"Plan: .* Done: (.*) Step (\d+) of (\d+)\.", text):
            done = self.done(planned[1])
            said = dialogues.plan(self.task, done, seen, int(planned[2]), int(planned[3]))
        elif checked := re.fullmatch(r"Check: (.*) Task: .*", text):
            said = dialogues.verdict(self.legs.get(checked[1], self.task), seen)
        else:
            said = {"action": "regen"}
        return Reply(json.dumps(said), 0.0, 0, 0, 0.0, self.name)

    def done(self, text: str) -> int:
        """How many stops the accepted actions have reached."""
        if not self.task.stops:
            return int(text != dialogues.NOTHING)
        count = 0
        for stop in self.task.stops:
            if action(self.task, (stop,)) not in text:
                break
            count += 1
        return count


class OracleLoop(StepLoop):
    """StepLoop, told the truth."""

    def solve(self, sample: Sample, folder: Path, context: Context) -> Result:
        if not isinstance(sample.answer, Task):
            raise UserError(f"sample {sample.id} is none of the embedded world's, whose rules answer here")
        chat = dataclasses.replace(context.settings.chat, prompts="mini")
        settings = dataclasses.replace(context.settings, chat=chat)
        return super().solve(
            sample, folder, dataclasses.replace(context, chat=WorldChat(sample.answer), settings=settings)
        )
