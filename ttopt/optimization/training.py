"""The heart: test-time training of one sample's adapter, as a LightningModule.

VLM-as-Teacher (arXiv 2606.02564), Algorithm 1. One training step is one turn of its loop:

    u  = velocity(z1, t=1, c; phi);  z0 = z1 - u          predict
    v  = K frames of decoder(z0)                          decode
    L  = lambda * vqa(v, q_goal) + (1-lambda)/M * sum_m vqa(v, q_m)     grade
    if L <= tau: stop, keep phi as it is                  test (callbacks.LossThreshold)
    phi = phi - eta * grad_phi L                          step

The test stands before the step, so the weights that are kept are those whose video was accepted.

Shapes: one sample a module; latents (1,C,T,h,w) float32, frames (1,K,3,H,W) float32 in [0,1], losses (1,Q), goal first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from ttopt.config.settings import OptimizationSettings
from ttopt.models.distributed import from_rank_zero
from ttopt.models.reasoner import Activation, Adapter, Condition, Reasoner
from ttopt.models.reasoner.decoder import Decoder
from ttopt.optimization.bank import Neighbor
from ttopt.optimization.reward import multi_vqa_loss
from ttopt.record.result import ALL_STEPS, NON_FINITE, Graded
from ttopt.record.timing import PartTimer

Reward = Callable[[Tensor, Tensor], Tensor]  # frames (1,K,3,H,W), latents (1,C,T,h,w) -> (1,Q) losses, goal first


@dataclass(frozen=True)
class Frozen:
    """What is used but never trained. Not an nn.Module: a trainer moves and saves only what is registered in one."""

    reasoner: Reasoner
    decoder: Decoder
    reward: Reward


@dataclass(frozen=True)
class Grade:
    """The losses of the adapter after ``step`` optimization steps."""

    step: int
    total: float
    per_query: tuple[float, ...]  # -log P("Yes"), goal first

    @property
    def p_yes(self) -> list[float]:
        return [_probability(loss) for loss in self.per_query]

    def graded(self) -> Graded:
        return Graded(self.total, self.p_yes)


@dataclass(frozen=True)
class Start:
    """How a training began that could start from a stored adapter (ttopt/optimization/bank.py)."""

    near: Neighbor
    before: Grade  # of the frozen model
    used: bool  # whether the stored adapter was better, and the training started from it

    def details(self) -> dict[str, Any]:
        """For result.json."""
        return {"entry": self.near.name, "similarity": round(self.near.similarity, 4), "used": self.used}


class TestTimeTraining(L.LightningModule):
    """Trains ``adapter`` until ``reward`` is satisfied with the decoded prediction from the fixed noise ``z1``.

    Only the adapter's parameters are registered. Callbacks may define ``on_graded(trainer, module)``, called between
    grading and stepping: one that sets ``trainer.should_stop`` keeps the weights as they are (and may say why in
    ``stop``). They read ``grades`` (one per graded adapter, ``kept`` is that of the kept weights) and ``frames`` (what
    was graded last). ``state`` and ``resume`` let a training go on in another process.
    """

    __test__ = False  # no test case, whatever its name looks like to pytest

    def __init__(
        self,
        reasoner: Reasoner,
        adapter: Adapter,
        decoder: Decoder,
        reward: Reward,
        condition: Condition,
        z1: Tensor,
        frames: Sequence[int],
        settings: OptimizationSettings,
        timer: PartTimer | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.frozen = Frozen(reasoner, decoder, reward)
        self.adapter = adapter
        self.lora = nn.ParameterList(adapter.parameters())
        self.condition = condition
        self.z1 = z1
        self.frame_numbers = list(frames)
        self.settings = settings
        self.timer = timer or PartTimer(z1.device)

        self.grades: list[Grade] = []
        self.frames: Tensor | None = None
        self.stop = ALL_STEPS
        self.start: Start | None = None
        self._best: list[Tensor] = []  # the weights with the lowest loss so far
        self._prefix: Activation | None = None
        self._taken = 0  # steps before ``resume``
        self._optimizer: dict[int, dict[str, Tensor]] = {}  # its state then

    @property
    def steps(self) -> int:
        """Optimization steps so far."""
        return self._taken + self.global_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(self.lora, lr=self.settings.lr, weight_decay=self.settings.weight_decay)
        if self._optimizer:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": self._optimizer})
        return optimizer

    def configure_model(self) -> None:
        """Asked for by the strategy of several processes. The reasoner is sharded when it is loaded: the frozen model's
        video comes before any training."""

    def train_dataloader(self) -> Iterable[int]:
        """One endless epoch; the trainer's max_steps ends it."""
        return itertools.count()

    @torch.no_grad()
    def start_from(self, near: Neighbor) -> None:
        """Starts from a stored adapter instead of a fresh one, which has no effect yet, if its loss is lower."""
        fresh = self.adapter.state_dict()
        losses, total = self.losses()
        self.adapter.load_state_dict(near.state)
        used = bool(self.losses()[1] < total)  # False for NaN
        if not used:
            self.adapter.load_state_dict(fresh)
        self.start = Start(near, Grade(0, float(total), tuple(losses[0].tolist())), used)

    # One turn of the loop

    def training_step(self, batch: Any, batch_idx: int) -> None:
        losses, total = self.losses()
        self._note(losses, total)
        self._test()
        if self.trainer.should_stop:
            return
        self._step(total)

    def losses(self) -> tuple[Tensor, Tensor]:
        """Predict, decode, grade: the losses of every query (1,Q) and the weighted one (1,), with gradients."""
        with self.timer("predict"):
            latents = self.predict()
        with self.timer("decode"):
            frames = self.frozen.decoder(latents, self.frame_numbers)
        with self.timer("grade"):
            losses = self.frozen.reward(frames, latents)
        self.frames = frames[0].detach()
        return losses, multi_vqa_loss(losses, self.settings.goal_weight)

    def predict(self) -> Tensor:
        """The clean latents that are graded: predicted in one step from the optimized denoising step.

        "first" (the paper's): z0 = z1 - u at pure noise. "last": at the last noise level, reached without gradients.
        "all": at the end of the whole schedule, with gradients through every step.
        """
        reasoner, sigmas = self.frozen.reasoner, self.frozen.reasoner.schedule.sigmas
        if self.settings.denoise_step == "all":
            return reasoner.denoise(self.z1, self.condition)
        latents = self.z1
        if self.settings.denoise_step == "last":
            with torch.no_grad():
                latents = reasoner.denoise(self.z1, self.condition, steps=len(sigmas) - 1)
            return reasoner.predict_clean(latents, sigmas[-1], self.condition)
        if self._prefix is None:
            # Noise, timestep and condition stay the same: what enters the first adapted block is computed once.
            with torch.no_grad():
                self._prefix = reasoner.prefix(latents, sigmas[0], self.condition, self.adapter.first_block)
        return reasoner.predict_clean(latents, sigmas[0], self.condition, self._prefix)

    def _note(self, losses: Tensor, total: Tensor) -> None:
        """Reads all losses from the device at once, the only wait for it in a step."""
        value, *per_query = from_rank_zero(lambda: torch.cat([total, losses[0]]).detach().tolist())
        self.grades.append(Grade(self.steps, value, tuple(per_query)))
        self._log(self.grades[-1])

    def _log(self, grade: Grade) -> None:
        for logger in self.loggers:
            logger.log_metrics(metrics(grade), grade.step)

    def _test(self) -> None:
        total = self.grades[-1].total
        if not math.isfinite(total):
            self.stop = NON_FINITE
            self.trainer.should_stop = True
            self.restore()
            return
        if total < min((grade.total for grade in self.grades[:-1]), default=math.inf):
            self._best = [parameter.detach().clone() for parameter in self.lora]
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "on_graded"):
                callback.on_graded(self.trainer, self)

    def _step(self, total: Tensor) -> None:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        with self.timer("backward"):
            optimizer.zero_grad()
            self.manual_backward(total.sum())
        with self.timer("step"):
            nn.utils.clip_grad_norm_(self.lora, self.settings.clip_norm)
            optimizer.step()

    # The end

    def on_train_end(self) -> None:
        """The weights after the last step were never graded by the loop: grade them, so that all that is kept is."""
        if self.stop == ALL_STEPS and self.grades[-1].step < self.steps:
            self._note(*self.evaluate())
            self._test()  # an adapter whose last grade satisfies the teacher is accepted like any other

    @torch.no_grad()
    def evaluate(self) -> tuple[Tensor, Tensor]:
        """As ``losses``, of the weights as they are, without gradients."""
        return self.losses()

    @torch.no_grad()
    def restore(self) -> None:
        """Back to the best weights, after a loss that was not finite."""
        for parameter, value in zip(self.lora, self._best):
            parameter.copy_(value)

    @property
    def kept(self) -> Grade:
        """The grade of the weights that are kept."""
        return kept_grade(self.grades)

    @property
    def before(self) -> Grade:
        """The grade of the frozen model."""
        return self.start.before if self.start else self.grades[0]

    # Going on elsewhere

    def state(self) -> dict[str, Tensor]:
        """What the next step depends on, besides ``grades``, between two steps: the adapter, the best one so far and
        the optimizer's averages. Nothing draws random numbers."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        state = {f"adapter.{number}": parameter.detach() for number, parameter in enumerate(self.lora)}
        state |= {f"best.{number}": value for number, value in enumerate(self._best)}
        for number, values in optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
        return state

    @torch.no_grad()
    def resume(self, state: Mapping[str, Tensor], grades: Sequence[Grade]) -> None:
        """Goes on from a ``state`` and its ``grades``; to be called before fitting, for the steps that are left."""
        self.grades, self._taken = list(grades), len(grades)
        for number, parameter in enumerate(self.lora):
            parameter.copy_(state[f"adapter.{number}"])
        self._best = [state[f"best.{number}"].to(self.z1.device) for number in range(len(self.lora))]
        for name, value in state.items():
            if name.startswith("optimizer."):
                _, place, average = name.split(".")
                self._optimizer.setdefault(int(place), {})[average] = value

    def on_train_start(self) -> None:
        for grade in self.grades:  # a resumed curve is whole
            self._log(grade)

    def _apply(self, fn: Any, recurse: bool = True) -> TestTimeTraining:
        """Stays where it is: a trainer moves its module to its device and back to the CPU, but the adapter's weights
        must stay in float32 beside the frozen layers they adapt."""
        return self


def kept_grade(grades: Sequence[Grade]) -> Grade:
    """That of the weights which are kept: the last; if its loss is not finite, the best before it (or the first)."""
    finite = [grade for grade in grades if math.isfinite(grade.total)]
    if finite and finite[-1] is grades[-1]:
        return grades[-1]
    return min(finite, key=lambda grade: grade.total, default=grades[0])


def metrics(grade: Grade) -> dict[str, float]:
    """One named number per curve; the confidence is the probability whose loss the total is."""
    p_goal, *p_process = grade.p_yes
    named = {f"p_yes/process_{number}": p for number, p in enumerate(p_process, start=1)}
    return {"loss": grade.total, "confidence": _probability(grade.total), "p_yes/goal": p_goal, **named}


def _probability(loss: float) -> float:
    """That of which the loss is the -log; 1 for a loss below 0, which a user's own reward may give."""
    return math.exp(-max(loss, 0.0))
