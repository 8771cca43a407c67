"""The one error a user is meant to see."""

from __future__ import annotations

import argparse
from typing import NoReturn


class UserError(ValueError):
    """Something the user can mend: says which file, sample or setting was wrong, and the cure.

    The command line prints it as one line and exits with code 2.
    """


def printable(text: str) -> str:
    """A text for a terminal: nothing in it can break the line, move the cursor or colour what follows."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def one_line(text: str) -> str:
    """The same, single-spaced."""
    return " ".join(printable(text).split())


def brief(error: Exception, most: int = 300) -> str:
    """What a library says, on one line and not too much of it."""
    text = one_line(str(error)) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]} ..."


class Arguments(argparse.ArgumentParser):
    """A parser whose mistakes are a UserError instead of a usage page."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help lists all)")
