"""The simulated queue: against arithmetic where there is some, and against two real workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ttopt.__main__ import main
from ttopt.config.settings import FitSettings, to_yaml
from ttopt.errors import UserError
from ttopt.models.load import Models, load_models
from ttopt.planning.simulate import SimulatedWorkers, Workload, bound, simulate
from ttopt.planning.step_counts import even, of_run, shipped, work_of_run
from ttopt.record.result import FILE, Result
from ttopt.record.run_folder import CONFIG
from ttopt.run.console import Console
from ttopt.run.run import fit_all


def work(once: list[float], step: float = 0.0, steps: int = 0) -> Workload:
    return Workload(np.array(once), np.full(len(once), step), np.full(len(once), steps))


def test_a_free_worker_takes_the_next_sample() -> None:
    """Two workers: 5 | 1, 1, 1 and the last 4 goes to whoever is free first, at 3."""
    found = simulate(work([5, 1, 1, 1, 4]), SimulatedWorkers(2, start=10))
    assert (found.makespan, found.busy, found.failures) == (17, 12, 0)


@hypothesis_settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(1, 100), min_size=1, max_size=60), st.integers(1, 20))
def test_never_quicker_than_possible_nor_slower_than_a_greedy_queue(seconds: list[float], workers: int) -> None:
    """Graham's bounds of list scheduling (1969)."""
    found = simulate(work(seconds), SimulatedWorkers(workers))
    mean, longest = sum(seconds) / workers, max(seconds)
    assert max(mean, longest) * (1 - 1e-9) <= found.makespan <= (mean + (1 - 1 / workers) * longest) * (1 + 1e-9)


def test_what_a_failure_costs() -> None:
    """Without saved states a sample of length s takes M (exp(s/M) - 1) between failures every M, on average."""
    day = work([3600.0] * 4000)
    flaky = SimulatedWorkers(1, failure_hours=1)
    found = simulate(day, flaky)
    assert found.makespan / 3600 / 4000 == pytest.approx(np.e - 1, rel=0.05)
    assert found.failures / 4000 == pytest.approx(np.e - 1, rel=0.1)
    in_steps = work([0.0] * 4000, step=1.0, steps=3600)
    assert simulate(in_steps, flaky, state_every=0) == found
    assert simulate(in_steps, flaky, state_every=5).makespan / 3600 / 4000 == pytest.approx(1, rel=0.01)


def test_slow_workers_take_longer_and_fewer_samples() -> None:
    found = simulate(work([1.0] * 1000), SimulatedWorkers(100, slow_share=0.5, slow_factor=3))
    assert 10 < 1000 / (50 + 50 / 3) <= found.makespan <= 18


def test_the_same_seed_the_same_outcome() -> None:
    workers = SimulatedWorkers(7, 60, 0.3, 2, failure_hours=0.2)
    found = [simulate(work([100.0] * 300), workers, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    "seconds, workers, said",
    [
        ([9, 9, 9, 9], SimulatedWorkers(2), "the work"),
        ([1, 1, 1, 90], SimulatedWorkers(2), "the longest sample"),
        ([1, 1, 1, 1], SimulatedWorkers(2, start=60), "loading the models"),
        ([9, 9, 9, 9], SimulatedWorkers(5), "fewer samples than workers"),
    ],
)
def test_what_bounds_a_run(seconds: list[float], workers: SimulatedWorkers, said: str) -> None:
    assert bound(work(seconds), workers) == said


def test_workers_that_die_too_fast_are_refused() -> None:
    with pytest.raises(UserError, match="--failure-hours is 0.01, but a sample can take 1 hours .* give more"):
        simulate(work([3600]), SimulatedWorkers(1, failure_hours=0.01))


@pytest.mark.parametrize("mean", [0, 0.3, 16, 20, 39, 60])
def test_even_step_counts_have_their_mean(mean: float) -> None:
    counts = even(mean, 40, "")
    assert counts.mean == pytest.approx(min(mean, 40), abs=1e-6) and counts.weights.sum() == pytest.approx(1)
    if mean == 20:
        assert np.allclose(counts.weights, 1 / 41)


def test_shipped_step_counts_say_whence_they_are() -> None:
    counts = shipped(20)
    assert "--split ood" in counts.source and counts.weights.sum() == pytest.approx(1) and 1 < counts.mean < 20
    assert shipped(3).steps.max() == 3


def test_a_hundred_thousand_samples_in_seconds() -> None:
    begin = time.process_time()
    simulate(work([30.0] * 100_000, 1.0, 5), SimulatedWorkers(4096, 60, 0.02, 1.5, 50_000), 5)
    assert time.process_time() - begin < 10


@pytest.fixture
def run(settings: Callable[..., FitSettings], models: Models, tmp_path: Path) -> Path:
    """A run of two samples, of 2 steps each."""
    wanted = settings(limit=2, families=["move"], run_dir=str(tmp_path / "run"), optimization={"steps": 2})
    fit_all(wanted, Console(), load=lambda _: models)
    (tmp_path / "tiny.yaml").write_text(to_yaml(settings()))
    return tmp_path / "run"


def test_plan_with_a_runs_own_steps_and_seconds(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert of_run(run, 20).steps.tolist() == [2, 2] and of_run(run, 1).mean == 1
    measured = work_of_run(run)
    totals = [Result.load(path.parent).seconds["total"] for path in sorted(run.glob(f"samples/*/{FILE}"))]
    assert measured.seconds == pytest.approx(totals) and (measured.step > 0).all() and (measured.once > 0).all()

    plan = ["plan", "--config", str(run.parent / "tiny.yaml"), "--steps-from", str(run)]
    assert main([*plan, "--samples", "1000", "--gpus", "--seconds", "measured", "--start-seconds", "0"]) == 0
    shown = capsys.readouterr().out
    assert f"of 2 samples in {run}: 2.0 on average; seconds measured" in shown
    rows = [line.split() for line in shown.splitlines() if line.endswith(("the work", "workers"))]
    assert [row[0] for row in rows] == ["8", "16", "32", "64", "128", "256", "512", "1,024", "2,048", "4,096"]
    hours = [float(row[4].replace(",", "")) for row in rows]
    assert hours[-1] > hours[0] and rows[-1][-1] == "workers", "idle GPUs are paid too"

    (run / CONFIG).write_text((run / CONFIG).read_text().replace("batch_samples: 1", "batch_samples: 8"))
    assert main([*plan, "--gpus", "8", "--seconds", "measured"]) == 2
    assert "samples have no seconds of their own" in capsys.readouterr().err


# Against real workers

LOADED: dict[str, object] = {}  # a worker's own


def start_worker(settings: FitSettings) -> None:
    LOADED.update(models=load_models(settings), ready=time.time())


def fit_one(settings: FitSettings) -> tuple[float, float]:
    """When the worker was ready, and when it had finished this sample."""
    fit_all(settings, Console(), load=lambda _: LOADED["models"])  # type: ignore[arg-type,return-value]
    return LOADED["ready"], time.time()  # type: ignore[return-value]


def two_workers(runs: list[FitSettings]) -> tuple[float, float]:
    """Seconds until two processes, each taking the next sample when it is free, were ready and had finished."""
    begin = time.time()
    with ProcessPoolExecutor(2, get_context("spawn"), start_worker, (runs[0],)) as pool:
        ready, finished = zip(*pool.map(fit_one, runs), strict=True)
    return float(np.mean(ready)) - begin, max(finished) - begin


@pytest.mark.slow
def test_the_makespan_of_two_real_workers(settings: Callable[..., FitSettings], tmp_path: Path) -> None:
    steps = [2, 30, 4, 60, 8, 2, 16, 40, 2, 6, 24, 90]
    made = [
        settings(run_dir=str(tmp_path / f"{n:02d}"), limit=1, optimization={"steps": k}) for n, k in enumerate(steps)
    ]
    start, real = two_workers(made)
    each = [work_of_run(Path(str(one.run_dir))) for one in made]
    work = Workload(*(np.concatenate([getattr(one, name) for one in each]) for name in ("once", "step", "steps")))
    predicted = simulate(work, SimulatedWorkers(2, start)).makespan
    print(f"two workers: {real:.1f} s, predicted {predicted:.1f} s, {start:.1f} s of them to load the models")
    assert work.steps.tolist() == steps and predicted == pytest.approx(real, rel=0.2)
    assert real < 0.8 * (start + work.seconds.sum()), "they worked side by side"
