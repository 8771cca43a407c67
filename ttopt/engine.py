"""Many samples, one after the other, in this process."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lightning as L

from ttopt.config import CallbackSettings, FitSettings
from ttopt.console import Console, LiveSteps
from ttopt.errors import UserError
from ttopt.fit import Models, Scorer, fit_sample, load_models
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


def fit_all(settings: FitSettings, console: Console, callbacks: MakeCallbacks = lambda settings: []) -> Run:
    """Optimises every sample that the run's folder does not hold yet, with new ``callbacks`` for each.

    A sample that cannot be optimised is noted in ``problems`` and the others go on. Raises UserError for what stops the
    whole run: settings, data, weights, a folder that cannot be written.
    """
    samples, scorer = find_samples(settings)
    queries = given_queries(settings)
    extra_callbacks(settings.callbacks)  # a wrong class path should not wait for the models
    folder = RunFolder(Path(settings.run_dir) if settings.run_dir else new_path(), settings)
    run = Run(folder.path)
    models: Models | None = None
    with console.samples(samples, settings.optimisation.steps) as progress:
        for sample in samples:
            done = folder.finished(sample.id)
            if done is not None:
                run.results.append(done)
                progress.finished(done, skipped=True)
                continue
            if models is None:
                progress.status("loading the models")
                begin = time.perf_counter()
                models = load_models(settings)
                progress.note(f"models loaded in {time.perf_counter() - begin:.1f} s")
            try:
                made = [*callbacks(settings), *extra_callbacks(settings.callbacks), progress.callback()]
                result = _fit_one(sample, models, settings, folder, queries, scorer, made, progress)
            except UserError as error:
                if isinstance(error.__cause__, OSError):  # the disk; the next sample would meet it too
                    raise
                run.problems.append(f"sample {sample.id}: {error}")
                progress.failed(sample, str(error))
                continue
            run.results.append(result)
            progress.finished(result)
            if result.stop == NON_FINITE:
                run.problems.append(
                    f"sample {sample.id}: the loss became NaN or infinite after step {result.steps}, whose adapter is "
                    "kept; lower --optimisation.lr, or give --reasoner.dtype and --teacher.dtype float32"
                )
    return run


def _fit_one(
    sample: Sample,
    models: Models,
    settings: FitSettings,
    run_folder: RunFolder,
    queries: Queries | None,
    scorer: Scorer | None,
    callbacks: Sequence[L.Callback],
    progress: LiveSteps,
) -> Result:
    with (
        run_folder.sample(sample.id) as folder,
        wandb_run(settings, sample.id, run_folder.path, progress.note) as logger,
    ):
        progress.begin(sample)
        result = fit_sample(
            sample,
            models,
            settings,
            folder,
            queries=queries,
            scorer=scorer,
            callbacks=callbacks,
            logger=logger,
            status=progress.status,
        )
        log_result(logger, result, folder)
    return result


def find_samples(settings: FitSettings) -> tuple[list[Sample], Scorer | None]:
    """The samples of a run, and the data set's scorer if they are the data set's. Raises UserError."""
    own = settings.sample
    if own.prompt is not None:
        image = None if own.image is None else read_image(Path(own.image), own.height, own.width)
        return [Sample(own.id, own.prompt, image, own.frames, own.fps, own.height, own.width)], None
    dataset = importlib.import_module(f"ttopt.datasets.{settings.dataset}")
    samples: list[Sample] = dataset.samples(settings.split, settings.families, settings.seed, settings.limit)
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
    made: list[L.Callback] = []
    for callback in wanted:
        module, _, name = callback.path.rpartition(".")
        try:
            made.append(getattr(importlib.import_module(module), name)(**callback.arguments))
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise UserError(
                f"callback {callback.path} cannot be made ({error}); give the class path of a Lightning callback "
                "that can be imported from here, and its arguments as arguments"
            ) from error
    return made
