"""The baseline of the step loop: clip after clip with the task's own prompt, and nobody who plans or checks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from torch import Tensor

from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.methods.pass_at_k import by_loss, by_scorer
from ttopt.optimization.context import Context
from ttopt.optimization.seeds import noise_name, seed_of
from ttopt.record.result import Result

from .clips import join


class Chain:
    """``clips`` clips, each from the last frame of the one before; of ``k`` such videos the one that ``judge`` prefers:
    the teacher's loss, or the scorer, which is a bound and no method.

    As long as the loop's videos, and for k > 1 as expensive: what the loop gains over it, it owes to its judgment.
    """

    def __init__(self, clips: int = 3, k: int = 1, judge: Literal["loss", "scorer"] = "loss") -> None:
        if not all(isinstance(n, int) and n >= 1 for n in (clips, k)) or judge not in ("loss", "scorer"):
            raise UserError(f"clips {clips}, k {k}, judge {judge}: give 1 or more of each, judge loss or scorer")
        self.clips, self.k, self.choose = clips, k, by_scorer if judge == "scorer" else by_loss

    def solve(self, sample: Sample, folder: Path, context: Context) -> Result:
        videos, seeds = [], {}
        for number in range(self.k):
            made: list[Tensor] = []
            for clip in range(self.clips):
                context.status(f"video {number + 1} of {self.k}, clip {clip + 1}")
                purpose = noise_name(number * self.clips + clip)
                seeds[purpose] = seed_of(context.settings.seed, sample.id, purpose)
                start = made[-1][-1] if made else sample.image
                made.append(
                    context.generate(dataclasses.replace(sample, first_frame=start, answer=None), seeds[purpose])
                )
            videos.append(join(made))
        best, error = 0, ""
        if self.k > 1:
            try:
                best, _ = self.choose(dataclasses.replace(sample, frames=len(videos[0])), videos, context)
            except UserError as problem:
                error = str(problem)
        name, stop = f"{self.clips} clips" + (f", pass@{self.k}" if self.k > 1 else ""), "no one judged the steps"
        return context.finish(sample, videos[best], folder, method=name, seeds=seeds, stop=stop, error=error)
