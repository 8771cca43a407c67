"""What to do next: ONE action (CollabVR, section 3: progressive planning).

That the task is complete ends it as accepted, so it is believed as an accept of the verifier is: only of a reply that
is one JSON object, and that does not count further steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydantic import BaseModel, Field, ValidationInfo, model_validator
from torch import Tensor

from ttopt.data.replies import stands_alone
from ttopt.models.chat import Message

from .wording import Wording, done_text, message


class Plan(BaseModel):
    """The planner's reply."""

    observation: str = ""
    remaining_goal: str = ""
    task_complete: bool
    instruction: str = ""
    target_state: str = ""
    estimated_steps_remaining: int = Field(ge=0)

    @model_validator(mode="after")
    def _is_consistent(self, info: ValidationInfo) -> Plan:
        if not self.task_complete and not self.instruction:
            raise ValueError("the instruction is empty although the task is not complete")
        if self.task_complete and self.estimated_steps_remaining > 0:
            raise ValueError(f"task_complete is true, but {self.estimated_steps_remaining} steps remain")
        if self.task_complete and not stands_alone(info):
            raise ValueError("task_complete counts only without any words around the JSON object")
        return self


def plan(
    ask: Callable[[Message, type[Plan]], Plan],
    wording: Wording,
    start: Tensor | None,
    frame: Tensor | None,
    prompt: str,
    done: Sequence[str],
    step: int,
    steps: int,
    failed: str,
) -> Plan:
    """The next action for the scene in ``frame`` (3,H,W); ``done`` are the actions that were accepted, ``failed`` what
    the router says of a larger one that was not."""
    images = [] if frame is None else [frame]
    asked = message(
        wording.plan,
        start,
        images,
        "current_image",
        prompt=prompt,
        done=done_text(done),
        step=step,
        steps=steps,
        failed=failed or "nothing.",
    )
    return ask(asked, Plan)
