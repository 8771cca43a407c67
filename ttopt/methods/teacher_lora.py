"""VLM-as-Teacher (arXiv 2606.02564): an adapter per sample, trained until the teacher is satisfied."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ttopt.data.sample import Sample
from ttopt.methods.base import Context
from ttopt.optimization.algorithm import fit_sample
from ttopt.record.result import Result

if TYPE_CHECKING:
    from ttopt.optimization.batch_fit import Trained


class TeacherLora:
    """Algorithm 1 with the run's settings; see ttopt.optimization.algorithm.fit_sample."""

    asks = False

    def solve(self, sample: Sample, folder: Path, context: Context, trained: Trained | None = None) -> Result:
        """``trained``: what a batch has made of the sample already, to be played back."""
        return fit_sample(
            sample,
            context.models,
            context.settings,
            folder,
            queries=trained.queries if trained else context.queries,
            scorer=context.scorer,
            callbacks=context.callbacks(),
            logger=context.logger,
            status=context.status,
            note=context.note,
            meter=context.meter,
            trained=trained,
            bank=context.bank,
        )
