"""One sample -> one Trainer -> one result folder.

video.mp4  base.mp4        the optimized video, and the frozen model's from the same noise; before_after.png
curves.csv  curves.png     loss and P("Yes") of every query at every step
previews/  adapter/        what the teacher saw; the LoRA
result.json  config.yaml   numbers, seeds, versions; the settings
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from callbacks import standard
from ttopt.config.settings import FitSettings
from ttopt.data.sample import Sample, Scorer
from ttopt.data.video import sample_frames, write_video
from ttopt.models.distributed import from_rank_zero, trainer_options
from ttopt.models.load import Models as Models
from ttopt.models.load import load_models as load_models
from ttopt.models.reasoner import Condition, Reasoner
from ttopt.models.teacher import Queries, Teacher
from ttopt.optimization.bank import Bank, Neighbor, keys_of
from ttopt.optimization.noise import best_noise
from ttopt.optimization.reward import multi_vqa_loss
from ttopt.optimization.state import KeepState, State, digest, read
from ttopt.optimization.training import Grade, Reward, TestTimeTraining
from ttopt.record import metrics
from ttopt.record.finish import finish, scored
from ttopt.record.meter import Meter
from ttopt.record.pictures import before_after
from ttopt.record.result import ACCEPTED, Optimization, Result
from ttopt.record.run_folder import STATE, writing
from ttopt.record.timing import PartTimer

if TYPE_CHECKING:
    from ttopt.data.sample import Status
    from ttopt.optimization.batch_fit import Trained


@dataclass(frozen=True)
class TeacherReward:
    """-log P("Yes") of each query, (1,Q), in the teacher's eyes."""

    teacher: Teacher
    queries: Queries
    fps: int
    frame_numbers: Sequence[int]

    def __call__(self, frames: Tensor, latents: Tensor | None = None) -> Tensor:
        return self.teacher.yes_losses(frames, [self.queries.all], self.fps, self.frame_numbers)


def fit_sample(
    sample: Sample,
    models: Models,
    settings: FitSettings,
    folder: Path,
    *,
    queries: Queries | None = None,
    scorer: Scorer | None = None,
    callbacks: Sequence[L.Callback] | None = None,
    logger: Logger | None = None,
    reward: Reward | None = None,
    status: Status = lambda text: None,
    note: Status = lambda text: None,
    meter: Meter | None = None,
    trained: Trained | None = None,
    bank: Bank | None = None,
) -> Result:
    """Optimizes one sample (VLM-as-Teacher, Algorithm 1) and writes everything about it into ``folder``.

    ``folder`` must exist. ``queries`` replaces what the teacher would write; ``reward`` replaces the teacher inside the
    loop (the teacher still grades the finished videos, by which keep better and best choose); ``callbacks`` (None:
    ``callbacks.standard``, of which one ends the loop at tau) and ``logger`` go to the Trainer; ``scorer`` sees only
    finished videos; ``status`` and ``note`` are told what happens, what should stay on the screen; ``meter``, already
    open, counts the cost; ``trained`` is an optimization that has happened already, in a batch; from ``bank``'s nearest
    entry the adapter may start, and an adapter that satisfies the teacher enters it.

    Goes on from the state that an interrupted call has left in ``folder`` (state.py), if all is still the same.
    With a ``reward``, which cannot be compared, none is kept.
    """
    if meter is None:
        with Meter(models.reasoner) as meter:
            return fit_sample(
                sample, models, settings, folder, queries=queries, scorer=scorer, callbacks=callbacks, logger=logger,
                reward=reward, status=status, note=note, meter=meter, trained=trained, bank=bank,
            )  # fmt: skip
    if callbacks is None:
        callbacks = standard(settings)
    reasoner, adapter, timer = models.reasoner, models.adapter, meter.timer
    o = settings.optimization
    numbers = sample_frames(settings.teacher.frames, sample.frames)

    with timer("condition"):
        condition = reasoner.condition(sample)
    near = bank.nearest(keys_of(condition)[0]) if bank and trained is None else None

    resumable = reward is None and trained is None
    key = digest(sample, settings, queries, near.name if near else "") if resumable else ""
    state = from_rank_zero(lambda: read(folder, key, note)) if resumable else None
    if state is not None:
        note(f"{sample.id} goes on after step {len(state.grades)}")
        queries = state.queries
    if queries is None:
        status("the teacher writes its questions")
        meter.vlm_calls += 1
        with timer("queries"):
            queries = models.teacher.queries(sample)
    graded_by = TeacherReward(models.teacher, queries, sample.fps, numbers)

    def loss_of(clean: Tensor, rows: list[int]) -> Tensor:
        return multi_vqa_loss((reward or graded_by)(models.decoder(clean, numbers), clean), o.goal_weight)

    candidates = [noise_seed(settings.seed, sample, k) for k in range(o.starts)]
    chosen = trained or state
    if chosen is not None:
        candidates = [chosen.noise_seed]
    elif o.starts > 1:
        status(f"one-step predictions from up to {o.starts} noises")
    with timer("start"), adapter.disabled():
        z1, (start,), (tried,) = best_noise(reasoner, condition, [candidates], loss_of, o.tau)
    meter.vlm_calls += trained.tried if trained else tried
    seeds = {"noise": start, "adapter": seed_of(settings.seed, sample.id, "adapter")}
    status("the frozen model's video")
    # With keep "last" the frozen model's video is only for the record; else it is a part of the method.
    record: Callable[[], AbstractContextManager[None]] = meter.paused if o.keep == "last" else nullcontext
    with record(), adapter.disabled():
        base = generate(reasoner, z1, condition, timer)

    if resumable and settings.logging.state_every:
        callbacks = [*callbacks, KeepState(folder, settings.logging.state_every, key, queries, start, meter)]
    module = optimize(models, reward or graded_by, condition, z1, numbers, settings, seeds["adapter"], folder, meter,
                      callbacks, logger, trained, state, near)  # fmt: skip

    status("the optimized video")
    videos = {"base": base, "adapter": generate(reasoner, z1, condition, timer)}
    if o.keep == "best":
        with timer("final decode"), torch.no_grad():
            videos["prediction"] = reasoner.decode(module.predict())
    meter.generated_seconds += sample.frames / sample.fps * (1 if o.keep == "last" else len(videos))
    with record(), timer("final grade"), torch.no_grad():
        losses = torch.cat([graded_by(one[:, numbers]) for one in videos.values()])
        totals = multi_vqa_loss(losses, o.goal_weight).tolist()
        grades = {
            name: Grade(0, total, tuple(row)).graded()
            for name, total, row in zip(videos, totals, losses.tolist(), strict=True)
        }
    with meter.paused():
        accepted = module.stop == ACCEPTED
        kept = kept_video(o.keep, accepted, {name: grade.loss for name, grade in grades.items()})
        base, video = base[0].cpu(), videos[kept][0].cpu()
        with timer("score"):
            score_before, score_after = scored(scorer, sample, base), scored(scorer, sample, video)
        with timer("write"), writing(folder):
            write_video(folder / "base.mp4", base, sample.fps)
            before_after(folder / "before_after.png", sample.prompt, base, video, (score_before, score_after))
    result = finish(
        sample,
        video,
        folder,
        settings,
        meter,
        scorer,
        method="teacher_lora",
        seeds=seeds,
        accepted=accepted,
        stop=module.stop,
        optimization=Optimization(
            queries={"goal": queries.goal, "process": list(queries.process), "generic": queries.generic},
            steps=module.kept.step,
            kept=kept,
            prediction_before=module.before.graded(),
            prediction_after=module.kept.graded(),
            video_before=grades["base"],
            video_after=grades[kept],
            score_before=score_before,
            hacked=None if score_after is None else accepted and not score_after.success,
            lora_norm=adapter.norm(),
            drift=metrics.drift(video, base),
        ),
        details={"bank": module.start.details()} if module.start else None,
    )
    if bank and bank.adds and accepted and kept != "base" and module.kept.step:
        bank.add(sample, keys_of(condition)[0], adapter)
    (folder / STATE).unlink(missing_ok=True)
    return result


def kept_video(keep: str, accepted: bool, losses: Mapping[str, float]) -> str:
    """Which video ``optimization.keep`` keeps; ``losses`` are the teacher's, the frozen model's ("base") first."""
    if keep in ("last", "accepted"):
        return "adapter" if keep == "last" or accepted else "base"
    return min(losses, key=losses.__getitem__)  # the first of equals, and where one is NaN


def optimize(
    models: Models,
    reward: Reward,
    condition: Condition,
    z1: Tensor,
    numbers: Sequence[int],
    settings: FitSettings,
    seed: int | None,
    folder: Path,
    meter: Meter,
    callbacks: Sequence[L.Callback] = (),
    logger: Logger | None = None,
    trained: Trained | None = None,
    state: State | None = None,
    near: Neighbor | None = None,
) -> TestTimeTraining:
    """Trains the adapter for one video, from zero with ``seed``, or from where it stands (None); it stays attached.

    ``reward`` grades the K frames with ``numbers``; callbacks write into ``folder``. ``trained`` is played back; from
    ``state`` an interrupted training goes on; from ``near`` a new one starts if that is better than zero.
    """
    if seed is not None:
        models.adapter.reset(seed)
    arguments = (models.reasoner, models.adapter, models.decoder, reward, condition, z1, numbers)
    if trained is None:
        module = TestTimeTraining(*arguments, settings.optimization, meter.timer)
    else:
        from ttopt.optimization.batch_fit import Replay

        module = Replay(*arguments, settings.optimization, meter.timer).play(trained)
    if near is not None:
        module.start_from(near)
    if state is not None:
        module.resume(state.tensors, state.grades)
        meter.resume(state.cost)
    _train(module, folder, callbacks, logger)
    meter.vlm_calls += len(module.grades) + 2 * (module.start is not None)
    return module


def noise_name(number: int) -> str:
    """The purpose of a sample's ``number``-th noise, for ``seed_of``; number 0 is every method's first."""
    return "noise" if number == 0 else f"noise {number}"


def noise_seed(run_seed: int, sample: Sample, number: int = 0) -> int:
    """The seed of a sample's ``number``-th noise; number 0 is the same noise in every method."""
    return seed_of(run_seed, sample.id, noise_name(number))


def seed_of(run_seed: int, sample_id: str, purpose: str) -> int:
    """A seed that depends on nothing else: the same on every machine and in every order of samples."""
    digest = hashlib.sha256(f"{run_seed}/{sample_id}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def generate(reasoner: Reasoner, z1: Tensor, condition: Any, timer: PartTimer) -> Tensor:
    """The few-step video (1,T,3,H,W), decoded by the standard VAE."""
    with timer("generate"):
        latents = reasoner.generate(z1, condition)
    with timer("final decode"):
        return reasoner.decode(latents)


def _train(module: TestTimeTraining, folder: Path, callbacks: Sequence[L.Callback], logger: Logger | None) -> None:
    """A new Trainer: one that is used again with max_steps trains nothing."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer = L.Trainer(
            **trainer_options(module.z1.device),
            max_steps=module.settings.steps - module.steps,
            max_epochs=-1,
            callbacks=list(callbacks),
            logger=logger or False,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
        )
        try:
            with writing(folder):
                trainer.fit(module)
        except SystemExit as exit_:  # how Lightning answers Ctrl-C
            raise KeyboardInterrupt from exit_
