"""What can be set about the step loop: the arguments of ``loop.StepLoop``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, ValidationError

from ttopt.errors import UserError, wrong_fields

KeepAdapter = Literal["none", "attempts", "steps"]


class LoopSettings(BaseModel):
    """The arguments of StepLoop. The defaults are the paper's."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    max_steps: PositiveInt = 3  # N_max
    attempts: PositiveInt = 3  # M: a first one and two repairs
    planning: bool = True  # without it the task prompt is the one action
    verification: bool = True  # without it every clip is accepted
    keep_above: float = Field(default=0.2, ge=0, le=1)  # share of a rejected clip above which its good prefix is kept
    max_splits: NonNegativeInt = 1  # how often the router may order smaller steps
    frames_per_second: PositiveFloat = 1.0  # that the verifier sees
    clip_seconds: list[PositiveFloat] | None = Field(
        default=None, min_length=1
    )  # of the first clip, the second, ...; None: the sample's own length
    shortest_clip: PositiveInt = 5  # frames; a shorter one is cut out of such a clip
    longest_prompt: PositiveInt = 1000  # characters of an instruction; with suggestions, if they fit
    inner: Literal["teacher_lora"] | None = None  # optimizes the clips
    inner_from: PositiveInt = 1  # which attempt of a step is the first to be optimized; 2: only repairs
    keep_adapter: KeepAdapter = "none"  # or: between the attempts of a step; or: through all steps
    diagnosis_query: str = ""  # a process query about each {reason} and {suggestion}; see configs/collabvr_wan22.yaml

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> LoopSettings:
        """Checked arguments. Raises UserError naming what is wrong, and what there is."""
        try:
            return cls(**arguments)
        except ValidationError as error:
            names = ", ".join(cls.model_fields)
            raise UserError(f"method.arguments: {wrong_fields(error)}; there are {names}") from error

    @property
    def name(self) -> str:
        """What is left when parts are switched off."""
        parts = {(True, True): "loop", (True, False): "planning only", (False, True): "verification only"}
        name = parts.get((self.planning, self.verification), "single")
        return f"{name} + {self.inner}" if self.inner else name
