"""The teacher's questions: what they are, and how they are read out of a model's reply.

VLM-as-Teacher (arXiv 2606.02564), section 3.2: one goal query, 1 to 3 process queries, "Yes" means satisfied.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictStr, ValidationError

from ttopt.errors import UserError


@dataclass(frozen=True)
class Queries:
    """One goal question and one to three process questions; raises UserError for anything else."""

    goal: str
    process: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.process) <= 3 or not all(question.strip() for question in self.all):
            raise UserError(
                "queries need a goal and 1 to 3 process questions, none of them empty; "
                f"got the goal {self.goal!r} and the process questions {list(self.process)}"
            )

    @property
    def all(self) -> list[str]:
        """Every question, the goal first."""
        return [self.goal, *self.process]


def tidy(question: str) -> str:
    """Single spaces, none before punctuation: undoes what word-level tokenizers do to a text."""
    question = re.sub(r"\s+([?.,!;:])", r"\1", " ".join(question.split()))
    if not question:
        raise ValueError("a question is empty")
    return question


Question = Annotated[StrictStr, AfterValidator(tidy)]


class _Reply(BaseModel):
    model_config = ConfigDict(extra="ignore")
    goal: Question
    process: list[Question] = Field(min_length=1, max_length=3)


def parse_queries(reply: str) -> Queries:
    """The first JSON object with a goal in a model's reply; code fences and chatter around it are ignored.

    Raises ValueError saying what is wrong, in words the model can act on.
    """
    decoder = json.JSONDecoder(strict=False)  # a line break inside a string is no reason to ask again
    problems: list[str] = []
    for brace in re.finditer("{", reply):
        try:
            found = decoder.raw_decode(reply, brace.start())[0]
            # keys too come with spaces from word-level tokenizers
            return _checked({key.strip(): value for key, value in found.items()})
        except json.JSONDecodeError as error:
            problems.append(f"its JSON is broken: {error.msg} at character {error.pos}")
        except ValueError as error:
            problems.append(str(error))
    raise ValueError(problems[0] if problems else "there is no JSON object in it")


def _checked(found: dict[str, object]) -> Queries:
    try:
        reply = _Reply.model_validate(found)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
        raise ValueError("; ".join(problems)) from error
    return Queries(reply.goal, tuple(reply.process))
