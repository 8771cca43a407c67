"""PE: the vision-language model rewrites the prompt once, then one video is made from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, StringConstraints

from ttopt.data.sample import Sample
from ttopt.models.chat import ChatError, Message
from ttopt.optimization.context import Context
from ttopt.optimization.seeds import noise_seed
from ttopt.record.result import Result

REWRITE = """\
A video model will be given this instruction{frame}: "{prompt}"
It follows literal, visual descriptions better than it reasons. Work out what the right video shows, and rewrite the \
instruction so that the model only has to draw it: name the objects as they look, say what moves where, in which \
order, how it ends, and what must stay unchanged. Reply with JSON only: {{"prompt": <the new prompt>}}"""


class Rewrite(BaseModel):
    """A prompt in other words."""

    prompt: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class PromptRewrite:
    """One rewrite, one video from the same noise as ``single``."""

    def solve(self, sample: Sample, folder: Path, context: Context) -> Result:
        seed = noise_seed(context.settings.seed, sample)
        context.status("rewriting the prompt")
        try:
            prompt = self.rewrite(sample, context)
        except ChatError as error:
            return context.finish(sample, None, folder, method="pe", seeds={"noise": seed}, error=str(error))
        video = context.generate(dataclasses.replace(sample, prompt=prompt), seed)
        return context.finish(
            sample, video, folder, method="pe", seeds={"noise": seed}, stop="one rewrite", details={"prompt": prompt}
        )

    def rewrite(self, sample: Sample, context: Context) -> str:
        """The prompt in other words. Raises ChatError."""
        parts = [REWRITE.format(prompt=sample.prompt, frame="" if sample.image is None else " and this first frame")]
        images = [] if sample.image is None else [sample.image]
        return context.ask([Message("user", (*images, *parts))], Rewrite).prompt
