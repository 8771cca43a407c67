"""The way of a sample, from top to bottom: VLM-as-Teacher (arXiv 2606.02564), Algorithm 1.

    video.mp4  base.mp4        the optimized video, and the frozen model's from the same noise; before_after.png
    curves.csv  curves.png     loss and P("Yes") of every query at every step; the picture only where steps were taken
    previews/  adapter/        what the teacher saw; the LoRA, if any step was taken
    result.json  config.yaml   numbers, seeds, versions; the settings

``fit_sample`` takes one sample all the way. Several go side by side as the rows of a batch, which ``prepare`` and
``fit_batch`` do in two halves, so that a caller can choose who shares a batch.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from ttopt.config.settings import OptimizationSettings
from ttopt.data.queries import Queries
from ttopt.data.sample import Sample
from ttopt.data.video import sample_frames, write_video
from ttopt.errors import RunError
from ttopt.models.distributed import from_rank_zero, trainer_options
from ttopt.models.load import Models
from ttopt.models.reasoner import Condition
from ttopt.models.teacher import Teacher
from ttopt.optimization.bank import Neighbor, keys_of
from ttopt.optimization.context import Context
from ttopt.optimization.noise import best_noise
from ttopt.optimization.reward import multi_vqa_loss
from ttopt.optimization.seeds import noise_seed, seed_of
from ttopt.optimization.state import KeepState, State, digest, read
from ttopt.optimization.training import Grade, Reward, Row, TestTimeTraining, select
from ttopt.record import metrics
from ttopt.record.finish import check_finite, scored
from ttopt.record.meter import Meter, SharedMeter, together
from ttopt.record.pictures import before_after
from ttopt.record.result import ACCEPTED, Graded, Optimization, Result
from ttopt.record.run_folder import STATE, writing


@dataclass(frozen=True)
class TeacherReward:
    """-log P("Yes") of each sample's queries, (B,Q), in the teacher's eyes; all samples have equally many."""

    teacher: Teacher
    queries: Sequence[Queries]  # of B samples
    fps: float
    frame_numbers: Sequence[int]

    def __call__(self, frames: Tensor, latents: Tensor | None = None) -> Tensor:
        asked = [queries.all for queries in self.queries]
        return self.teacher.yes_losses(frames, asked, self.fps, self.frame_numbers)

    def select(self, rows: Sequence[int]) -> TeacherReward:
        """The reward of some of the samples."""
        return TeacherReward(self.teacher, [self.queries[row] for row in rows], self.fps, self.frame_numbers)


@dataclass(frozen=True)
class Prepared:
    """A sample that is ready to be optimized."""

    sample: Sample
    folder: Path
    context: Context
    condition: Condition
    queries: Queries
    near: Neighbor | None  # the bank's entry that it may start from
    state: State | None  # of an optimization that was interrupted
    key: str  # what a state is compared with; "": none is kept

    @property
    def kind(self) -> tuple[object, ...]:
        """Samples of one kind can share a batch: the same format, number of queries and steps taken."""
        s, state = self.sample, self.state
        steps = -1 if state is None else 0 if state.stop else len(state.grades)
        return s.frames, s.fps, s.height, s.width, s.first_frame is None, len(self.queries.all), steps


def fit_sample(sample: Sample, folder: Path, context: Context, reward: Reward | None = None) -> Result:
    """Optimizes one sample and writes everything about it into ``folder``, which must exist.

    ``reward`` replaces the teacher inside the loop; the teacher still grades the finished videos, by which keep better
    and best choose. A callback of the context must end the loop at tau: callbacks.standard has one. Goes on from the
    state that an interrupted call has left in ``folder`` (state.py), if all is still the same; with a ``reward``, which
    cannot be compared, none is kept. Raises UserError for a sample that cannot be optimized.
    """
    (result,) = fit_batch([prepare(sample, folder, context, reward)], reward)
    if isinstance(result, Exception):
        raise result
    (folder / STATE).unlink(missing_ok=True)
    return result


def prepare(sample: Sample, folder: Path, context: Context, reward: Reward | None = None) -> Prepared:
    """The condition, the questions, and where to start: everything that comes before the first noise."""
    models, settings, meter = context.models, context.settings, context.meter
    with meter.timer("condition"):
        condition = models.reasoner.condition(sample)
    near = context.bank.nearest(keys_of(condition)[0]) if context.bank else None
    key = "" if reward else digest(sample, settings, context.queries, near.name if near else "")
    state = from_rank_zero(lambda: read(folder, key, context.note)) if key else None
    queries = context.queries
    if state is not None:
        context.note(f"{sample.id} goes on after step {len(state.grades) - bool(state.stop)}")
        queries = state.queries
    elif queries is None:
        context.status("the teacher writes its questions")
        meter.vlm_calls += 1
        with meter.timer("queries"):
            queries = models.teacher.queries(sample)
    return Prepared(sample, folder, context, condition, queries, near, state, key)


def fit_batch(batch: Sequence[Prepared], reward: Reward | None = None) -> list[Result | Exception]:
    """Optimizes samples of one ``kind`` side by side, each with its own adapter, grades and stop.

    A batch gives what its samples give one by one, up to the rounding of batched matrix products. What is wrong with
    one video is that sample's error. The states stay: they are to be removed when a sample's folder is final.
    """
    context, sample = batch[0].context, batch[0].sample
    models, settings, o = context.models, context.settings, context.settings.optimization
    if len(batch) > 1:
        context.status(f"{len(batch)} samples side by side")
    with together(models.reasoner, [each.context.meter for each in batch]) as meter:
        condition = Condition.stack([each.condition for each in batch])
        numbers = sample_frames(settings.teacher.frames, sample.frames)
        judge = TeacherReward(models.teacher, [each.queries for each in batch], sample.fps, numbers)
        guide = reward or judge
        z1, starts = choose_noise(batch, condition, numbers, guide, meter)
        adapters = [seed_of(settings.seed, each.sample.id, "adapter") for each in batch]
        rows = [Row(each.folder, each.context.logger) for each in batch]
        training = begin(models, guide, condition, z1, numbers, o, adapters, meter, rows)
        training.start_from([each.near for each in batch])
        states = [each.state for each in batch if each.state]
        if states:
            training.resume([(state.tensors, state.grades, state.stop) for state in states])
            meter.resume(*(state.cost for state in states))  # what was counted so far is a repetition
        callbacks = context.callbacks()
        if all(each.key for each in batch) and settings.logging.state_every:
            headers = [(each.key, each.queries, start) for each, start in zip(batch, starts, strict=True)]
            callbacks.append(KeepState(settings.logging.state_every, headers, meter))
        train(training, callbacks, batch[0].folder)
        context.status("the videos")
        videos = render(models, condition, z1, training, o.keep, meter)
        with meter.paused() if o.keep == "last" else nullcontext(), meter.timer("final grade"):
            grades = grade(judge, videos, numbers, o.goal_weight)
    results: list[Result | Exception] = []
    for number, (each, row) in enumerate(zip(batch, rows, strict=True)):
        own = {name: video[number] for name, video in videos.items()}
        seeds = {"noise": starts[number], "adapter": adapters[number]}
        try:
            results.append(_finish(each, row, training, number, own, grades[number], seeds))
        except RunError:
            raise
        except Exception as error:  # a scorer of the user's own may fail in every way
            results.append(error)
    return results


def choose_noise(
    batch: Sequence[Prepared],
    condition: Condition,
    numbers: Sequence[int],
    guide: Reward,
    meter: Meter | SharedMeter,
) -> tuple[Tensor, list[int]]:
    """The noise z1 of every sample and its seed; those of a resumed sample are its state's."""
    context = batch[0].context
    settings, count = context.settings, context.settings.optimization.starts
    seeds = [[noise_seed(settings.seed, each.sample, k) for k in range(count)] for each in batch]
    if batch[0].state is not None:
        seeds = [[each.state.noise_seed] for each in batch if each.state]
    elif count > 1:
        context.status(f"one-step predictions from up to {count} noises")
    z1, chosen, tried = start_noise(context.models, condition, seeds, numbers, guide, settings.optimization, meter)
    for each, graded in zip(batch, tried, strict=True):
        each.context.meter.vlm_calls += graded
    return z1, chosen


def start_noise(
    models: Models,
    condition: Condition,
    seeds: Sequence[Sequence[int]],
    numbers: Sequence[int],
    guide: Reward,
    o: OptimizationSettings,
    meter: Meter | SharedMeter,
) -> tuple[Tensor, list[int], list[int]]:
    """The starting noise of each sample, the best of its ``seeds`` in the eyes of the reward; see noise.best_noise."""

    def losses(clean: Tensor, rows: list[int]) -> Tensor:
        return multi_vqa_loss(select(guide, rows)(models.decoder(clean, numbers), clean), o.goal_weight)

    with meter.timer("start"), models.adapter.disabled():
        return best_noise(models.reasoner, condition, seeds, losses, o.tau, meter.computing)


def begin(
    models: Models,
    guide: Reward,
    condition: Condition,
    z1: Tensor,
    numbers: Sequence[int],
    o: OptimizationSettings,
    seeds: Sequence[int] | None,
    meter: Meter | SharedMeter,
    rows: Sequence[Row],
) -> TestTimeTraining:
    """A training of the models' adapter, from zero with ``seeds``, or from where it stands (None)."""
    if seeds is not None:
        models.adapter.reset(seeds)
    training = TestTimeTraining(
        models.reasoner, models.adapter, models.decoder, guide, condition, z1, numbers, o, meter.timer, rows
    )
    training.computing = meter.computing
    return training


def train(training: TestTimeTraining, callbacks: Sequence[L.Callback], folder: Path) -> None:
    """The loop of Algorithm 1, in a new Trainer: one that is used again with max_steps trains nothing."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer = L.Trainer(
            **trainer_options(training.z1.device),
            max_steps=training.settings.steps - training.steps,
            max_epochs=-1,
            callbacks=list(callbacks),
            logger=[row.logger for row in training.rows if row.logger] or False,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
        )
        try:
            with writing(folder):
                trainer.fit(training)
        except SystemExit as exit_:  # how Lightning answers Ctrl-C
            raise KeyboardInterrupt from exit_


@torch.no_grad()
def render(
    models: Models,
    condition: Condition,
    z1: Tensor,
    training: TestTimeTraining,
    keep: str,
    meter: Meter | SharedMeter,
    base: bool = True,
) -> dict[str, Tensor]:
    """The videos (B,T,3,H,W) in [0,1] of which one is kept, on the CPU: "base" of the frozen model, "adapter", and with
    keep best the "prediction" that was optimized.

    With keep last the frozen model's is only for the record; else it is a part of the method. Without ``base`` it is
    not made. Where no adapter has an effect, "adapter" is the same tensor as "base".
    """
    reasoner, timer = models.reasoner, meter.timer
    changed = any(training.adapter.has_effect(row) for row in range(len(training.rows)))
    meter.computing(range(len(z1)))

    def video() -> Tensor:
        with timer("generate"):
            latents = reasoner.generate(z1, condition)
        with timer("final decode"):
            return decode(latents)

    def decode(latents: Tensor) -> Tensor:  # one at a time: a few seconds in full resolution are a gigabyte
        return torch.cat([reasoner.decode(row[None]).cpu() for row in latents])

    videos = {}
    if base:
        with meter.paused() if keep == "last" and changed else nullcontext(), models.adapter.disabled():
            videos["base"] = video()
    videos["adapter"] = video() if changed or not base else videos["base"]
    if keep == "best":
        with timer("final decode"):
            videos["prediction"] = decode(training.predict())
    return videos


@torch.no_grad()
def grade(
    judge: TeacherReward, videos: Mapping[str, Tensor], numbers: Sequence[int], goal_weight: float
) -> list[dict[str, Graded]]:
    """What the teacher says of each sample's videos."""
    losses: dict[str, Tensor] = {}
    for name, video in videos.items():
        same = [other for other in losses if videos[other] is video]
        losses[name] = losses[same[0]] if same else judge(video[:, numbers])
    totals = {name: multi_vqa_loss(per_query, goal_weight).tolist() for name, per_query in losses.items()}
    return [
        {
            name: Grade(0, totals[name][number], tuple(per_query[number].tolist())).graded()
            for name, per_query in losses.items()
        }
        for number in range(len(judge.queries))
    ]


def distinct(videos: Mapping[str, Tensor]) -> int:
    """How many videos were made: an adapter without effect has none of its own."""
    return len({video.data_ptr() for video in videos.values()})


def choose(keep: str, accepted: bool, losses: Mapping[str, float]) -> str:
    """Which video ``optimization.keep`` keeps; ``losses`` are the teacher's, the frozen model's ("base") first."""
    if keep in ("last", "accepted"):
        return "adapter" if keep == "last" or accepted else "base"
    return min(losses, key=losses.__getitem__)  # the first of equals, and where one is NaN


def _finish(
    each: Prepared,
    row: Row,
    training: TestTimeTraining,
    number: int,
    videos: Mapping[str, Tensor],
    grades: Mapping[str, Graded],
    seeds: dict[str, int],
) -> Result:
    """Chooses the sample's video, scores it, and writes everything."""
    sample, folder, context, queries = each.sample, each.folder, each.context, each.queries
    meter, scorer, o = context.meter, context.scorer, context.settings.optimization
    accepted = row.stop == ACCEPTED
    kept = choose(o.keep, accepted, {name: grade.loss for name, grade in grades.items()})
    base, video = videos["base"], videos[kept]
    made = distinct(videos)
    meter.vlm_calls += len(row.grades) + 2 * (row.start is not None)
    meter.vlm_calls += made if o.keep in ("better", "best") else 0  # else graded for the record
    meter.generated_seconds += sample.frames / sample.fps * (1 if o.keep == "last" else made)
    for one in (base, video):
        check_finite(one)
    with meter, meter.paused():
        with meter.timer("score"):
            score_before, score_after = scored(scorer, sample, base), scored(scorer, sample, video)
        with meter.timer("write"), writing(folder):
            write_video(folder / "base.mp4", base, sample.fps)
            before_after(folder / "before_after.png", sample.prompt, base, video, (score_before, score_after))
    details: dict[str, Any] | None = {"bank": row.start.details()} if row.start else None
    result = context.finish(
        sample,
        video,
        folder,
        method="teacher_lora",
        seeds=seeds,
        accepted=accepted,
        stop=row.stop,
        optimization=Optimization(
            queries={"goal": queries.goal, "process": list(queries.process), "generic": queries.generic},
            steps=row.kept.step,
            kept=kept,
            prediction_before=row.before.graded(),
            prediction_after=row.kept.graded(),
            video_before=grades["base"],
            video_after=grades[kept],
            score_before=score_before,
            hacked=None if score_after is None else accepted and not score_after.success,
            lora_norm=training.adapter.norm(number),
            drift=metrics.drift(video, base),
        ),
        details=details,
        written=folder / "base.mp4" if video.data_ptr() == base.data_ptr() else None,
    )
    if context.bank and context.bank.adds and accepted and kept != "base" and row.kept.step:
        context.bank.add(sample, keys_of(each.condition)[0], training.adapter, number)
    return result
