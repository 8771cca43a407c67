"""Many samples: what a run holds of memory and files does not grow with them.

``LOAD=1000 python -m pytest -m slow tests/test_load.py`` for more samples than 300.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import rich.console
import torch
from test_fit import bright
from test_report import optimization, write_result
from tiny import tiny_sample

import callbacks
import ttopt
from ttopt.config.settings import FitSettings
from ttopt.data import find
from ttopt.data.video import write_video
from ttopt.run.console import Console
from ttopt.run.run import Run, fit_all

Make = Callable[..., FitSettings]
SAMPLES = int(os.environ.get("LOAD", "300"))
MB = 2**20


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [dataclasses.replace(tiny_sample(f"s{number}"), frames=5) for number in range(SAMPLES)]
    fake = SimpleNamespace(samples=lambda split, families, seed, limit: samples[:limit], score=bright)
    monkeypatch.setattr(find, "importlib", SimpleNamespace(import_module=lambda name: fake))


def open_files() -> dict[str, str]:
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of this listing itself
            found[path.name] = str(path.readlink())
    return found


def note(notes: Path) -> None:
    """Appends this process's resident memory (bytes) and open file handles to a file of its own."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    with (notes / str(os.getpid())).open("a") as file:
        file.write(f"{pages * os.sysconf('SC_PAGE_SIZE')} {len(open_files())}\n")


class NoteEachFit(L.Callback):
    def __init__(self, notes: Path) -> None:
        self.notes = notes

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        note(self.notes)


def noting(notes: Path, settings: FitSettings) -> list[L.Callback]:
    return [*callbacks.standard(settings), NoteEachFit(notes)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"batch_samples": 16, "logging": {"wandb": "offline"}}, id="batches"),
        pytest.param(
            {"engine": "ray", "workers": {"count": 2, "cpus": 0.5}},
            id="ray",
            marks=pytest.mark.skipif(find_spec("ray") is None, reason="pip install -e '.[ray]'"),
        ),
    ],
)
def test_memory_and_files_do_not_grow(
    options: dict[str, Any], dataset: None, settings: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = [Path(ttopt.__file__).parent.parent, Path(__file__).parent]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))  # Ray's workers find this file
    notes = tmp_path / "notes"
    notes.mkdir()

    def run(limit: int, name: str) -> Run:
        small: dict[str, Any] = {"sample": {"frames": 5}, "teacher": {"frames": 5}, "reasoner": {"sigmas": [1.0, 0.5]}}
        s = settings(run_dir=str(tmp_path / name), limit=limit, optimization={"steps": 1}, **small, **options)
        return fit_all(s, Console(rich.console.Console(quiet=True)), partial(noting, notes / name))

    for name in ("first", "run"):
        (notes / name).mkdir()
    run(1, "first")  # what is opened once stays open: W&B's service, fonts
    before, begin = open_files(), time.monotonic()
    found = run(SAMPLES, "run")
    after = open_files()
    assert not found.problems and len(found.results) == SAMPLES
    print(f"{SAMPLES} samples in {time.monotonic() - begin:.0f} s, {len(before)} files before, {len(after)} after")
    for path in (notes / "run").iterdir():
        memory, files = zip(*([int(word) for word in line.split()] for line in path.read_text().splitlines()))
        warm = max(1, len(memory) // 10)
        most = [max(part) / MB for part in (memory[: warm + 1], memory[warm:])]
        print(
            f"{path.name}: {most[0]:.0f} MB in the first tenth, {most[1]:.0f} after; {files[warm]} to {files[-1]} files"
        )
        assert most[1] <= 1.05 * most[0]
        assert max(files[warm:]) <= files[warm], "in the middle of a sample, the last as the first"
    assert len(after) <= len(before), set(after.values()) - set(before.values())


def fabricate(folder: Path) -> Path:
    """A run of a thousand samples: a sample with all that a page shows, its videos as hard to compress as any."""
    one, numbers = folder / "one", torch.Generator().manual_seed(0)
    write_result(one, "one", "move", True, 9, optimization=optimization())
    coarse = torch.rand((9, 3, 60, 104), generator=numbers)
    write_video(one / "video.mp4", torch.nn.functional.interpolate(coarse, (480, 832), mode="bilinear"), 8)
    shutil.copy(one / "video.mp4", one / "base.mp4")
    queries = ["goal", *(f"process_{number}" for number in range(1, 6))]
    with (one / "curves.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", "loss", *(f"p_yes_{query}" for query in queries)])
        rows.writerows([step, *torch.rand(1 + len(queries), generator=numbers).tolist()] for step in range(21))
    run = folder / "run"
    result = json.loads((one / "result.json").read_text())
    for number in range(1000):
        place = run / f"samples/s{number:04}"
        shutil.copytree(one, place)
        (place / "result.json").write_text(json.dumps(result | {"sample": place.name}))
    (run / "config.yaml").write_text("base: mini\n")
    return run


@pytest.mark.slow
def test_the_page_of_a_thousand_samples(browser: Any, tmp_path: Path) -> None:
    run = fabricate(tmp_path)
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "ttopt", "report", "--run-dir", str(run)])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    peak, path = usage.ru_maxrss / 1024, run / "report.html"
    print(f"made in {time.monotonic() - begin:.0f} s, {peak:.0f} MB, the page {path.stat().st_size / MB:.1f} MB")
    assert peak < 1000
    assert path.stat().st_size < 20 * MB
    assert "data:video" not in path.read_text(), "from 100 samples on videos lie beside the page"
    page = browser.new_page()
    begin = time.monotonic()
    page.goto(path.as_uri())
    assert page.text_content("#count") == "1000 of 1000"
    seconds = time.monotonic() - begin
    print(f"opened in {seconds:.2f} s")
    assert seconds < 3
    page.keyboard.press("j")
    page.wait_for_selector(".sample[open] .loss svg")
    page.close()
