"""A run's folder: its configuration, and one finished folder per sample.

runs/x/config.yaml            the settings of the run
runs/x/results.csv            a flat record of each finished sample (ttopt/record/flat.py)
runs/x/samples/<id>/          complete, or absent: written beside and renamed
runs/x/samples/.<id>/         unfinished: while it is worked on, or with what it can go on from: an optimization's state
                              (ttopt/optimization/state.py), a step loop's journal (loop/journal.py)
runs/x/bank.txt               with a bank: the entries that the run may start from (ttopt/optimization/bank.py)
runs/x/wandb/                 offline W&B runs
runs/x/errors/<id>.txt        the traceback of a sample that failed
runs/x/.lock                  held by the process that works here
runs/x/.claims/<id>           held by the worker that works on a sample (ttopt/run/ray_pool.py)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ttopt.config.fields import hints
from ttopt.config.settings import METHOD_ARGUMENTS, FitSettings, flat, is_free, to_dict, to_yaml
from ttopt.config.yaml_text import read
from ttopt.errors import RunError, UserError
from ttopt.record.plain import read_typed, there
from ttopt.record.result import FILE, Result

CONFIG = "config.yaml"
STATE = "state.safetensors"
JOURNAL = "journal"
CLIPS = "clips"  # of the step loop
LOCK = ".lock"
CLAIMS = ".claims"
ERRORS = "errors"  # tracebacks, by sample


class RunFolder:
    """Opens or makes the folder of a run.

    Raises UserError if it cannot be written, belongs to something else, or to a run with another configuration.
    """

    def __init__(self, path: Path, settings: FitSettings) -> None:
        self.path = path
        config = path / CONFIG
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            if config.exists():
                check_same(path, settings)
            elif any(not file.name.startswith(f".{CONFIG}.") for file in path.iterdir()):  # of a killed write_text
                raise UserError(f"{path} is not empty and no run's folder (it has no {CONFIG}); give another --run-dir")
            else:
                write_text(config, to_yaml(settings))
            self.samples = path / "samples"
            self.samples.mkdir(exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out; begins by ``tidy``. Raises UserError if another process has it."""
        taken = f"another process works in {self.path}; wait until it ends, or give another --run-dir"
        with _held(self.path / LOCK, 0, taken):
            self.tidy()
            yield

    def tidy(self) -> None:
        """Removes what killed processes left unfinished, unless it can be gone on from."""
        for folder in self.samples.glob(".*"):
            if not _can_go_on(folder):
                shutil.rmtree(folder, ignore_errors=True)
            for half in (*folder.glob(f".{STATE}.*"), *folder.glob(f"{JOURNAL}/.*")):  # killed while it was written
                half.unlink(missing_ok=True)

    @contextmanager
    def claimed(self, sample_id: str, patience: float = 120.0) -> Iterator[None]:
        """Keeps the run's other workers away from a sample. One that is out of reach may still be at it: waits for it,
        at most ``patience`` seconds; then raises UserError."""
        taken = "a worker that is out of reach still works on it; give the same command later"
        with _held(self.path / CLAIMS / sample_id, patience, taken):
            yield

    def finished(self, sample_id: str) -> Result | None:
        """The sample's result if an earlier call finished it; one that a model's failure cut short is tried again."""
        folder = self.samples / sample_id
        result = Result.load(folder, sample_id) if there(folder / FILE) else None
        return None if result is not None and result.error else result

    @contextmanager
    def sample(self, sample_id: str) -> Iterator[Path]:
        """A temporary folder that becomes the sample's folder if all goes well.

        If not, it vanishes, unless it holds what can be gone on from: then the next call gets it as it was left. Where
        a model's failure cut the earlier call short, this one gets its journal, and the clips that this tells of.
        """
        working = self.samples / f".{sample_id}"  # a leading dot cannot begin a sample's id
        left = self.samples / sample_id
        with writing(self.path):
            working.mkdir(exist_ok=True)
            if (left / JOURNAL).is_dir() and not (working / JOURNAL).exists():
                if (left / CLIPS).is_dir():
                    shutil.copytree(left / CLIPS, working / CLIPS, dirs_exist_ok=True)
                shutil.copytree(left / JOURNAL, working / JOURNAL)
        try:
            yield working
            with writing(self.path):
                (working / STATE).unlink(missing_ok=True)
                final = self.samples / sample_id
                if (final / FILE).exists() and Result.load(final).error:
                    if (final / "video.mp4").exists() and not (working / "video.mp4").exists():
                        return  # the earlier try got further
                    shutil.rmtree(final)
                if final.exists():
                    raise UserError(f"{final} exists already; another run wrote it, give another --run-dir")
                working.rename(final)
        finally:
            if not _can_go_on(working):
                shutil.rmtree(working, ignore_errors=True)


def _can_go_on(unfinished: Path) -> bool:
    return (unfinished / STATE).exists() or (unfinished / JOURNAL).exists()


@contextmanager
def _held(path: Path, patience: float, taken: str) -> Iterator[None]:
    """Holds a lock of the operating system, which ends with its process. UserError ``taken`` if another one has it."""
    with writing(path.parent):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise UserError(taken) from None
    try:
        yield
    finally:
        lock.release()


def new_path(parent: Path = Path("runs"), name: str = "fit") -> Path:
    """A folder name that nothing has yet, e.g. runs/fit-20261120-074233."""
    stem = parent / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = stem, 2
    while path.exists():
        path, number = stem.with_name(f"{stem.name}-{number}"), number + 1
    return path


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or, if interrupted, leaves the old one."""
    with replacing(path) as temporary:
        temporary.write_text(text + "\n" * (not text.endswith("\n")), encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path, whose file replaces ``path`` when it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())  # else a power cut may keep the new name and lose the content
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file of a run says, nothing if it is not there. Raises UserError."""
    if not there(path):
        return {}
    try:
        found: dict[str, Any] = read_typed(path, path.parent, dict[str, Any])
    except UserError as error:
        raise UserError(f"{error}; remove it, or its folder, to make it again") from error
    return found


@contextmanager
def writing(path: Path, cure: str = "give a --run-dir that can be written") -> Iterator[None]:
    """Turns a failure to write under ``path`` into a RunError: the next sample could not be written either."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise RunError(f"cannot write to {path} ({reason}); {cure}") from error


def check_same(path: Path, settings: FitSettings) -> None:
    """Raises UserError if the configuration of the run in ``path`` would give other results, or cannot be read."""
    config = path / CONFIG
    try:
        old = flat(read(config, hints(FitSettings)))
    except UserError as error:
        raise UserError(
            f"{config} cannot be read as a run's configuration ({error}); give another --run-dir"
        ) from error
    new = flat(to_dict(settings))
    # Only a method's arguments may be absent, which means: the method's default.
    for key in (*new, *(key for key in old if key.startswith(METHOD_ARGUMENTS))):
        missing = key not in old or key not in new
        if not is_free(key) and (missing or old[key] != new[key]):
            raise UserError(
                f"{config.parent} holds a run with another configuration: {key} was {old.get(key)!r}, now it is "
                f"{new.get(key)!r}; set it back, or give another --run-dir"
            )
