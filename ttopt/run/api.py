"""ttopt from Python: one sample in one call."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
from PIL import Image
from torch import Tensor

from ttopt.config.lookup import standard_callbacks
from ttopt.config.parsing import changed, parse_fit
from ttopt.config.settings import FitSettings, MethodSettings
from ttopt.data.find import given_queries
from ttopt.data.images import as_seen, fit_image, read_image
from ttopt.data.queries import Queries
from ttopt.data.sample import Sample, Scorer
from ttopt.data.video import read_video
from ttopt.errors import UserError
from ttopt.methods.teacher_lora import TeacherLora
from ttopt.models import load
from ttopt.models.chat import make_chat
from ttopt.models.load import Models
from ttopt.models.teacher import Teacher
from ttopt.optimization.algorithm import fit_sample
from ttopt.optimization.bank import Bank
from ttopt.optimization.context import Context
from ttopt.optimization.training import Reward
from ttopt.record.flat import CSV, write_results
from ttopt.record.result import Result
from ttopt.record.run_folder import STATE, RunFolder, new_path
from ttopt.run.run import extra_callbacks, finished_results
from ttopt.run.sample_runner import Failure, Job, SampleRunner

SIDE = 320  # pixels of a player in a notebook, at least


@dataclass(frozen=True)
class Optimized:
    """What ``optimize`` made; everything about it lies in ``folder``."""

    result: Result
    folder: Path

    @cached_property
    def video(self) -> Tensor:
        """The optimized video (T,3,H,W) in [0,1]."""
        return read_video(self.folder / "video.mp4")

    @cached_property
    def base(self) -> Tensor:
        """The frozen model's video from the same noise."""
        return read_video(self.folder / "base.mp4")

    @property
    def loss(self) -> float:
        """The teacher's loss of ``video``; -log P("Yes") of the questions, weighted."""
        assert self.result.optimization is not None
        return self.result.optimization.video_after.loss

    @property
    def accepted(self) -> bool:
        """Whether the loss reached tau."""
        return bool(self.result.accepted)

    @property
    def score(self) -> float | None:
        """The scorer's partial score, 0 to 1; None without a scorer."""
        return None if self.result.score is None else self.result.score.partial

    def show(self) -> Any:
        """Both videos as players, for a notebook."""
        from IPython.display import HTML  # only notebooks have it

        return HTML(self._repr_html_())

    def _repr_html_(self) -> str:
        players = "".join(
            f'<figure style="display:inline-block;margin:0 1em 0 0"><video controls loop autoplay muted '
            f'style="min-width:{SIDE}px;image-rendering:pixelated" src="data:video/mp4;base64,{_base64(file)}"></video>'
            f"<figcaption>{name}</figcaption></figure>"
            for name, file in (("frozen", self.folder / "base.mp4"), ("optimized", self.folder / "video.mp4"))
        )
        return f"<div>{players}</div>"


def optimize(
    prompt: str,
    image: str | Path | Image.Image | Tensor | None = None,
    *,
    config: str = "mini",
    settings: Mapping[str, Any] | None = None,
    models: Models | None = None,
    teacher: Teacher | None = None,
    reward: Reward | None = None,
    queries: Queries | None = None,
    callbacks: Sequence[L.Callback] = (),
    scorer: Scorer | None = None,
    folder: str | Path | None = None,
    note: Callable[[str], None] = print,
) -> Optimized:
    """Optimizes one sample at test time (VLM-as-Teacher, Algorithm 1).

        r = ttopt.optimize("Move the red circle to the red star.", "first.png", config="wan22_5b")
        r.video, r.base, r.loss, r.accepted, r.folder

    Args:
        image: the first frame: a path, a PIL image, or a float tensor (3,H,W) in [0,1]; None: the settings'
            sample.image, or else text to video.
        settings: changes to the configuration by dotted names, e.g. {"optimization.tau": 0.1}.
        models: of ``load_models``; None: they are loaded for this call.
        teacher: replaces the configuration's.
        reward: steers instead of the teacher: frames (1,K,3,H,W) and latents (1,C,T,h,w) -> losses (1,Q).
        queries: the questions, instead of those that the teacher would write.
        callbacks: come on top of the standard ones.
        scorer: sees only finished videos.
        folder: a run's folder, which is gone on with: a result that it holds is not made again, whatever the callbacks
            and the scorer; None: a new one under runs/.

    Raises UserError for what cannot be used, and for a sample that cannot be optimized.
    """
    chosen = settings_of(config, settings)
    if chosen.method != MethodSettings():
        raise UserError(
            f"optimize trains the teacher's LoRA, but the configuration names the method {chosen.method.path}; use "
            "ttopt fit for that, or give another config"
        )
    form, queries = chosen.sample, queries or given_queries(chosen)
    first = _first_frame(form.image if image is None else image, form.height, form.width)
    sample = Sample(form.id, prompt, first, form.frames, form.fps, form.height, form.width)
    extra_callbacks(chosen.callbacks)  # a wrong class path should not wait for the models
    place = Path(folder) if folder is not None else new_path(name="optimize")
    if teacher is not None:  # with which a later call's could not be compared
        chosen = dataclasses.replace(chosen, logging=dataclasses.replace(chosen.logging, state_every=0))
    run = RunFolder(place, dataclasses.replace(chosen, run_dir=str(place)))
    method = _Steered(reward, goes_on=teacher is None)
    with run.locked():
        done = finished_results([sample], run, chosen, method).get(sample.id)
        if isinstance(done, Failure):
            raise UserError(done.why)
        if done is not None and (reward or teacher):
            raise UserError(
                f"{place} holds a result already, and what it was made with cannot be compared with a reward or "
                "teacher that is passed in; give another folder"
            )
        if done is not None and queries is not None and _asked(done) != (queries.goal, queries.process):
            raise UserError(f"{place} holds a result that was made with other questions; give another folder")
        if done is None:
            models = models or load_models(chosen)
            models = models if teacher is None else dataclasses.replace(models, teacher=teacher)

            def all_callbacks() -> list[L.Callback]:
                return [*standard_callbacks(chosen), *extra_callbacks(chosen.callbacks), *callbacks]

            job = Job(chosen, run, queries, scorer, all_callbacks, Bank.open(chosen, place, note))
            found = SampleRunner(job, method, models, make_chat(chosen.chat, None), note)(sample)
            if isinstance(found, Failure):
                raise UserError(found.why)
            done = found
    for problem in write_results(place):
        note(f"{CSV}: {problem}")
    return Optimized(done, run.samples / sample.id)


def load_models(config: str | FitSettings = "mini", settings: Mapping[str, Any] | None = None) -> Models:
    """All networks of a configuration, for many calls of ``optimize``. Raises UserError."""
    chosen = changed(config, settings or {}, "settings") if isinstance(config, FitSettings) else None
    return load.load_models(chosen or settings_of(str(config), settings))


def settings_of(config: str, settings: Mapping[str, Any] | None = None) -> FitSettings:
    """A configuration's settings (a shipped name or a YAML file), some replaced by dotted name. Raises UserError."""
    return changed(parse_fit(["--config", config]), settings or {}, "settings")


class _Steered(TeacherLora):
    """TeacherLora with a reward that is passed in; without ``goes_on`` an interrupted call's state is not used."""

    def __init__(self, reward: Reward | None, goes_on: bool) -> None:
        self.reward, self.goes_on = reward, goes_on

    def solve(self, sample: Sample, folder: Path, context: Context) -> Result:
        if not self.goes_on:
            (folder / STATE).unlink(missing_ok=True)
        return fit_sample(sample, folder, context, self.reward)


def _asked(result: Result) -> tuple[str, tuple[str, ...]] | None:
    if result.optimization is None:
        return None
    return result.optimization.queries["goal"], tuple(result.optimization.queries["process"])


def _first_frame(image: str | Path | Image.Image | Tensor | None, height: int, width: int) -> Tensor | None:
    if image is None:
        return None
    if isinstance(image, Tensor):
        if tuple(image.shape) != (3, height, width):
            raise UserError(f"the image is {tuple(image.shape)}, but the video is {height}x{width}; resize it, or give "
                            "settings={'sample.height': ..., 'sample.width': ...}")  # fmt: skip
        if not image.is_floating_point() or not bool(((image >= 0) & (image <= 1)).all()):  # NaN is neither
            raise UserError("the image is no float tensor of values from 0 to 1; divide 8-bit levels by 255")
        return image.detach().float().cpu()
    if isinstance(image, Image.Image):
        return fit_image(as_seen(image, "the image"), height, width)
    if not isinstance(image, (str, Path)):
        raise UserError(f"the image is of type {type(image).__name__}; give a path, a PIL image or a tensor (3,H,W)")
    return read_image(Path(image), height, width)


def _base64(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
