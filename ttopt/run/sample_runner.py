"""One sample of a run, in whichever process: its W&B run, its folder, its cost, its method; too little memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lightning as L
import torch

from ttopt.config.settings import FitSettings
from ttopt.data.sample import Sample, Scorer
from ttopt.errors import UserError
from ttopt.methods.base import Context, Method
from ttopt.models.chat import Chat
from ttopt.models.distributed import is_distributed, reached_by_all_ranks
from ttopt.models.load import Models
from ttopt.models.teacher import Queries
from ttopt.optimization.bank import Bank
from ttopt.record.meter import Meter
from ttopt.record.result import Result
from ttopt.record.run_folder import RunFolder
from ttopt.run.memory import SPARED, advice, release, spare
from ttopt.run.tracking import log_result, wandb_run

if TYPE_CHECKING:
    from ttopt.data.sample import Status


@dataclass(frozen=True)
class Failure:
    """Why a sample has no result."""

    why: str


@dataclass(frozen=True)
class Job:
    """A run's part in solving its samples."""

    settings: FitSettings
    folder: RunFolder
    queries: Queries | None  # the user's own, instead of the teacher's
    scorer: Scorer | None
    callbacks: Callable[[], list[L.Callback]]  # new ones for each sample
    bank: Bank | None = None  # what adapters may start from


@dataclass(frozen=True)
class Solver:
    """All that a process needs to solve the samples of a job, one after the other."""

    job: Job
    method: Method
    models: Models
    chat: Chat
    note: Status
    status: Status = lambda text: None
    watch: Callable[[], list[L.Callback]] = list  # callbacks of this process's own

    def __call__(self, sample: Sample) -> Result | Failure:
        """The sample's result. Raises UserError for what the next sample would meet too: a disk that is full."""
        try:
            return self._sparingly(sample)
        except (UserError, torch.OutOfMemoryError) as error:
            if isinstance(error.__cause__, OSError):
                raise
            full = isinstance(error, torch.OutOfMemoryError)
            why = advice(self.job.settings) if full else str(error)
            if (full and is_distributed()) or not reached_by_all_ranks():
                raise UserError(f"sample {sample.id}: {why}") from error
            return Failure(why)

    def _sparingly(self, sample: Sample) -> Result:
        """Tries once more with less memory if there is too little."""
        try:
            return self._solve(sample)
        except torch.OutOfMemoryError:
            if is_distributed() or not spare(self.models):  # other processes wait in the middle of the first try
                raise
        self.note(SPARED)  # not in the except clause: there, the first try's tensors still live
        release(reserve=True)
        return self._solve(sample)

    def _solve(self, sample: Sample) -> Result:
        job = self.job
        with wandb_run(job.settings, sample.id, job.folder.path, self.note) as logger:
            with job.folder.sample(sample.id) as folder, Meter(self.models.reasoner) as meter:
                context = Context(
                    self.models, job.settings, meter, self.chat, job.scorer, job.queries, self._callbacks, logger,
                    self.status, self.note, job.bank,
                )  # fmt: skip
                result = self.method.solve(sample, folder, context)
            # Only when the sample's folder is complete: W&B may take its time.
            log_result(logger, result, job.folder.samples / sample.id)
        release()
        return result

    def _callbacks(self) -> list[L.Callback]:
        return [*self.job.callbacks(), *self.watch()]
