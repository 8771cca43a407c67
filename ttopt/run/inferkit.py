"""This system as one of VBVR-InferKit's models.

An entry of its catalog (vbvrinferkit/runner/MODEL_CATALOG.py):

    "ttopt-wan22-5b": {"wrapper_module": "ttopt.run.inferkit", "wrapper_class": "TtoptWrapper", "model": "wan22_5b",
                       "description": "Wan2.2 5B, optimized at test time by its teacher", "family": "ttopt",
                       "args": {"method": "ttopt.methods.TeacherLora", "settings": {"seed": 1}}}

``model`` names a configuration of ttopt, ``settings`` changes it. InferKit's runner says how many frames of which size
it wants; it hands over the paths of the ground truth too (``question_data``), which are not looked at.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import lightning as L

from ttopt.config.lookup import standard_callbacks
from ttopt.config.parsing import changed, parse_fit
from ttopt.config.settings import MethodSettings, SampleSettings
from ttopt.data.files import first_frame, fitted_length, fitted_size
from ttopt.data.find import given_queries
from ttopt.data.images import FirstFrame
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.methods import make_method
from ttopt.models.chat import Chat, make_chat
from ttopt.models.load import Models, load_models
from ttopt.record.run_folder import RunFolder
from ttopt.run.run import extra_callbacks
from ttopt.run.sample_runner import Failure, Job, SampleRunner

try:
    from vbvrinferkit.models.base import ModelWrapper
except ImportError as error:
    raise UserError("VBVR-InferKit cannot be imported; run its setup, and this wrapper from within it") from error


class TtoptWrapper(ModelWrapper):  # type: ignore[misc]
    """Makes videos by a method of ttopt. ``settings``: more settings by dotted name, e.g. {"seed": 1}."""

    def __init__(
        self,
        model: str = "wan22_5b",
        output_dir: str = "./outputs",
        method: str = "ttopt.methods.TeacherLora",
        arguments: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, output_dir, **kwargs)
        base = parse_fit(["--config", model, "--method.path", method])
        self.settings = changed(base, {"logging.wandb": "disabled", **(settings or {})}, "settings")
        if self.settings.bank.folder is not None:
            raise UserError("bank.folder is of no use here, where every video is a run of its own; leave it out")
        self.method = make_method(MethodSettings(method, arguments or {}))
        self.queries = given_queries(self.settings)
        self._callbacks()  # a wrong class path should not wait for the models
        self._models: tuple[Models, Chat] | None = None

    def generate(
        self,
        image_path: str | Path,
        text_prompt: str,
        duration: float = 8.0,
        output_filename: str | None = None,
        *,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """One video of about ``num_frames`` frames, else ``duration`` seconds, of about ``height`` x ``width`` pixels,
        else the image's aspect; no longer or larger than the configuration's. InferKit's eight fields.

        Never raises for a sample that fails, nor for too little memory, which is tried once more with everything
        recomputed.
        """
        begin, name = time.perf_counter(), f"ttopt-{uuid.uuid4().hex[:12]}"
        answer = {"success": False, "video_path": None, "error": None, "generation_id": name, "model": self.model}
        try:
            sample = self._sample(Path(image_path), text_prompt, duration, num_frames, height, width)
            metadata = self._solve(sample, output_filename or f"{name}.mp4")
            answer |= {"success": True, "video_path": metadata.pop("video_path"), "status": "success"}
        except (UserError, OSError) as error:
            metadata = {}
            answer |= {"error": in_catalog(str(error)), "status": "failed"}
        return {**answer, "duration_seconds": time.perf_counter() - begin, "metadata": metadata}

    def _sample(
        self, image: Path, prompt: str, duration: float, frames: int | None, height: int | None, width: int | None
    ) -> Sample:
        form = self.settings.sample
        if not image.is_file():
            raise UserError(f"image {image}: there is no such file; check the task's first frame")
        picture = first_frame(image, form) if height is None or width is None else self._fitted(image, height, width)
        wanted = round(duration * form.fps) if frames is None else frames
        # What decides the seeds: the same task gets the same video again.
        name = hashlib.sha256(prompt.encode() + image.read_bytes()).hexdigest()[:16]
        return Sample(name, prompt, picture, fitted_length(wanted, form), form.fps, picture.height, picture.width)

    def _fitted(self, image: Path, height: int, width: int) -> FirstFrame:
        """The image in the size that is wanted, or as much of that as the configuration allows."""
        form: SampleSettings = self.settings.sample
        if min(height, width) < form.multiple:
            raise UserError(f"{width}x{height} pixels are wanted; the model's least is {form.multiple}x{form.multiple}")
        if height * width < form.height * form.width:
            form = dataclasses.replace(form, height=height, width=width)
        return FirstFrame(image, *fitted_size(height, width, form), str(image))

    def _solve(self, sample: Sample, output: str) -> dict[str, Any]:
        if self._models is None:
            models = load_models(self.settings)
            self._models = models, make_chat(self.settings.chat, models.teacher)
        models, chat = self._models
        with tempfile.TemporaryDirectory() as working:
            folder = RunFolder(Path(working) / "run", self.settings)
            job = Job(self.settings, folder, self.queries, None, self._callbacks)
            result = SampleRunner(job, self.method, models, chat, lambda text: None)(sample)
            if isinstance(result, Failure) or result.error:
                raise UserError(result.why if isinstance(result, Failure) else result.error)
            target = Path(self.output_dir) / output
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder.samples / sample.id / "video.mp4", target)
        return {
            "video_path": str(target),
            "method": result.method,
            "stop": result.stop,
            "seeds": result.seeds,
            "cost": vars(result.cost),
            "frames": sample.frames,
            "fps": sample.fps,
            "height": sample.height,
            "width": sample.width,
        }

    def _callbacks(self) -> list[L.Callback]:
        return [*standard_callbacks(self.settings), *extra_callbacks(self.settings.callbacks)]


def in_catalog(text: str) -> str:
    """A message in which what the command line calls --a.b is a setting of the catalog's entry."""
    found = re.sub(r"--([a-z_]+(?:\.[a-z_]+)*)", r"\1", text)
    return (
        text
        if found == text
        else f'{found} (in the "settings" of the "args" of the model\'s entry in MODEL_CATALOG.py)'
    )
