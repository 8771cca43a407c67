"""Many samples, one run folder: which are left to do, and what became of them.

They are solved one after the other in this process, or by the workers of a Ray cluster (ttopt/run/ray_pool.py).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L

from ttopt.config.settings import CallbackSettings, FitSettings
from ttopt.config.version import __version__
from ttopt.data.find import find_samples, given_queries
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.methods.base import (
    BatchMethod,
    Method,
    asks,
    make_method,
    make_object,
    named_class,
    needs_models,
    own_inputs,
)
from ttopt.models.chat import check_chat, make_chat
from ttopt.models.distributed import from_rank_zero
from ttopt.models.load import Models, load_models, no_models, sources
from ttopt.optimization.bank import Bank
from ttopt.record.flat import CSV, write_results
from ttopt.record.identity import files_digest, sample_digest
from ttopt.record.result import NON_FINITE, Result
from ttopt.record.run_folder import RunFolder, new_path
from ttopt.run.console import Console, LiveSteps
from ttopt.run.sample_runner import Failure, Job, SampleRunner
from ttopt.run.tracking import start_early

if TYPE_CHECKING:
    from ttopt.run.ray_pool import RayPool  # an extra that may not be installed

Load = Callable[[FitSettings], Models]
MakeCallbacks = Callable[[FitSettings], list[L.Callback]]


@dataclass(frozen=True)
class Run:
    """What a call of ``ttopt fit`` made: finished samples, earlier calls' included, and what went wrong."""

    folder: Path
    results: list[Result]
    problems: list[str]


def fit_all(
    settings: FitSettings,
    console: Console,
    callbacks: MakeCallbacks = lambda settings: [],
    load: Load | None = None,
    workers: RayPool | None = None,
) -> Run:
    """Optimizes every sample that the run's folder does not hold yet, with new ``callbacks`` for each.

    ``load`` is asked for the models only if a sample is left to do (None: they are loaded here). The ``workers`` of
    ``--engine ray`` load their own; they end with this run unless they are given.
    A sample that cannot be optimized is noted in ``problems`` and the others go on. Raises UserError for what stops the
    whole run: settings, data, weights, a folder that cannot be written.
    """
    if settings.engine == "ray" and workers is None:
        with open_workers(settings) as workers:
            return fit_all(settings, console, callbacks, load, workers)
    samples, scorer = find_samples(settings)
    queries = given_queries(settings)
    extra_callbacks(settings.callbacks)  # a wrong class path should not wait for the models
    method = make_method(settings.method)
    check_chat(settings.chat)
    check_batch(method, settings)
    folder = RunFolder(Path(settings.run_dir) if settings.run_dir else new_path(), settings)
    job = Job(settings, folder, queries, scorer, partial(_callbacks, callbacks, settings))
    with folder.locked(), console.samples(samples, settings.optimization.steps) as progress:
        done = from_rank_zero(lambda: finished_results(samples, folder, settings, method))
        for sample in samples:
            if isinstance(earlier := done.get(sample.id), Result):
                progress.finished(earlier, skipped=True)
            elif earlier is not None:
                progress.failed(sample, earlier.why)
        left = [sample for sample in samples if sample.id not in done]
        outcomes: dict[str, Result | Failure] = {**done}
        if left:
            job = dataclasses.replace(job, bank=from_rank_zero(lambda: Bank.open(settings, folder.path, progress.note)))
        if workers is not None and needs_models(method):
            solved = workers.solve(job, left, progress)
        else:
            solved = _one_by_one(job, left, method, load, progress)
        with closing(solved):  # at once if this is interrupted: no worker may outlive the folder's lock
            for sample, outcome in solved:
                outcomes[sample.id] = outcome
                _tell(sample, outcome, progress)
    named = {sample.id: _problem(outcomes[sample.id]) for sample in samples}
    problems = [f"sample {name}: {problem}" for name, problem in named.items() if problem]
    left_out = from_rank_zero(lambda: write_results(folder.path))
    problems += [f"{CSV}: {why}" for why in left_out if not any(why in problem for problem in problems)]
    results = [outcome for sample in samples if isinstance(outcome := outcomes[sample.id], Result)]
    return Run(folder.path, results, problems)


def open_workers(settings: FitSettings) -> AbstractContextManager[RayPool | None]:
    """The workers of ``--engine ray``, which end on leaving; None for the engine in this process. Raises UserError."""
    if settings.engine == "in_process":
        return nullcontext()
    from ttopt.run.ray_pool import RayPool  # an extra that may not be installed

    return RayPool(settings)


def _one_by_one(
    job: Job, samples: Sequence[Sample], method: Method, load: Load | None, progress: LiveSteps
) -> Generator[tuple[Sample, Result | Failure]]:
    """Solves the samples in this process."""
    if not samples:
        return
    start_early(job.settings)
    models = no_models()
    if needs_models(method):
        progress.status("loading the models")
        models = (load or _loader(progress.note))(job.settings)
    chat = make_chat(job.settings.chat, models.teacher if asks(method) else None)
    if asks(method):
        progress.note(f"asked in words: {chat.name}")
    runner = SampleRunner(job, method, models, chat, progress.note, progress.status, lambda: [progress.callback()])
    if job.settings.batch_samples > 1:
        yield from runner.batches(samples, job.settings.batch_samples, progress.begin)
        return
    for sample in samples:
        progress.begin(sample)
        yield sample, runner(sample)


def check_batch(method: Method, settings: FitSettings) -> None:
    """Raises UserError for ``batch_samples`` with a method that takes samples one by one."""
    if settings.batch_samples > 1 and not isinstance(method, BatchMethod):
        raise UserError(
            f"batch_samples is {settings.batch_samples}, but only ttopt.methods.TeacherLora optimizes several samples "
            "at once; give 1"
        )


def _loader(note: Callable[[str], None]) -> Callable[[FitSettings], Models]:
    def load(settings: FitSettings) -> Models:
        note(sources(settings))
        begin = time.perf_counter()
        models = load_models(settings)
        note(f"models loaded in {time.perf_counter() - begin:.1f} s")
        return models

    return load


def _callbacks(standard: MakeCallbacks, settings: FitSettings) -> list[L.Callback]:
    return [*standard(settings), *extra_callbacks(settings.callbacks)]


def _tell(sample: Sample, outcome: Result | Failure, progress: LiveSteps) -> None:
    if isinstance(outcome, Failure):
        progress.failed(sample, outcome.why)
        return
    progress.finished(outcome)
    if outcome.optimization and outcome.optimization.queries.get("generic"):
        progress.note(f"{sample.id}: the teacher wrote no usable questions, generic ones were asked instead")


def _problem(outcome: Result | Failure) -> str:
    """What was wrong with a sample; empty if nothing."""
    if isinstance(outcome, Failure):
        return outcome.why
    if outcome.error:
        return outcome.error
    if outcome.stop == NON_FINITE and outcome.optimization:
        return (
            "the loss became NaN or infinite; the best adapter before, that of step "
            f"{outcome.optimization.steps}, is kept; lower --optimization.lr, or give --reasoner.dtype and "
            "--teacher.dtype float32"
        )
    return ""


def finished_results(
    samples: Sequence[Sample], folder: RunFolder, settings: FitSettings, method: Method
) -> dict[str, Result | Failure]:
    """What earlier calls finished; a result that cannot be read is a failure of its sample. Raises UserError for one
    that was made from something else."""
    found: dict[str, Result | Failure] = {}
    files = files_digest(settings)
    for sample in samples:
        try:
            done = folder.finished(sample.id)
        except UserError as error:
            found[sample.id] = Failure(str(error))
            continue
        if done is None:
            continue
        now = {"prompt or image": sample_digest(sample), "weights or wordings": files, "ttopt": __version__}
        then = {
            "prompt or image": done.inputs.get("sample"),
            "weights or wordings": done.inputs.get("files"),
            "ttopt": done.versions.get("ttopt"),
        }
        own = own_inputs(method, sample, settings)
        now, then = now | own, then | {name: done.inputs.get(name) for name in own}
        for name, value in now.items():
            if then[name] != value:  # also where the result does not say with what it was made
                raise UserError(
                    f"{folder.path} holds a result of sample {sample.id} that was made with another {name} "
                    f"({then[name] or 'unknown'}, now {value}); set it back, or give another --run-dir"
                )
        found[sample.id] = done
    return found


def extra_callbacks(wanted: Sequence[CallbackSettings]) -> list[L.Callback]:
    """The user's own callbacks, found by their class paths. Raises UserError."""
    found = []
    for callback in wanted:
        kind = named_class(callback.path, "callback", "a Lightning callback")
        if not issubclass(kind, L.Callback):
            raise UserError(f"callback {callback.path} is no Lightning callback; give the class path of one")
        found.append(make_object(kind, callback.arguments, f"callback {callback.path}"))
    return found
