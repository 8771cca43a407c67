"""A bank of adapters that satisfied the teacher: what enters, what is found, and what it must not change."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rich.console
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_resume import Kill, Killed, content
from tiny import tiny_sample
from tiny_fit import fit_sample

import callbacks
from callbacks import reward_curves
from ttopt.config.settings import FitSettings, LoraSettings
from ttopt.data import find
from ttopt.data.find import given_queries
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.models.load import Models
from ttopt.optimization import bank as banks
from ttopt.optimization import state as resume
from ttopt.optimization.bank import Bank, keys_of
from ttopt.record.identity import model_digest
from ttopt.record.result import Result
from ttopt.run.console import Console
from ttopt.run.run import fit_all

Make = Callable[..., FitSettings]
STEPS = {"steps": 3, "lr": 3e-2}
LOGGING = {"wandb": "disabled", "state_every": 1, "previews_every": 0}


@pytest.fixture(autouse=True)
def dataset(monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    """Two names for one sample instead of the data set; every state is kept, and no curve is drawn."""
    samples = [tiny_sample("a"), dataclasses.replace(tiny_sample("a"), id="b")]
    fake = SimpleNamespace(samples=lambda split, families, seed, limit: samples[:limit], score=None)
    monkeypatch.setattr(find, "importlib", SimpleNamespace(import_module=lambda name: fake))
    monkeypatch.setattr(resume, "SHARE", float("inf"))
    monkeypatch.setattr(reward_curves, "draw", lambda *_: None)
    return samples


@pytest.fixture
def make(settings: Make, tmp_path: Path, tau: float) -> Make:
    """Settings of a run whose samples satisfy the teacher after a step or more, with a bank."""

    def made(run: str, limit: int = 1, bank: dict[str, Any] | None = None, **groups: Any) -> FitSettings:
        groups = {"optimization": STEPS | {"tau": tau}, "logging": LOGGING} | groups
        place = {"folder": str(tmp_path / "bank")} | (bank or {})
        return settings(run_dir=str(tmp_path / run), limit=limit, bank=place, **groups)

    return made


@pytest.fixture
def tau(models: Models, settings: Make, tmp_path: Path) -> float:
    """What both samples reach after a step or more, and not before."""
    s = settings(run_dir=str(tmp_path / "probe"), limit=2, optimization=STEPS | {"tau": 0.0}, logging=LOGGING)
    curves = [curve(result, tmp_path / "probe") for result in run(models, s)]
    found = max(min(losses[1:]) for losses in curves) * 1.000001
    assert all(losses[0] > found for losses in curves), "the losses must fall for these tests to mean anything"
    return found


class KillSecond(Kill):
    """In the second sample that is optimized, after its first step."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.seen = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.seen += 1
        self.step = 1 if self.seen == 2 else -1


def run(models: Models, s: FitSettings, *extra: Any) -> list[Result]:
    quiet = Console(rich.console.Console(quiet=True))
    done = fit_all(s, quiet, lambda s: [*callbacks.standard(s), *extra], lambda _: models)
    assert not done.problems
    return done.results


def curve(result: Result, run: Path) -> list[float]:
    with (run / "samples" / result.sample / "curves.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def filled(models: Models, s: FitSettings, samples: list[Sample], folder: Path) -> Bank:
    """A bank that holds random adapters for ``samples``."""
    for number, sample in enumerate(samples):
        models.adapter.reset([number])
        empty = Bank.open(s, made(folder / f"run{number}"), print)
        assert empty is not None
        empty.add(sample, keys_of(models.reasoner.condition(sample))[0], models.adapter)
    found = Bank.open(s, made(folder / "run"), print)
    assert found is not None
    return found


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def outcome(folder: Path) -> dict[str, Any]:
    """All that a sample's folder holds but the settings, which name the run."""
    return {name: value for name, value in content(folder).items() if name != "config.yaml"}


def result_of(folder: Path) -> dict[str, Any]:
    """The same, but for what names the memory and counts its cost."""
    found = outcome(folder)
    del found["result.json"]["details"], found["result.json"]["cost"]
    return found


def test_the_same_sample_starts_where_the_stored_adapter_ended(models: Models, make: Make, tmp_path: Path) -> None:
    (first,) = run(models, make("first"))
    (entry,) = entries(tmp_path / "bank")
    assert entry.startswith("a-") and first.details == {}
    (second,) = run(models, make("second"))
    one, two = first.optimization, second.optimization
    assert one is not None and two is not None and one.steps >= 1
    assert second.details["bank"] == {"entry": entry, "similarity": 1.0, "used": True}
    assert curve(second, tmp_path / "second") == [one.prediction_after.loss]
    assert (two.steps, two.prediction_before, two.video_after) == (0, one.prediction_before, one.video_after)
    assert second.seeds == first.seeds
    assert second.cost.vlm_calls == 1 + 2, "one grade, and the two that decide where to start"
    assert entries(tmp_path / "bank") == [entry], "what took no step does not enter"


def test_only_what_satisfies_the_teacher_enters(models: Models, make: Make, tmp_path: Path) -> None:
    run(models, make("strict", optimization=STEPS | {"tau": 0.0}))
    run(models, make("closed", bank={"add": False}))
    assert entries(tmp_path / "bank") == []


def test_an_empty_bank_or_a_worse_adapter_changes_nothing(models: Models, make: Make, tmp_path: Path) -> None:
    run(models, make("off", bank={"folder": None}))
    assert not (tmp_path / "off/bank.txt").exists()
    run(models, make("empty"))
    assert result_of(tmp_path / "off/samples/a") == result_of(tmp_path / "empty/samples/a")
    path = tmp_path / "bank" / entries(tmp_path / "bank")[0]
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    save_file({name: torch.full_like(value, torch.nan) for name, value in load_file(path).items()}, path, header)
    (worse,) = run(models, make("worse"))
    assert worse.details["bank"]["used"] is False
    assert result_of(tmp_path / "off/samples/a") == result_of(tmp_path / "worse/samples/a")


def test_a_run_starts_only_from_what_it_found_when_it_began(models: Models, make: Make, tmp_path: Path) -> None:
    assert [result.details for result in run(models, make("whole", limit=2))] == [{}, {}]
    assert [result.details["bank"]["used"] for result in run(models, make("later", limit=2))] == [True, True]
    (tmp_path / "bank").rename(tmp_path / "old")
    with pytest.raises(Killed):  # in b, when a has entered the bank
        run(models, make("killed", limit=2), KillSecond())
    run(models, make("killed", limit=2))
    for name in "ab":
        assert outcome(tmp_path / "killed/samples" / name) == outcome(tmp_path / "whole/samples" / name)


def test_a_killed_warm_start_goes_on_to_the_same_result(models: Models, make: Make, tmp_path: Path) -> None:
    run(models, make("fill"))
    s = make("run", optimization=STEPS | {"tau": 0.0})
    bank = Bank.open(s, made(tmp_path / "open"), print)

    def fit(folder: str, kill: int = -1) -> Result:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        extra = [*callbacks.standard(s), Kill(kill)]
        return fit_sample(
            tiny_sample("a"), models, s, place, queries=given_queries(s), callbacks=extra, note=notes.append, bank=bank
        )

    notes: list[str] = []
    assert fit("whole").details["bank"]["used"]
    with pytest.raises(Killed):
        fit("killed", 2)
    fit("killed")
    assert notes == ["a goes on after step 2"]
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    with pytest.raises(Killed):
        fit("other", 2)
    bank = None
    fit("other")
    assert "made with other settings" in notes[1], "a state goes on only with what it started from"


def test_a_batch_starts_as_its_samples_alone_do(models: Models, make: Make, tmp_path: Path) -> None:
    run(models, make("fill"))
    for count in (1, 2):
        run(models, make(str(count), limit=2, batch_samples=count, bank={"add": False}))
    for name in "ab":
        alone, together = (Result.load(tmp_path / count / "samples" / name) for count in "12")
        assert alone.details == together.details
        assert alone.details["bank"]["used"] is True
        assert alone.optimization is not None and together.optimization is not None
        assert alone.optimization.steps == together.optimization.steps
        loss = alone.optimization.prediction_before.loss
        assert together.optimization.prediction_before.loss == pytest.approx(loss, abs=1e-4)
        alone_cost, together_cost = (dataclasses.replace(each.cost, wall_seconds=0) for each in (alone, together))
        assert alone_cost == together_cost


def test_the_nearest_is_found(models: Models, settings: Make, tmp_path: Path) -> None:
    s = settings(bank={"folder": str(tmp_path / "bank"), "least_similarity": 0.99999})
    red, blue = "move the red square to the pad", "every blue cross and a green object"
    samples = [tiny_sample("a", red), tiny_sample("b", blue), tiny_sample("c", red), tiny_sample("t", red, image=False)]
    bank = filled(models, s, samples, tmp_path)
    for sample in samples:
        found = bank.nearest(keys_of(models.reasoner.condition(sample))[0])
        assert found is not None and found.name.startswith(f"{sample.id}-")
        assert found.similarity == pytest.approx(1)
        assert found.state.keys() == models.adapter.state_dict().keys()
    other = keys_of(models.reasoner.condition(tiny_sample("d", blue)))[0]
    assert bank.nearest(other) is None, "less similar than asked for"
    found = dataclasses.replace(bank, least_similarity=-1.0).nearest(other)
    assert found is not None and found.name.startswith("b-"), "the same words"
    keys = keys_of(models.reasoner.condition(samples[:3]))
    torch.testing.assert_close(keys.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(keys[1], keys_of(models.reasoner.condition(samples[1]))[0])


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def with_entry(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            entry = json.loads(file.metadata()["entry"]) | changes
        save_file(load_file(path), path, {"entry": json.dumps(entry)})

    return change


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "half": (half, "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "no header": (lambda path: save_file(load_file(path), path), "cannot be read"),
    "no key": (with_entry(key=None), "cannot be read"),
    "words for a key": (with_entry(key=["red"]), "cannot be read"),
    "NaN in the key": (with_entry(key=[float("nan")]), "cannot be read"),
    "another model": (with_entry(model="0"), "of another model or adapter shape"),
    "another format": (with_entry(format=0), "of another model or adapter shape"),
}


@pytest.mark.parametrize("damage, why", ODD.values(), ids=ODD.keys())
def test_what_cannot_be_used_is_left_out_and_named(
    models: Models, settings: Make, tmp_path: Path, damage: Callable[[Path], object], why: str
) -> None:
    s = settings(bank={"folder": str(tmp_path / "bank")})
    whole = filled(models, s, [tiny_sample("a"), tiny_sample("b")], tmp_path)
    wrong, right = sorted(whole.keys)
    damage(tmp_path / "bank" / wrong)
    notes: list[str] = []
    left = Bank.open(s, made(tmp_path / "next"), notes.append)
    assert left is not None and list(left.keys) == [right]
    assert len(notes) == 1 and f"{wrong} ({why}" in notes[0]
    with pytest.raises(UserError, match=f"{wrong}, which the run .* is gone or cannot be used"):
        Bank.open(s, tmp_path / "run", notes.append)


def test_an_entry_belongs_to_one_model_and_adapter_shape(settings: Make, tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").write_bytes(b"1")
    s = settings()
    same = settings(seed=1, teacher={"frames": 5}, optimization={"lr": 1.0}, reasoner={"device": "cpu"})
    assert model_digest(same) == model_digest(s)
    others = [
        settings(adapter={"rank": 4}),
        settings(adapter={"blocks": "0-1"}),
        settings(reasoner={"model": "another/model"}),
        settings(reasoner={"transformer": "another/model"}),
        settings(reasoner={"low_noise_transformer": "another/model"}),
        settings(reasoner={"loras": [LoraSettings(str(tmp_path / "one.safetensors"))]}),
        settings(reasoner={"loras": [LoraSettings(str(tmp_path / "one.safetensors"), 0.5)]}),
        settings(reasoner={"low_noise_loras": [LoraSettings(str(tmp_path / "one.safetensors"))]}),
    ]
    assert len({model_digest(each) for each in (s, *others)}) == 1 + len(others)


def test_what_cannot_be_written_is_said_and_leaves_no_half(
    models: Models, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to .*file.*; give a --bank.folder that can be written"):
        run(models, make("run", bank={"folder": str(tmp_path / "file")}))

    def full(path: Path, *_: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="No space left on device.*--bank.folder"):
        patch.setattr(banks, "save_diffusers", full)
        run(models, make("full"))
    assert entries(tmp_path / "bank") == []
    assert [result.sample for result in run(models, make("full"))] == ["a"]
    assert len(entries(tmp_path / "bank")) == 1


def test_a_run_with_a_memory_is_not_continued_without(models: Models, make: Make) -> None:
    run(models, make("run"))
    with pytest.raises(UserError, match="bank.folder was '.*', now it is None"):
        run(models, make("run", bank={"folder": None}))
    assert run(models, make("run", bank={"add": False}))
