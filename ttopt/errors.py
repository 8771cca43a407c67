"""The errors that a user is meant to see: one sentence each."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from pydantic import ValidationError


class UserError(ValueError):
    """Something the user can mend: says which file, sample or setting was wrong, and the cure.

    The command line prints it as one line and exits with code 2.
    """


class RunError(UserError):
    """What the next sample would meet too, so that it ends the whole run: a full disk, a server that is gone."""


def printable(text: str) -> str:
    """A text for a terminal: nothing in it can break the line, move the cursor or color what follows."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def one_line(text: str) -> str:
    """The same, single-spaced."""
    return " ".join(printable(text).split())


def brief(error: Exception, most: int = 300) -> str:
    """What a library says, on one line and not too much of it."""
    text = one_line(str(error)) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]} ..."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU's or the CPU's memory is too small, in one of the ways that it is said."""
    import torch  # here, as it takes seconds

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # torch's allocator for the CPU raises a RuntimeError; mapping a file an OSError, or safetensors' own kind.
    said = str(error).lower()
    return any(words in said for words in ("can't allocate memory", "cannot allocate memory", "not enough memory"))


@contextmanager
def naming(what: str) -> Iterator[None]:
    """A UserError that says what cannot be loaded, for whatever goes wrong inside but too little memory."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # broken files make the libraries raise every kind
        if is_out_of_memory(error):
            raise
        raise UserError(f"{what} cannot be loaded ({brief(error)}); fetch it again") from error


def wrong_fields(error: ValidationError) -> str:
    """What pydantic finds wrong, field by field."""
    return "; ".join(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())


class Arguments(argparse.ArgumentParser):
    """The parser of a command's own arguments; its mistakes are a UserError instead of a usage page.

    ``more`` is said at the end of the help.
    """

    def __init__(self, command: str, what: str, more: str = "") -> None:
        super().__init__(prog=f"ttopt {command}", description=what, epilog=more, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help lists all)")
