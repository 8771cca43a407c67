"""What is known about one optimised sample: result.json."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ttopt
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
class Result:
    """Everything about one sample. "before" is the frozen model with the same noise, "after" the kept adapter."""

    sample: str
    family: str
    split: str
    prompt: str
    queries: dict[str, Any]  # {"goal": str, "process": [str, ...]}
    steps: int  # optimisation steps that were taken and kept
    stop: str
    prediction_before: Graded  # of the prediction that was optimised
    prediction_after: Graded
    video_before: Graded  # of base.mp4: what the reward says of the few-step video
    video_after: Graded  # of video.mp4
    score_before: Scored | None
    score_after: Scored | None
    hacked: bool | None  # accepted by the teacher, refused by the scorer
    lora_norm: float
    drift: dict[str, float]  # SSIM and PSNR of video.mp4 to base.mp4
    first_frame_ssim: float | None  # of video.mp4's first frame to the given image
    seeds: dict[str, int]
    seconds: dict[str, float]  # of each part, and "total"
    peak_mb: dict[str, float]
    device: str
    versions: dict[str, str]
    finished: str  # ISO time

    def save(self, folder: Path) -> None:
        """Writes result.json; NaN and infinity become null."""
        text = json.dumps(_json_safe(dataclasses.asdict(self)), indent=2, ensure_ascii=False, allow_nan=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Result:
        """The result in ``folder``. Raises UserError if there is none or it cannot be read."""
        path = folder / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            for name in ("prediction_before", "prediction_after", "video_before", "video_after"):
                content[name] = _graded(**content[name])
            for name in ("score_before", "score_after"):
                content[name] = content[name] and Scored(**content[name])
            return cls(**content)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} cannot be read ({error}); remove {folder} to make it anew") from error


def versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that decide the numbers."""
    found = {"ttopt": ttopt.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _graded(loss: float | None, p_yes: list[float | None]) -> Graded:
    return Graded(math.nan if loss is None else loss, [math.nan if p is None else p for p in p_yes])


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
