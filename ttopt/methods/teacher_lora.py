"""VLM-as-Teacher (arXiv 2606.02564): an adapter per sample, trained until the teacher is satisfied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ttopt.data.sample import Sample
from ttopt.optimization.algorithm import Prepared, fit_batch, fit_sample, prepare
from ttopt.optimization.context import Context
from ttopt.record.result import Result


class TeacherLora:
    """Algorithm 1 with the run's settings; see ttopt.optimization.algorithm."""

    asks = False

    def solve(self, sample: Sample, folder: Path, context: Context) -> Result:
        return fit_sample(sample, folder, context)

    def prepare(self, sample: Sample, folder: Path, context: Context) -> Prepared:
        """The first half of ``solve``, after which samples of one kind can share a batch."""
        return prepare(sample, folder, context)

    def solve_batch(self, batch: Sequence[Prepared]) -> list[Result | Exception]:
        """The second half for a whole batch."""
        return fit_batch(batch)
