"""What is known about one sample and one method: result.json."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from ttopt.config.version import __version__
from ttopt.errors import UserError
from ttopt.record.plain import read_typed

FILE = "result.json"
ACCEPTED = "loss <= tau"
ALL_STEPS = "all steps used"
NON_FINITE = "non-finite loss"
STOPPED = "stopped by hand"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "lightning", "torchmetrics")


def _asked(queries: dict[str, Any]) -> dict[str, Any]:
    goal, process = queries.get("goal"), queries.get("process")
    if not isinstance(goal, str) or not isinstance(process, list) or not all(isinstance(q, str) for q in process):
        raise ValueError("queries must be a goal and a list of process questions")
    return queries


def _timed(seconds: dict[str, float]) -> dict[str, float]:
    if "total" not in seconds:
        raise ValueError("there is no total")
    return seconds


def _compared(drift: dict[str, float]) -> dict[str, float]:
    if not {"ssim", "psnr"} <= drift.keys():
        raise ValueError("there is no ssim or psnr")
    return drift


# How result.json is read: no type is converted, no field may be missing or unknown, all numbers are finite but those
# that a computation may have spoiled, which were written as null.
CHECKED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Count = Annotated[int, Field(ge=0, le=2**53)]
Spoiled = Annotated[
    float, Field(allow_inf_nan=True), BeforeValidator(lambda number: math.nan if number is None else number)
]


@dataclass(frozen=True)
class Graded:
    """One video in the teacher's eyes: P("Yes") of the goal query and of each process query, and the loss of them."""

    __pydantic_config__ = CHECKED

    loss: Spoiled
    p_yes: Annotated[list[Spoiled], Field(min_length=1)]  # goal first


@dataclass(frozen=True)
class Scored:
    """One video in the scorer's eyes; no model ever sees these. Of broken rules, where the scorer says so: ``words``,
    what a rule asks for, and ``frames``, the numbers of those that break it, from 0."""

    __pydantic_config__ = CHECKED

    success: bool
    partial: float  # 0..1
    rules: dict[str, bool]
    words: dict[str, str] = field(default_factory=dict)
    frames: dict[str, list[Count]] = field(default_factory=dict)


@dataclass(frozen=True)
class Cost:
    """What one sample cost, without what was only made for the record (base.mp4, scoring, writing)."""

    __pydantic_config__ = CHECKED

    generated_seconds: float  # seconds of finished video that were sampled, the papers' unit
    reasoner_forwards: Count  # of one video each; a backward pass counts as two
    wall_seconds: float
    vlm_calls: Count  # replies and gradings


@dataclass(frozen=True)
class Optimization:
    """What only a method with an adapter knows. "before" is the frozen model with the same noise."""

    __pydantic_config__ = CHECKED

    # {"goal": str, "process": [str, ...], "generic": whether the teacher's were unusable}
    queries: Annotated[dict[str, Any], AfterValidator(_asked)]
    steps: Count  # optimization steps that were taken
    kept: str  # whose video is video.mp4: "adapter", "base", or the one-step "prediction"
    prediction_before: Graded  # of the prediction that was optimized
    prediction_after: Graded
    video_before: Graded  # of base.mp4: what the reward says of the few-step video
    video_after: Graded  # of video.mp4
    score_before: Scored | None  # of base.mp4
    hacked: bool | None  # accepted by the teacher, refused by the scorer
    lora_norm: Spoiled
    drift: Annotated[dict[str, Spoiled], AfterValidator(_compared)]  # SSIM and PSNR of video.mp4 to base.mp4


@dataclass(frozen=True)
class Result:
    """Everything about one sample and one method; the same for all methods.

    A method whose model failed in the middle says so in ``error``: its best video so far is kept, if it has any, and
    the next call with the same run folder tries the sample again.
    """

    __pydantic_config__ = CHECKED

    sample: str
    family: str
    split: str
    prompt: str
    method: str
    accepted: bool | None  # by the method's own judge; None: nothing judged it
    stop: str  # why it ended
    score: Scored | None  # of video.mp4; None: there is no scorer, or no video
    cost: Cost
    first_frame_ssim: float | None  # of video.mp4's first frame to the given image
    seeds: dict[str, int]
    seconds: Annotated[dict[str, float], AfterValidator(_timed)]  # of each part, and "total"
    peak_mb: dict[str, float]
    device: str
    versions: dict[str, str]
    finished: str  # ISO time
    optimization: Optimization | None = None
    error: str = ""  # a model that could not be reached or understood
    details: dict[str, Any] = field(default_factory=dict)  # the method's own, in JSON's types
    inputs: dict[str, str] = field(default_factory=dict)  # digests of what went in, see ttopt/record/identity.py

    def save(self, folder: Path) -> None:
        """Writes result.json; NaN and infinity become null."""
        text = json.dumps(json_safe(dataclasses.asdict(self)), indent=2, ensure_ascii=False, allow_nan=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, sample: str | None = None, root: Path | None = None) -> Result:
        """The result in ``folder``. Raises UserError if there is none, if it cannot be read, is another sample's than
        ``sample``, or lies outside ``root`` (by default the folder itself)."""
        path = folder / FILE
        try:
            found: Result = read_typed(path, root or folder, cls)
        except UserError as error:
            raise UserError(f"{error}; remove {folder} to make it again") from error
        if sample not in (None, found.sample):
            raise UserError(f"{path} is of sample {found.sample}, not of {sample}; remove {folder} to make it again")
        return found


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that decide the numbers."""
    found = {"ttopt": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def json_safe(value: Any) -> Any:
    """``value`` with NaN and infinity as None, which JSON has no words for."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
