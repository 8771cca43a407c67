"""Files of a result folder, which others may have made or damaged: read only if they are what they claim to be."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import TypeAdapter, ValidationError

from ttopt.errors import UserError, brief

MB = 2**20
TEXT = 16 * MB  # the most that result.json, trace.json and the like may have
VIDEO = 512 * MB
SHOWN = 3  # of the mistakes in one file

T = TypeVar("T")


def there(path: Path) -> bool:
    """Whether there is anything of this name, be it a broken link."""
    return os.path.lexists(path)


@contextmanager
def opened(path: Path, root: Path, most: int) -> Iterator[tuple[BinaryIO, int]]:
    """A file and its size. Raises UserError unless it lies inside ``root``, links followed, is a regular file and has
    at most ``most`` bytes. Never waits for a pipe or a device."""
    try:
        target = path.resolve(strict=True)
        if not target.is_relative_to(root.resolve()):
            raise UserError(f"{path} leads out of {root}; put the file itself there")
        if not stat.S_ISREG(target.stat().st_mode):
            raise UserError(f"{path} is no regular file; remove it")
        # Not waiting: what was looked at a moment ago may have been exchanged for a pipe.
        number = os.open(target, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(number, "rb") as file:
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode):
                raise UserError(f"{path} is no regular file; remove it")
            if found.st_size > most:
                raise UserError(f"{path} has {found.st_size / MB:.0f} MB; more than {most / MB:.0f} are not read")
            yield file, found.st_size
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # also a NUL in its name, or links in a circle
        raise UserError(f"{path} cannot be read ({brief(error)})") from error


def read_plain(path: Path, root: Path, most: int = TEXT) -> bytes:
    """A file's bytes; see ``opened``."""
    with opened(path, root, most) as (file, _):
        return file.read(most)


def check_video(path: Path, root: Path) -> int:
    """The bytes that an mp4 file has. Raises UserError for what is none; see ``opened``."""
    with opened(path, root, VIDEO) as (file, size):
        if file.read(8)[4:] != b"ftyp":
            raise UserError(f"{path} is no mp4 file; remove its folder to make it again")
        return size


def read_typed(path: Path, root: Path, form: Any) -> Any:
    """What a JSON file says, as the pydantic model, dataclass or type ``form``. Raises UserError for a file that is
    not plain (see ``opened``) or says something else."""
    try:
        return _adapter(form).validate_json(read_plain(path, root))
    except ValidationError as error:
        raise UserError(f"{path} cannot be read ({mistakes(error)})") from error


@cache
def _adapter(form: Any) -> TypeAdapter[Any]:
    """Building one takes longer than reading a file."""
    return TypeAdapter(form)


def mistakes(error: ValidationError) -> str:
    """The first things that pydantic finds wrong, and how many more there are."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    said = [": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in found[:SHOWN]]
    more = [f"{len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return brief(ValueError("; ".join(said + more)))
