"""Seed ensembling along the denoising path ("Demystifying Video Reasoning", arXiv 2603.16870), training-free."""

from __future__ import annotations

from pathlib import Path

import torch

from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.models.reasoner import sampler
from ttopt.optimization.context import Context
from ttopt.optimization.seeds import noise_seed
from ttopt.record.result import Result


class SeedEnsemble:
    """Several seeds take the first ``steps`` denoising steps; the mean of their latents goes on alone.

    The mean of noisy latents holds less noise than their level says. With the last levels of a short schedule near 0,
    as in the embedded models, that hardly matters; with evenly spread ones it blurs.
    """

    asks = False

    def __init__(self, seeds: int = 3, steps: int = 1) -> None:
        if not all(isinstance(n, int) for n in (seeds, steps)) or seeds < 2 or steps < 1:
            raise UserError(f"seeds {seeds}, steps {steps}: give 2 seeds or more and 1 step or more")
        self.seeds, self.steps = seeds, steps

    @torch.no_grad()
    def solve(self, sample: Sample, folder: Path, context: Context) -> Result:
        """Raises UserError if the schedule has no step left for the mean."""
        reasoner, meter = context.models.reasoner, context.meter
        schedule = reasoner.schedule
        if schedule.solver != "euler":
            raise UserError(
                f"the seed ensemble cannot average what {schedule.solver} remembers of earlier steps; give "
                "--reasoner.solver euler"
            )
        if self.steps >= len(schedule):
            raise UserError(f"the schedule has {len(schedule)} steps; ensemble fewer than that, not {self.steps}")
        seeds = [noise_seed(context.settings.seed, sample, number) for number in range(self.seeds)]
        with context.models.adapter.disabled(), meter.timer("generate"):
            condition = reasoner.condition(sample)
            latents = reasoner.noise(condition, seeds)
            fresh = torch.Generator().manual_seed(0)  # of a re-noising schedule, as everywhere
            for step in range(len(schedule)):
                if step == self.steps:
                    latents = latents.mean(0, keepdim=True)
                sigma, following = schedule.sigmas[step], schedule.next_sigma(step)
                velocity = reasoner.velocity(latents, sigma, condition)
                if schedule.renoise and following > 0:
                    noise = sampler.draw_noise(latents.shape[1:], [fresh], latents.device)
                    latents = sampler.renoise_step(latents, velocity, sigma, following, noise)
                else:
                    latents = sampler.euler_step(latents, velocity, sigma, following)
            video = reasoner.decode(reasoner.impose_first_frame(latents, condition))[0].cpu()
        # In the papers' unit: the share of a whole video's forwards, times its length.
        share = (self.seeds * self.steps + len(schedule) - self.steps) / len(schedule)
        meter.generated_seconds += share * sample.frames / sample.fps
        named = {f"noise {number}": seed for number, seed in enumerate(seeds)}
        return context.finish(
            sample, video, folder, method="seed_ensemble", seeds=named, stop=f"mean of {self.seeds} seeds"
        )
