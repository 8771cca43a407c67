"""Many samples, one after the other, in this process."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lightning as L
import torch

from ttopt.batch_fit import batched
from ttopt.chat import Chat, check_chat, make_chat
from ttopt.config import CallbackSettings, FitSettings
from ttopt.console import Console, LiveSteps
from ttopt.cost import Meter
from ttopt.errors import UserError
from ttopt.finish import Scorer
from ttopt.fit import Models, load_models
from ttopt.methods.base import Context, Method, make_method, make_object
from ttopt.models import TOO_SMALL, sources
from ttopt.result import NON_FINITE, Result
from ttopt.runfolder import RunFolder, new_path
from ttopt.sample import Sample
from ttopt.teacher import Queries
from ttopt.tracking import log_result, wandb_run
from ttopt.video import read_image

MakeCallbacks = Callable[[FitSettings], list[L.Callback]]


@dataclass
class Run:
    """What a call of ``ttopt fit`` made: finished samples, earlier calls' included, and what went wrong."""

    folder: Path
    results: list[Result] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def fit_all(
    settings: FitSettings,
    console: Console,
    callbacks: MakeCallbacks = lambda settings: [],
    load: Callable[[FitSettings], Models] | None = None,
) -> Run:
    """Optimises every sample that the run's folder does not hold yet, with new ``callbacks`` for each.

    ``load`` is asked for the models only if a sample is left to do (None: they are loaded anew).
    A sample that cannot be optimised is noted in ``problems`` and the others go on. Raises UserError for what stops the
    whole run: settings, data, weights, a folder that cannot be written.
    """
    samples, scorer = find_samples(settings)
    queries = given_queries(settings)
    extra_callbacks(settings.callbacks)  # a wrong class path should not wait for the models
    method = make_method(settings.method)
    check_chat(settings.chat)
    folder = RunFolder(Path(settings.run_dir) if settings.run_dir else new_path(), settings)
    run = Run(folder.path)
    method = batched(method, [sample for sample in samples if folder.finished(sample.id) is None], settings)
    models: Models | None = None
    chat: Chat | None = None
    with console.samples(samples, settings.optimisation.steps) as progress:
        for sample in samples:
            done = folder.finished(sample.id)
            if done is not None:
                run.results.append(done)
                progress.finished(done, skipped=True)
                continue
            if models is None or chat is None:
                progress.status("loading the models")
                models = (load or _loader(progress.note))(settings)
                chat = make_chat(settings.chat, models.teacher)

            def made() -> list[L.Callback]:
                return [*callbacks(settings), *extra_callbacks(settings.callbacks), progress.callback()]

            try:
                result = _solve(sample, method, models, chat, settings, folder, queries, scorer, made, progress)
            except (UserError, torch.OutOfMemoryError) as error:
                if isinstance(error.__cause__, OSError):  # the disk; the next sample would meet it too
                    raise
                why = TOO_SMALL if isinstance(error, torch.OutOfMemoryError) else str(error)
                run.problems.append(f"sample {sample.id}: {why}")
                progress.failed(sample, why)
                continue
            run.results.append(result)
            progress.finished(result)
            if result.error:
                run.problems.append(f"sample {sample.id}: {result.error}")
            if result.stop == NON_FINITE and result.optimisation:
                run.problems.append(
                    f"sample {sample.id}: the loss became NaN or infinite after step {result.optimisation.steps}, "
                    "whose adapter is kept; lower --optimisation.lr, or give --reasoner.dtype and --teacher.dtype "
                    "float32"
                )
    return run


def _loader(note: Callable[[str], None]) -> Callable[[FitSettings], Models]:
    def load(settings: FitSettings) -> Models:
        note(sources(settings))
        begin = time.perf_counter()
        models = load_models(settings)
        note(f"models loaded in {time.perf_counter() - begin:.1f} s")
        return models

    return load


def _solve(
    sample: Sample,
    method: Method,
    models: Models,
    chat: Chat,
    settings: FitSettings,
    run_folder: RunFolder,
    queries: Queries | None,
    scorer: Scorer | None,
    callbacks: Callable[[], list[L.Callback]],
    progress: LiveSteps,
) -> Result:
    with (
        run_folder.sample(sample.id) as folder,
        wandb_run(settings, sample.id, run_folder.path, progress.note) as logger,
        Meter(models.reasoner) as meter,
    ):
        progress.begin(sample)
        context = Context(
            models, settings, meter, chat, scorer, queries, callbacks, logger, progress.status, progress.note
        )
        result = method.solve(sample, folder, context)
        log_result(logger, result, folder)
    return result


def find_samples(settings: FitSettings) -> tuple[list[Sample], Scorer | None]:
    """The samples of a run, and the data set's scorer if they are the data set's. Raises UserError."""
    own = settings.sample
    if own.prompt is not None:
        image = None if own.image is None else read_image(Path(own.image), own.height, own.width)
        return [Sample(own.id, own.prompt, image, own.frames, own.fps, own.height, own.width)], None
    dataset = importlib.import_module(f"ttopt.datasets.{settings.dataset}")
    wanted = (settings.split, settings.families, settings.seed, settings.limit)
    if settings.root is not None and settings.dataset != "miniworld":
        return dataset.samples(*wanted, root=Path(settings.root), form=own), dataset.score
    samples: list[Sample] = dataset.samples(*wanted)
    for sample in samples:
        if settings.teacher.frames > sample.frames:
            raise UserError(
                f"teacher.frames is {settings.teacher.frames}, but the videos of {settings.dataset} have only "
                f"{sample.frames} frames; give --teacher.frames {sample.frames} or fewer"
            )
    return samples, dataset.score


def given_queries(settings: FitSettings) -> Queries | None:
    """The user's own queries, or None: the teacher writes them."""
    given = settings.sample.queries
    return Queries(given.goal, tuple(given.process)) if given.goal else None


def extra_callbacks(wanted: Sequence[CallbackSettings]) -> list[L.Callback]:
    """The user's own callbacks, found by their class paths. Raises UserError."""
    return [make_object(callback.path, callback.arguments, "callback", "a Lightning callback") for callback in wanted]
