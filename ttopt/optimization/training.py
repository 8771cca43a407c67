"""The heart: test-time training of an adapter, as a LightningModule.

VLM-as-Teacher (arXiv 2606.02564), Algorithm 1. One training step is one turn of its loop:

    u  = velocity(z1, t=1, c; phi);  z0 = z1 - u          predict
    v  = K frames of decoder(z0)                          decode
    L  = lambda * vqa(v, q_goal) + (1-lambda)/M * sum_m vqa(v, q_m)     grade
    if L <= tau: stop, keep phi as it is                  test (callbacks.LossThreshold)
    phi = phi - eta * grad_phi L                          step

The test stands before the step, so the weights that are kept are those whose video was accepted. Several samples are
optimized side by side as the rows of a batch, each with its own adapter, grades and stop; one sample is a row.

Shapes: B rows with Q queries each; latents (B,C,T,h,w) float32, frames (B,K,3,H,W) float32 in [0,1], losses (B,Q), the
goal's first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn

from ttopt.config.settings import OptimizationSettings
from ttopt.models.distributed import from_rank_zero
from ttopt.models.reasoner import Activation, Adapter, Condition, Reasoner
from ttopt.models.reasoner.decoder import Decoder
from ttopt.optimization.bank import Neighbor
from ttopt.optimization.reward import multi_vqa_loss
from ttopt.record.result import ALL_STEPS, NON_FINITE, STOPPED, Graded
from ttopt.record.timing import PartTimer

# Frames (B,K,3,H,W) and latents (B,C,T,h,w) -> (B,Q) losses, goal first. One that knows its samples has select(rows).
Reward = Callable[[Tensor, Tensor], Tensor]


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
    """How a training began that could start from a stored adapter (bank.py)."""

    near: Neighbor
    before: Grade  # of the frozen model
    used: bool  # whether the stored adapter was better, and the training started from it

    def details(self) -> dict[str, Any]:
        """For result.json."""
        return {"entry": self.near.name, "similarity": round(self.near.similarity, 4), "used": self.used}


@dataclass
class Row:
    """What becomes of one sample. Callbacks write into ``folder``; ``stop`` says why it ended, "" while it goes on."""

    folder: Path | None = None
    logger: Logger | None = None
    grades: list[Grade] = field(default_factory=list)  # one per graded adapter
    frames: Tensor | None = None  # (K,3,H,W) that were graded last
    stop: str = ""
    start: Start | None = None
    best: list[Tensor] = field(default_factory=list)  # the weights with the lowest loss so far

    @property
    def kept(self) -> Grade:
        """The grade of the weights that are kept: the last; or the best, if the last loss is not finite or a person
        stopped the row."""
        finite = [grade for grade in self.grades if math.isfinite(grade.total)]
        if finite and finite[-1] is self.grades[-1] and self.stop != STOPPED:
            return self.grades[-1]
        return min(finite, key=lambda grade: grade.total, default=self.grades[0])

    @property
    def before(self) -> Grade:
        """The grade of the frozen model."""
        return self.start.before if self.start else self.grades[0]


class TestTimeTraining(L.LightningModule):
    """Trains ``adapter`` until ``reward`` is satisfied with the decoded prediction from the fixed noise ``z1``.

    Only the adapter's parameters are registered. Callbacks may define ``on_graded(trainer, module)``, called between
    grading and stepping: it looks at ``module.open_rows`` and sets ``row.stop`` to a reason where a row's weights are
    to be kept as they are (with STOPPED: the best so far). The training ends when all rows have stopped, when a
    callback sets ``trainer.should_stop``, or after N steps. ``state`` and ``resume`` let it go on in another process.
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
        rows: Sequence[Row] | None = None,
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
        self.rows = list(rows or [Row() for _ in z1])
        self.computing: Callable[[list[int]], None] = lambda rows: None  # is told which rows the next passes are for

        self._prefix: Activation | None = None
        self._taken = 0  # steps before ``resume``
        self._averages: dict[int, dict[str, Tensor]] = {}  # the optimizer's state then

    @property
    def steps(self) -> int:
        """Optimization steps so far."""
        return self._taken + self.global_step

    def folder(self, row: Row) -> Path:
        """Where callbacks write about a sample."""
        return row.folder or Path(self.trainer.default_root_dir)

    @property
    def open_rows(self) -> list[Row]:
        """The samples that are still optimized."""
        return [row for row in self.rows if not row.stop]

    def _open(self) -> list[int]:
        return [number for number, row in enumerate(self.rows) if not row.stop]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(self.lora, lr=self.settings.lr, weight_decay=self.settings.weight_decay)
        if self._averages:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": self._averages})
        return optimizer

    def configure_model(self) -> None:
        """Asked for by the strategy of several processes. The reasoner is sharded when it is loaded: the frozen model's
        video comes before any training."""

    def train_dataloader(self) -> Iterable[int]:
        """One endless epoch; the trainer's max_steps ends it."""
        return itertools.count()

    @torch.no_grad()
    def start_from(self, near: Sequence[Neighbor | None]) -> None:
        """Starts rows from stored adapters where their loss is lower than that of fresh ones, which have no effect."""
        found = {number: each for number, each in enumerate(near) if each}
        if not found:
            return
        rows = list(found)
        states = [self.adapter.state_dict(number) for number in rows]
        with self.adapter.only(rows):
            fresh = self._grades(*self.losses(rows), step=0)
            for number, each in found.items():
                self.adapter.load_state_dict(each.state, number)
            stored = self._grades(*self.losses(rows), step=0)
        for number, state, before, after in zip(rows, states, fresh, stored, strict=True):
            used = after.total < before.total  # False for NaN
            self.rows[number].start = Start(found[number], before, used)
            if not used:
                self.adapter.load_state_dict(state, number)

    # One turn of the loop

    def training_step(self, batch: Any, batch_idx: int) -> None:
        rows = self._open()
        if not rows:  # all had stopped before a resumed training
            self.trainer.should_stop = True
            return
        with self.adapter.only(rows):  # until the backward pass is over: recomputed blocks run again in it
            losses, total = self.losses(rows)
            self._note(rows, losses, total)
            self._test(rows)
            if self.trainer.should_stop:
                return
            self._step(total[[place for place, number in enumerate(rows) if not self.rows[number].stop]])

    def losses(self, rows: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Predict, decode, grade: every query's loss (b,Q) and the weighted one (b,) of these rows (None: all)."""
        rows = list(range(len(self.rows)) if rows is None else rows)
        self.computing(rows)
        with self.timer("predict"):
            latents = self.predict(rows)
        with self.timer("decode"):
            frames = self.frozen.decoder(latents, self.frame_numbers)
        with self.timer("grade"):
            losses = select(self.frozen.reward, rows)(frames, latents)
        for number, shown in zip(rows, frames.detach(), strict=True):
            self.rows[number].frames = shown
        return losses, multi_vqa_loss(losses, self.settings.goal_weight)

    def predict(self, rows: Sequence[int] | None = None) -> Tensor:
        """The clean latents that are graded (b,C,T,h,w): predicted in one step from the optimized denoising step.

        "first" (the paper's): z0 = z1 - u at pure noise. "last": at the last noise level, reached without gradients.
        "all": at the end of the whole schedule, with gradients through every step.
        """
        reasoner, sigmas = self.frozen.reasoner, self.frozen.reasoner.schedule.sigmas
        everyone = list(range(len(self.rows)))
        chosen = everyone if rows is None else list(rows)
        z1, condition = self.z1, self.condition
        if chosen != everyone:
            z1, condition = z1[chosen], condition.select(chosen)
        if self.settings.denoise_step == "all":
            return reasoner.denoise(z1, condition)
        if self.settings.denoise_step == "last":
            with torch.no_grad():
                latents = reasoner.denoise(z1, condition, steps=len(sigmas) - 1)
            return reasoner.predict_clean(latents, sigmas[-1], condition)
        if self._prefix is None:
            # Noise, timestep and condition stay the same: what enters the first adapted block is computed once.
            with torch.no_grad():
                self._prefix = reasoner.prefix(self.z1, sigmas[0], self.condition, self.adapter.first_block)
        prefix = self._prefix if chosen == everyone else self._prefix.select(chosen)
        return reasoner.predict_clean(z1, sigmas[0], condition, prefix)

    def _note(self, rows: Sequence[int], losses: Tensor, total: Tensor) -> None:
        for number, grade in zip(rows, self._grades(losses, total, self.steps), strict=True):
            self.rows[number].grades.append(grade)
            _log(self.rows[number], grade)

    def _grades(self, losses: Tensor, total: Tensor, step: int) -> list[Grade]:
        """Reads all losses from the device at once, the only wait for it in a step."""
        read = from_rank_zero(lambda: torch.cat([total[:, None], losses], dim=1).detach().tolist())
        return [Grade(step, value, tuple(per_query)) for value, *per_query in read]

    def _test(self, rows: Sequence[int]) -> None:
        """Decides which rows stop; their weights are kept as they are."""
        for number in rows:
            row = self.rows[number]
            value = row.grades[-1].total
            if not math.isfinite(value):
                row.stop = NON_FINITE
                row.best = row.best or self._weights(number)  # the fresh ones
            elif value < min((grade.total for grade in row.grades[:-1]), default=math.inf):
                row.best = self._weights(number)
        if self.open_rows:
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if hasattr(callback, "on_graded"):
                    callback.on_graded(self.trainer, self)
        for number in rows:
            row = self.rows[number]
            if row.stop not in ("", NON_FINITE, STOPPED):
                row.best = self._weights(number)  # what is kept
            if row.stop and row.frames is not None:
                row.frames = row.frames.clone()  # a view would keep the whole batch's while the others go on
        if not self.open_rows:
            self.trainer.should_stop = True

    def _step(self, total: Tensor) -> None:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        self.computing(self._open())
        with self.timer("backward"):
            optimizer.zero_grad()
            self.manual_backward(total.sum())
        with self.timer("step"):
            self.adapter.clip_gradients(self.settings.clip_norm)
            optimizer.step()
            self._restore()

    # The end

    def on_train_end(self) -> None:
        """The weights after the last step were never graded by the loop: grade them, so that all that is kept is."""
        rows = self._open()
        if rows and self.rows[rows[0]].grades[-1].step < self.steps:
            with self.adapter.only(rows):
                self._note(rows, *self.evaluate(rows))
            self._test(rows)  # an adapter whose last grade satisfies the teacher is accepted like any other
        for row in self.open_rows:
            row.stop = ALL_STEPS
        self._restore()

    @torch.no_grad()
    def evaluate(self, rows: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """As ``losses``, of the weights as they are, without gradients."""
        return self.losses(rows)

    def _weights(self, number: int) -> list[Tensor]:
        return [parameter[number].detach().clone() for parameter in self.lora]

    @torch.no_grad()
    def _restore(self) -> None:
        """A row that has stopped has the weights that are kept, whatever the optimizer's averages did to them since;
        after a loss that was not finite, the best ones."""
        for number, row in enumerate(self.rows):
            if row.stop and row.stop != ALL_STEPS:
                for parameter, value in zip(self.lora, row.best):
                    parameter[number].copy_(value)

    # Going on elsewhere

    def state(self, number: int) -> dict[str, Tensor]:
        """What a row's next step depends on, besides its ``grades``, between two steps: its adapter, the best one so
        far and the optimizer's averages. Nothing draws random numbers."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        state = {f"adapter.{place}": parameter[number].detach() for place, parameter in enumerate(self.lora)}
        state |= {f"best.{place}": value for place, value in enumerate(self.rows[number].best)}
        for place, averages in optimizer.state_dict()["state"].items():
            for name, value in averages.items():
                state[f"optimizer.{place}.{name}"] = value[number] if value.dim() else value
        return state

    @torch.no_grad()
    def resume(self, states: Sequence[tuple[Mapping[str, Tensor], Sequence[Grade], str]]) -> None:
        """Goes on from every row's ``state``, grades and stop; to be called before fitting.

        All rows that go on have taken equally many steps.
        """
        open_states = []
        for number, (state, grades, stop) in enumerate(states):
            row = self.rows[number]
            row.grades, row.stop = list(grades), stop
            for place, parameter in enumerate(self.lora):
                parameter[number].copy_(state[f"adapter.{place}"])
            row.best = [state[f"best.{place}"].to(self.z1.device) for place in range(len(self.lora))]
            if not stop:
                self._taken = len(grades)
                open_states.append(state)
        for name, value in open_states[0].items() if open_states else ():
            if name.startswith("optimizer."):
                _, layer, average = name.split(".")
                rows = [state.get(name, value) for state, _, _ in states]  # of a stopped row, any will do
                self._averages.setdefault(int(layer), {})[average] = torch.stack(rows) if value.dim() else value

    def on_train_start(self) -> None:
        for row in self.rows:
            for grade in row.grades:  # a resumed curve is whole
                _log(row, grade)

    def _apply(self, fn: Any, recurse: bool = True) -> TestTimeTraining:
        """Stays where it is: a trainer moves its module to its device and back to the CPU, but the adapter's weights
        must stay in float32 beside the frozen layers they adapt."""
        return self


def select(reward: Reward, rows: Sequence[int]) -> Reward:
    """The reward for some of its samples; one that does not know samples is the same for all."""
    own = getattr(reward, "select", None)
    found: Reward = reward if own is None else own(rows)
    return found


def metrics(grade: Grade) -> dict[str, float]:
    """One named number per curve; the confidence is the probability whose loss the total is."""
    p_goal, *p_process = grade.p_yes
    named = {f"p_yes/process_{number}": p for number, p in enumerate(p_process, start=1)}
    return {"loss": grade.total, "confidence": _probability(grade.total), "p_yes/goal": p_goal, **named}


def _log(row: Row, grade: Grade) -> None:
    if row.logger is not None:
        row.logger.log_metrics(metrics(grade), grade.step)


def _probability(loss: float) -> float:
    """That of which the loss is the -log; 1 for a loss below 0, which a user's own reward may give."""
    return math.exp(-max(loss, 0.0))
