"""Prompt rewriting in the step loop's words, for models that know only those, as the embedded one does.

The methods are those of ``ttopt.methods``; the loop's planner rewrites, and its verifier criticizes. A planner that has
one step left says all that is to be done in one instruction. A verifier's suggestion ends the next prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ttopt import methods
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.methods.videotpo import Critique
from ttopt.optimization.context import Context

from .planner import plan
from .settings import LoopSettings
from .verifier import verify
from .wording import Wording, with_suggestion

LAST_STEP = LoopSettings().max_steps


class PromptRewrite(methods.PromptRewrite):
    """PE: the planner's instruction for the whole task is the prompt; the task's own, if it sees nothing to be done."""

    def rewrite(self, sample: Sample, context: Context) -> str:
        wording, image = Wording.load(context.settings.chat.prompts), sample.image
        last = plan(_asker(context), wording, image, image, sample.prompt, (), LAST_STEP, LAST_STEP, "")
        return last.instruction or sample.prompt


class VideoTPO(methods.VideoTPO):
    """VideoTPO: of two videos that the verifier judges one by one, the better one's suggestion goes into the prompt."""

    def __init__(self, rounds: int = 2, frames_per_second: float = LoopSettings().frames_per_second) -> None:
        super().__init__(rounds)
        if not isinstance(frames_per_second, (int, float)) or not 0 < frames_per_second < float("inf"):
            raise UserError(f"frames_per_second {frames_per_second}: give a number above 0")
        self.frames_per_second = frames_per_second

    def criticize(self, made: Sample, task: Sample, pair: list[Tensor], context: Context) -> Critique:
        wording, ask, rate = Wording.load(context.settings.chat.prompts), _asker(context), self.frames_per_second
        verdicts = [
            verify(ask, wording, task.image, video, made.fps, rate, task.prompt, (), made.prompt, "") for video in pair
        ]
        better = max((0, 1), key=lambda number: (verdicts[number].accepted, *verdicts[number].rank))
        return Critique(better=better + 1, critique=verdicts[better].suggestion)

    def improve(self, prompt: str, task: Sample, critique: str, context: Context) -> str:
        return with_suggestion(prompt, critique)


def _asker(context: Context) -> Callable[..., Any]:
    return lambda message, schema: context.ask([message], schema)
