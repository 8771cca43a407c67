"""The engine ray: workers on all GPUs of a machine or a cluster, each taking the next sample as soon as it is free.

The queue is here, in the process that was called. A worker (worker.py) gets one sample at a time and writes its
folder; a sample whose worker died goes back to the front of the queue.
"""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections import Counter, deque
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from ttopt.config.settings import FitSettings
from ttopt.data.sample import Sample
from ttopt.errors import UserError, brief, one_line
from ttopt.record.result import Result, versions
from ttopt.record.run_folder import CLAIMS, writing
from ttopt.run.console import LiveSteps
from ttopt.run.sample_runner import Failure, Job
from ttopt.run.worker import Worker

try:
    import ray
    from ray.exceptions import RayError
except ImportError as error:
    raise UserError("engine ray needs Ray, which is not installed; pip install -e '.[ray]'") from error

PATIENCE = 10.0  # seconds, for an address to answer and between two looks at the cluster
SHOWN = 150  # characters of the beginning and of the end of what Ray says
CURE = (
    "give the head of a running cluster as --address host:port, and the environment RAY_AUTH_MODE=token if it wants a "
    "token; or no address for a Ray on this machine"
)


class RayPool:
    """``with RayPool(settings) as workers: ...``: they start when there is a sample for them, and end on leaving.

    A Ray that was started for them ends too; a cluster that was there before stays as it was.
    """

    def __init__(self, settings: FitSettings) -> None:
        self._address, self._settings = settings.address, settings.workers
        self._idle: list[Any] = []  # actors that have nothing to do
        self._joined = False

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._idle:
            ray.kill(worker)
        if self._joined:
            ray.shutdown()

    def solve(
        self, job: Job, samples: Sequence[Sample], progress: LiveSteps
    ) -> Generator[tuple[Sample, Result | Failure]]:
        """What became of each sample, in the order in which they are done. Raises UserError for what stops the run."""
        if not samples:
            return
        if not ray.is_initialized():
            progress.status("waiting for Ray")
            self._joined = True
            connect(self._address)
        token = job.folder.path / CLAIMS / uuid.uuid4().hex
        with writing(token):
            token.parent.mkdir(exist_ok=True)
            token.touch()
        begin = (job, str(Path.cwd()), str(token), versions())
        queue, deaths, failed_starts, retries = deque(samples), Counter[str](), 0, self._settings.retries
        # By what is waited for: that a worker is ready to begin (no sample), or done with a sample.
        waiting: dict[Any, tuple[Any, Sample | None]] = {
            worker.begin.remote(*begin): (worker, None) for worker in self._idle
        }
        self._idle = []
        try:
            while queue or any(sample for _, sample in waiting.values()):
                while queue and self._idle:
                    worker, next_one = self._idle.pop(), queue.popleft()
                    waiting[worker.solve.remote(next_one)] = worker, next_one
                at_work = [sample.id for _, sample in waiting.values() if sample]
                progress.at_work(at_work)
                wanted = min(self._room(), len(queue) + len(at_work))
                if not wanted and not at_work:
                    raise UserError(self._no_room())
                for _ in range(wanted - len(waiting)):
                    worker = self._new_worker()
                    waiting[worker.begin.remote(*begin)] = worker, None
                for done in ray.wait(list(waiting), timeout=PATIENCE)[0]:
                    worker, sample = waiting.pop(done)
                    answer, died = listen(worker, done)
                    if not died:
                        self._idle.append(worker)
                    if sample is None:
                        failed_starts = failed_starts + 1 if died else 0
                        if failed_starts > max(1, wanted) * (1 + retries):
                            raise UserError(f"workers die before they can begin: {died}")
                    elif died and deaths[sample.id] < retries:
                        deaths[sample.id] += 1
                        queue.appendleft(sample)
                        progress.note(f"{sample.id} goes back into the queue: {died}")
                    elif died:
                        yield sample, Failure(f"given up after {1 + retries} workers: {died}")
                    else:
                        outcome, notes = answer
                        for note in notes:
                            progress.note(note)
                        yield sample, outcome
        finally:
            for worker, _ in waiting.values():
                ray.kill(worker)
            token.unlink(missing_ok=True)
            job.folder.tidy()

    def _room(self) -> int:
        """How many workers there may be: as many as are wanted, or fit on the nodes."""
        s, nodes = self._settings, [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._gpus = float(any(node.get("GPU") for node in nodes)) if s.gpus is None else s.gpus
        needs = {"CPU": s.cpus, "GPU": self._gpus}
        room = sum(min(int(node.get(kind, 0) / need + 1e-6) for kind, need in needs.items() if need) for node in nodes)
        return room if s.count is None else min(s.count, room)

    def _no_room(self) -> str:
        there = ray.cluster_resources()
        return (
            f"no node has room for a worker of {self._gpus:g} GPUs and {self._settings.cpus:g} CPU cores; all nodes "
            f"together have {there.get('GPU', 0):g} and {there.get('CPU', 0):g}; give other --workers.gpus or "
            "--workers.cpus, or wait for more nodes"
        )

    def _new_worker(self) -> Any:
        return ray.remote(num_cpus=self._settings.cpus, num_gpus=self._gpus, max_restarts=0)(Worker).remote()


def connect(address: str | None) -> None:
    """Joins the cluster at ``address``; None: starts one on this machine. Raises UserError if that does not work."""
    wishes = {"RAY_USAGE_STATS_ENABLED": "0"}  # else Ray reports to its makers
    options: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    if address is None:
        options["include_dashboard"] = False
    else:
        wishes["RAY_gcs_server_port_wait_time_s"] = "1"  # else a port that never answers takes a quarter of an hour
    if address not in (None, "auto"):
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"address {address}: nothing answers there ({brief(error)}); {CURE}") from error
    unsaid = wishes.keys() - os.environ.keys()
    os.environ.update({name: wishes[name] for name in unsaid})
    try:
        ray.init(address or "local", **options)
    except Exception as error:  # of many unrelated types
        where = f"reached at {address}" if address else "started"
        raise UserError(f"Ray cannot be {where} ({brief(error)}); {CURE}") from error
    finally:
        for name in unsaid:
            del os.environ[name]


def listen(worker: Any, said: Any) -> tuple[Any, str]:
    """A worker's answer, or why there is none and never will be. Raises the UserError that the worker met."""
    try:
        return ray.get(said), ""
    except RayError as error:
        ray.kill(worker)  # if it lives, it is not to be trusted any more
        cause = getattr(error, "cause", None)
        if isinstance(cause, UserError):
            raise UserError(str(cause)) from error
        if isinstance(cause, Exception):
            return None, f"{type(cause).__name__} ({brief(cause)})"
        text = one_line(str(error))
        return None, f"its worker died ({text if len(text) <= SHOWN else f'{text[:SHOWN]} ... {text[-SHOWN:]}'})"
