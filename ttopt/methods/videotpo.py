"""VideoTPO (arXiv 2511.13704): two videos a round are compared in words, and the prompt is rewritten accordingly."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pydantic import BaseModel, Field
from torch import Tensor

from ttopt.data.sample import Sample
from ttopt.data.video import sample_frames
from ttopt.errors import UserError
from ttopt.methods.prompt_rewrite import Rewrite
from ttopt.models.chat import ChatError, Message
from ttopt.optimization.context import Context
from ttopt.optimization.seeds import noise_seed
from ttopt.record.result import Result

CRITICIZE = """\
These are frames, in order, of two videos made from the prompt "{prompt}" for the task "{task}".
Say which is better at the task, what each does right and wrong, and what a prompt would have to say to get a better \
one. Reply with JSON only: {{"better": <1 or 2>, "critique": <text>}}"""

IMPROVE = """\
A video model was given the prompt "{prompt}" for the task "{task}". A critic saw two of its videos:
{critique}
Write a better prompt for the same task, literal and visual. Reply with JSON only: {{"prompt": <the new prompt>}}"""


class Critique(BaseModel):
    """Two videos compared."""

    better: int = Field(ge=1, le=2)
    critique: str


class VideoTPO:
    """``rounds`` rewrites of two videos each, then the final video from ``single``'s noise: five videos by default."""

    def __init__(self, rounds: int = 2, shown: int = 8) -> None:
        if not all(isinstance(n, int) and n >= 1 for n in (rounds, shown)):
            raise UserError(f"rounds {rounds}, shown {shown}: give 1 or more")
        self.rounds, self.shown = rounds, shown

    def solve(self, sample: Sample, folder: Path, context: Context) -> Result:
        seeds = [noise_seed(context.settings.seed, sample, number) for number in (0, 1)]
        named = {f"noise {number}": seed for number, seed in enumerate(seeds)}
        prompt, history, video = sample.prompt, [], None
        try:
            for number in range(1, self.rounds + 1):
                context.status(f"round {number} of {self.rounds}")
                now = dataclasses.replace(sample, prompt=prompt)
                pair = [context.generate(now, seed) for seed in seeds]
                video = pair[0]
                critique = self.criticize(now, sample, pair, context)
                video = pair[critique.better - 1]
                prompt = self.improve(prompt, sample, critique.critique, context)
                history.append({"better": critique.better, "critique": critique.critique, "prompt": prompt})
        except ChatError as error:
            return context.finish(
                sample, video, folder, method="videotpo", seeds=named, error=str(error), details={"rounds": history}
            )
        video = context.generate(dataclasses.replace(sample, prompt=prompt), seeds[0])
        return context.finish(
            sample, video, folder, method="videotpo", seeds=named, stop=f"rounds of rewriting: {self.rounds}",
            details={"rounds": history},
        )  # fmt: skip

    def criticize(self, made: Sample, task: Sample, pair: list[Tensor], context: Context) -> Critique:
        """What is right and wrong in two videos of ``made``, whose prompt may be another than the task's."""
        parts: list[str | Tensor] = []
        for number, video in enumerate(pair, start=1):
            parts += [f"Video {number}:", *video[sample_frames(self.shown, len(video))]]
        parts.append(CRITICIZE.format(prompt=made.prompt, task=task.prompt))
        return context.ask([Message("user", tuple(parts))], Critique)

    def improve(self, prompt: str, task: Sample, critique: str, context: Context) -> str:
        """A better prompt for the same task."""
        text = IMPROVE.format(prompt=prompt, task=task.prompt, critique=critique)
        return context.ask([Message("user", (text,))], Rewrite).prompt
