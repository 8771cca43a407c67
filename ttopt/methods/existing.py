"""Videos that lie in a folder already, of whatever system."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

from ttopt.config.settings import FitSettings
from ttopt.data.sample import Sample
from ttopt.data.video import decode, plays_everywhere, write_to_watch
from ttopt.errors import UserError
from ttopt.optimization.context import Context
from ttopt.record.identity import file_digest
from ttopt.record.plain import there
from ttopt.record.result import Result
from ttopt.record.run_folder import writing

VIDEO, ORIGINAL = "video.mp4", "original.mp4"


class Existing:
    """Takes a sample's video from ``videos``: where the benchmark's official evaluator looks, else {id}.mp4.

    It is copied. One that not every browser plays is kept as original.mp4, beside a video.mp4 to watch.
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
        film = decode(path)
        height, width = film.shape[-2:]
        if height % 2 or width % 2:
            raise UserError(f"{path} has frames of {height}x{width}; give a video of even sizes")
        with context.meter.timer("write"), writing(folder):
            if plays_everywhere(path):
                shutil.copyfile(path, folder / VIDEO)
            else:
                shutil.copyfile(path, folder / ORIGINAL)
                write_to_watch(folder / VIDEO, film)
        return context.finish(
            sample, film.pixels(None if context.scorer else [0]), folder, written=folder / VIDEO, method="existing",
            seeds={}, stop="found", more_inputs=self.inputs(sample, context.settings),
        )  # fmt: skip

    def inputs(self, sample: Sample, settings: FitSettings) -> dict[str, str]:
        """The video's digest."""
        return {"video": file_digest(self._path(sample, settings))}

    def _path(self, sample: Sample, settings: FitSettings) -> Path:
        return self.videos / video_path(sample, settings.dataset)


def judged_video(place: Path) -> Path:
    """The file in a sample's folder that is scored: the method's own, and not a copy to watch."""
    return place / (ORIGINAL if there(place / ORIGINAL) else VIDEO)


def video_path(sample: Sample, dataset: str) -> Path:
    """Where a data set's evaluator looks for a sample's video, relative to the folder of a system's videos."""
    module = importlib.import_module(f"ttopt.data.{dataset}")
    # A sample of the user's own has no data set, and the embedded world no evaluator but its scorer.
    if sample.answer is None or not hasattr(module, "output_path"):
        return Path(f"{sample.id}.mp4")
    path: Path = module.output_path(sample)
    return path
