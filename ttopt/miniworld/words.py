"""The words of the world: what prompts, questions and replies are made of."""

from __future__ import annotations

from ttopt.miniworld.look import COLOR_NAMES, GRID, SHAPE_NAMES

PROMPT_WORDS = """
after and around bring changes else everything first gap goes make move nothing onto paint past second stays that the
then through to turns visits walls
""".split()
QUESTION_WORDS = """
Is Are Does Do Has Have there exactly one all time moving cell by on at end turned visit before stay stays off keep
shape place everything but it as is other same
""".split()
REPLY_WORDS = """
questions goal process yes no user assistant plan check route task done step steps of wrong observation complete
instruction target state estimated remaining reason action executed progress good fraction suggestion verdict accept
reject true false regen split fallback seconds
""".split()
TENTHS = [f"{n / 10:.1f}" for n in range(100)]  # shares, and seconds of a video
PUNCTUATION = list(".,:;?!\"'{}[]()-_<>/0123456789") + ["\n"]
CELL_NAMES = [f"{column}{row}" for row in range(1, GRID + 1) for column in "abcdef"]  # by cell number
NOUNS = (*SHAPE_NAMES, "pad")


def phrases() -> list[str]:
    """Every noun phrase of the world: 24 things and 6 pads."""
    return [f"{color} {noun}" for color in COLOR_NAMES for noun in NOUNS]
