"""Many samples, one after the other, in this process."""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import lightning as L
import torch

from ttopt import __version__
from ttopt.bank import Bank
from ttopt.batch_fit import batched
from ttopt.chat import Chat, check_chat, make_chat
from ttopt.config import CallbackSettings, FitSettings
from ttopt.console import Console, LiveSteps
from ttopt.cost import Meter
from ttopt.errors import UserError
from ttopt.finish import Scorer
from ttopt.fit import Models, load_models
from ttopt.identity import files_digest, sample_digest
from ttopt.memory import SPARED, advice, spare
from ttopt.methods.base import Context, Method, make_method, make_object
from ttopt.models import sources
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
    batched(method, [], settings)  # refuses what cannot be batched before anything is written
    folder = RunFolder(Path(settings.run_dir) if settings.run_dir else new_path(), settings)
    run = Run(folder.path)
    models: Models | None = None
    chat: Chat | None = None
    bank: Bank | None = None
    with folder.locked(), console.samples(samples, settings.optimisation.steps) as progress:
        finished = _finished(samples, folder, settings)
        method = batched(method, [sample for sample in samples if sample.id not in finished], settings)
        for sample in samples:
            done = finished.get(sample.id)
            if done is not None:
                run.results.append(done)
                progress.finished(done, skipped=True)
                continue
            if models is None or chat is None:
                bank = Bank.open(settings, folder.path, progress.note)
                progress.status("loading the models")
                models = (load or _loader(progress.note))(settings)
                chat = make_chat(settings.chat, models.teacher)

            def made() -> list[L.Callback]:
                return [*callbacks(settings), *extra_callbacks(settings.callbacks), progress.callback()]

            def solve(
                sample: Sample = sample, models: Models = models, chat: Chat = chat, bank: Bank | None = bank
            ) -> Result:
                return _solve(sample, method, models, chat, settings, folder, queries, scorer, made, progress, bank)

            try:
                result = _sparingly(solve, models, progress.note)
            except (UserError, torch.OutOfMemoryError) as error:
                if isinstance(error.__cause__, OSError):  # the disk; the next sample would meet it too
                    raise
                why = advice(settings) if isinstance(error, torch.OutOfMemoryError) else str(error)
                run.problems.append(f"sample {sample.id}: {why}")
                progress.failed(sample, why)
                continue
            run.results.append(result)
            progress.finished(result)
            if result.error:
                run.problems.append(f"sample {sample.id}: {result.error}")
            if result.stop == NON_FINITE and result.optimisation:
                run.problems.append(
                    f"sample {sample.id}: the loss became NaN or infinite; the best adapter before, that of step "
                    f"{result.optimisation.steps}, is kept; lower --optimisation.lr, or give --reasoner.dtype and "
                    "--teacher.dtype float32"
                )
            if result.optimisation and result.optimisation.queries.get("generic"):
                progress.note(f"{sample.id}: the teacher wrote no usable questions, generic ones were asked instead")
    return run


def _finished(samples: Sequence[Sample], folder: RunFolder, settings: FitSettings) -> dict[str, Result]:
    """What earlier calls finished. Raises UserError for a result that was made from something else."""
    found, files = {}, files_digest(settings)
    for sample in samples:
        done = folder.finished(sample.id)
        if done is None:
            continue
        now = {"prompt or image": sample_digest(sample), "weights or wordings": files, "ttopt": __version__}
        then = {
            "prompt or image": done.inputs.get("sample"),
            "weights or wordings": done.inputs.get("files"),
            "ttopt": done.versions.get("ttopt"),
        }
        for name, value in now.items():
            if then[name] not in (None, value):
                raise UserError(
                    f"{folder.path} holds a result of sample {sample.id} that was made with another {name} "
                    f"({then[name]}, now {value}); set it back, or give another --run-dir"
                )
        found[sample.id] = done
    return found


def _sparingly(solve: Callable[[], Result], models: Models, note: Callable[[str], None]) -> Result:
    """``solve``, and once more with less memory if there is too little. Raises what the second try raises."""
    try:
        return solve()
    except torch.OutOfMemoryError:
        if not spare(models):
            raise
    note(SPARED)  # not in the except clause: there, the first try's tensors still live
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return solve()


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
    bank: Bank | None,
) -> Result:
    with wandb_run(settings, sample.id, run_folder.path, progress.note) as logger:
        with run_folder.sample(sample.id) as folder, Meter(models.reasoner) as meter:
            progress.begin(sample)
            context = Context(
                models, settings, meter, chat, scorer, queries, callbacks, logger, progress.status, progress.note, bank
            )
            result = method.solve(sample, folder, context)
        # Only when the sample's folder is complete: W&B may take its time.
        log_result(logger, result, run_folder.samples / sample.id)
    return result


def find_samples(settings: FitSettings) -> tuple[list[Sample], Scorer | None]:
    """The samples of a run, and the data set's scorer if they are the data set's. Raises UserError."""
    samples, scorer = _samples(settings)
    if not samples:
        raise UserError(f"dataset {settings.dataset}: {settings.root} holds no samples; check --root")
    names: dict[str, str] = {}
    for sample in samples:
        other = names.setdefault(sample.id.casefold(), sample.id)  # some file systems know no upper case
        if other is not sample.id:
            raise UserError(f"the samples {other} and {sample.id} would share a folder; give each its own name")
    return samples, scorer


def _samples(settings: FitSettings) -> tuple[list[Sample], Scorer | None]:
    own = settings.sample
    if own.prompt is not None:
        # Checked before the image is made as large as is asked for.
        sample = Sample(own.id, own.prompt, None, own.frames, own.fps, own.height, own.width)
        image = None if own.image is None else read_image(Path(own.image), own.height, own.width)
        return [dataclasses.replace(sample, image=image)], None
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
    found = []
    for callback in wanted:
        made = make_object(callback.path, callback.arguments, "callback", "a Lightning callback")
        if not isinstance(made, L.Callback):
            raise UserError(f"callback {callback.path} is no Lightning callback; give the class path of one")
        found.append(made)
    return found
