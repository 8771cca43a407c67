"""What is known about one sample and one method: result.json."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ttopt.config.version import __version__
from ttopt.errors import UserError

FILE = "result.json"
ACCEPTED = "loss <= tau"
ALL_STEPS = "all steps used"
NON_FINITE = "non-finite loss"
PACKAGES = ("torch", "diffusers", "transformers", "peft", "lightning", "torchmetrics")


@dataclass(frozen=True)
class Graded:
    """One video in the teacher's eyes: P("Yes") of the goal query and of each process query, and the loss of them."""

    loss: float
    p_yes: list[float]  # goal first


@dataclass(frozen=True)
class Scored:
    """One video in the scorer's eyes; no model ever sees these."""

    success: bool
    partial: float  # 0..1
    rules: dict[str, bool]


@dataclass(frozen=True)
class Cost:
    """What one sample cost, without what was only made for the record (base.mp4, scoring, writing)."""

    generated_seconds: float  # seconds of finished video that were sampled, the papers' unit
    reasoner_forwards: int  # of one video each; a backward pass counts as two
    wall_seconds: float
    vlm_calls: int  # replies and gradings


@dataclass(frozen=True)
class Optimization:
    """What only a method with an adapter knows. "before" is the frozen model with the same noise."""

    queries: dict[str, Any]  # {"goal": str, "process": [str, ...], "generic": whether the teacher's were unusable}
    steps: int  # optimization steps that were taken
    kept: str  # whose video is video.mp4: "adapter", "base", or the one-step "prediction"
    prediction_before: Graded  # of the prediction that was optimized
    prediction_after: Graded
    video_before: Graded  # of base.mp4: what the reward says of the few-step video
    video_after: Graded  # of video.mp4
    score_before: Scored | None  # of base.mp4
    hacked: bool | None  # accepted by the teacher, refused by the scorer
    lora_norm: float
    drift: dict[str, float]  # SSIM and PSNR of video.mp4 to base.mp4


@dataclass(frozen=True)
class Result:
    """Everything about one sample and one method; the same for all methods.

    A method whose model failed in the middle says so in ``error``: its best video so far is kept, if it has any, and
    the next call with the same run folder tries the sample again.
    """

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
    seconds: dict[str, float]  # of each part, and "total"
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
    def load(cls, folder: Path) -> Result:
        """The result in ``folder``. Raises UserError if there is none or it cannot be read."""
        path = folder / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            optimization, score = content["optimization"], content["score"]
            if optimization is not None:
                for name in ("prediction_before", "prediction_after", "video_before", "video_after"):
                    optimization[name] = _graded(**optimization[name])
                before = optimization["score_before"]
                optimization["score_before"] = before and Scored(**before)
                content["optimization"] = Optimization(**optimization)
            content["score"] = score and Scored(**score)
            content["cost"] = Cost(**content["cost"])
            return cls(**content)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{path} cannot be read ({error}); remove {folder} to make it anew") from error


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that decide the numbers."""
    found = {"ttopt": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _graded(loss: float | None, p_yes: list[float | None]) -> Graded:
    return Graded(math.nan if loss is None else loss, [math.nan if p is None else p for p in p_yes])


def json_safe(value: Any) -> Any:
    """``value`` with NaN and infinity as None, which JSON has no words for."""
    if isinstance(value, dict):
        return {key: json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
