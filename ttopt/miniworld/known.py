"""What the embedded models can be asked about: prompts in the world's words, and images that are scenes of it.

A sample of another kind would be optimized without a complaint, and the result would mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

from ttopt.errors import UserError
from ttopt.miniworld.look import COLOR_NAMES, SHAPE_NAMES, SIZE
from ttopt.miniworld.reader import UNKNOWN, read
from ttopt.miniworld.second import STRAY
from ttopt.miniworld.words import NOUNS, PROMPT_WORDS, PUNCTUATION, QUESTION_WORDS, REPLY_WORDS

OTHER = "use a sample of the world (--dataset miniworld), or a configuration of real models, e.g. --config wan22_5b"
NAMES = (*COLOR_NAMES, *NOUNS)


def check_prompt(prompt: str) -> None:
    """Raises UserError, with the words that are known, for a prompt that the embedded reasoner cannot read."""
    _check_words("sample.prompt", prompt, (*NAMES, *PROMPT_WORDS, ".", ","))


def check_questions(questions: Iterable[str]) -> None:
    """Raises UserError for questions that the embedded teacher cannot read."""
    words = (*NAMES, *PROMPT_WORDS, *(word.lower() for word in (*QUESTION_WORDS, *REPLY_WORDS)), *PUNCTUATION)
    for question in questions:
        _check_words("sample.queries", question, words)


def check_scene(image: Tensor) -> None:
    """Raises UserError unless an image (3, H, W) in [0, 1] shows things, pads and walls of the world alone."""
    height, width = image.shape[1:]
    if (height, width) != (SIZE, SIZE):
        raise UserError(f"sample.image: the embedded models draw {SIZE}x{SIZE} pixels, not {height}x{width}; {OTHER}")
    seen = read(image[None], boards=True)
    strange = any(blob.look == UNKNOWN or not blob.rests for blob in seen.things[0])
    if strange or not seen.things[0] or seen.stray[0] > STRAY or (seen.grounds[0] == UNKNOWN).any():
        raise UserError(f"sample.image is no scene of the embedded world, which is all its models know; {OTHER}")


def _check_words(where: str, text: str, known: Iterable[str]) -> None:
    words = set(known)
    strange = dict.fromkeys(word for word in re.findall(r"[^\W\d_]+|\S", text) if word.lower() not in words)
    if strange:
        raise UserError(
            f"{where}: the embedded models do not know {', '.join(map(repr, list(strange)[:5]))}; they know things "
            f"like {COLOR_NAMES[0]} {SHAPE_NAMES[0]} and {COLOR_NAMES[1]} {NOUNS[-1]} "
            f"(colors: {', '.join(COLOR_NAMES)}; shapes: {', '.join(SHAPE_NAMES)}) and the words "
            f"{', '.join(PROMPT_WORDS)}; {OTHER}"
        )
