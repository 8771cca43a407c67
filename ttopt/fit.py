"""One sample -> one Trainer -> one result folder.

video.mp4  base.mp4        the optimised video, and the frozen model's from the same noise; before_after.png
curves.csv  curves.png     loss and P("Yes") of every query at every step
previews/  adapter/        what the teacher saw; the LoRA
result.json  config.yaml   numbers, seeds, versions; the settings
"""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from ttopt import metrics
from ttopt.config import EMBEDDED, WEIGHTS, FitSettings, to_yaml
from ttopt.errors import UserError
from ttopt.module import Decoder, Grade, Reward, TestTimeTraining, sample_frames
from ttopt.picture import before_after
from ttopt.reasoner import Adapter, Reasoner, Schedule, StandardDecoder
from ttopt.result import ACCEPTED, Result, Scored, versions
from ttopt.reward import multi_vqa_loss
from ttopt.runfolder import CONFIG, writing
from ttopt.sample import Sample
from ttopt.teacher import Queries, Teacher
from ttopt.timing import PartTimer
from ttopt.video import write_video

if TYPE_CHECKING:
    from ttopt.console import Status

Scorer = Callable[[Sample, Tensor], Any]  # sample, video (T,3,H,W) -> object with success, partial, rules


@dataclass(frozen=True)
class Models:
    """All networks, loaded once for all samples of a run."""

    reasoner: Reasoner
    adapter: Adapter
    decoder: Decoder
    teacher: Teacher


@dataclass(frozen=True)
class TeacherReward:
    """-log P("Yes") of each query, (1,Q), in the teacher's eyes."""

    teacher: Teacher
    queries: Queries
    fps: int
    frame_numbers: Sequence[int]

    def __call__(self, frames: Tensor, latents: Tensor | None = None) -> Tensor:
        return self.teacher.yes_losses(frames, [self.queries.all], self.fps, self.frame_numbers)


def load_models(settings: FitSettings) -> Models:
    """Loads the reasoner, its adapter, the decoder and the teacher, all frozen but the adapter.

    Raises UserError for what is missing.
    """
    r, a, d, t = settings.reasoner, settings.adapter, settings.decoder, settings.teacher
    light = _weights(d.model, "light_decoder", "decoder.model") if d.kind == "light" else None
    device = _device(r.device, "reasoner.device")
    reasoner = Reasoner.load(
        _weights(r.model, "reasoner", "reasoner.model"),
        schedule=Schedule(tuple(r.sigmas), r.renoise),
        transformer=r.transformer,
        light_decoder=light,
        dtype=r.dtype,
        device=device,
    )
    decoder = reasoner.light_decoder or StandardDecoder(reasoner.vae, checkpoint=d.checkpoint)
    adapter = Adapter(reasoner.transformer, a.rank, a.alpha, a.targets, a.blocks)
    teacher = Teacher.load(
        _weights(t.model, "teacher", "teacher.model"), dtype=t.dtype, device=_device(t.device, "teacher.device")
    )
    return Models(reasoner, adapter, decoder, teacher)


def fit_sample(
    sample: Sample,
    models: Models,
    settings: FitSettings,
    folder: Path,
    *,
    queries: Queries | None = None,
    scorer: Scorer | None = None,
    callbacks: Sequence[L.Callback] = (),
    logger: Logger | None = None,
    reward: Reward | None = None,
    status: Status = lambda text: None,
) -> Result:
    """Optimises one sample (VLM-as-Teacher, Algorithm 1) and writes everything about it into ``folder``.

    ``queries`` replaces what the teacher would write; ``reward`` replaces the teacher inside the loop (the teacher
    still grades the two videos); ``callbacks`` and ``logger`` go to the Trainer; ``scorer`` sees only finished videos.
    """
    begin = time.perf_counter()
    reasoner, adapter = models.reasoner, models.adapter
    timer = PartTimer(reasoner.device)
    seeds = {name: seed_of(settings.seed, sample.id, name) for name in ("noise", "adapter")}
    numbers = sample_frames(settings.teacher.frames, sample.frames)

    if queries is None:
        status("the teacher writes its questions")
        with timer("queries"):
            queries = models.teacher.write_queries(sample)
    graded_by = TeacherReward(models.teacher, queries, sample.fps, numbers)

    status("the frozen model's video")
    with timer("condition"):
        condition = reasoner.condition(sample)
        z1 = reasoner.noise(condition, [seeds["noise"]])
    adapter.reset(seeds["adapter"])
    with adapter.disabled():
        base = _generate(reasoner, z1, condition, timer)

    module = TestTimeTraining(
        reasoner, adapter, models.decoder, reward or graded_by, condition, z1, numbers, settings.optimisation, timer
    )
    _train(module, folder, callbacks, logger)

    status("the optimised video")
    video = _generate(reasoner, z1, condition, timer)
    with timer("final grade"), torch.no_grad():
        both = torch.cat([graded_by(one[:, numbers]) for one in (base, video)])
        totals = multi_vqa_loss(both, settings.optimisation.goal_weight).tolist()
        before, after = (Grade(0, total, tuple(row)).graded() for total, row in zip(totals, both.tolist(), strict=True))
    base, video = base[0].cpu(), video[0].cpu()
    with timer("score"):
        scores = [_scored(scorer(sample, one)) if scorer else None for one in (base, video)]
    with timer("write"), writing(folder):
        write_video(folder / "base.mp4", base, sample.fps)
        write_video(folder / "video.mp4", video, sample.fps)
        before_after(folder / "before_after.png", sample.prompt, base, video, (scores[0], scores[1]))
        (folder / CONFIG).write_text(to_yaml(settings), encoding="utf-8")

    has_image = sample.image is not None
    result = Result(
        sample=sample.id,
        family=sample.family,
        split=sample.split,
        prompt=sample.prompt,
        queries={"goal": queries.goal, "process": list(queries.process)},
        steps=module.kept.step,
        stop=module.stop,
        prediction_before=module.grades[0].graded(),
        prediction_after=module.kept.graded(),
        video_before=before,
        video_after=after,
        score_before=scores[0],
        score_after=scores[1],
        hacked=None if scores[1] is None else module.stop == ACCEPTED and not scores[1].success,
        lora_norm=adapter.norm(),
        drift=metrics.drift(video, base),
        first_frame_ssim=metrics.similarity(video[:1], sample.image[None]) if has_image else None,  # type: ignore[index]
        seeds={"run": settings.seed, **seeds},
        seconds={**timer.seconds(), "total": round(time.perf_counter() - begin, 3)},
        peak_mb=timer.peak_mb(),
        device=_device_name(reasoner.device),
        versions=versions(),
        finished=datetime.now().astimezone().isoformat(timespec="seconds"),
    )
    with writing(folder):
        result.save(folder)
    return result


def seed_of(run_seed: int, sample_id: str, purpose: str) -> int:
    """A seed that depends on nothing else: the same on every machine and in every order of samples."""
    digest = hashlib.sha256(f"{run_seed}/{sample_id}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _generate(reasoner: Reasoner, z1: Tensor, condition: Any, timer: PartTimer) -> Tensor:
    """The few-step video (1,T,3,H,W), decoded by the standard VAE."""
    with timer("generate"):
        latents = reasoner.generate(z1, condition)
    with timer("final decode"):
        return reasoner.decode(latents)


def _train(module: TestTimeTraining, folder: Path, callbacks: Sequence[L.Callback], logger: Logger | None) -> None:
    """A new Trainer: one that is used again with max_steps trains nothing."""
    device = module.z1.device
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer = L.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=[device.index or 0] if device.type == "cuda" else 1,
            max_steps=module.settings.steps,
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


def _scored(score: Any) -> Scored:
    return Scored(bool(score.success), float(score.partial), {name: bool(ok) for name, ok in score.rules.items()})


def _weights(model: str, part: str, setting: str) -> str:
    """The path or hub id of a model; "embedded" is the shipped one."""
    if model != EMBEDDED:
        return model
    if not (WEIGHTS / part).is_dir():
        raise UserError(
            f"the embedded weights are missing ({WEIGHTS / part}); install ttopt again, or give --{setting}"
        )
    return str(WEIGHTS / part)


def _device(name: str, setting: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"{setting} is {name!r}, which is no device; give auto, cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"{setting} is {name}, but torch finds {torch.cuda.device_count()} GPUs; give cpu or auto")
    return name


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
