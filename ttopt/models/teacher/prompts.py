"""Every word the teacher is told, and the chat format around it: video first, question last."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ttopt.errors import UserError

FILE = "ttopt_prompts.json"

START, END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
VIDEO_PAD, IMAGE_PAD = "<|video_pad|>", "<|image_pad|>"
VIDEO_SLOT = VISION_START + VIDEO_PAD + VISION_END  # what a Qwen chat template writes for one video
IMAGE_SLOT = VISION_START + IMAGE_PAD + VISION_END

THOUGHT = re.compile(r"(?:<(?P<tag>[\w:]*think\w*)>|\[THINK\])\s*\Z", re.IGNORECASE)

QUESTION = "{question} Answer Yes or No."

QUERIES = """\
A video model will be asked to carry out this instruction, starting from the first frame if one is given:
"{prompt}"
Write yes/no questions that check whether the finished video does what was asked. Every question must be \
answerable by watching the video alone, and "Yes" must always mean that the video is right.
- one goal question: is the required final state reached by the end of the video?
- one to three process questions: does everything keep its identity, shape and colour, does nothing appear \
or vanish, are the rules of the task obeyed on the way, and does everything else stay unchanged?
Name the objects as they look in the first frame. Reply with JSON only:
{{"goal": <question>, "process": [<question>, ...]}}"""

# Asked where the teacher's own cannot be read (generic ones gain less than half as much, arXiv 2606.02564).
GENERIC_GOAL = 'By the end of the video, has this been done: "{prompt}"?'
GENERIC_PROCESS = (
    "Does every object keep its identity, shape and colour, and does nothing appear or vanish?",
    "Does everything that need not change stay as it was in the first frame?",
)

REPAIR = "That reply cannot be used: {error}. Reply again with the JSON object only."


@dataclass(frozen=True)
class Prompts:
    """The wording around the user's text. A model folder may override it with a ttopt_prompts.json file.

    ``question`` holds ``{question}``, ``queries`` holds ``{prompt}`` (both filled by ``str.format``: write
    ``{{`` for a brace); ``timestamps`` writes Qwen3-VL's "<t seconds>" before every temporal patch.
    """

    question: str = QUESTION
    queries: str = QUERIES
    timestamps: bool = True

    @classmethod
    def load(cls, folder: Path) -> Prompts:
        """The folder's ttopt_prompts.json, or the default wording; UserError for an unusable file."""
        path = folder / FILE
        if not path.is_file():
            return cls()
        try:
            given: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            prompts = cls(**given)
            for template, name in ((prompts.question, "question"), (prompts.queries, "prompt")):
                if "\0" not in template.format(**{name: "\0"}):
                    raise ValueError(f"{{{name}}} is missing")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            names = ", ".join(field.name for field in fields(cls))
            raise UserError(f"{path}: {error}; it must be a JSON object with any of: {names}") from error
        return prompts


def chat_text(tokenizer: Any, messages: Sequence[tuple[str, str]], slot: str = "", slots: int = 1) -> str:
    """A chat of (role, text) messages as one string, ready for the assistant's reply.

    The vision ``slot`` (VIDEO_SLOT, IMAGE_SLOT or none), repeated ``slots`` times, opens the first message. Uses the
    tokenizer's chat template where it has one, else the same Qwen ChatML format written here.
    """
    if not tokenizer.chat_template:
        opening = [slot * slots] + [""] * (len(messages) - 1)
        turns = zip(messages, opening, strict=True)
        chatml = "".join(f"{START}{role}\n{shown}{text}{END}\n" for (role, text), shown in turns)
        return chatml + f"{START}assistant\n"
    chat = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in messages]
    if slot:
        shown: Any = chat[0]["content"]
        shown[:0] = [{"type": "video" if "video" in slot else "image"}] * slots
    # The reply is the answer itself, not the model's thoughts about it; templates without such a switch ignore it.
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return close_thoughts(str(text))


def close_thoughts(text: str) -> str:
    """A prompt behind which the answer itself is written: a thought that it opens last is ended, without a word in it.

    The templates of models that always think (Qwen3-VL-Thinking) open one, where P("Yes") would be that of the
    thought's first word; closed like this is how Qwen's other templates switch thinking off.
    """
    opened = THOUGHT.search(text)
    if opened is None:
        return text
    end = f"</{opened['tag']}>" if opened["tag"] else "[/THINK]"
    return f"{text.rstrip()}\n\n{end}\n\n"


def timestamps(fps: float, frame_indices: Sequence[int], temporal_patch: int) -> list[float]:
    """Seconds of every temporal patch: the mean of its first and last frame's; the last frame is repeated."""
    indices = list(frame_indices)
    indices += [indices[-1]] * (-len(indices) % temporal_patch)
    firsts, lasts = indices[::temporal_patch], indices[temporal_patch - 1 :: temporal_patch]
    return [(first / fps + last / fps) / 2 for first, last in zip(firsts, lasts, strict=True)]


def video_text(seconds: Sequence[float] | None, patches: int, tokens: int) -> str:
    """The video's place in the prompt: ``patches`` temporal patches of ``tokens`` vision tokens each.

    As Qwen3-VL's processor was released: the timestamped patches replace the whole VIDEO_SLOT. transformers' own, since
    5.10, leaves the slot's start and end around them.
    """
    patch = VISION_START + VIDEO_PAD * tokens + VISION_END
    return "".join((f"<{seconds[i]:.1f} seconds>" if seconds else "") + patch for i in range(patches))
