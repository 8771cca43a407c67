"""What a worker of a Ray cluster does on its node: it loads the models once and takes one sample after the other."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ttopt.data.sample import Sample
from ttopt.errors import RunError, UserError
from ttopt.methods.base import asks, make_method
from ttopt.models.chat import check_chat, make_chat
from ttopt.record.result import Result
from ttopt.record.result import versions as installed
from ttopt.run.loader import Loader
from ttopt.run.sample_runner import Failure, Job, SampleRunner


class Node:
    """The models and the job of one worker."""

    def __init__(self) -> None:
        self._models = Loader()

    def begin(self, job: Job, place: str, token: str, versions: dict[str, str]) -> None:
        """Gets ready for the samples of ``job``; models that fit its settings stay.

        ``place`` is where ttopt was called, ``token`` a file that it wrote, ``versions`` are its own. Raises UserError,
        naming the node, for what is missing or different here.
        """
        try:
            check_node(job, place, token, versions)
            check_chat(job.settings.chat)  # its key must be here too
            models = self._models(job.settings)
            method = make_method(job.settings.method)
            chat = make_chat(job.settings.chat, models.teacher if asks(method) else None)
        except UserError as error:
            raise UserError(f"node {socket.gethostname()}: {error}") from error
        self._notes: list[str] = []
        self._runner = SampleRunner(job, method, models, chat, self._notes.append)

    def solve(self, sample: Sample) -> tuple[Result | Failure, list[str]]:
        """What became of a sample, and what is to be told. Raises RunError for what stops the run."""
        folder = self._runner.job.folder
        self._notes.clear()
        outcome: Result | Failure
        try:
            with folder.claimed(sample.id):
                # A worker that died may have finished it and not said so.
                outcome = folder.finished(sample.id) or self._runner(sample)
        except RunError:
            raise
        except UserError as error:
            outcome = Failure(str(error))
        return outcome, list(self._notes)


def check_node(job: Job, place: str, token: str, versions: dict[str, str]) -> None:
    """Goes to ``place``. Raises UserError if this node does not see what the caller sees; see ``Node.begin``."""
    try:
        os.chdir(place)
    except OSError as error:
        raise UserError(f"there is no folder {place}; call ttopt in a folder that all nodes share") from error
    if not Path(token).exists():
        raise UserError(f"{job.folder.path.resolve()} is not the run's folder; give a --run-dir that all nodes share")
    here = installed()
    for name, wanted in versions.items():
        # What follows a + tells builds for GPUs and CPUs apart.
        if here.get(name, "none").partition("+")[0] != wanted.partition("+")[0]:
            raise UserError(f"{name} is {here.get(name, 'missing')}, but the run was begun with {wanted}; install that")
