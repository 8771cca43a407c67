"""This system as one of VBVR-InferKit's models.

An entry of its catalog (vbvrinferkit/runner/MODEL_CATALOG.py):

    "ttopt-wan22-5b": {"wrapper_module": "ttopt.run.inferkit", "wrapper_class": "TtoptWrapper", "model": "wan22_5b",
                       "family": "ttopt", "args": {"method": "ttopt.methods.TeacherLora"}}

``model`` names a configuration of ttopt. InferKit hands over the paths of the ground truth too (``question_data``):
only the image, the prompt and the duration are looked at.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ttopt.config.parsing import changed, parse_fit
from ttopt.config.settings import MethodSettings
from ttopt.data.files import first_frame, fitted_length
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.methods import Context, make_method
from ttopt.models.load import Models, load_models
from ttopt.record.meter import Meter
from ttopt.run.memory import advice, release, spare

if TYPE_CHECKING:
    from ttopt.models.chat.chat import Chat

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
        self.method = make_method(MethodSettings(method, arguments or {}))
        self._models: tuple[Models, Chat] | None = None

    def generate(
        self,
        image_path: str | Path,
        text_prompt: str,
        duration: float = 8.0,
        output_filename: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """One video of about ``duration`` seconds; InferKit's eight fields. Never raises for a sample that fails,
        nor for too little memory, which is tried once more with everything recomputed."""
        begin, name = time.perf_counter(), f"ttopt-{uuid.uuid4().hex[:12]}"
        answer = {"success": False, "video_path": None, "error": None, "generation_id": name, "model": self.model}
        try:
            metadata = self._sparingly(Path(image_path), text_prompt, duration, output_filename or f"{name}.mp4")
            answer |= {"success": True, "video_path": metadata.pop("video_path"), "status": "success"}
        except (UserError, OSError, torch.OutOfMemoryError) as error:
            metadata, full = {}, isinstance(error, torch.OutOfMemoryError)
            answer |= {"error": advice(self.settings) if full else str(error), "status": "failed"}
        return {**answer, "duration_seconds": time.perf_counter() - begin, "metadata": metadata}

    def _sparingly(self, image: Path, prompt: str, duration: float, output: str) -> dict[str, Any]:
        try:
            return self._solve(image, prompt, duration, output)
        except torch.OutOfMemoryError:
            if self._models is None or not spare(self._models[0]):
                raise
        release(reserve=True)  # not in the except clause: there, the first try's tensors still live
        return self._solve(image, prompt, duration, output)

    def _solve(self, image: Path, prompt: str, duration: float, output: str) -> dict[str, Any]:
        from ttopt.models.chat.chat import make_chat

        form = self.settings.sample
        frames = fitted_length(round(duration * form.fps), form)
        picture = first_frame(image, form)
        # What decides the seeds: the same task gets the same video again.
        name = hashlib.sha256(prompt.encode() + image.read_bytes()).hexdigest()[:16]
        sample = Sample(name, prompt, picture, frames, form.fps, picture.height, picture.width)
        if self._models is None:
            models = load_models(self.settings)
            self._models = models, make_chat(self.settings.chat, models.teacher)
        models, chat = self._models
        with tempfile.TemporaryDirectory() as working, Meter(models.reasoner) as meter:
            context = Context(models, self.settings, meter, chat)
            result = self.method.solve(sample, Path(working), context)
            if result.error:
                raise UserError(result.error)
            target = Path(self.output_dir) / output
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(working) / "video.mp4", target)
        release()
        return {
            "video_path": str(target),
            "method": result.method,
            "stop": result.stop,
            "seeds": result.seeds,
            "cost": vars(result.cost),
            "frames": frames,
            "fps": form.fps,
            "height": sample.height,
            "width": sample.width,
        }
