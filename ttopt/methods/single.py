"""The frozen model's first video: what every other method is compared with."""

from __future__ import annotations

from pathlib import Path

from ttopt.fit import seed_of
from ttopt.methods.base import Context
from ttopt.result import Result
from ttopt.sample import Sample


def noise_seed(run_seed: int, sample: Sample, number: int = 0) -> int:
    """The seed of a sample's video number ``number``; number 0 is the same noise in every method."""
    return seed_of(run_seed, sample.id, f"noise {number}" if number else "noise")


class Single:
    """One video from the sample's own noise."""

    def solve(self, sample: Sample, folder: Path, context: Context) -> Result:
        seed = noise_seed(context.settings.seed, sample)
        video = context.generate(sample, seed)
        return context.finish(sample, video, folder, method="single", seeds={"noise": seed}, stop="one video")
