"""What happens to a run, and what is left of it: interruptions, broken states, changed inputs, faults."""

from __future__ import annotations

import dataclasses
import json
import math
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import rich.console
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from tiny import tiny_sample
from tiny_fit import fit_sample
from torch import Tensor

import callbacks
from ttopt.config.settings import FitSettings, LoraSettings
from ttopt.data import find
from ttopt.data.find import given_queries
from ttopt.data.sample import Sample
from ttopt.errors import RunError, UserError
from ttopt.models.load import Models
from ttopt.models.reasoner import StandardDecoder
from ttopt.models.teacher import prompts as words
from ttopt.optimization import state as resume
from ttopt.record.result import ACCEPTED, ALL_STEPS, NON_FINITE, Result
from ttopt.record.run_folder import STATE, RunFolder
from ttopt.run import run as engine
from ttopt.run.console import Console
from ttopt.run.run import fit_all

Make = Callable[..., FitSettings]
STEPS = {"steps": 5, "lr": 1e-2, "tau": 0.0, "starts": 2, "keep": "better"}
EVERY = {"wandb": "disabled", "previews_every": 1, "state_every": 2}


class Killed(BaseException):
    """No handler of the program's sees this, as none sees a kill."""


class Kill(L.Callback):
    """Before the next step, when ``step`` are taken."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.steps == self.step:
            raise Killed


@pytest.fixture(autouse=True)
def _keep_every_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "SHARE", math.inf)


@pytest.fixture
def quiet() -> Console:
    return Console(rich.console.Console(quiet=True))


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    """Two samples instead of the data set's; change the list to change the data set."""
    samples = [tiny_sample(name) for name in "ab"]
    fake = SimpleNamespace(samples=lambda split, families, seed, limit: samples[:limit], score=None)
    monkeypatch.setattr(find, "importlib", SimpleNamespace(import_module=lambda name: fake))
    return samples


def fit(
    models: Models, s: FitSettings, folder: Path, kill: int = -1, note: Callable[[str], None] = lambda text: None
) -> Result:
    folder.mkdir(exist_ok=True)
    extra = [*callbacks.standard(s), Kill(kill)]
    return fit_sample(tiny_sample(), models, s, folder, queries=given_queries(s), callbacks=extra, note=note)


def content(folder: Path) -> dict[str, Any]:
    """Every file of a sample's folder, but for what names seconds."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                found[name] = (file.metadata(), {key: value.tolist() for key, value in load_file(path).items()})
        elif name == "result.json":
            result = json.loads(path.read_text())
            result["cost"].pop("wall_seconds")
            found[name] = {key: value for key, value in result.items() if key not in {"seconds", "peak_mb", "finished"}}
        else:
            found[name] = path.read_bytes()
    return found


def test_a_killed_optimization_goes_on_to_the_same_result(models: Models, settings: Make, tmp_path: Path) -> None:
    s = settings(optimization=STEPS, logging=EVERY)
    fit(models, s, tmp_path / "whole")
    notes: list[str] = []
    for step in (3, 4):  # a step after a state was kept, and just after
        with pytest.raises(Killed):
            fit(models, s, tmp_path / "killed", step, notes.append)
        assert (tmp_path / "killed" / STATE).exists() and not (tmp_path / "killed/result.json").exists()
    fit(models, s, tmp_path / "killed", note=notes.append)
    assert notes == ["a goes on after step 2", "a goes on after step 4"]
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_killed_batch_goes_on_to_the_same_result(
    dataset: list[Sample], models: Models, settings: Make, tmp_path: Path, quiet: Console
) -> None:
    """Two samples side by side, of which one has stopped when the process dies."""
    o, logging = STEPS | {"tau": 0.0}, EVERY | {"previews_every": 10}

    def run(name: str, tau: float, kill: int = -1) -> dict[str, Any]:
        s = settings(
            run_dir=str(tmp_path / name), limit=2, batch_samples=2, optimization=o | {"tau": tau}, logging=logging
        )
        extra = lambda settings: [*callbacks.standard(settings), Kill(kill)]  # noqa: E731
        found = fit_all(s, quiet, extra, lambda _: models)
        assert not found.problems
        return {r.sample: content(found.folder / "samples" / r.sample) for r in found.results}

    curves = run("probe", 0.0)
    losses = {name: _losses(tmp_path / "probe/samples" / name) for name in curves}
    low = min(losses, key=lambda name: min(losses[name][:3]))
    tau = sorted(losses[low][:3])[0] * 1.000001
    assert min(losses["ab".replace(low, "")]) > tau, (
        "one must stop, and the other go on, for this test to mean anything"
    )
    whole = run("whole", tau)
    with pytest.raises(Killed):
        run("killed", tau, 4)
    states = list((tmp_path / "killed/samples").glob(f".*/{STATE}"))
    assert len(states) == 2
    again = run("killed", tau)
    for name in whole:
        for result in (whole[name]["result.json"], again[name]["result.json"]):
            assert result["stop"] == (ACCEPTED if name == low else ALL_STEPS)
        assert again[name].keys() == whole[name].keys(), "with the frames that were seen before the process died"
        for key in ("optimization", "seeds", "accepted", "cost"):
            assert _close(again[name]["result.json"][key], whole[name]["result.json"][key]), (name, key)


def _losses(folder: Path) -> list[float]:
    return [float(line.split(",")[1]) for line in (folder / "curves.csv").read_text().splitlines()[1:]]


def _close(a: Any, b: Any) -> bool:
    """Equal up to the rounding of batched products."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_close, a, b))
    if isinstance(a, float):
        return bool(a == pytest.approx(b, rel=1e-4, abs=1e-5))
    return bool(a == b)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_header(path: Path) -> None:
    path.write_bytes(save(load_file(path)))


def with_header(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["state"])
        path.write_bytes(save(load_file(path), {"state": json.dumps(header | changes)}))

    return change


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "half": (half, "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "zeros": (lambda path: path.write_bytes(bytes(path.stat().st_size)), "cannot be read"),
    "no header": (without_header, "cannot be read"),
    "unknown field": (with_header(mood="good"), "cannot be read"),
    "no questions": (with_header(queries={"goal": "", "process": []}), "cannot be read"),
    "other digest": (with_header(digest="0"), "was made with other settings, inputs or versions"),
}


@pytest.fixture
def interrupted(models: Models, settings: Make, tmp_path: Path) -> FitSettings:
    s = settings(optimization={"steps": 2, "lr": 1e-2}, logging=EVERY | {"state_every": 1})
    with pytest.raises(Killed):
        fit(models, s, tmp_path / "killed", 1)
    return s


def test_a_broken_state_is_named_and_dropped(interrupted: FitSettings, tmp_path: Path) -> None:
    path, digest = tmp_path / "killed" / STATE, resume.digest(tiny_sample(), interrupted, given_queries(interrupted))
    whole, notes = path.read_bytes(), []
    assert resume.read(path.parent, digest, notes.append) is not None and not notes
    for name, (damage, why) in BROKEN.items():
        path.write_bytes(whole)
        damage(path)
        notes = []
        assert resume.read(path.parent, digest, notes.append) is None, name
        assert len(notes) == 1 and f"{STATE} {why}" in notes[0] and "starts over" in notes[0], name
        assert not path.exists()


def test_a_state_of_other_settings_starts_over(models: Models, interrupted: FitSettings, tmp_path: Path) -> None:
    other = dataclasses.replace(interrupted, optimization=dataclasses.replace(interrupted.optimization, lr=2e-2))
    notes: list[str] = []
    fit(models, other, tmp_path / "killed", note=notes.append)
    assert "other settings" in notes[0]
    fit(models, other, tmp_path / "whole")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_digest_covers_what_changes_results_and_nothing_else(settings: Make, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"1")
    s, sample = settings(reasoner={"loras": [LoraSettings(str(tmp_path / "weights.safetensors"))]}), tiny_sample()
    queries = given_queries(s)
    base = resume.digest(sample, s, queries)
    assert sample.image is not None
    assert base == resume.digest(tiny_sample(), s, queries)
    free = {
        "limit": 99,
        "batch_samples": 4,
        "engine": "ray",
        "run_dir": "x",
        "logging": dataclasses.replace(s.logging, wandb="offline"),
    }
    free |= {"reasoner": dataclasses.replace(s.reasoner, activation_checkpointing="all", device="cpu")}
    assert base == resume.digest(sample, dataclasses.replace(s, **free), queries)
    others = [
        resume.digest(dataclasses.replace(sample, prompt="move"), s, queries),
        resume.digest(dataclasses.replace(sample, first_frame=sample.image * 0.99), s, queries),
        resume.digest(sample, dataclasses.replace(s, seed=1), queries),
        resume.digest(sample, s, None),
    ]
    (tmp_path / "weights.safetensors").write_bytes(b"2")
    others.append(resume.digest(sample, s, queries))
    assert len({base, *others}) == 6


def test_a_resumed_training_still_falls_back_to_its_best(models: Models, settings: Make, tmp_path: Path) -> None:
    from tiny_fit import fit as train
    from tiny_fit import prepare

    def reward(factors: list[float]) -> Callable[[Tensor, Tensor], Tensor]:
        left = iter(factors)
        return lambda frames, latents: latents.square().mean().reshape(1, 1) * next(left)

    first = prepare(models, reward=reward([1, 5, 5, 5]), steps=3)
    states: list[dict[str, Tensor]] = []

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            states.append({name: value.clone() for name, value in pl_module.state(0).items()})

    train(first, tmp_path, Keep())
    second = prepare(models, seed=9, reward=reward([math.nan]), steps=1)
    second.resume([(states[1], first.rows[0].grades[:2], "")])
    train(second, tmp_path)
    assert (second.rows[0].stop, second.rows[0].kept) == (NON_FINITE, first.rows[0].grades[0])
    assert all(torch.equal(p[0], states[1][f"best.{n}"]) for n, p in enumerate(second.lora))
    assert not torch.equal(states[1]["best.1"], states[1]["adapter.1"])


# The run


def test_an_interrupted_run_goes_on(
    models: Models, settings: Make, dataset: list[Sample], quiet: Console, tmp_path: Path
) -> None:
    s = settings(run_dir=str(tmp_path / "run"), limit=2, optimization={"steps": 3}, logging=EVERY)
    samples = tmp_path / "run/samples"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.config.yaml.123").write_text("seed: ")  # killed while it was written
    with pytest.raises(Killed):
        fit_all(s, quiet, lambda s: [*callbacks.standard(s), Kill(2)], lambda _: models)
    assert {path.name for path in samples.iterdir()} == {".a"}
    (samples / f".a/.{STATE}.123").write_bytes(b"half")
    (samples / ".old").mkdir()  # without a state
    done = fit_all(s, quiet, callbacks.standard, lambda _: models)
    assert [r.sample for r in done.results] == ["a", "b"]
    assert {path.name for path in samples.iterdir()} == {"a", "b"}
    assert not [path.name for path in (samples / "a").iterdir() if "state" in path.name]


def test_two_processes_do_not_share_a_run(
    settings: Make, quiet: Console, dataset: list[Sample], tmp_path: Path
) -> None:
    s = settings(run_dir=str(tmp_path / "run"))
    with RunFolder(tmp_path / "run", s).locked(), pytest.raises(UserError, match="another process works in"):
        fit_all(s, quiet)
    with RunFolder(tmp_path / "run", s).locked():
        pass


def test_finished_samples_of_other_inputs_are_refused(
    models: Models,
    settings: Make,
    dataset: list[Sample],
    quiet: Console,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    s = settings(run_dir=str(tmp_path / "run"), limit=1, optimization={"steps": 1})

    def again() -> list[Result]:
        return fit_all(s, quiet, load=lambda _: models).results

    first = again()
    assert again() == first
    old = dataset[0]
    dataset[0] = dataclasses.replace(old, prompt="move the blue square")
    with pytest.raises(UserError, match="sample a that was made with another prompt or image"):
        again()
    dataset[0] = old
    with monkeypatch.context() as patch, pytest.raises(UserError, match="made with another ttopt"):
        patch.setattr(engine, "__version__", "99")
        again()
    with monkeypatch.context() as patch, pytest.raises(UserError, match="made with another weights or wordings"):
        patch.setattr(engine, "files_digest", lambda settings: "0")
        again()
    assert again() == first


# Faults


class Hungry(StandardDecoder):
    """A decoder that needs more memory than there is, unless activations are computed again."""

    enough = True

    def __call__(self, latents: Tensor, frames: Any) -> Tensor:
        if not (self.activation_checkpointing and self.enough):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().__call__(latents, frames)


@pytest.mark.parametrize("enough", [True, False])
def test_too_little_memory_is_tried_once_more(
    models: Models, settings: Make, dataset: list[Sample], quiet: Console, tmp_path: Path, enough: bool
) -> None:
    decoder = Hungry(models.reasoner.vae)
    decoder.enough = enough
    hungry = dataclasses.replace(models, decoder=decoder)
    s = settings(run_dir=str(tmp_path / "run"), limit=2, optimization={"steps": 1})
    try:
        done = fit_all(s, quiet, load=lambda _: hungry)
        assert len(models.reasoner.activation_checkpointing) == 3 and models.teacher.activation_checkpointing
    finally:
        models.reasoner.activation_checkpointing = ()
        models.teacher.set_activation_checkpointing(False)
    assert [r.sample for r in done.results] == (["a", "b"] if enough else [])
    assert len(done.problems) == (0 if enough else 2)
    assert all("too small" in why and "first --reasoner.offload true" in why for why in done.problems)


def test_unusable_questions_become_generic_ones(
    models: Models, settings: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replies = iter(['{"goal": "is the end whole?"}', ""])
    monkeypatch.setattr(models.teacher, "reply", lambda *_: next(replies))
    monkeypatch.setattr(words, "GENERIC_GOAL", "is at end: {prompt}?")
    monkeypatch.setattr(words, "GENERIC_PROCESS", ("does the blue square stay whole?",))
    sample = dataclasses.replace(tiny_sample(), prompt="move the red cross to the green pad")
    found = fit_sample(sample, models, settings(optimization={"steps": 1}), tmp_path)
    assert next(replies, None) is None, "the teacher was asked twice"
    assert found.optimization is not None
    assert Result.load(tmp_path).optimization.queries == {  # type: ignore[union-attr]
        "goal": "is at end: move the red cross to the green pad?",
        "process": ["does the blue square stay whole?"],
        "generic": True,
    }


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file can grow above ``size`` bytes: the write fails in the operating system, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# What does not fit first: the curves, a picture of them, a state.
@pytest.mark.parametrize("size, every", [(200, 0), (4000, 0), (30000, 1)])
def test_a_full_disk_leaves_nothing_half_written(
    models: Models, settings: Make, dataset: list[Sample], quiet: Console, tmp_path: Path, size: int, every: int
) -> None:
    logging = EVERY | {"state_every": every}
    s = settings(run_dir=str(tmp_path / "run"), limit=1, optimization={"steps": 2}, logging=logging)
    RunFolder(tmp_path / "run", s)
    with pytest.raises(UserError, match="cannot write to .*File too large") as error, full_disk(size):
        fit_all(s, quiet, callbacks.standard, lambda _: models)
    assert isinstance(error.value, RunError)
    assert not list((tmp_path / "run/samples").rglob(".state*")), "no half of a state"
    assert [p.name for p in (tmp_path / "run/samples").iterdir()] in ([], [".a"])
    done = fit_all(s, quiet, callbacks.standard, lambda _: models)
    assert [r.sample for r in done.results] == ["a"] and not done.problems
