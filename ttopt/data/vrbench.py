"""VR-Bench (arXiv 2511.15065): mazes of five kinds, in which the video moves the player (or a box) to the goal.

``root`` is a copy of amagipeng/VR-Bench, with the prompts that the benchmark's code writes for it, from its checkout:
``python -m prompts.generate_metadata --dataset-root ROOT``.

    metadata/{train|eval}/{maze}_{skin}_{difficulty}/metadata.csv   video, prompt, input_image: a row a solution
    {train|eval}/{maze}/{skin}/{difficulty}/images/easy_0001.png    and states/easy_0001.json, videos/easy_0001_0.mp4

A model sees the image and the prompt; states and videos are the judge's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ttopt.config.settings import SampleSettings
from ttopt.data.files import choose, first_frame, inside, path_part, sample_id, table, words
from ttopt.data.sample import Sample
from ttopt.errors import UserError

SPLITS = ("train", "eval")
MAKE = "make it in a checkout of the benchmark's code: python -m prompts.generate_metadata --dataset-root"

score = None  # judged by ttopt/evaluate/judges/vrbench.py


@dataclass(frozen=True)
class Maze:
    """What the judge compares a sample's video with."""

    root: Path
    folder: PurePosixPath  # {split}/{maze}/{skin}/{difficulty}
    name: str  # such as easy_0001

    @property
    def state(self) -> Path:
        """Where player, boxes and goal are in the image."""
        return inside(self.root, self.folder / "states" / f"{self.name}.json")

    @property
    def solutions(self) -> list[Path]:
        """The true videos, one for every shortest path."""
        place = inside(self.root, self.folder / "videos")
        found = sorted(place.glob(f"{self.name}_*.mp4")) or [place / f"{self.name}.mp4"]
        return [inside(self.root, path.relative_to(self.root)) for path in found]


def samples(
    split: str, families: Sequence[str] | None, seed: int, limit: int, *, root: Path, form: SampleSettings
) -> list[Sample]:
    """``limit`` samples of a split (train, eval, or all that are there), mazes of each kind in turn; ``families`` are
    kinds, such as sokoban. All are as long as ``form`` says. No seed. Raises UserError for what is missing."""
    if split not in (*SPLITS, "all"):
        raise UserError(f"VR-Bench has no split {split!r}; give --split train, eval or all")
    groups: dict[str, list[tuple[Maze, str]]] = {}
    there = [name for name in SPLITS if (root / "metadata" / name).is_dir()] or SPLITS
    for name in there if split == "all" else (split,):
        for maze, prompt in _rows(root, name):
            groups.setdefault(maze.folder.parts[1], []).append((maze, prompt))
    return [_sample(maze, prompt, form) for maze, prompt in choose(groups, families, limit, "VR-Bench maze")]


def _rows(root: Path, split: str) -> list[tuple[Maze, str]]:
    """Every image of a split once, with its prompt."""
    folder = root / "metadata" / split
    found: dict[str, tuple[Maze, str]] = {}
    for file in sorted(folder.glob("*/metadata.csv")):
        for number, row in enumerate(table(file, root), start=2):
            where = f"{file}, line {number}"
            given = words(row, "input_image", where)
            parts = [path_part(part) for part in PurePosixPath(given).parts]
            if len(parts) != 6 or (parts[0], parts[4]) != (split, "images") or not given.endswith(".png"):
                raise UserError(f"{where}: {given!r} is no image of the {split} split; {MAKE} {root}")
            maze = Maze(root, PurePosixPath(*parts[:4]), parts[5].removesuffix(".png"))
            found.setdefault(given, (maze, words(row, "prompt", where)))
    if not found:
        raise UserError(f"{folder} has no prompts (*/metadata.csv); {MAKE} {root}")
    return list(found.values())


def _sample(maze: Maze, prompt: str, form: SampleSettings) -> Sample:
    split, kind, skin, _ = maze.folder.parts
    image = first_frame(inside(maze.root, maze.folder / "images" / f"{maze.name}.png"), form)
    name = sample_id(split, kind, skin, maze.name)
    return Sample(name, prompt, image, form.frames, form.fps, image.height, image.width, kind, split, maze)


def output_path(sample: Sample) -> Path:
    """{split}/{maze}/{skin}/{difficulty}/{name}.mp4; the official evaluator looks below the folder of a skin."""
    maze: Maze = sample.answer
    return Path(maze.folder) / f"{maze.name}.mp4"
