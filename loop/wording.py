"""The prompts: text files whose {names} are filled in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ttopt.errors import UserError
from ttopt.models.chat import Message

PROMPTS = Path(__file__).parent / "prompts"
SHIPPED = {"full": PROMPTS, "mini": PROMPTS / "mini"}
NEEDED = {"plan": ("prompt", "done"), "verify": ("action",), "route": ("action", "reason")}
START_IMAGE = "{start_image}"
TARGET = "{target_state}"


@dataclass(frozen=True)
class Wording:
    """The three prompts. Images go before the text; a prompt that names {start_image} also gets the task's own.

    What a prompt does not name, a small model is not told: the verifier {target_state}, the planner {failed}.
    """

    plan: str
    verify: str
    route: str

    @classmethod
    def load(cls, prompts: str) -> Wording:
        """ "full", "mini", or a folder with plan.txt, verify.txt and route.txt. Raises UserError."""
        folder = SHIPPED.get(prompts, Path(prompts))
        texts = {}
        for name, needed in NEEDED.items():
            path = folder / f"{name}.txt"
            try:
                texts[name] = path.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"chat.prompts: {path} cannot be read ({error}); give full, mini, or a folder with "
                    f"{', '.join(f'{each}.txt' for each in NEEDED)}"
                ) from error
            for word in needed:
                if f"{{{word}}}" not in texts[name]:
                    raise UserError(f"{path} does not hold {{{word}}}, so the model would not be told; put it in")
        return cls(**texts)


def message(
    template: str, start: Tensor | None, images: Sequence[Tensor], shown_as: str, **values: str | int
) -> Message:
    """One user message: the images, then the template with its {names} filled in.

    ``images`` are called ``shown_as`` in the template; {start_image} and that name become "Image 1", "Images 2 to 4".
    Braces around anything else stay as they are, so that a template may show JSON.
    """
    before = [start] if start is not None and START_IMAGE in template else []
    first, last = len(before) + 1, len(before) + len(images)
    named = f"Image {first}" if first == last else f"Images {first} to {last}" if images else "(no image yet)"
    filled = values | {"start_image": "Image 1" if before else "(no image)", shown_as: named}
    text = re.sub(r"\{(\w+)\}", lambda match: str(filled.get(match[1], match[0])), template)
    return Message("user", (*before, *images, text))


def done_text(actions: Sequence[str]) -> str:
    """The accepted steps as text."""
    return " ".join(actions) or "nothing."


def sentence(text: str) -> str:
    """The text, ended like a sentence."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def with_suggestion(prompt: str, suggestion: str) -> str:
    """The prompt and one more suggestion, unless it says that already."""
    if suggestion.casefold() in prompt.casefold():
        return prompt
    return f"{sentence(prompt)} {suggestion}"
