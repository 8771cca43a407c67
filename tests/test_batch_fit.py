"""``--batch-samples``: the same folders as one by one."""

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import rich.console
import torch
from conftest import GOAL, PROCESS
from tiny import tiny_sample
from torch import Tensor

from callbacks import standard
from ttopt.config.parsing import parse_fit
from ttopt.config.settings import FitSettings, MethodSettings
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.methods.teacher_lora import TeacherLora
from ttopt.models.chat.local import Nobody
from ttopt.models.load import Models, load_models
from ttopt.models.reasoner import StandardDecoder
from ttopt.models.reasoner.adapter_files import read_adapter
from ttopt.models.reasoner.speed import compiled_block
from ttopt.models.teacher import Queries
from ttopt.optimization import algorithm
from ttopt.optimization.algorithm import TeacherReward, fit_batch, prepare
from ttopt.optimization.bank import Neighbor
from ttopt.optimization.context import Context
from ttopt.optimization.training import Row, TestTimeTraining
from ttopt.record.meter import Meter, SharedMeter
from ttopt.record.result import Result
from ttopt.record.run_folder import STATE, RunFolder
from ttopt.run.console import Console
from ttopt.run.run import fit_all
from ttopt.run.sample_runner import Failure, Job, SampleRunner

Make = Callable[..., FitSettings]


def run(settings: FitSettings, models: Models) -> dict[str, Path]:
    models.adapter.reset([0])
    done = fit_all(settings, Console(rich.console.Console(quiet=True)), standard, lambda _: models)
    assert not done.problems
    return {result.sample: done.folder / "samples" / result.sample for result in done.results}


def test_a_batch_writes_the_folders_that_its_samples_write_alone(
    settings: Make, models: Models, tmp_path: Path
) -> None:
    models = dataclasses.replace(models, decoder=StandardDecoder(models.reasoner.vae))
    # tau lies so that the samples stop at different steps
    common = {"limit": 2, "logging": {"wandb": "disabled", "previews_every": 1}, "teacher": {"frames": 5}}
    o = {"steps": 2, "lr": 1e-2, "tau": 0.0}
    probe = run(settings(**common, optimization=o, run_dir=str(tmp_path / "probe")), models)
    curves = [[float(row["loss"]) for row in csv.DictReader((f / "curves.csv").open())] for f in probe.values()]
    tau = min(loss for curve in curves for loss in curve) * 1.0001
    folders = [
        run(settings(**common, optimization=o | {"tau": tau}, batch_samples=n, run_dir=str(tmp_path / str(n))), models)
        for n in (1, 2)
    ]
    assert len(folders[0]) == 2 and list(folders[0]) == list(folders[1])
    stops = set()
    for name, alone in folders[0].items():
        together = folders[1][name]
        assert sorted(p.relative_to(alone) for p in alone.rglob("*")) == sorted(
            p.relative_to(together) for p in together.rglob("*")
        )
        a, b = Result.load(alone), Result.load(together)
        assert a.optimization is not None and b.optimization is not None
        assert (a.stop, a.accepted, a.seeds, a.optimization.steps) == (
            b.stop,
            b.accepted,
            b.seeds,
            b.optimization.steps,
        )
        assert b.optimization.prediction_after.loss == pytest.approx(a.optimization.prediction_after.loss, abs=1e-4)
        assert b.optimization.video_after.loss == pytest.approx(a.optimization.video_after.loss, abs=1e-4)
        assert (a.cost.reasoner_forwards, a.cost.vlm_calls) == (b.cost.reasoner_forwards, b.cost.vlm_calls)
        rows = [list(csv.DictReader((folder / "curves.csv").open())) for folder in (alone, together)]
        for one, other in zip(*rows, strict=True):
            assert float(one["loss"]) == pytest.approx(float(other["loss"]), abs=1e-4)
        first, second = (read_adapter(folder / "adapter")[0] for folder in (alone, together))
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, atol=2e-3, rtol=0)
        stops.add((a.stop, a.optimization.steps))
    assert len(stops) > 1, "samples should stop differently for this test to mean anything"


class Watch(L.Callback):
    def __init__(self, seen: list[Row]) -> None:
        self.seen = seen

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, TestTimeTraining)
        self.seen.extend(pl_module.rows)


def solve(settings: FitSettings, models: Models, scorer: Any = None, seen: list[Any] | None = None) -> list[Any]:
    """What becomes of samples a and b, side by side; ``seen`` is filled meanwhile."""
    method = TeacherLora()
    queries = Queries(GOAL, tuple(PROCESS))
    job = Job(settings, RunFolder(Path(str(settings.run_dir)), settings), queries, scorer, partial(standard, settings))
    runner = SampleRunner(job, method, models, Nobody(), lambda text: None)
    outcomes = [] if seen is None else seen
    for _, outcome in runner.batches([tiny_sample("a"), tiny_sample("b")], 2, lambda sample: None):
        outcomes.append(outcome)
    return outcomes


def test_a_scorer_that_fails_on_one_sample_fails_it_alone(settings: Make, models: Models, tmp_path: Path) -> None:
    def scorer(sample: Sample, video: Tensor) -> Any:
        return SimpleNamespace(success=sample.id == "b", partial={"b": 1.0}[sample.id], rules={})

    s = settings(run_dir=str(tmp_path / "run"), optimization={"steps": 1}, logging={"wandb": "disabled"})
    failed, fine = solve(s, models, scorer)
    assert isinstance(failed, Failure) and failed.why.startswith("KeyError: 'a' (the traceback is in ")
    assert isinstance(fine, Result) and fine.score is not None and fine.score.success
    assert [path.name for path in (tmp_path / "run/samples").iterdir()] == ["b"]


def test_an_interrupted_end_of_a_batch_can_be_gone_on_from(settings: Make, models: Models, tmp_path: Path) -> None:
    """The first sample has its result, but no folder yet, when the second is interrupted."""

    def scorer(sample: Sample, video: Tensor) -> Any:
        if sample.id == "b":
            raise KeyboardInterrupt
        return SimpleNamespace(success=True, partial=1.0, rules={})

    logging = {"wandb": "disabled", "state_every": 1}
    s = settings(run_dir=str(tmp_path / "run"), optimization={"steps": 2}, logging=logging)
    with pytest.raises(KeyboardInterrupt):
        solve(s, models, scorer)
    assert sorted(p.parent.name for p in (tmp_path / "run/samples").glob(f".*/{STATE}")) == [".a", ".b"]
    assert all(isinstance(outcome, Result) for outcome in solve(s, models))
    assert sorted(path.name for path in (tmp_path / "run/samples").iterdir()) == ["a", "b"]
    assert not list((tmp_path / "run/samples").rglob(STATE))


def test_who_stops_listening_loses_no_finished_sample(settings: Make, models: Models, tmp_path: Path) -> None:
    class Heard(list[Any]):
        def append(self, outcome: Any) -> None:
            raise KeyboardInterrupt

    s = settings(run_dir=str(tmp_path / "run"), optimization={"steps": 1}, logging={"wandb": "disabled"})
    with pytest.raises(KeyboardInterrupt):
        solve(s, models, seen=Heard())
    assert sorted(path.name for path in (tmp_path / "run/samples").iterdir()) == ["a", "b"]


def test_a_second_try_with_less_memory_counts_alone(
    settings: Make, models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real, tries = algorithm.render, []

    def render(*args: Any, **options: Any) -> dict[str, Tensor]:
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **options)

    o = {"steps": 1, "starts": 2}
    names = (str(tmp_path / "plain"), str(tmp_path / "twice"))
    plain = solve(settings(run_dir=names[0], optimization=o), models)
    monkeypatch.setattr(algorithm, "render", render)
    try:
        twice = solve(settings(run_dir=names[1], optimization=o), models)
    finally:
        models.reasoner.activation_checkpointing = ()
        models.teacher.set_activation_checkpointing(False)
    assert len(tries) == 2
    for one, other in zip(plain, twice, strict=True):
        assert (other.cost.reasoner_forwards, other.cost.vlm_calls) == (one.cost.reasoner_forwards, one.cost.vlm_calls)


def test_only_rows_with_an_entry_are_tried_with_one(settings: Make, models: Models) -> None:
    reasoner, o = models.reasoner, settings(optimization={"steps": 1}).optimization
    condition = reasoner.condition([tiny_sample("a"), tiny_sample("b")])
    z1, frames = reasoner.noise(condition, [0, 1]), [0, 4]
    queries = [Queries(GOAL, tuple(PROCESS))] * 2
    models.adapter.reset([0, 1])
    entry = Neighbor("x", 1.0, {name: value + 0.1 for name, value in models.adapter.state_dict(1).items()})
    own = models.adapter.state_dict(0)
    reward = TeacherReward(models.teacher, queries, 8, frames)
    training = TestTimeTraining(reasoner, models.adapter, models.decoder, reward, condition, z1, frames, o)
    with SharedMeter(reasoner, [Meter(reasoner), Meter(reasoner)]) as meter:
        training.computing = meter.computing
        training.start_from([None, entry])
        assert [meter.state(number)["forwards"] for number in (0, 1)] == [0, 2]
    assert training.rows[0].start is None and training.rows[1].start is not None
    assert all(torch.equal(value, own[name]) for name, value in models.adapter.state_dict(0).items())


def test_a_sample_that_has_stopped_does_not_pay_for_the_others(models: Models) -> None:
    meters = [Meter(models.reasoner), Meter(models.reasoner)]
    with SharedMeter(models.reasoner, meters) as shared:
        for rows in ([0, 1], [1]):
            shared.computing(rows)
            with shared.timer("backward"):
                time.sleep(0.05)
    seconds = [meter.state()["seconds"]["backward"] for meter in meters]
    assert seconds[0] == pytest.approx(0.025, abs=0.02) and seconds[1] == pytest.approx(3 * seconds[0], rel=0.5)
    assert all(meter.total_seconds >= own for meter, own in zip(meters, seconds))


def test_compiled_blocks_know_that_adapters_have_come(
    settings: Make, models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The best noise is looked for without them."""
    eager = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, **options: eager(run, **options, backend="eager"))
    torch._dynamo.reset()
    reasoner = dataclasses.replace(models.reasoner)
    s = settings(optimization={"steps": 2, "lr": 5e-2, "starts": 2}, teacher={"frames": 5})
    samples, queries = [tiny_sample("a"), tiny_sample("b")], [Queries(GOAL, tuple(PROCESS))] * 2
    grades = []
    for run in (None, compiled_block()):
        reasoner.run_block = run
        seen: list[Row] = []
        watch = partial(list, [Watch(seen)])
        with Context.open(dataclasses.replace(models, reasoner=reasoner), s, callbacks=watch) as context:
            batch = []
            for number, (sample, asked) in enumerate(zip(samples, queries)):
                place = tmp_path / f"{run is None}-{number}"
                place.mkdir()
                own = dataclasses.replace(context, queries=asked, meter=Meter(reasoner))
                batch.append(prepare(sample, place, own))
            fit_batch(batch)
        grades.append([grade.total for row in seen for grade in row.grades])
    assert len(set(grades[0])) == len(grades[0])
    torch.testing.assert_close(grades[1], grades[0], atol=1e-6, rtol=0)


def test_float8_layers_take_batched_adapters(settings: Make) -> None:
    models = load_models(settings(reasoner={"float8": True}))
    condition = models.reasoner.condition([tiny_sample("a"), tiny_sample("b")])
    z1 = models.reasoner.noise(condition, [0, 1])
    with torch.no_grad():
        with models.adapter.disabled():
            base = models.reasoner.velocity(z1, 1.0, condition)
        models.adapter.reset([0, 1])
        models.adapter.parameters()[1][0].normal_()  # the first layer's "up" of the first row
        changed = models.reasoner.velocity(z1, 1.0, condition)
    assert not torch.equal(changed[0], base[0]) and torch.equal(changed[1], base[1])


def test_too_little_memory_for_the_adapters_leaves_the_old_one(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    models.adapter.reset([0])
    condition = models.reasoner.condition(tiny_sample())
    z1 = models.reasoner.noise(condition, [0])
    with torch.no_grad():
        before = models.reasoner.velocity(z1, 1.0, condition)
    made, zeros = iter(range(9)), torch.zeros

    def full(*size: int, **options: Any) -> Tensor:
        if next(made) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return zeros(*size, **options)

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr("ttopt.models.reasoner.adapter.torch.zeros", full)
        models.adapter.reset([1, 2])
    with torch.no_grad():
        assert torch.equal(models.reasoner.velocity(z1, 1.0, condition), before)


def test_what_cannot_be_batched_is_refused(settings: Make, models: Models, tmp_path: Path) -> None:
    wrong = settings(method=MethodSettings("ttopt.methods.Single"), batch_samples=2, run_dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"only ttopt.methods.TeacherLora optimizes several samples at once"):
        run(wrong, models)
    with pytest.raises(UserError, match="batch_samples is 0"):
        parse_fit(["--batch-samples", "0"])
