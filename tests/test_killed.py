"""A run that is killed at random moments and called again until it is done ends as one that was never disturbed.

``KILLS=100 python -m pytest -m slow tests/test_killed.py`` for a hundred kills; by default it is a few.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_resume import content

import ttopt

KILLS = int(os.environ.get("KILLS", "6"))
FIT = [
    *(sys.executable, "-m", "ttopt", "fit", "--run-dir", "run", "--families", "[move]", "--limit", "2"),
    *("--optimization.steps", "12", "--optimization.tau", "0", "--optimization.lr", "1e-4"),
    *("--logging.wandb", "disabled", "--logging.state_every", "1", "--logging.previews_every", "4"),
]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(ttopt.__file__).parent.parent), "PYTHONUNBUFFERED": "1"}


def start(folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(FIT, cwd=folder, env=ENVIRONMENT, **out)  # type: ignore[call-overload,no-any-return]


def to_its_end(folder: Path) -> None:
    process = start(folder)
    output, _ = process.communicate()
    assert process.returncode == 0, output


def finished(folder: Path) -> set[str]:
    return {path.name for path in (folder / "run/samples").glob("[!.]*")}


def same(one: Path, other: Path) -> bool:
    return content(one) == content(other)


@pytest.mark.slow
def test_kill_and_go_on(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    begin = time.monotonic()
    to_its_end(whole)
    length = time.monotonic() - begin

    moments, done, resumed = random.Random(0), set[str](), 0
    for number in range(KILLS):
        if len(done) == 2:  # there is nothing left to kill: once more from the start
            shutil.rmtree(killed)
            done = set()
        process = start(killed)
        try:
            output, _ = process.communicate(timeout=moments.uniform(0.3, 1) * length)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), output
        resumed += "goes on after step" in output
        assert done <= finished(killed), f"kill {number}: a finished result was lost"
        done = finished(killed)
        assert all(same(killed / "run/samples" / name, whole / "run/samples" / name) for name in done), f"kill {number}"
    to_its_end(killed)
    names = {path.name for path in (killed / "run/samples").iterdir()}
    assert names == finished(whole), "nothing is left over"
    assert all(same(killed / "run/samples" / name, whole / "run/samples" / name) for name in names)
    print(f"{KILLS} kills, {resumed} times gone on in the middle of a sample")
