"""One sample, prepared on tiny models, and a bare Trainer to fit it with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from tiny import tiny_sample
from torch import Tensor

from callbacks import standard
from ttopt.config.settings import FitSettings, OptimizationSettings
from ttopt.data.sample import Sample
from ttopt.models.load import Models
from ttopt.models.teacher import Queries
from ttopt.optimization import algorithm
from ttopt.optimization import training as heart
from ttopt.optimization.algorithm import TeacherReward
from ttopt.optimization.context import Context
from ttopt.record.result import Result

FRAMES = [0, 2, 4, 6, 8]
QUERIES = Queries("is the red cross on the green pad ?", ("is the blue square whole ?", "is the red cross whole ?"))


def toward(target: Tensor) -> heart.Reward:
    """An oracle: the squared distance of the predicted latents to known ones."""
    return lambda frames, latents: (latents - target).square().mean().reshape(1, 1)


def prepare(
    models: Models, seed: int = 0, reward: heart.Reward | None = None, **options: Any
) -> heart.TestTimeTraining:
    sample = tiny_sample()
    condition = models.reasoner.condition(sample)
    z1 = models.reasoner.noise(condition, [seed])
    models.adapter.reset([seed])
    settings = OptimizationSettings(**{"steps": 4, "lr": 1e-2, "tau": 0.0} | options)
    reward = reward or TeacherReward(models.teacher, [QUERIES], sample.fps, FRAMES)
    return heart.TestTimeTraining(
        models.reasoner, models.adapter, models.decoder, reward, condition, z1, FRAMES, settings
    )


def fit(module: heart.TestTimeTraining, folder: Path, *callbacks: L.Callback) -> heart.TestTimeTraining:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=module.settings.steps,
        max_epochs=-1,
        callbacks=list(callbacks),
        logger=False,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module)
    return module


def fit_sample(
    sample: Sample,
    models: Models,
    settings: FitSettings,
    folder: Path,
    *,
    reward: heart.Reward | None = None,
    callbacks: Sequence[L.Callback] | None = None,
    **context: Any,
) -> Result:
    """ttopt's, in a context of its own."""
    chosen = standard(settings) if callbacks is None else callbacks
    with Context.open(models, settings, callbacks=lambda: list(chosen), **context) as opened:
        return algorithm.fit_sample(sample, folder, opened, reward)
