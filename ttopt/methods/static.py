"""The first frame, repeated: what a scorer gives for nothing."""

from __future__ import annotations

from pathlib import Path

from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.optimization.context import Context
from ttopt.record.result import Result


class Static:
    """On VBVR-Bench this beats leading models, so it stands in every table."""

    needs_models = False

    def solve(self, sample: Sample, folder: Path, context: Context) -> Result:
        """Raises UserError for text to video, which has no first frame."""
        image = sample.image
        if image is None:
            raise UserError("there is no first frame to repeat; leave the method static out for text to video")
        video = image.expand(sample.frames, -1, -1, -1)
        return context.finish(sample, video, folder, method="static", seeds={}, stop="first frame repeated")
