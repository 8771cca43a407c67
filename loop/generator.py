"""The clip of a step: generated, or optimized by the teacher's LoRA, spliced onto what is kept, written, and traced."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from ttopt.data.images import write_image
from ttopt.data.sample import Sample
from ttopt.data.video import write_video
from ttopt.models.chat import Message, fingerprint
from ttopt.optimization.context import Context
from ttopt.optimization.seeds import noise_name, seed_of
from ttopt.record.result import NON_FINITE
from ttopt.record.run_folder import CLIPS, writing

from .clips import fidelity, reasoner_length, splice
from .inner import InnerLora
from .journal import Journal, Made
from .settings import LoopSettings
from .step import Step
from .trace import Trace

LEAST_FIDELITY = 0.9  # SSIM of a clip's first frame with its condition; below, the joints show


class Generator:
    """Makes the clips of one sample, each from a noise of its own: ``seeds`` says which."""

    def __init__(
        self,
        settings: LoopSettings,
        sample: Sample,
        folder: Path,
        context: Context,
        trace: Trace,
        journal: Journal,
        warn: Callable[[str], None],
    ) -> None:
        self.settings, self.sample, self.folder, self.context = settings, sample, folder, context
        self.trace, self.journal, self.warn = trace, journal, warn
        self.seeds: dict[str, int] = {}
        self.inner = None
        if settings.inner is not None:
            self.inner = InnerLora(context, sample.prompt, settings.keep_adapter, settings.diagnosis_query)

    def __call__(self, step: Step) -> Tensor:
        """A clip of the step's length: its kept prefix, if any, and what is made from its last frame."""
        s, sample, kept = self.settings, self.sample, step.kept
        number, attempt = len(self.trace.clips), len(step.attempts) + 1
        name = f"{number + 1:02d}_{'whole' if step.action == sample.prompt else f'step{step.number}'}_attempt{attempt}"
        condition, frames = step.start, reasoner_length(step.frames, s.shortest_clip)
        if kept is not None:  # its last frame comes again as the first of what is made
            condition, frames = kept[-1], reasoner_length(step.frames - len(kept) + 1, s.shortest_clip)
        part = dataclasses.replace(sample, prompt=step.prompt, first_frame=condition, frames=frames, answer=None)
        purpose = noise_name(number)
        seed = self.seeds[purpose] = seed_of(self.context.settings.seed, sample.id, purpose)
        folder = self.folder / CLIPS
        with writing(self.folder):
            folder.mkdir(exist_ok=True)
        made = self._made(step, part, seed, folder / name)
        new, optimized = made.clip, made.details
        if optimized:
            self.seeds[purpose] = optimized["seed"]  # of the start that was chosen
        clip = new[: step.frames] if kept is None else splice(kept, new, step.frames)

        similar = None if condition is None else fidelity(new, condition)
        with self.context.meter.paused(), writing(self.folder):
            write_video(folder / f"{name}.mp4", clip, sample.fps)
            if condition is not None:
                write_image(folder / f"{name}_condition.png", condition)
        self.trace.clip(
            {
                "file": f"{CLIPS}/{name}.mp4",
                "step": step.number,
                "attempt": attempt,
                "action": step.action,
                "prompt": step.prompt,
                "seed": seed,
                "frames": len(clip),
                "kept_frames": 0 if kept is None else len(kept),
                "generated_frames": len(new),
                "generated_seconds": round(len(new) / sample.fps, 4),
                "first_frame_ssim": similar,
                "verdict": None,
                **optimized,
            }
        )
        if optimized.get("optimization_stop") == NON_FINITE:
            self.warn(f"{name}: the loss became NaN or infinite, the best adapter so far is kept")
        if similar is not None and similar < LEAST_FIDELITY:
            self.warn(f"{name}: its first frame differs from the frame it was made from (SSIM {similar:.2f})")
        return clip

    def tidy(self) -> None:
        """Removes clips that an earlier call made and this one did without."""
        optimized = {Path(clip["file"]).stem: "optimization_stop" in clip for clip in self.trace.clips}
        for path in (self.folder / CLIPS).glob("*"):
            if path.is_dir() and not optimized.get(path.name):
                shutil.rmtree(path, ignore_errors=True)
            elif path.is_file() and path.stem.removesuffix("_condition") not in optimized:
                path.unlink(missing_ok=True)

    def _made(self, step: Step, part: Sample, seed: int, folder: Path) -> Made:
        """What the reasoner makes of ``part``; its details are of its optimization, if it is optimized."""
        number, attempt, inner = len(self.trace.clips), len(step.attempts) + 1, self.inner
        if inner is None or attempt < self.settings.inner_from:
            return self.journal.clip(_request(part, seed), lambda: Made(self.context.generate(part, seed)))
        first = attempt == self.settings.inner_from

        def make() -> Made:
            clip, details = inner.generate(part, seed, number, folder, step, first)
            return Made(clip, details, inner.state())

        made = self.journal.clip(_request(part, seed, "optimized", *map(str, step.diagnoses)), make)
        inner.load_state(made.adapter)  # already there, unless the journal had it
        return made


def _request(part: Sample, seed: int, *more: str) -> str:
    """A short hash of what a clip is made of."""
    pictures = () if part.image is None else (part.image,)
    return fingerprint([Message("user", (*pictures, part.prompt, f"{seed} {part.frames}", *more))])
