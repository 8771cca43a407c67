"""A clip that is optimized by the teacher's LoRA (VLM-as-Teacher, Algorithm 1) before the verifier sees it.

The queries are written for the planned action and the frame it starts from. The action's prompt carries the verifier's
suggestions, so that its diagnosis reaches the queries. Where ``diagnosis_query`` is given, the step's newest diagnoses
also become the first process queries, as many as leave room for at least one of the teacher's own.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ttopt.data.sample import Sample
from ttopt.data.video import sample_frames
from ttopt.errors import UserError
from ttopt.models.chat import ChatError
from ttopt.models.teacher import Queries
from ttopt.optimization.algorithm import TeacherReward, begin, choose, distinct, grade, render, start_noise, train
from ttopt.optimization.context import Context
from ttopt.optimization.seeds import seed_of
from ttopt.optimization.training import Row
from ttopt.record.result import ACCEPTED
from ttopt.record.run_folder import writing

from .settings import KeepAdapter
from .step import Step
from .verifier import Verdict

MOST_PROCESS = 3


class InnerLora:
    """A LoRA for each clip.

    ``keep``: none: each clip's starts from zero; attempts: a repair continues from the rejected clip's; steps: one
    adapter for the whole sample.
    """

    def __init__(self, context: Context, task: str, keep: KeepAdapter, diagnosis_query: str) -> None:
        self.context, self.task, self.keep, self.diagnosis_query = context, task, keep, diagnosis_query
        self._trained = False

    def generate(
        self,
        part: Sample,
        seed: int,
        number: int,
        folder: Path,
        step: Step,
        first: bool,
    ) -> tuple[Tensor, dict[str, Any]]:
        """The optimized clip (T,3,H,W) of ``part``, and what the trace says of it. Callbacks write into ``folder``.

        ``first`` is the first optimized attempt of a step.

        Raises ChatError where the teacher cannot write its queries.
        """
        models, settings, meter = self.context.models, self.context.settings, self.context.meter
        own = self.context.queries if step.action == self.task else None  # the user's are about the whole task
        queries = own or self.queries(part, step.action, step.target, step.diagnoses)
        numbers = sample_frames(min(settings.teacher.frames, part.frames), part.frames)
        o, judge = settings.optimization, TeacherReward(models.teacher, [queries], part.fps, numbers)
        with meter.timer("condition"):
            condition = models.reasoner.condition(part)
        seeds = [seed, *(seed_of(settings.seed, part.id, f"start {k}") for k in range(1, o.starts))]
        z1, (start,), (tried,) = start_noise(models, condition, [seeds], numbers, judge, o, meter)
        purpose = "adapter" if number == 0 else f"adapter {number}"
        fresh = not self._trained or self.keep == "none" or (self.keep == "attempts" and first)
        adapter_seed = seed_of(settings.seed, part.id, purpose) if fresh else None
        shutil.rmtree(folder, ignore_errors=True)  # of a call that was interrupted here
        with writing(folder):
            folder.mkdir()
        self.context.status("the clip is optimized")
        row, adapter_seeds = Row(folder), None if adapter_seed is None else [adapter_seed]
        training = begin(models, judge, condition, z1, numbers, o, adapter_seeds, meter, [row])
        train(training, self.context.callbacks(), folder)
        self._trained = True
        accepted = row.stop == ACCEPTED
        needs_base = o.keep in ("better", "best") or (o.keep == "accepted" and not accepted)
        videos = render(models, condition, z1, training, o.keep, meter, base=needs_base)
        graded = videos if o.keep in ("better", "best") else {}
        losses = {name: one.loss for name, one in grade(judge, graded, numbers, o.goal_weight)[0].items()}
        kept = choose(o.keep, accepted, losses)
        meter.vlm_calls += tried + len(row.grades) + distinct(graded)
        seconds = distinct(videos) * part.frames / part.fps
        meter.generated_seconds += seconds
        return videos[kept][0], {
            "seed": start,
            "generated_seconds": round(seconds, 4),
            "adapter_seed": adapter_seed,
            "queries": {"goal": queries.goal, "process": list(queries.process)},
            "optimization_steps": row.kept.step,
            "optimization_stop": row.stop,
            "loss_before": row.grades[0].total,
            "loss_after": row.kept.total,
            "kept": kept,
        }

    def state(self) -> dict[str, Tensor]:
        """The adapter from which a later clip may go on; empty if none does."""
        return {} if self.keep == "none" else self.context.models.adapter.state_dict()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what ``state`` gave after an earlier clip."""
        if state:
            self.context.models.adapter.reset([0])  # a single row, whatever was optimized before
            self.context.models.adapter.load_state_dict(state)
        self._trained = True

    def queries(self, part: Sample, action: str, target: str, diagnoses: Sequence[Verdict]) -> Queries:
        """The teacher's questions about the evolved prompt and the planned state of the scene at its end, or, where it
        can write none, about the bare action."""
        teacher = self.context.models.teacher
        asked = dataclasses.replace(part, prompt=f"{part.prompt.rstrip('.')}. In the end: {target}") if target else part
        with self.context.meter.timer("queries"):
            self.context.meter.vlm_calls += 1
            try:
                found = teacher.write_queries(asked)
            except UserError as error:
                if asked.prompt == action:
                    raise ChatError(str(error)) from error
                return self.queries(dataclasses.replace(part, prompt=action), action, "", diagnoses)
        if not self.diagnosis_query or not diagnoses:
            return found
        extra: dict[str, None] = {}  # in order, each once
        for diagnosis in reversed(diagnoses):
            text = self.diagnosis_query.replace("{reason}", diagnosis.reason)
            text = text.replace("{suggestion}", diagnosis.suggestion)
            try:
                teacher.check_words(text)
                teacher.refuse_special_tokens(text)
            except UserError:
                continue  # the prompt still carries the diagnosis
            extra[text] = None
        return Queries(found.goal, (*list(extra)[: MOST_PROCESS - 1], *found.process)[:MOST_PROCESS])
