"""VLM-as-Teacher (arXiv 2606.02564): an adapter per sample, trained until the teacher is satisfied."""

from __future__ import annotations

from pathlib import Path

from ttopt.fit import fit_sample
from ttopt.methods.base import Context
from ttopt.result import Result
from ttopt.sample import Sample


class TeacherLora:
    """Algorithm 1 with the run's settings; see ttopt.fit.fit_sample."""

    def solve(self, sample: Sample, folder: Path, context: Context) -> Result:
        return fit_sample(
            sample,
            context.models,
            context.settings,
            folder,
            queries=context.queries,
            scorer=context.scorer,
            callbacks=context.callbacks(),
            logger=context.logger,
            status=context.status,
            meter=context.meter,
        )
