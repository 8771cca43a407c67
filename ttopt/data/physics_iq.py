"""Physics-IQ Verified (arXiv 2606.18943): experiments filmed from three sides, 66 scenarios, 198 samples of 5 seconds.

``root`` is a copy of Anates-Labs-Research/Physics-IQ-Verified, or of the original benchmark, which has the same layout,
with the prompts' file of the benchmark's code in it as descriptions.csv:

    descriptions.csv             scenario, description, category, generated_video_name
    switch-frames/               {id}_switch-frames_anyFPS_{perspective}_{scenario}.jpg
    split-videos/testing/24FPS/  {id}_testing-videos_24FPS_{perspective}_take-1_{scenario}.mp4, and of take 2
    video-masks/real/24FPS/      {id}_video-masks_24FPS_{perspective}_take-1_{scenario}.mp4, and of take 2

A model sees the switch frame and the description; the videos and masks are the judge's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ttopt.config.settings import SampleSettings
from ttopt.data.files import choose, field, first_frame, inside, path_part, sample_id, table, words
from ttopt.data.sample import Sample
from ttopt.errors import UserError

FILE = "descriptions.csv"
CODE = "descriptions/best_practice/descriptions_base.csv"
SECONDS = 5

score = None  # judged by ttopt/evaluate/judges/physics_iq.py


@dataclass(frozen=True)
class Filmed:
    """What the judge compares a sample's video with: two takes of the same scenario from the same side."""

    root: Path
    takes: tuple[str, str]  # their numbers, such as 0001 and 0199
    view: str  # perspective-left, -center or -right
    scenario: str  # trimmed-....mp4
    video: str  # where the generated video lies

    def real(self, take: int, fps: int) -> Path:
        """The real video of take 1 or 2."""
        return self._file("split-videos/testing", "testing-videos", take, fps)

    def mask(self, take: int, fps: int) -> Path:
        """Where something moves in it."""
        return self._file("video-masks/real", "video-masks", take, fps)

    def _file(self, folder: str, kind: str, take: int, fps: int) -> Path:
        name = f"{self.takes[take - 1]}_{kind}_{fps}FPS_{self.view}_take-{take}_{self.scenario}"
        return inside(self.root, f"{folder}/{fps}FPS/{name}")


def samples(
    split: str, families: Sequence[str] | None, seed: int, limit: int, *, root: Path, form: SampleSettings
) -> list[Sample]:
    """``limit`` samples, categories in turn; ``families`` are categories such as Optics. No split, no seed.

    All are as long as ``form`` says, which must be 5 seconds or more. Raises UserError for what is missing.
    """
    if form.frames < SECONDS * form.fps:
        raise UserError(
            f"Physics-IQ's videos last {SECONDS} seconds, but {form.frames} frames at {form.fps} a second are shorter; "
            f"give --sample.frames {4 * -(-SECONDS * form.fps // 4) + 1}"
        )
    first: dict[str, list[dict[str, str]]] = {}
    second: dict[tuple[str, str], str] = {}  # scenario and side -> number of the second take
    for number, row in enumerate(_rows(root), start=2):
        where = f"{root / FILE}, line {number}"
        parts = str(field(row, "scenario", where)).split("_")
        if len(parts) != 4 or parts[2] not in ("take-1", "take-2"):
            raise UserError(f"{where}: the scenario {row['scenario']!r} is none of Physics-IQ's; copy {CODE} again")
        if parts[2] == "take-1":
            first.setdefault(words(row, "category", where), []).append(row)
        else:
            second[parts[3], parts[1]] = parts[0]
    return [_sample(row, second, root, form) for row in choose(first, families, limit, "Physics-IQ category")]


def _rows(root: Path) -> list[dict[str, str]]:
    if not (root / FILE).is_file():
        raise UserError(f"{root / FILE} is missing; copy {CODE} of the benchmark's code there")
    return table(root / FILE, root)


def _sample(row: dict[str, str], second: dict[tuple[str, str], str], root: Path, form: SampleSettings) -> Sample:
    number, view, _, scenario = (path_part(part) for part in row["scenario"].split("_"))
    name = sample_id(number, view, Path(scenario).stem)
    if (scenario, view) not in second:
        raise UserError(
            f"{root / FILE}: {row['scenario']} has no second take; copy {CODE} of the benchmark's code again"
        )
    picture = f"switch-frames/{number}_switch-frames_anyFPS_{view}_{Path(scenario).stem}.jpg"
    image = first_frame(inside(root, picture), form)
    filmed = Filmed(
        root, (number, path_part(second[scenario, view])), view, scenario,
        path_part(words(row, "generated_video_name", name)),
    )  # fmt: skip
    prompt = words(row, "description", name)
    return Sample(name, prompt, image, form.frames, form.fps, image.height, image.width, row["category"], "", filmed)


def output_path(sample: Sample) -> Path:
    """Where the official evaluator looks for this sample's video: {id}_{perspective}_{scenario}.mp4."""
    filmed: Filmed = sample.answer
    return Path(filmed.video)
