"""What the data sets that lie in files share: records, sizes, lengths, and the choice of samples."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ttopt.config.settings import SampleSettings
from ttopt.data.images import FirstFrame, image_size
from ttopt.errors import UserError, brief

T = TypeVar("T")
HALF = re.compile(r"\\u[dD][89a-fA-F]")  # perhaps of a character that two escapes stand for


def fitted_size(height: int, width: int, form: SampleSettings) -> tuple[int, int]:
    """A (height, width) of an image's aspect: multiples of ``form.multiple``, at most ``form``'s area.

    Padding or stretching would ruin scores that look for objects at places; what the multiples cost is cropped.
    """
    scale = math.sqrt(form.height * form.width / (height * width))
    fitted = (max(1, int(side * scale / form.multiple + 1e-6)) * form.multiple for side in (height, width))
    return next(fitted), next(fitted)


def fitted_length(frames: int, form: SampleSettings) -> int:
    """The 4k+1 nearest to ``frames`` (of two, the shorter), from 5 to ``form.frames``."""
    return max(5, min(form.frames, 4 * (frames // 4) + 1))


def first_frame(source: Path | bytes, form: SampleSettings) -> FirstFrame:
    """An image (file or its bytes), fitted, of which only the header is read. Raises UserError for what is no image."""
    name = str(source) if isinstance(source, Path) else "in the data set"
    return FirstFrame(source, *fitted_size(*image_size(source, name), form), name)


def records(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON list, a JSON-lines or a parquet file. Raises UserError naming the bad line."""
    if path.suffix == ".parquet":
        return _parquet(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); check --root") from error
    rows: Any = []
    before = 0  # lines read
    try:
        if path.suffix == ".jsonl":
            for line in text.split("\n"):  # splitlines would also split at separators inside a text
                if line.strip():
                    rows.append(_parsed(line))
                before += 1
        else:
            rows = _parsed(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {before + error.lineno}: {error.msg}; fetch the data set again") from error
    except ValueError as error:  # also a number of thousands of digits
        raise UserError(f"{path}, line {before + 1}: {brief(error)}; fetch the data set again") from error
    except RecursionError as error:
        raise UserError(f"{path}, line {before + 1}: it is nested too deeply; fetch the data set again") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path} must hold JSON objects, one a sample")
    return rows


def _parsed(text: str) -> Any:
    """A JSON value. Raises ValueError also for a key that comes twice, and for half of a character."""
    found = json.loads(text, object_pairs_hook=_once)
    if HALF.search(text):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"half of a character, {error.object[error.start]!r}") from error
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number]))
        raise ValueError(f"the key {twice!r} comes twice")
    return found


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{path} is a parquet file; pip install -e '.[benchmarks]' to read it") from error
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except Exception as error:  # of every kind: no parquet, no time that Python knows, no such time zone
        raise UserError(f"{path} cannot be read ({brief(error)}); fetch the data set again") from error
    return rows


def table(path: Path, root: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by its first line's names. Raises UserError."""
    try:
        return list(csv.DictReader(io.StringIO(text(path, root))))
    except csv.Error as error:
        raise UserError(f"{path} cannot be read ({brief(error)}); fetch the data set again") from error


def text(path: Path, root: Path) -> str:
    """What a text file of a data set says. Raises UserError, also for a link that leads out of ``root``: what a prompt
    says may be sent to a server."""
    try:
        return inside(root, path.relative_to(root)).read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text; write it again") from error


def field(row: Mapping[str, Any], name: str, where: object) -> Any:
    """``row[name]``, or a UserError saying what is missing where."""
    if row.get(name) in (None, ""):
        raise UserError(f"{where}: the field {name!r} is missing; fetch the data set again, or check --root")
    return row[name]


def words(row: Mapping[str, Any], name: str, where: object) -> str:
    """A field that must be a text."""
    found = field(row, name, where)
    if not isinstance(found, str):
        raise UserError(f"{where}: {name} is {found!r}, which is no text; fetch the data set again")
    return found


def path_part(value: object) -> str:
    """A record's value as the name of one file or folder; UserError for one that would lead elsewhere."""
    name = str(value)
    if not name.strip() or name in {".", ".."} or re.search(r"[/\\\0]", name):
        raise UserError(f"{name!r} in the data set cannot name a file; fetch the data set again")
    return name


def inside(root: Path, name: object) -> Path:
    """The file ``name`` of a data set; UserError if it lies outside ``root``, by its name or by a link."""
    try:
        path = root / str(name)
        target, real = path.resolve(), root.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a name too long, links in a circle
        raise UserError(f"{name!r} in the data set {root} cannot name a file ({error}); check the data set") from error
    # The hub's cache holds a snapshot's files as links to the blobs beside it.
    blobs = real.parent.parent / "blobs" if real.parent.name == "snapshots" else real
    if not (target.is_relative_to(real) or target.is_relative_to(blobs)):
        raise UserError(f"{name} lies outside {root}; check the data set")
    return path


def sample_id(*parts: object) -> str:
    """Parts joined by dots, with what cannot stand in a sample's id replaced."""
    return ".".join(re.sub(r"[^A-Za-z0-9_-]+", "_", str(part)) for part in parts)


def choose(groups: Mapping[str, Sequence[T]], families: Sequence[str] | None, limit: int, what: str) -> list[T]:
    """The first ``limit`` of the wanted groups, groups in turn, so that few samples still cover all of them.

    Raises UserError for an unknown group, naming the nearest.
    """
    for name in families or ():
        if name not in groups:
            nearest = difflib.get_close_matches(name, groups, n=1, cutoff=0) or ["none"]
            raise UserError(f"unknown {what} {name!r}; the nearest is {nearest[0]!r}")
    wanted = [groups[name] for name in families or groups]
    longest = max((len(group) for group in wanted), default=0)
    return [group[turn] for turn in range(longest) for group in wanted if turn < len(group)][:limit]
