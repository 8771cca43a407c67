"""What a method is: an object that turns a sample into a video and a Result.

A configuration names its class and keyword arguments (``method: {path: ttopt.methods.TeacherLora, arguments: {}}``);
nothing else is known about it. It writes into the sample's folder, by ``Context.finish`` at the latest:

    video.mp4  result.json  config.yaml
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import lightning as L
from lightning.pytorch.loggers import Logger
from pydantic import BaseModel
from torch import Tensor

from ttopt.config.settings import FitSettings, MethodSettings
from ttopt.data.sample import Sample, Scorer
from ttopt.errors import UserError, brief
from ttopt.models.chat.chat import Chat, Message, Reply, ask
from ttopt.models.teacher import Queries
from ttopt.optimization.algorithm import Models
from ttopt.optimization.bank import Bank
from ttopt.record.finish import finish
from ttopt.record.meter import Meter
from ttopt.record.result import Result

if TYPE_CHECKING:
    from ttopt.data.sample import Status

T = TypeVar("T", bound=BaseModel)
Made = TypeVar("Made")


class Method(Protocol):
    """One way to make a video for a sample. Made once for a run, from its class path and arguments.

    One that says ``needs_models = False`` gets none; of one that says ``asks = False``, none is loaded to answer. One
    that reads files of its own gives their digests as ``inputs(sample, settings)``, by what an error may call them, and
    to ``finish``: a run is not gone on with where they have changed.
    """

    def solve(self, sample: Sample, folder: Path, context: Context) -> Result:
        """Makes the sample's video and writes everything about it into ``folder``, which exists.

        Raises UserError for a sample that cannot be done at all, whose folder then vanishes. A model that fails in the
        middle is no exception but a Result with an ``error``: what was finished stays on disk.
        """
        ...


@dataclass(frozen=True)
class Context:
    """What a method may use for one sample: the models, loaded once for a run, and the sample's own meter and logger.

    ``settings.seed`` is the run's; derive others by ``seed_of(settings.seed, sample.id, purpose)``, where "noise" is
    the first video's noise in every method.
    """

    models: Models
    settings: FitSettings
    meter: Meter
    chat: Chat
    scorer: Scorer | None = None
    queries: Queries | None = None  # the user's own, instead of the teacher's
    callbacks: Callable[[], list[L.Callback]] = list  # new Lightning callbacks for one optimization
    logger: Logger | None = None
    status: Status = field(default=lambda text: None)  # what is being done at the moment
    note: Status = field(default=lambda text: None)  # one line that stays
    bank: Bank | None = None  # of adapters to start from

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

        def noted(reply: Reply) -> None:
            self.meter.vlm_calls += 1
            record(reply)

        with self.meter.timer("vlm"):
            return ask(self.chat, messages, schema, noted)

    def finish(self, sample: Sample, video: Tensor | None, folder: Path, **what: Any) -> Result:
        """Scores the video and writes video.mp4, config.yaml and result.json; see record.finish for ``what``: method
        and seeds, and optionally accepted, stop, error, details, more_inputs."""
        return finish(sample, video, folder, self.settings, self.meter, self.scorer, **what)


def make_method(settings: MethodSettings) -> Method:
    """The method that the settings name. Raises UserError."""
    kind = named_class(settings.path, "method", "a class with solve(sample, folder, context)")
    if not callable(getattr(kind, "solve", None)):
        raise UserError(
            f"method {settings.path} has no solve(sample, folder, context); give the class path of a method"
        )
    method: Method = make_object(kind, settings.arguments, f"method {settings.path}")
    return method


def needs_models(method: Method) -> bool:
    """Whether anything must be loaded for it."""
    return bool(getattr(method, "needs_models", True))


def asks(method: Method) -> bool:
    """Whether it may ask the chat model."""
    return needs_models(method) and bool(getattr(method, "asks", True))


def own_inputs(method: Method, sample: Sample, settings: FitSettings) -> dict[str, str]:
    """Digests of the files that only this method reads."""
    found: dict[str, str] = method.inputs(sample, settings) if hasattr(method, "inputs") else {}
    return found


def named_class(path: str, what: str, wanted: str) -> type:
    """The class at a dotted path, whose module is imported; nothing of it is called, since a configuration may be a
    stranger's. Raises UserError naming ``what`` cannot be made and what is ``wanted``."""
    module, _, name = path.rpartition(".")
    cure = f"give the class path of {wanted} that can be imported from here"
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise UserError(f"{what} {path} cannot be made (it is no dotted path of a class); {cure}")
    try:
        found = getattr(importlib.import_module(module), name)
    except UserError:
        raise
    except Exception as error:  # a module may fail in every way when it is imported
        raise UserError(f"{what} {path} cannot be made ({brief(error)}); {cure}") from error
    if not isinstance(found, type):
        raise UserError(f"{what} {path} cannot be made (it is no class); {cure}")
    return found


def make_object(kind: type[Made], arguments: dict[str, Any], what: str) -> Made:
    """An object of a class with keyword arguments. Raises UserError naming ``what`` cannot be made."""
    try:
        return kind(**arguments)
    except UserError:
        raise
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        raise UserError(
            f"{what} cannot be made ({brief(error)}); give the class path of one that can be made so, and its "
            "arguments as arguments"
        ) from error
