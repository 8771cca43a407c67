"""What the tests of bad input share.

Everything that a user, a data set, a download or a model can get wrong ends in one sentence that names the file or the
setting and the cure, with exit code 2, without a traceback, and with nothing half-written. " .. " in an expected
sentence stands for anything.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ttopt.__main__ import main

Capture = pytest.CaptureFixture[str]
Files = dict[str, str | bytes]
LONG = "x" * 300
FEW = hypothesis_settings(
    max_examples=60, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def one_sentence(said: str, expected: str) -> None:
    assert "\n" not in said and "\r" not in said and "Traceback" not in said, said
    assert len(said) < 1500, f"{len(said)} characters"
    assert re.search(".*".join(map(re.escape, expected.split(" .. "))), said), said


def refused(args: list[str], expected: str, capsys: Capture) -> None:
    """The command says one sentence and ends with 2."""
    assert main(args) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.endswith("\n"), said
    one_sentence(said[:-1], expected)


def refused_untouched(folder: Path, args: list[str], expected: str, capsys: Capture) -> None:
    """The same, and ``folder`` holds what it held."""
    before = contents(folder)
    refused(args, expected, capsys)
    assert contents(folder) == before


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
