"""What a method may use for one sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.loggers import Logger
from pydantic import BaseModel
from torch import Tensor

from ttopt.config.settings import FitSettings
from ttopt.data.queries import Queries
from ttopt.data.sample import Sample, Scorer, Status
from ttopt.models.chat import Chat, Message, Reply, ask
from ttopt.models.load import Models
from ttopt.optimization.bank import Bank
from ttopt.record.finish import finish
from ttopt.record.meter import Meter
from ttopt.record.result import Result

T = TypeVar("T", bound=BaseModel)


def _unheard(text: str) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Context:
    """What a method may use for one sample: the models, loaded once for a run, and the sample's own meter and logger.

    ``settings.seed`` is the run's; derive others by ``seed_of(settings.seed, sample.id, purpose)``, where "noise" is
    the first video's noise in every method. ``meter`` is open while a method works.
    """

    models: Models
    settings: FitSettings
    meter: Meter
    chat: Chat | None = None
    scorer: Scorer | None = None  # sees only finished videos
    queries: Queries | None = None  # the user's own, instead of the teacher's
    callbacks: Callable[[], list[L.Callback]] = list  # new Lightning callbacks for one optimization
    logger: Logger | None = None
    status: Status = field(default=_unheard)  # what is being done at the moment
    note: Status = field(default=_unheard)  # one line that stays
    bank: Bank | None = None  # of adapters to start from

    @classmethod
    @contextmanager
    def open(cls, models: Models, settings: FitSettings, **more: Any) -> Iterator[Context]:
        """A context with a meter of its own, for callers outside a run. ``more``: its other fields.

        with Context.open(models, settings, callbacks=lambda: standard(settings)) as context:
            result = fit_sample(sample, folder, context)
        """
        with Meter(models.reasoner) as meter:
            yield cls(models, settings, meter, **more)

    def generate(self, sample: Sample, seed: int) -> Tensor:
        """The frozen reasoner's few-step video (T,3,H,W) in [0,1], on the CPU. Its length counts as cost."""
        reasoner, timer = self.models.reasoner, self.meter.timer
        with timer("condition"):
            condition = reasoner.condition(sample)
            z1 = reasoner.noise(condition, [seed])
        with self.models.adapter.disabled(), timer("generate"):
            latents = reasoner.generate(z1, condition)
        with timer("final decode"):
            video = reasoner.decode(latents)[0].cpu()
        self.meter.generated_seconds += sample.frames / sample.fps
        return video

    def ask(
        self, messages: Sequence[Message], schema: type[T], record: Callable[[Reply], None] = lambda reply: None
    ) -> T:
        """A typed reply of the chat model; every call counts as cost. Raises ChatError, see chat.ask."""
        assert self.chat is not None, "a method that asks gets a chat model"

        def noted(reply: Reply) -> None:
            self.meter.vlm_calls += 1
            record(reply)

        with self.meter.timer("vlm"):
            return ask(self.chat, messages, schema, noted)

    def finish(self, sample: Sample, video: Tensor | None, folder: Path, **what: Any) -> Result:
        """Scores the video and writes video.mp4, config.yaml and result.json; see record.finish for ``what``: method
        and seeds, and optionally accepted, stop, error, details, more_inputs."""
        return finish(sample, video, folder, self.settings, self.meter, self.scorer, **what)
