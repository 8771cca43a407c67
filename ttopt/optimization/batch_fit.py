"""``--batch-samples n``: n samples are optimized side by side, then each is finished as if it had been alone.

The batch (batched.py) does the steps of Algorithm 1; what it noted is then played back, sample by sample, through
the same Trainer, callbacks and result folder as algorithm.py uses.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ttopt.config.settings import FitSettings
from ttopt.data.sample import Sample
from ttopt.data.video import sample_frames
from ttopt.errors import UserError
from ttopt.models.reasoner.batched import BatchedAdapter
from ttopt.models.teacher import Queries
from ttopt.optimization.algorithm import Models, noise_seed, seed_of
from ttopt.optimization.bank import Bank, Neighbor, keys_of
from ttopt.optimization.batched import BatchReward, Instance, optimize_batch
from ttopt.optimization.noise import best_noise
from ttopt.optimization.reward import multi_vqa_loss
from ttopt.optimization.training import Grade, Start, TestTimeTraining
from ttopt.record.result import Result

if TYPE_CHECKING:
    from ttopt.methods import TeacherLora
    from ttopt.methods.base import Context, Method


@dataclass(frozen=True)
class Trained:
    """What a batch made of one sample."""

    queries: Queries
    noise_seed: int
    tried: int  # starting noises that were graded
    instance: Instance
    state: dict[str, Tensor]  # of the kept adapter
    frames: dict[int, Tensor]  # (K, 3, H, W) that were graded, by step; only those that previews show
    seconds: float  # the sample's share
    start: Start | None = None  # from a bank

    @property
    def forwards(self) -> int:
        """Of the reasoner, a backward pass counting as two."""
        return self.tried + 3 * len(self.instance.grades) - 2 + 2 * (self.start is not None)


class Replay(TestTimeTraining):
    """A training that has happened already: the same grades, frames and callbacks, and no work."""

    def play(self, trained: Trained) -> Replay:
        """Takes what happened; to be called before fitting."""
        self.trained, self.start = trained, trained.start
        self.adapter.load_state_dict(trained.state)
        return self

    def losses(self) -> tuple[Tensor, Tensor]:
        number = len(self.grades)
        grade = self.trained.instance.grades[number]
        self.frames = self.trained.frames.get(number, self.frames)
        return torch.tensor([grade.per_query]), torch.tensor([grade.total])

    def _step(self, total: Tensor) -> None:
        optimizer: Any = self.optimizers()
        optimizer.step()  # without gradients: only counts

    def restore(self) -> None:
        pass


def train_batch(
    samples: Sequence[Sample],
    queries: Sequence[Queries],
    models: Models,
    settings: FitSettings,
    bank: Bank | None = None,
) -> list[Trained]:
    """Optimizes samples of one format with equally many queries side by side."""
    begin = time.perf_counter()
    reasoner, o, a, fps = models.reasoner, settings.optimization, settings.adapter, samples[0].fps
    numbers = sample_frames(settings.teacher.frames, samples[0].frames)
    asked = [each.all for each in queries]
    every = settings.logging.previews_every

    def losses_of(chosen: list[int]) -> BatchReward:
        return lambda frames, _: models.teacher.yes_losses(frames, [asked[n] for n in chosen], fps, numbers)

    losses = losses_of(list(range(len(samples))))

    def totals(latents: Tensor, rows: list[int]) -> Tensor:
        return multi_vqa_loss(losses_of(rows)(models.decoder(latents, numbers), latents), o.goal_weight)

    frames: list[dict[int, Tensor]] = [{} for _ in samples]

    def watch(step: int, chosen: list[int], shown: Tensor) -> None:
        if every and step % every == 0:
            for number, one in zip(chosen, shown, strict=True):
                frames[number][step] = one.cpu()

    candidates = [[noise_seed(settings.seed, sample, k) for k in range(o.starts)] for sample in samples]
    with models.adapter.disabled():
        condition = reasoner.condition(samples)
        z1, noise_seeds, tried = best_noise(reasoner, condition, candidates, totals, o.tau)
        size = len(samples)
        adapter = BatchedAdapter(reasoner.transformer, size, a.rank, a.alpha, a.targets, a.blocks, reasoner.device)
        try:
            seeds = [seed_of(settings.seed, sample.id, "adapter") for sample in samples]
            adapter.reset(seeds)
            near = [bank.nearest(key) if bank else None for key in keys_of(condition)]

            def grades() -> list[Grade]:
                latents = reasoner.predict_clean(z1, 1.0, condition)
                per_query = losses(models.decoder(latents, numbers), latents)
                totals = multi_vqa_loss(per_query, o.goal_weight).tolist()
                return [Grade(0, *each) for each in zip(totals, map(tuple, per_query.tolist()), strict=True)]

            starts = start_batch(adapter, seeds, near, grades)
            batch = optimize_batch(
                reasoner, adapter, models.decoder, losses, condition, z1, numbers, o, watch, losses_of
            )
            with torch.no_grad():
                last = models.decoder(batch.predictions, numbers).cpu()
        finally:
            adapter.remove()
    share = (time.perf_counter() - begin) / len(samples)
    made = []
    for number, instance in enumerate(batch.instances):
        frames[number][instance.grades[-1].step] = last[number]
        state = adapter.state_dict(number)
        noise = noise_seeds[number], tried[number]
        made.append(Trained(queries[number], *noise, instance, state, frames[number], share, starts[number]))
    return made


@torch.no_grad()
def start_batch(
    adapter: BatchedAdapter,
    seeds: Sequence[int],
    near: Sequence[Neighbor | None],
    grades: Callable[[], list[Grade]],
) -> list[Start | None]:
    """TestTimeTraining.start_from for each instance, which ``seeds`` have made, that has a neighbor; ``grades`` are
    those of the instances as they are."""
    if not any(near):
        return [None] * len(near)
    before = grades()
    for number, each in enumerate(near):
        if each:
            adapter.load_state_dict(number, each.state)
    starts = [
        Start(each, fresh, stored.total < fresh.total) if each else None
        for each, fresh, stored in zip(near, before, grades(), strict=True)
    ]
    adapter.reset(seeds)
    for number, start in enumerate(starts):
        if start and start.used:
            adapter.load_state_dict(number, start.near.state)
    return starts


@dataclass
class BatchedTeacherLora:
    """ttopt.methods.TeacherLora for many samples: the first of a batch that is asked for trains all of it."""

    method: TeacherLora
    pending: list[Sample]
    size: int
    trained: dict[str, Trained | UserError] = field(default_factory=dict)

    def solve(self, sample: Sample, folder: Path, context: Context) -> Result:
        """As TeacherLora.solve."""
        if sample.id not in self.trained:
            context.status(f"{self.size} samples side by side")
            with context.meter.paused():
                self._train(sample, context)
        trained = self.trained.pop(sample.id)
        if isinstance(trained, UserError):
            raise trained
        context.meter.add(trained.forwards, trained.seconds)
        context.meter.vlm_calls += context.queries is None  # the teacher wrote them
        return self.method.solve(sample, folder, context, trained)

    def _train(self, first: Sample, context: Context) -> None:
        """Trains the batch that ``first`` belongs to: the next pending samples that are like it."""
        group: list[tuple[Sample, Queries]] = []
        for sample in self.pending[self.pending.index(first) :]:
            if len(group) == self.size:
                break
            if sample.id in self.trained or _format(sample) != _format(first):
                continue
            try:
                _ = sample.image  # a damaged file fails its own sample, not the batch
                queries = context.queries or context.models.teacher.queries(sample)
            except UserError as error:
                self.trained[sample.id] = error
                continue
            if not group or len(queries.all) == len(group[0][1].all):
                group.append((sample, queries))
        if group:
            samples, asked = zip(*group, strict=True)
            made = train_batch(samples, asked, context.models, context.settings, context.bank)
            self.trained |= {sample.id: each for sample, each in zip(samples, made, strict=True)}


def batched(method: Method, samples: Sequence[Sample], settings: FitSettings) -> Method:
    """``method`` for ``settings.batch_samples`` samples at once. Raises UserError for one that cannot be batched."""
    from ttopt.methods import TeacherLora

    if settings.batch_samples == 1:
        return method
    if not isinstance(method, TeacherLora):
        raise UserError(
            f"batch_samples is {settings.batch_samples}, but only ttopt.methods.TeacherLora optimizes several samples "
            "at once; give 1"
        )
    if settings.optimization.denoise_step != "first":
        raise UserError("batch_samples needs optimization.denoise_step first; give one of the two back")
    return BatchedTeacherLora(method, list(samples), settings.batch_samples)


def _format(sample: Sample) -> tuple[object, ...]:
    return sample.frames, sample.fps, sample.height, sample.width, sample.first_frame is None
