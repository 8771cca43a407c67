"""A worker of a Ray cluster: a process that loads the models once and solves one sample after the other.

Nothing heavy is imported before the process is set up.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from ttopt.errors import UserError

if TYPE_CHECKING:
    from ttopt.data.sample import Sample
    from ttopt.record.result import Result
    from ttopt.run.sample_runner import Failure, Job


class Worker:
    """Ray makes one in each worker's process."""

    def __init__(self) -> None:
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            del os.environ[name]  # else Lightning takes the nodes of a job for the ranks of one training
        from ttopt.run.loader import Loader

        self._models = Loader()

    def begin(self, job: Job, place: str, token: str, versions: dict[str, str]) -> None:
        """Gets ready for the samples of ``job``; models that fit its settings stay.

        ``place`` is where ttopt was called, ``token`` a file that it wrote, ``versions`` are its own. Raises UserError,
        naming the node, for what is missing or different here.
        """
        from ttopt.methods.base import asks, make_method
        from ttopt.models.chat import check_chat, make_chat
        from ttopt.run.sample_runner import Solver

        try:
            check_node(job, place, token, versions)
            check_chat(job.settings.chat)  # its key must be here too
            models = self._models(job.settings)
            method = make_method(job.settings.method)
            chat = make_chat(job.settings.chat, models.teacher if asks(method) else None)
        except UserError as error:
            raise UserError(f"node {socket.gethostname()}: {error}") from error
        self._notes: list[str] = []
        self._solver = Solver(job, method, models, chat, self._notes.append)

    def solve(self, sample: Sample) -> tuple[Result | Failure, list[str]]:
        """What became of a sample, and what is to be told. Raises UserError for what stops the run."""
        from ttopt.run.sample_runner import Failure

        folder = self._solver.job.folder
        self._notes.clear()
        try:
            with folder.claimed(sample.id):
                # A worker that died may have finished it and not said so.
                outcome = folder.finished(sample.id) or self._solver(sample)
        except UserError as error:
            if isinstance(error.__cause__, OSError):
                raise
            outcome = Failure(str(error))
        return outcome, list(self._notes)


def check_node(job: Job, place: str, token: str, versions: dict[str, str]) -> None:
    """Goes to ``place``. Raises UserError if this node does not see what the caller sees; see ``Worker.begin``."""
    from ttopt.record import result

    try:
        os.chdir(place)
    except OSError as error:
        raise UserError(f"there is no folder {place}; call ttopt in a folder that all nodes share") from error
    if not Path(token).exists():
        raise UserError(f"{job.folder.path.resolve()} is not the run's folder; give a --run-dir that all nodes share")
    here = result.versions()
    for name, wanted in versions.items():
        # What follows a + tells builds for GPUs and CPUs apart.
        if here.get(name, "none").partition("+")[0] != wanted.partition("+")[0]:
            raise UserError(f"{name} is {here.get(name, 'missing')}, but the run was begun with {wanted}; install that")
