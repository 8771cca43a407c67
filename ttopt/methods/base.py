"""What a method is: an object that turns a sample into a video and a Result.

A configuration names its class and keyword arguments (``method: {path: ttopt.methods.TeacherLora, arguments: {}}``);
nothing else is known about it. It writes into the sample's folder, by ``Context.finish`` at the latest:

    video.mp4  result.json  config.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from ttopt.config.lookup import find_object
from ttopt.config.settings import FitSettings, MethodSettings
from ttopt.data.sample import Sample
from ttopt.errors import UserError, brief
from ttopt.optimization.context import Context
from ttopt.record.result import Result

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


@runtime_checkable
class BatchMethod(Protocol):
    """A method that can also make the videos of several samples side by side, in two halves."""

    def prepare(self, sample: Sample, folder: Path, context: Context) -> Any:
        """Everything before a batch; what it returns has a ``kind``, which those who share a batch have in common."""
        ...

    def solve_batch(self, batch: Sequence[Any]) -> list[Result | Exception]:
        """As Method.solve, for what ``prepare`` has made of samples of one kind; an error that is returned fails its
        sample alone, one that is raised fails all."""
        ...


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
    cure = f"give the class path of {wanted} that can be imported from here"
    if "." not in path or not all(part.isidentifier() for part in path.split(".")):
        raise UserError(f"{what} {path} cannot be made (it is no dotted path of a class); {cure}")
    try:
        found = find_object(path)
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
