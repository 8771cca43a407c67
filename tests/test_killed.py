"""A run that is killed at random moments and called again until it is done ends as one that was never disturbed.

``KILLS=100 python -m pytest -m slow tests/test_killed.py`` for a hundred kills; by default it is a few.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_resume import content

import ttopt
from ttopt.__main__ import main
from ttopt.data.video import read_video

KILLS = int(os.environ.get("KILLS", "6"))
FIT = [
    *("fit", "--run-dir", "run", "--families", "[move]", "--optimization.steps", "12", "--optimization.tau", "0"),
    *("--optimization.lr", "1e-4", "--logging.wandb", "disabled", "--logging.state_every", "1"),
    *("--logging.previews_every", "4"),
]


def run(folder: Path, arguments: list[str]) -> None:
    """``ttopt`` in ``folder``, which gets its output."""
    os.chdir(folder)
    torch.set_num_threads(1)
    for number in (1, 2):
        os.dup2(os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.exit(main(arguments))


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> ForkServerContext:
    """Processes that have imported everything when they begin: then a kill falls into the work."""
    paths = [Path(ttopt.__file__).parent.parent, Path(__file__).parent]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["test_killed", "callbacks", "ttopt.run.run", "ttopt.evaluate.commands"])
    return found


def same(a: Any, b: Any, *paths: Path) -> bool:
    return bool(a == b)


def close(a: Any, b: Any, one: Path, other: Path) -> bool:
    """Whether two files are the same but for the rounding of batched products."""
    if one.suffix == ".mp4":
        return bool((read_video(one) - read_video(other)).abs().max() < 4 / 255)
    if one.suffix == ".png":  # what is drawn of such numbers
        pictures = [np.asarray(Image.open(path).convert("RGB"), float) for path in (one, other)]
        return pictures[0].shape == pictures[1].shape and float(np.abs(pictures[0] - pictures[1]).mean()) < 1
    if one.suffix == ".safetensors":
        # Where a gradient is nearly 0, AdamW takes a whole step either way: the norm tells, not single weights.
        flat = [np.concatenate([np.ravel(value) for _, value in sorted(tensors.items())]) for _, tensors in (a, b)]
        return near(a[0], b[0]) and bool(np.linalg.norm(flat[0] - flat[1]) < 0.02 * np.linalg.norm(flat[1]))
    return near(*map(table, (a, b))) if one.suffix == ".csv" else near(a, b)


def table(content: bytes) -> list[list[Any]]:
    head, *rows = [line.split(",") for line in content.decode().splitlines()]
    return [head, *([float(value) for value in row] for row in rows)]


def differences(one: Path, other: Path, equal: Callable[..., bool]) -> list[str]:
    """The files that differ, but for seconds."""
    a, b = content(one), content(other)
    return [
        name
        for name in a.keys() | b.keys()
        if not (name in a and name in b and equal(a[name], b[name], one / name, other / name))
    ]


def near(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(near(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(near, a, b))
    if isinstance(a, float):
        return math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4)
    return bool(a == b)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, equal",
    [
        pytest.param(["--limit", "2"], same, id="single"),
        pytest.param(["--limit", "4", "--batch-samples", "4"], close, id="batch"),
    ],
)
def test_kill_and_go_on(
    arguments: list[str], equal: Callable[..., bool], processes: ForkServerContext, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def start(folder: Path) -> ForkServerProcess:
        folder.mkdir(exist_ok=True)
        process = processes.Process(target=run, args=(folder, [*FIT, *arguments]))
        process.start()
        return process

    def to_its_end(folder: Path) -> set[str]:
        process = start(folder)
        process.join()
        assert process.exitcode == 0, (folder / "output.txt").read_text()
        return {path.name for path in (folder / "run/samples").iterdir()}  # nothing may be left over

    def check(names: set[str], when: str) -> None:
        for name in names:
            found = differences(killed / "run/samples" / name, whole / "run/samples" / name, equal)
            assert not found, f"{when}: {name} differs in {found}"

    first = processes.Process(target=os.getpid)  # when it ends, all is imported
    first.start()
    first.join()
    begin = time.monotonic()
    names = to_its_end(whole)
    length = time.monotonic() - begin

    moments, done, resumed, completed = random.Random(0), set[str](), 0, 0
    kills = 0
    while kills < KILLS:
        if done == names:  # there is nothing left to kill: once more from the start
            shutil.rmtree(killed)
            done, completed = set(), completed + 1
        process = start(killed)
        process.join(moments.uniform(0.02, 1) * length)
        process.kill()
        process.join()
        output = (killed / "output.txt").read_text() if (killed / "output.txt").exists() else ""
        assert process.exitcode in (0, -signal.SIGKILL), output
        kills += process.exitcode == -signal.SIGKILL
        resumed += "goes on after step" in output
        finished = {path.name for path in (killed / "run/samples").glob("[!.]*")}
        assert done <= finished, f"kill {kills}: a finished result was lost"
        check(finished - done, f"kill {kills}")
        done = finished
    assert to_its_end(killed) == names
    check(names, "the end")
    print(
        f"{KILLS} kills of a run of {length:.1f} s; {resumed} times gone on in mid-sample, {completed} runs completed"
    )
