"""The end of every method: the video is scored and everything is written."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttopt.config.settings import FitSettings, to_yaml
from ttopt.data.sample import Sample, Scorer
from ttopt.data.video import write_video
from ttopt.errors import UserError
from ttopt.record import metrics
from ttopt.record.identity import inputs
from ttopt.record.meter import Meter
from ttopt.record.result import Optimization, Result, Scored, versions
from ttopt.record.run_folder import CONFIG, writing


def finish(
    sample: Sample,
    video: Tensor | None,
    folder: Path,
    settings: FitSettings,
    meter: Meter,
    scorer: Scorer | None,
    *,
    method: str,
    seeds: dict[str, int],
    accepted: bool | None = None,
    stop: str = "",
    error: str = "",
    optimization: Optimization | None = None,
    details: dict[str, Any] | None = None,
    more_inputs: dict[str, str] | None = None,
    written: Path | None = None,
) -> Result:
    """Scores ``video`` (T,3,H,W) in [0,1], writes video.mp4, config.yaml and result.json; None: there is no video.

    ``details`` holds what only this method knows, in JSON's types;
    ``more_inputs`` digests of what only it reads. ``written`` is a file that holds this very video already, perhaps
    video.mp4 itself; then ``video`` may be its first frame alone where there is no scorer.
    """
    cost, score, similar = meter.cost(), None, None
    image = sample.image
    if video is not None:
        check_finite(video)
        with meter.timer("score"):
            score = scored(scorer, sample, video)
        with meter.timer("write"), writing(folder):
            if written is None:
                write_video(folder / "video.mp4", video, sample.fps)
            elif written != folder / "video.mp4":
                shutil.copyfile(written, folder / "video.mp4")
        # Videos of other systems may have another size.
        if image is not None and video.shape[1:] == image.shape:
            similar = metrics.similarity(video[:1], image[None].to(video))
    with writing(folder):
        (folder / CONFIG).write_text(to_yaml(settings), encoding="utf-8")
    result = Result(
        sample=sample.id,
        family=sample.family,
        split=sample.split,
        prompt=sample.prompt,
        method=method,
        accepted=accepted,
        stop=stop,
        score=score,
        cost=cost,
        first_frame_ssim=similar,
        seeds={"run": settings.seed, **seeds},
        seconds={**meter.timer.seconds(), "total": round(meter.total_seconds, 3)},
        peak_mb=meter.timer.peak_mb(),
        device=_device_name(meter.timer.device),
        versions=versions(),
        finished=datetime.now().astimezone().isoformat(timespec="seconds"),
        optimization=optimization,
        error=error,
        details=details or {},
        inputs=inputs(sample, settings) | (more_inputs or {}),
    )
    with writing(folder):
        result.save(folder)
    return result


def check_finite(video: Tensor) -> None:
    """Raises UserError for a video that holds NaN or infinity, which no scorer and no player could make sense of."""
    if not bool(video.isfinite().all()):
        raise UserError(
            "the video holds numbers that are not finite; give --reasoner.dtype and "
            "--reasoner.vae_dtype float32, or check the weights"
        )


def scored(scorer: Scorer | None, sample: Sample, video: Tensor) -> Scored | None:
    """The scorer's verdict on ``video`` in plain types."""
    if scorer is None:
        return None
    score = scorer(sample, video)
    rules = {name: bool(holds) for name, holds in score.rules.items()}
    words, frames = getattr(score, "words", {}), getattr(score, "frames", {})
    broken = [name for name, holds in rules.items() if not holds]
    return Scored(
        bool(score.success),
        float(score.partial),
        rules,
        {name: str(words[name]) for name in broken if name in words},
        {name: sorted({int(number) for number in frames[name]}) for name in broken if name in frames},
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
