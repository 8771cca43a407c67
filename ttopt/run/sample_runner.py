"""Samples of a run, in whichever process: their W&B runs, folders, cost and method; what becomes of a failure."""

from __future__ import annotations

import itertools
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning as L

from ttopt.config.settings import FitSettings
from ttopt.data.queries import Queries
from ttopt.data.sample import Sample, Scorer, Status
from ttopt.errors import RunError, UserError, brief, is_out_of_memory
from ttopt.methods.base import BatchMethod, Method
from ttopt.models.chat import Chat
from ttopt.models.distributed import is_distributed, reached_by_all_ranks
from ttopt.models.load import Models
from ttopt.optimization.bank import Bank
from ttopt.optimization.context import Context
from ttopt.record.meter import Meter
from ttopt.record.result import Result
from ttopt.record.run_folder import ERRORS, RunFolder, write_text, writing
from ttopt.run.memory import SPARED, advice, release, spare
from ttopt.run.tracking import log_result, wandb_run

T = TypeVar("T")


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


@dataclass
class Opened:
    """A sample at work. Its folder becomes final when it is left with a ``result``."""

    folder: Path
    context: Context
    result: Result | None = None


@dataclass(frozen=True)
class Waiting:
    """A sample that waits for its batch to be full."""

    sample: Sample
    opened: Opened
    prepared: Any  # of BatchMethod.prepare
    stack: ExitStack  # closes what is open

    def close(self, result: Result | Exception) -> Result:
        """The sample is done. Raises the exception, if that is what became of it."""
        if isinstance(result, Exception):
            self.abandon(result)
            raise result
        self.opened.result = result
        self.stack.close()
        return result

    def abandon(self, error: BaseException) -> None:
        """The sample has come to nothing; what it can go on from stays."""
        self.stack.__exit__(type(error), error, error.__traceback__)


@dataclass(frozen=True)
class SampleRunner:
    """All that a process needs to take the samples of a job through its method."""

    job: Job
    method: Method
    models: Models
    chat: Chat
    note: Status
    status: Status = lambda text: None
    watch: Callable[[], list[L.Callback]] = list  # callbacks of this process's own

    def __call__(self, sample: Sample) -> Result | Failure:
        """The sample's result. Raises RunError for what the next sample would meet too: a disk that is full."""
        return self._outcome(sample, lambda: self._sparingly(lambda: self._solve(sample)))

    def _solve(self, sample: Sample) -> Result:
        with self._opened(sample) as opened, opened.context.meter:
            result: Result | None = self.method.solve(sample, opened.folder, opened.context)
            if result is None:  # before the folder becomes final
                raise UserError(
                    f"method {self.job.settings.method.path} returned no result; its solve must return what "
                    "context.finish gives"
                )
            opened.result = result
        return result

    @contextmanager
    def _opened(self, sample: Sample) -> Iterator[Opened]:
        job = self.job
        with wandb_run(job.settings, sample.id, job.folder.path, self.note) as logger:
            with job.folder.sample(sample.id) as folder:
                context = Context(
                    self.models, job.settings, Meter(self.models.reasoner), self.chat, job.scorer, job.queries,
                    self._callbacks, logger, self.status, self.note, job.bank,
                )  # fmt: skip
                opened = Opened(folder, context)
                yield opened
            assert opened.result is not None
            # Only when the sample's folder is complete: W&B may take its time.
            log_result(logger, opened.result, job.folder.samples / sample.id)
        release()

    def batches(
        self, samples: Sequence[Sample], size: int, begin: Callable[[Sample], None]
    ) -> Iterator[tuple[Sample, Result | Failure]]:
        """What becomes of each sample, ``size`` of one kind at a time, in the order in which they are done.

        ``begin`` is told of each sample that is taken up. The method is a BatchMethod. Raises RunError.
        """
        groups: dict[Any, list[Waiting]] = {}
        try:
            for sample in samples:
                begin(sample)
                found = self._outcome(sample, partial(self._take_up, sample))
                if isinstance(found, Failure):
                    yield sample, found
                    continue
                group = groups.setdefault(found.prepared.kind, [])
                group.append(found)
                if len(group) == size:
                    yield from self._solve_batch(groups.pop(found.prepared.kind))
            while groups:
                yield from self._solve_batch(groups.popitem()[1])
        finally:  # an interruption leaves no W&B run open
            for waiting in itertools.chain.from_iterable(groups.values()):
                waiting.abandon(KeyboardInterrupt())

    def _take_up(self, sample: Sample) -> Waiting:
        assert isinstance(self.method, BatchMethod)
        with ExitStack() as stack:
            opened = stack.enter_context(self._opened(sample))
            with opened.context.meter:
                prepared = self.method.prepare(sample, opened.folder, opened.context)
            return Waiting(sample, opened, prepared, stack.pop_all())

    def _solve_batch(self, group: Sequence[Waiting]) -> list[tuple[Sample, Result | Failure]]:
        """All are closed before anybody is told: whoever listens may be interrupted, and what is done stays."""
        assert isinstance(self.method, BatchMethod)
        method, costs = self.method, [each.opened.context.meter.state() for each in group]

        def once() -> list[Result | Exception]:
            for each, cost in zip(group, costs, strict=True):
                each.opened.context.meter.resume(cost)  # a second try counts alone
            return method.solve_batch([each.prepared for each in group])

        def solve() -> list[Result | Exception]:
            try:
                return self._sparingly(once)
            except BaseException as error:
                for each in group:
                    each.abandon(error)
                raise

        results = self._outcome(group[0].sample, solve)
        if isinstance(results, Failure):
            return [(each.sample, results) for each in group]
        outcomes: list[tuple[Sample, Result | Failure]] = []
        left = deque(zip(group, results, strict=True))
        try:
            while left:
                each, result = left.popleft()
                outcomes.append((each.sample, self._outcome(each.sample, partial(each.close, result))))
        finally:  # a full disk, or an interruption
            for each, _ in left:
                each.abandon(KeyboardInterrupt())
        return outcomes

    def _outcome(self, sample: Sample, work: Callable[[], T]) -> T | Failure:
        """What ``work`` on a sample gives, or why it gives nothing. Raises RunError."""
        try:
            return work()
        except RunError:
            raise
        except Exception as error:
            full = is_out_of_memory(error)
            why = advice(self.job.settings, error) if full else self._why(sample, error)
            if (full and is_distributed()) or not reached_by_all_ranks():
                raise RunError(f"sample {sample.id}: {why}") from error
            return Failure(why)

    def _why(self, sample: Sample, error: Exception) -> str:
        """The error in a sentence; one that no user is meant to see leaves its traceback in the run's folder."""
        if isinstance(error, UserError):
            return str(error)
        log = self.job.folder.path / ERRORS / f"{sample.id}.txt"
        with writing(log):
            log.parent.mkdir(exist_ok=True)
            write_text(log, "".join(traceback.format_exception(error)).encode(errors="backslashreplace").decode())
        return f"{type(error).__name__}: {brief(error)} (the traceback is in {log})"

    def _sparingly(self, work: Callable[[], T]) -> T:
        """Tries once more with less memory if there is too little."""
        try:
            return work()
        except Exception as error:
            # Of several processes the others wait in the middle of the first try.
            if not is_out_of_memory(error) or is_distributed() or not spare(self.models):
                raise
        self.note(SPARED)  # not in the except clause: there, the first try's tensors still live
        release(reserve=True)
        return work()

    def _callbacks(self) -> list[L.Callback]:
        return [*self.job.callbacks(), *self.watch()]
