"""Physics-IQ Verified's score (arXiv 2606.18943; google-deepmind/physics-IQ-benchmark): against two real takes.

The rules are those of the benchmark's code, written again for one sample at a time, with the same OpenCV calls and the
same rounding; docs/benchmarks.md says how equality was checked. Of the first 5 seconds, at a quarter of the real
video's size:

    spatial            where anything moves at all: intersection over union of the masks, all frames together
    spatiotemporal     where and when: the same frame by frame, and the mean of it
    weighted spatial   where and how much: of the masks' sums over time
    mse                squared difference of the pixels

Each is taken against take 1 and divided by what take 2 reaches (mse the other way round), at most 1. A sample's score
is the mean of the four, the benchmark's ("verified") that of the samples. "original" is the older way: the three
quotients of the means over all samples, less the difference in mse.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ttopt.config.comparison import CompareSettings
from ttopt.data.physics_iq import SECONDS, Filmed, output_path
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.evaluate.judges import Evaluator, Judgment, mean_of, measured, opencv

SMALLEST = 1e-8  # added to what is divided by
METRICS = ("spatial", "spatiotemporal", "weighted spatial", "mse")


def evaluator(settings: CompareSettings) -> Evaluator:
    """Needs OpenCV. Raises UserError."""
    cv2 = opencv("Physics-IQ")

    def evaluate(videos: Path, judged: Sequence[Sample], samples: Sequence[Sample], work: Path) -> Judgment:
        found, errors = measured(judged, lambda sample: measure(cv2, sample.answer, videos / output_path(sample)))
        parts = {name: one.shares() for name, one in found.items()}
        scores = {name: mean_of(list(shares.values())) for name, shares in parts.items()}
        numbers = summary(samples, scores, parts)
        if len(found) == len(samples):
            numbers["overall"]["original"] = round(100 * original(list(found.values())), 2)
        about = {"opencv": str(cv2.__version__)}
        return Judgment("Physics-IQ score", scores, numbers, errors, about, parts)

    return evaluate


@dataclass(frozen=True)
class Measured:
    """The metrics of a video against take 1 (``reached``), and of take 2 against take 1 (``possible``)."""

    reached: dict[str, float]
    possible: dict[str, float]

    def shares(self) -> dict[str, float]:
        """0 to 1 for each metric."""
        found = {}
        for metric in METRICS:
            share = self.reached[metric] / (self.possible[metric] + SMALLEST)
            share = (1 / share if share else 1.0) if metric == "mse" else share
            found[metric] = min(1.0, max(0.0, share))
        return found


def measure(cv2: Any, filmed: Filmed, video: Path) -> Measured:
    """Compares a video with both takes. Raises UserError for one that is too short or of a rate that was not filmed."""
    fps = round(_opened(cv2, video).get(cv2.CAP_PROP_FPS))
    count = SECONDS * fps
    for path in (place(take, fps) for place in (filmed.real, filmed.mask) for take in (1, 2)):
        if not path.is_file():
            raise UserError(
                f"{path} is missing; fetch the data set again, or make videos of 8, 16, 24 or 30 frames a second"
            )
    first = next(_frames(cv2, filmed.real(1, fps), 1))
    size = first.shape[1] // 4, first.shape[0] // 4
    with tempfile.TemporaryDirectory() as folder:
        write_mask(cv2, video, Path(folder) / "mask.mp4", count)
        masks = [
            [(cv2.resize(mask, size) > 127).astype(np.uint8) for mask in _frames(cv2, path, count)]
            for path in (filmed.mask(1, fps), filmed.mask(2, fps), Path(folder) / "mask.mp4")
        ]
    one, two, mine = masks
    errors, variance = [], []
    readers = [_frames(cv2, path, count) for path in (filmed.real(1, fps), filmed.real(2, fps), video)]
    for frames in zip(*readers, strict=True):
        a, b, c = ((cv2.resize(frame, size) / 255.0).astype(np.float32) for frame in frames)
        errors.append(float(np.mean((a - c) ** 2)))
        variance.append(float(np.mean((a - b) ** 2)))
    return Measured(_compare(one, mine, errors), _compare(one, two, variance))


def _compare(one: list[np.ndarray], other: list[np.ndarray], errors: list[float]) -> dict[str, float]:
    every = [_overlap(a, b) for a, b in zip(one, other, strict=True)]
    mine, theirs = (np.sum(masks, axis=0, dtype=np.uint16) / len(masks) for masks in (one, other))
    more, less = np.maximum(mine, theirs).sum(), np.minimum(mine, theirs).sum()
    return {
        "spatial": _overlap(np.max(one, axis=0), np.max(other, axis=0)),
        "spatiotemporal": _rounded_mean(every),
        "weighted spatial": float(less / more) if more else 1.0,
        "mse": _rounded_mean(errors),
    }


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union; two empty masks are equal."""
    union = np.logical_or(one, other).sum()
    return float(np.logical_and(one, other).sum() / union) if union else 1.0


def _rounded_mean(values: Sequence[float]) -> float:
    """The benchmark reads its table of frames back with four decimals."""
    return float(np.mean([round(value, 4) for value in values]))


def write_mask(cv2: Any, video: Path, target: Path, count: int) -> None:
    """Where the first ``count`` frames of a video differ from the running mean of those before, as an mp4 (mp4v)."""
    kernel = np.ones((5, 5), np.uint8)
    average: Any = None
    out: Any = None
    for frame in _frames(cv2, video, count):
        gray = cv2.GaussianBlur(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), (5, 5), 0)
        if out is None:
            average, mask = gray.astype("float"), np.zeros_like(gray)
            fps = round(_opened(cv2, video).get(cv2.CAP_PROP_FPS))
            even = gray.shape[1] - gray.shape[1] % 2, gray.shape[0] - gray.shape[0] % 2
            out = cv2.VideoWriter(str(target), cv2.VideoWriter_fourcc(*"mp4v"), fps, even, isColor=False)
        else:
            cv2.accumulateWeighted(gray, average, 0.3)
            difference = cv2.absdiff(gray, cv2.convertScaleAbs(average))
            _, mask = cv2.threshold(difference, 10, 255, cv2.THRESH_BINARY)
            mask = cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel), cv2.MORPH_CLOSE, kernel)
        out.write(mask)
    if out is not None:
        out.release()


def _opened(cv2: Any, path: Path) -> Any:
    reader = cv2.VideoCapture(str(path))
    if not reader.isOpened():
        raise UserError(f"{path} cannot be read as a video; make it again")
    return reader


def _frames(cv2: Any, path: Path, count: int) -> Iterator[np.ndarray]:
    """The first ``count`` frames, (H,W,3) uint8 BGR. Raises UserError if there are fewer."""
    reader = _opened(cv2, path)
    for number in range(count):
        there, frame = reader.read()
        if not there:
            raise UserError(f"{path} has {number} frames, but the first {SECONDS} seconds are compared: {count}")
        yield frame


def original(found: Sequence[Measured]) -> float:
    """The score of the first Physics-IQ, 0 to 1."""
    reached = {m: mean_of([each.reached[m] for each in found]) for m in METRICS}
    possible = {m: mean_of([each.possible[m] for each in found]) for m in METRICS}
    shares = [reached[metric] / possible[metric] for metric in METRICS if metric != "mse" and possible[metric]]
    return min(1.0, max(0.0, sum(shares) / 3 - (reached["mse"] - possible["mse"])))


def summary(
    samples: Sequence[Sample], scores: dict[str, float], parts: dict[str, dict[str, float]]
) -> dict[str, dict[str, float]]:
    """The benchmark's numbers, 0 to 100, of all samples and of each category; what has no verdict counts 0."""
    groups = {"overall": list(samples)}
    for category in sorted({sample.family for sample in samples}):
        groups[category] = [sample for sample in samples if sample.family == category]
    found = {}
    for label, chosen in groups.items():
        numbers = {"verified": mean_of([scores.get(s.id, 0.0) for s in chosen])}
        numbers |= {m: mean_of([parts.get(s.id, {}).get(m, 0.0) for s in chosen]) for m in METRICS}
        found[label] = {name: round(100 * value, 2) for name, value in numbers.items()}
    return found
