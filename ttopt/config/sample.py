"""Settings of a sample of your own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ttopt.config.fields import Group, group, setting

MOST_FRAMES = 65_536  # of a video; the models' own limits are far below
CURE = "say what should happen: --sample.prompt 'the red cross moves to the green pad'"


@dataclass(frozen=True)
class QuerySettings(Group):
    """Your own yes/no questions instead of the teacher's, phrased so that "Yes" means satisfied."""

    goal: str = ""
    """The goal query ("By the end, is ...?"). Empty: the teacher writes all queries."""
    process: list[str] = setting([], cap=100)
    """One to three process queries, e.g. '["Does the red cross stay whole?"]'."""

    def problems(self) -> Iterator[str]:
        if self.process and not self.goal.strip():
            yield "sample.queries.process is given without a goal query; give --sample.queries.goal too"
        if self.goal and not 1 <= len(self.process) <= 3:
            yield (
                f"sample.queries.process has {len(self.process)} questions; "
                "give one to three, e.g. --sample.queries.process '[\"Does the red cross stay whole?\"]'"
            )


@dataclass(frozen=True)
class SampleSettings(Group):
    """A sample of your own, instead of the data set's."""

    prompt: str | None = setting(None, shared=True)
    """What should happen in the video."""
    image: str | None = setting(None, shared=True)
    """First frame (PNG, JPEG, ...), cropped and resized to width x height; what is transparent becomes white. Without
    it: text to video."""
    id: str = setting("sample", shared=True)
    """Name of the sample's result folder."""
    frames: int = setting(89, low=1, cap=MOST_FRAMES, give="4k+1 frames, e.g. 81")
    """Length of the video, 4k+1."""
    fps: int = setting(24, low=1, cap=1000, give="frames a second, e.g. 16")
    """Frames per second."""
    height: int = setting(704, low=1, cap=32_768, give="pixels, e.g. 480")
    """Height in pixels."""
    width: int = setting(1280, low=1, cap=32_768, give="pixels, e.g. 832")
    """Width in pixels. Data sets from files keep their images' aspect and have at most this height x width."""
    multiple: int = setting(32, low=1, cap=32_768, give="32, or what the reasoner needs")
    """Data sets from files get sizes that are multiples of this; Wan2.2-5B needs 32."""
    queries: QuerySettings = group(QuerySettings)
    """Your own yes/no questions instead of the teacher's (they also replace them on a data set)"""

    def problems(self) -> Iterator[str]:
        if self.height % 2 or self.width % 2 or self.multiple % 2:
            yield (
                f"sample.height, width, multiple are {self.height}, {self.width}, {self.multiple}; "
                "give even numbers, as H.264 needs"
            )
        if self.prompt is not None and not self.prompt.strip():
            yield f"sample.prompt is empty; {CURE}"
        if self.prompt is None and self.image is not None:
            yield f"sample.image is {self.image}, but there is no prompt; {CURE}"
