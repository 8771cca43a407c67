"""The teacher's questions: what they are, and how they are read out of a model's reply.

VLM-as-Teacher (arXiv 2606.02564), section 3.2: one goal query, 1 to 3 process queries, "Yes" means satisfied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictStr

from ttopt.data.replies import parse_reply
from ttopt.errors import UserError


@dataclass(frozen=True)
class Queries:
    """One goal question and one to three process questions; raises UserError for anything else."""

    goal: str
    process: tuple[str, ...]
    generic: bool = False  # asked because the teacher wrote none that could be read

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


class QueriesError(UserError):
    """The teacher's replies held no questions that can be read."""


def _filled(question: str) -> str:
    if not question:
        raise ValueError("a question is empty")
    return question


Question = Annotated[StrictStr, AfterValidator(_filled)]


class _Reply(BaseModel):
    model_config = ConfigDict(extra="ignore")
    goal: Question
    process: list[Question] = Field(min_length=1, max_length=3)


def parse_queries(reply: str) -> Queries:
    """The queries in a model's reply; raises ValueError saying what is wrong, in words the model can act on."""
    found = parse_reply(reply, _Reply)
    return Queries(found.goal, tuple(found.process))
