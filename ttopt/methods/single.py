"""The frozen model's first video: what every other method is compared with."""

from __future__ import annotations

from pathlib import Path

from ttopt.data.sample import Sample
from ttopt.optimization.context import Context
from ttopt.optimization.seeds import noise_seed
from ttopt.record.result import Result


class Single:
    """One video from the sample's own noise."""

    asks = False

    def solve(self, sample: Sample, folder: Path, context: Context) -> Result:
        seed = noise_seed(context.settings.seed, sample)
        video = context.generate(sample, seed)
        return context.finish(sample, video, folder, method="single", seeds={"noise": seed}, stop="one video")
