"""What the files of a comparison must hold: they may be damaged, or made by others.

See ttopt/record/plain.py for how they are read, and ttopt/record/result.py for result.json.
"""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from ttopt.data.queries import Queries
from ttopt.data.sample import ID_PATTERN
from ttopt.errors import UserError, brief
from ttopt.methods.existing import ORIGINAL
from ttopt.record.plain import MB, VIDEO, check_video, mistakes, opened, read_plain, read_typed, there
from ttopt.record.result import CHECKED, FILE, Result, Spoiled

M = TypeVar("M", bound=BaseModel)
TRACE = "trace.json"  # of the step loop
LONGEST_CURVE = 10_000  # rows
SampleId = Annotated[str, Field(pattern=f"^(?:{ID_PATTERN.pattern})$")]


class Checked(BaseModel):
    """One that holds nothing unknown."""

    model_config = CHECKED


class Open(BaseModel):
    """One of which only a part is read."""

    model_config = ConfigDict(**{**CHECKED, "extra": "ignore"})


class Names(Open):
    """comparison.json: the samples and their families; ``complete`` once all methods have tried all of them."""

    samples: dict[SampleId, str] = Field(min_length=1)
    complete: bool = True
    problems: list[str] = []


class Grades(Checked):
    """An entry of judged.json: what was graded (``of``, by which questions, beside which video), and the grades."""

    of: str | None = None
    asked: list[str] | None = None
    beside: list[str | None] | None = None
    p_yes: list[Spoiled] | None
    ssim: float | None
    psnr: float | None


class Questions(Checked):
    """An entry of queries.json; without a goal, the teacher wrote none that can be read."""

    source: str = ""
    goal: str | None = None
    process: list[str] = []

    @model_validator(mode="after")
    def _usable(self) -> Questions:
        if self.goal is not None:
            Queries(self.goal, tuple(self.process))
        return self

    @property
    def all(self) -> list[str]:
        """Goal first; none if there are none."""
        return [] if self.goal is None else [self.goal, *self.process]


class TraceVerdict(Open):
    verdict: str = ""
    progress: float | None = None
    reason: str = ""
    suggestion: str = ""


class TraceClip(Open):
    step: int | None = None
    attempt: int | None = None
    prompt: str = ""
    verdict: TraceVerdict | None = None


class TraceCall(Open):
    role: str
    clip: int
    step: int | None = None
    text: str = ""
    error: str = ""


class Trace(Open):
    """trace.json of the step loop, as much of it as a page shows."""

    clips: list[TraceClip] = []
    calls: list[TraceCall] = []


def read_sample(place: Path, root: Path) -> Result | None:
    """The result in a sample's folder, whose videos are what their names say; None if there is none yet. Raises
    UserError for what is damaged."""
    if not there(place / FILE):
        return None
    result = Result.load(place, place.name, root)
    if there(place / "video.mp4"):
        check_video(place / "video.mp4", root)
    if there(place / ORIGINAL):  # of whatever format
        with opened(place / ORIGINAL, root, VIDEO):
            pass
    return result


def find_sample(place: Path, root: Path) -> Result | None:
    """As ``read_sample``; what is damaged is as good as none (the table names it)."""
    try:
        return read_sample(place, root)
    except UserError:
        return None


def read_each(path: Path, root: Path, form: type[M]) -> tuple[dict[str, M], list[str]]:
    """The entries of a JSON file by their names, and what is wrong with those that are left out. Nothing if there is no
    file; what is no JSON object at all is one problem."""
    if not there(path):
        return {}, []
    try:
        entries = read_typed(path, root, dict[str, Any])
    except UserError as error:
        return {}, [str(error)]
    found, problems, adapter = {}, [], TypeAdapter(form)
    for name, entry in entries.items():
        try:
            found[name] = adapter.validate_json(json.dumps(entry))
        except ValidationError as error:
            problems.append(f"{path}: {name} cannot be read ({mistakes(error)})")
    return found, problems


def read_curves(path: Path, root: Path) -> list[dict[str, float]]:
    """The rows of a curves.csv: step, loss, and P("Yes") of each question; NaN is a number too. Raises UserError."""
    try:
        text = read_plain(path, root, 2 * MB).decode()
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(io.StringIO(text))]
        if len(rows) > LONGEST_CURVE:
            raise ValueError(f"{len(rows)} rows")
        if not all({"step", "loss"} <= row.keys() and math.isfinite(row["step"]) for row in rows):
            raise ValueError("step or loss is missing")
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({brief(error)})") from error
    return [{n: v for n, v in row.items() if not n.startswith("loss_")} for row in rows]
