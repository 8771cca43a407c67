"""Several samples optimized side by side in one batch, each with its own LoRA, optimizer state and stop.

The same arithmetic and the same rules as training.py (VLM-as-Teacher, Algorithm 1), instance by instance: a batch
gives what its samples give one by one, up to the rounding of batched matrix products.

Shapes: B samples, Q queries each (the same Q), latents (B, C, T, h, w), frames (B, K, 3, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ttopt.config.settings import OptimizationSettings
from ttopt.errors import UserError
from ttopt.models.reasoner import Condition, Reasoner
from ttopt.models.reasoner.batched import BatchedAdapter
from ttopt.models.reasoner.decoder import Decoder
from ttopt.optimization.reward import multi_vqa_loss
from ttopt.optimization.training import Grade, kept_grade
from ttopt.record.result import ACCEPTED, ALL_STEPS, NON_FINITE

# frames (B, K, 3, H, W), latents -> losses of the queries (B, Q), goal first; or total losses (B,)
BatchReward = Callable[[Tensor, Tensor], Tensor]
Watch = Callable[[int, list[int], Tensor], None]  # step, instances, their frames


@dataclass(frozen=True)
class Instance:
    """What happened to one sample."""

    grades: list[Grade] = field(default_factory=list)
    stop: list[str] = field(default_factory=list)  # empty while it goes on, then one of ttopt.record.result's reasons

    @property
    def kept(self) -> Grade:
        """The grade of the weights that are kept."""
        return kept_grade(self.grades)


@dataclass(frozen=True)
class BatchResult:
    """Where each instance stopped."""

    instances: list[Instance]
    predictions: Tensor  # (B, C, T, h, w) one-step predictions of the kept weights

    @property
    def steps(self) -> list[int]:
        return [instance.kept.step for instance in self.instances]

    @property
    def losses(self) -> list[float]:
        """Of the kept weights."""
        return [instance.kept.total for instance in self.instances]

    @property
    def accepted(self) -> list[bool]:
        return [instance.stop == [ACCEPTED] for instance in self.instances]


def optimize_batch(
    reasoner: Reasoner,
    adapter: BatchedAdapter,
    decoder: Decoder,
    reward: BatchReward,
    condition: Condition,
    z1: Tensor,
    frames: Sequence[int],
    settings: OptimizationSettings,
    watch: Watch = lambda step, numbers, frames: None,
    reward_of: Callable[[list[int]], BatchReward] | None = None,
) -> BatchResult:
    """Optimizes ``adapter``'s instances in place until each one's loss is at most tau, or for N steps.

    An instance that has stopped keeps its weights to the bit while the others go on; one whose loss is not finite gets
    its best weights back. ``watch`` is shown the graded frames of every step. With ``reward_of``, the reward of
    some of the instances, those that have stopped are not computed any more. Raises UserError for another
    ``denoise_step`` than the first.
    """
    if settings.denoise_step != "first":
        raise UserError(
            f"optimization.denoise_step is {settings.denoise_step}, but batches optimize the first denoising step only"
        )
    parameters = adapter.parameters()
    optimizer = torch.optim.AdamW(parameters, settings.lr, weight_decay=settings.weight_decay)
    instances = [Instance() for _ in range(len(z1))]
    kept, best_kept = torch.empty_like(z1), torch.empty_like(z1)
    before, best = _copies(parameters), _copies(parameters)  # the weights before the last step, and the best ones
    with torch.no_grad():
        prefix = reasoner.prefix(z1, 1.0, condition, adapter.first_block)
    for step in range(settings.steps + 1):
        last = step == settings.steps
        numbers = [n for n, instance in enumerate(instances) if reward_of is None or not instance.stop]
        if len(numbers) < len(instances):
            assert reward_of is not None
            adapter.active, reward = numbers, reward_of(numbers)
        with torch.set_grad_enabled(not last):
            latents = reasoner.predict_clean(z1[numbers], 1.0, condition.select(numbers), prefix.select(numbers))
            shown = decoder(latents, frames)
            losses = reward(shown, latents)
            per_query = losses.unsqueeze(1) if losses.dim() == 1 else losses
            total = multi_vqa_loss(per_query, settings.goal_weight)  # (B,)
        watch(step, numbers, shown.detach())
        broken = []
        rows = torch.cat([total.unsqueeze(1), per_query], dim=1).detach().tolist()
        for row, (number, (value, *queries)) in enumerate(zip(numbers, rows, strict=True)):
            instance = instances[number]
            if instance.stop:
                continue
            lowest = min((grade.total for grade in instance.grades), default=math.inf)
            instance.grades.append(Grade(step, value, tuple(queries)))
            kept[number] = latents[row].detach()
            if value < lowest or step == 0:
                best_kept[number] = kept[number]
                _take(best, parameters, number)
            if not math.isfinite(value):
                instance.stop.append(NON_FINITE)
                broken.append(number)
                kept[number] = best_kept[number]
                continue
            if value <= settings.tau or last:
                instance.stop.append(ACCEPTED if value <= settings.tau else ALL_STEPS)
        done = all(instance.stop for instance in instances)
        if not done:
            optimizer.zero_grad(set_to_none=True)
            for parameter, gradient in zip(parameters, torch.autograd.grad(total.sum(), parameters), strict=True):
                parameter.grad = gradient
        adapter.active = None  # not earlier: recomputed blocks run again in the backward pass
        for number in broken:  # not earlier: the backward pass needs the weights as they were
            _take(parameters, best, number)
        if done:
            break
        adapter.clip_gradients(settings.clip_norm)
        before = _copies(parameters)
        optimizer.step()
        for number, instance in enumerate(instances):
            if instance.stop:
                _take(parameters, before, number)
    return BatchResult(instances, kept)


def _copies(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def _take(parameters: Sequence[Tensor], source: Sequence[Tensor], number: int) -> None:
    """Instance ``number`` of the parameters becomes that of ``source``."""
    for parameter, value in zip(parameters, source, strict=True):
        parameter[number] = value[number]
