"""Pass@k: k videos from different noise, of which the vision-language model picks the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, Field, create_model
from torch import Tensor

from ttopt.data.sample import Sample
from ttopt.data.video import sample_frames
from ttopt.errors import RunError, UserError
from ttopt.models.chat import Message
from ttopt.optimization.algorithm import TeacherReward
from ttopt.optimization.context import Context
from ttopt.optimization.reward import multi_vqa_loss
from ttopt.optimization.seeds import noise_seed
from ttopt.record.result import Result

PICK = """\
These are frames, in order, of {k} videos made for the same task: "{prompt}"
Pick the single video that best achieves the task: the right end, reached in the right way, with everything else kept.
Reply with JSON only: {{"reason": <why>, "best": <number>}} where best is the number of the video, from 1 to {k}."""


JUDGES = ("loss", "chat", "scorer")


class PassAtK:
    """The choice is joint: one look at all k videos, not k verdicts (the papers' Pass@k).

    ``judge`` "loss": the lowest multi-question loss of the teacher; "chat": one call of the chat model, shown
    ``shown`` frames of each video; null: the call, but the loss where the chat model is the teacher or does not know
    the question (chat.prompts mini); "scorer": what no judge can beat, a bound and no method. A choice that cannot be
    had is an error, never the first video in disguise.
    """

    def __init__(self, k: int = 5, judge: Literal["loss", "chat", "scorer"] | None = None, shown: int = 8) -> None:
        if not all(isinstance(n, int) and n >= 1 for n in (k, shown)) or judge not in (None, *JUDGES):
            raise UserError(
                f"k {k}, judge {judge}, shown {shown}: give k and shown of 1 or more, judge one of {JUDGES}"
            )
        self.k, self.judge, self.shown = k, judge, shown

    def solve(self, sample: Sample, folder: Path, context: Context) -> Result:
        seeds = [noise_seed(context.settings.seed, sample, number) for number in range(self.k)]
        videos = []
        for number, seed in enumerate(seeds, start=1):
            context.status(f"video {number} of {self.k}")
            videos.append(context.generate(sample, seed))
        method, named = f"pass@{self.k}", {f"noise {n}": seed for n, seed in enumerate(seeds)}
        chat = context.settings.chat
        judge = self.judge or ("loss" if chat.backend == "teacher" or chat.prompts == "mini" else "chat")
        context.status("choosing")
        try:
            choose = {"loss": by_loss, "chat": self._by_chat, "scorer": by_scorer}[judge]
            best, details = choose(sample, videos, context)
        except RunError:
            raise
        except UserError as error:
            return context.finish(sample, videos[0], folder, method=method, seeds=named, error=str(error))
        return context.finish(
            sample, videos[best], folder, method=method, seeds=named, stop=f"video {best + 1} chosen",
            details={"best": best + 1, **details},
        )  # fmt: skip

    def _by_chat(self, sample: Sample, videos: Sequence[Tensor], context: Context) -> tuple[int, dict[str, object]]:
        if self.k == 1:
            return 0, {}
        parts: list[str | Tensor] = []
        for number, video in enumerate(videos, start=1):
            parts += [f"Video {number}:", *video[sample_frames(self.shown, len(video))]]
        parts.append(PICK.format(k=self.k, prompt=sample.prompt))
        choice = context.ask([Message("user", tuple(parts))], _choice(self.k))
        return choice.best - 1, {"reason": choice.reason}  # type: ignore[attr-defined]


def by_loss(sample: Sample, videos: Sequence[Tensor], context: Context) -> tuple[int, dict[str, object]]:
    """The number of the video with the lowest loss of the teacher's questions, and every loss."""
    teacher, settings, meter = context.models.teacher, context.settings, context.meter
    with meter.timer("queries"):
        queries = context.queries or teacher.queries(sample)
    numbers = sample_frames(settings.teacher.frames, sample.frames)
    reward = TeacherReward(teacher, [queries], sample.fps, numbers)
    with meter.timer("grade"), torch.no_grad():
        per_query = torch.cat([reward(video[None, numbers]) for video in videos])
    meter.vlm_calls += len(videos) + (context.queries is None)
    losses = multi_vqa_loss(per_query, settings.optimization.goal_weight)
    finite = {number: loss for number, loss in enumerate(losses.tolist()) if math.isfinite(loss)}
    if not finite:
        raise UserError(f"sample {sample.id}: no video has a finite loss; give the teacher another dtype")
    shown = [finite.get(number) for number in range(len(videos))]
    return min(finite, key=finite.__getitem__), {"losses": shown, "generic_questions": queries.generic}


def by_scorer(sample: Sample, videos: Sequence[Tensor], context: Context) -> tuple[int, dict[str, object]]:
    """The number of the video that the data set's own scorer likes best. Raises UserError where there is none."""
    if context.scorer is None:
        raise UserError(f"sample {sample.id} has no scorer here; give another judge")
    scores = [context.scorer(sample, video) for video in videos]
    ranks = [(score.success, score.partial) for score in scores]
    return ranks.index(max(ranks)), {"successes": sum(bool(score.success) for score in scores)}


def _choice(k: int) -> type[BaseModel]:
    return create_model("Choice", reason=(str, ""), best=(int, Field(ge=1, le=k)))
