"""What the out-of-distribution splits command and no training prompt does, and the search that proves it.

Each of the 24 things has one color that training keeps from it: no training prompt sends it to a pad of that color or
paints it so. The thing and the color both occur in training, with others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ttopt.miniworld.look import COLOR_NAMES, SHAPE_NAMES, color_of, look

Command = tuple[int, str]  # look of a thing, color that it is sent to or painted in

_COLOR, _SHAPE = "|".join(COLOR_NAMES), "|".join(SHAPE_NAMES)
_NAMED = re.compile(rf"\b({_COLOR}) ({_SHAPE})\b|\b({_COLOR})\b")


def held_out_color(number: int) -> str:
    """The color that training keeps from a thing; never its own."""
    shape = number % len(SHAPE_NAMES)
    return COLOR_NAMES[(COLOR_NAMES.index(color_of(number)) + 1 + shape) % len(COLOR_NAMES)]


def commands(prompt: str) -> set[Command]:
    """Every (thing, color) that a prompt commands, read from its words alone.

    A thing is sent to, or painted in, each color that is named after it and before the next thing.
    """
    out: set[Command] = set()
    subject = None
    for color, shape, target in _NAMED.findall(prompt.lower()):
        if shape:
            subject = look(color, shape)
        elif subject is not None:
            out.add((subject, target))
    return out


def found(prompts: Iterable[str], wanted: set[Command]) -> list[str]:
    """The prompts of a bank that command any of ``wanted``."""
    return [prompt for prompt in prompts if commands(prompt) & wanted]
