"""Videos that lie in a folder already, of whatever system."""

from __future__ import annotations

import importlib
from pathlib import Path

from ttopt.errors import UserError
from ttopt.identity import file_digest
from ttopt.methods.base import Context
from ttopt.result import Result
from ttopt.sample import Sample
from ttopt.settings import FitSettings
from ttopt.video import read_video


class Existing:
    """Takes a sample's video from ``videos``: where the benchmark's official evaluator looks, else {id}.mp4."""

    needs_models = False

    def __init__(self, videos: str) -> None:
        if not Path(videos).is_dir():
            raise UserError(f"videos {videos}: there is no such folder; give the one that holds the videos")
        self.videos = Path(videos)

    def solve(self, sample: Sample, folder: Path, context: Context) -> Result:
        """Raises UserError for a video that is missing or cannot be read."""
        path = self._path(sample, context.settings)
        if not path.is_file():
            raise UserError(f"there is no {path}")
        more = self.inputs(sample, context.settings)
        return context.finish(
            sample, read_video(path), folder, method="existing", seeds={}, stop="found", more_inputs=more
        )

    def inputs(self, sample: Sample, settings: FitSettings) -> dict[str, str]:
        """The video's digest."""
        return {"video": file_digest(self._path(sample, settings))}

    def _path(self, sample: Sample, settings: FitSettings) -> Path:
        return self.videos / video_path(sample, settings.dataset)


def video_path(sample: Sample, dataset: str) -> Path:
    """Where a data set's evaluator looks for a sample's video, relative to the folder of a system's videos."""
    module = importlib.import_module(f"ttopt.datasets.{dataset}")
    # A sample of one's own has no data set, and the sprite world no evaluator but its scorer.
    if sample.answer is None or not hasattr(module, "output_path"):
        return Path(f"{sample.id}.mp4")
    path: Path = module.output_path(sample)
    return path
