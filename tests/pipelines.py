"""What the tests that compare with diffusers' own pipelines share."""

from __future__ import annotations

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from ttopt.models.reasoner import Schedule


class FixedSigmas(FlowMatchEulerDiscreteScheduler):
    """diffusers' scheduler, made to use our sigmas whatever number of steps the pipeline asks for."""

    sigma_list: tuple[float, ...]

    def set_timesteps(self, *args: Any, device: Any = None, **kwargs: Any) -> None:
        timesteps = [1000 * sigma for sigma in self.sigma_list]
        super().set_timesteps(sigmas=list(self.sigma_list), timesteps=timesteps, device=device)


def scheduler_of(schedule: Schedule) -> FixedSigmas:
    """The scheduler that takes a schedule's steps."""
    scheduler = FixedSigmas(shift=1.0, stochastic_sampling=schedule.renoise)
    scheduler.sigma_list = schedule.sigmas
    return scheduler
