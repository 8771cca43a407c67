"""Videos that lie in a folder already, of whatever system."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

from ttopt.config.settings import FitSettings
from ttopt.data.sample import Sample
from ttopt.data.video import read_video_rate
from ttopt.errors import UserError
from ttopt.optimization.context import Context
from ttopt.record.identity import file_digest
from ttopt.record.result import Result
from ttopt.record.run_folder import writing

ORIGINAL = "original.mp4"


class Existing:
    """Takes a sample's video from ``videos``: where the benchmark's official evaluator looks, else {id}.mp4.

    The file itself, which an official evaluator gets, lies beside the copy that every browser plays.
    """

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
        video, fps = read_video_rate(path)
        if video.shape[-1] % 2 or video.shape[-2] % 2:
            raise UserError(f"{path} has frames of {video.shape[-2]}x{video.shape[-1]}; give a video of even sizes")
        with writing(folder):
            shutil.copyfile(path, folder / ORIGINAL)
        more = self.inputs(sample, context.settings)
        return context.finish(
            sample, video, folder, fps=fps, method="existing", seeds={}, stop="found", more_inputs=more
        )

    def inputs(self, sample: Sample, settings: FitSettings) -> dict[str, str]:
        """The video's digest."""
        return {"video": file_digest(self._path(sample, settings))}

    def _path(self, sample: Sample, settings: FitSettings) -> Path:
        return self.videos / video_path(sample, settings.dataset)


def video_path(sample: Sample, dataset: str) -> Path:
    """Where a data set's evaluator looks for a sample's video, relative to the folder of a system's videos."""
    module = importlib.import_module(f"ttopt.data.{dataset}")
    # A sample of the user's own has no data set, and the sprite world no evaluator but its scorer.
    if sample.answer is None or not hasattr(module, "output_path"):
        return Path(f"{sample.id}.mp4")
    path: Path = module.output_path(sample)
    return path
