"""``--engine ray``: the folders that one process makes, whatever becomes of workers and nodes."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import rich.console
from test_resume import content
from tiny import tiny_sample

import callbacks
import ttopt
from ttopt.config.settings import FitSettings
from ttopt.data import find
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.models.load import Models
from ttopt.planning.simulate import SimulatedWorkers, simulate
from ttopt.planning.step_counts import work_of_run
from ttopt.record.result import versions
from ttopt.record.run_folder import CLAIMS, RunFolder
from ttopt.run.console import Console
from ttopt.run.node import check_node
from ttopt.run.run import Run, fit_all
from ttopt.run.sample_runner import Failure, Job

ray = pytest.importorskip("ray", reason="pip install -e '.[ray]'")
from ray.cluster_utils import Cluster  # noqa: E402
from ray.exceptions import RayActorError, RayTaskError  # noqa: E402

from ttopt.run import ray_pool as cluster  # noqa: E402

Make = Callable[..., FitSettings]
CHECKOUT, TESTS = Path(ttopt.__file__).parent.parent, Path(__file__).parent


@pytest.fixture(autouse=True)
def _workers_find_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{CHECKOUT}{os.pathsep}{TESTS}")


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    """Four samples instead of the data set's."""
    samples = [tiny_sample(name) for name in "abcd"]
    fake = SimpleNamespace(samples=lambda split, families, seed, limit: samples[:limit], score=None)
    monkeypatch.setattr(find, "importlib", SimpleNamespace(import_module=lambda name: fake))
    return samples


@pytest.fixture
def lines() -> Console:
    """A console whose output can be read, see ``printed``."""
    return Console(rich.console.Console(file=io.StringIO(), width=999))


def printed(console: Console) -> str:
    return console.output.file.getvalue()  # type: ignore[attr-defined,no-any-return]


# The queue, with workers that are plain objects


@dataclass(frozen=True, eq=False)
class Said:
    """What is waited for: that a worker is done with a sample, or ready to begin (None)."""

    of: str | None


class Script:
    """Stands in for the module ray: what workers say, in order, of a sample or when they begin (None); exceptions are
    raised."""

    def __init__(self, said: dict[str | None, list[Any]], cores: float = 2, gpus: float = 0) -> None:
        self.said, self.there = said, {"CPU": cores, "GPU": gpus}
        self.given: list[str] = []
        self.workers: set[int] = set()
        self.killed: set[int] = set()

    def remote(self, **options: Any) -> Any:
        return lambda kind: SimpleNamespace(remote=self._worker)

    def _worker(self) -> Any:
        worker = SimpleNamespace()
        worker.begin = SimpleNamespace(remote=lambda *_: Said(None))
        worker.solve = SimpleNamespace(remote=lambda sample: Said(sample.id))
        self.workers.add(id(worker))
        return worker

    def wait(self, waited: list[Any], timeout: float) -> Any:
        assert waited
        return waited[:1], waited[1:]

    def get(self, done: Any) -> Any:
        if done.of is not None:
            self.given.append(done.of)
        left = self.said.get(done.of)
        said = left.pop(0) if left else (Failure(f"said of {done.of}"), [])
        if isinstance(said, Exception):
            raise said
        return said

    def kill(self, worker: Any) -> None:
        self.killed.add(id(worker))

    def nodes(self) -> list[Any]:
        return [{"Alive": True, "Resources": self.there}, {"Alive": False, "Resources": {"CPU": 99}}]

    def cluster_resources(self) -> dict[str, float]:
        return self.there

    def is_initialized(self) -> bool:
        return True


def raised(error: Exception) -> Exception:
    """As Ray raises what a worker raised."""
    return RayTaskError("solve", "traceback", error).as_instanceof_cause()


@pytest.fixture
def scripted(
    settings: Make, dataset: list[Sample], lines: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Run]:
    def run(script: Script, **workers: Any) -> Run:
        monkeypatch.setattr(cluster, "ray", script)
        s = settings(engine="ray", run_dir=str(tmp_path / "run"), limit=4, workers=workers)
        return fit_all(s, lines, callbacks.standard)

    return run


def test_a_sample_whose_worker_died_comes_next_and_in_the_end_is_reported(
    scripted: Callable[..., Run], lines: Console
) -> None:
    died = RayActorError(error_msg="the worker was killed")
    script = Script({"a": [died, died, died], "b": [raised(RuntimeError("illegal memory access"))]})
    run = scripted(script, count=1, retries=2)
    assert script.given == [*"aaa", *"bb", "c", "d"]
    assert len(script.workers) == 5, "who died or raised is replaced"
    assert run.problems == [
        "sample a: given up after 3 workers: its worker died (the worker was killed)",
        *(f"sample {name}: said of {name}" for name in "bcd"),
    ]
    assert "a goes back into the queue: its worker died" in printed(lines)
    assert "b goes back into the queue: RuntimeError (illegal memory access)" in printed(lines)


def test_what_the_user_must_mend_is_tried_once_and_ends_the_run(scripted: Callable[..., Run], tmp_path: Path) -> None:
    script = Script({"b": [raised(UserError("cannot write to run (No space left on device)"))]})
    with pytest.raises(UserError, match="No space left"):
        scripted(script, count=2)
    assert script.given == ["a", "b"] and script.killed == script.workers, "no worker is left at work"
    assert not list((tmp_path / "run" / CLAIMS).iterdir())


def test_workers_that_cannot_begin_end_the_run(scripted: Callable[..., Run]) -> None:
    died = RayActorError(error_msg="out of memory")
    with pytest.raises(UserError, match=r"workers die before they can begin: its worker died \(out of memory\)"):
        scripted(Script({None: [died] * 9}), retries=1)


def test_workers_stay_for_the_next_run(
    settings: Make, dataset: list[Sample], lines: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = Script({})
    monkeypatch.setattr(cluster, "ray", script)
    runs = [settings(engine="ray", run_dir=str(tmp_path / name), limit=4) for name in ("one", "two")]
    with cluster.RayPool(runs[0]) as workers:
        for s in runs:
            fit_all(s, lines, workers=workers)
        assert len(script.workers) == 2 and not script.killed
    assert script.killed == script.workers


@pytest.mark.parametrize(
    "cores, gpus, workers, many",
    [
        (2, 0, {}, 2),
        (9, 0, {"cpus": 3.0}, 3),
        (0.3, 0, {"cpus": 0.1}, 3),
        (9, 0, {"count": 3}, 3),
        (9, 0, {}, 4),  # samples
        (9, 3, {}, 3),
        (9, 1, {"gpus": 0.25}, 4),
        (9, 5, {"gpus": 2.0}, 2),
        (2, 8, {"gpus": 0.0}, 2),
    ],
)
def test_workers_are_as_many_as_fit(
    scripted: Callable[..., Run], cores: float, gpus: float, workers: dict[str, Any], many: int
) -> None:
    script = Script({}, cores, gpus)
    scripted(script, **workers)
    assert len(script.workers) == many


def test_a_cluster_without_room_says_so(scripted: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match="no node has room for a worker of 1 GPUs and 1 CPU cores"):
        scripted(Script({}), gpus=1.0)


# What a node must have


def test_a_node_that_sees_something_else_says_so(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = Job(settings(), RunFolder(tmp_path / "run", settings()), None, None, list)
    (tmp_path / "token").touch()
    good = {"place": str(tmp_path), "token": "token", "versions": versions()}
    check_node(job, **good)  # type: ignore[arg-type]
    for wrong, message in (
        ({"place": str(tmp_path / "none")}, "there is no folder .*/none; call ttopt in a folder that all nodes share"),
        ({"token": "other"}, "/run is not the run's folder; give a --run-dir that all nodes share"),
        ({"versions": versions() | {"torch": "1.0"}}, "torch is .*, but the run was begun with 1.0; install that"),
    ):
        with pytest.raises(UserError, match=message):
            check_node(job, **(good | wrong))  # type: ignore[arg-type]


def test_two_workers_never_have_the_same_sample(settings: Make, tmp_path: Path) -> None:
    one, other = (RunFolder(tmp_path / "run", settings()) for _ in range(2))
    with one.claimed("a"):
        with other.claimed("b"):
            pass
        with pytest.raises(UserError, match="out of reach still works on it"), other.claimed("a", patience=0.1):
            raise AssertionError("both have it")
    with other.claimed("a"):
        pass


# The address


def test_an_address_where_nothing_is_ends_in_one_sentence(
    settings: Make, dataset: list[Sample], lines: Console, tmp_path: Path
) -> None:
    for address, message in (("127.0.0.1:9", "nothing answers there"), ("auto", "Could not find any running Ray")):
        s = settings(engine="ray", address=address, run_dir=str(tmp_path / "run"))
        with pytest.raises(UserError, match=f"{message}.*give the head of a running cluster as --address host:port"):
            fit_all(s, lines)


@pytest.mark.slow
def test_an_address_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        process = command(tmp_path, "silent", "--address", address)
        _, errors = process.communicate(timeout=180)
    assert process.returncode == 2 and "Traceback" not in errors, errors
    assert errors.splitlines()[-1].startswith(f"error: Ray cannot be reached at {address} (")


def test_without_ray_one_sentence_says_what_to_install(
    settings: Make, lines: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ttopt.run.ray_pool")
    with pytest.raises(UserError, match=r"engine ray needs Ray, which is not installed; pip install -e '.\[ray\]'"):
        fit_all(settings(engine="ray", run_dir=str(tmp_path / "run")), lines)
    assert not (tmp_path / "run").exists()


# Real workers


class Disturbed(L.Callback):
    """Notes its worker, and does ``what`` before a sample's fourth step."""

    def __init__(self, notes: Path, what: Callable[[Path], None]) -> None:
        self.notes, self.what = notes, what

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        (self.notes / f"worker {os.getpid()}").touch()
        if pl_module.steps == 3:
            self.what(self.notes)


def with_disturbance(notes: Path, what: Callable[[Path], None], settings: FitSettings) -> list[L.Callback]:
    return [*callbacks.standard(settings), Disturbed(notes, what)]


def wait_for_two(notes: Path) -> None:
    while len(list(notes.glob("worker *"))) < 2:
        time.sleep(0.1)


def first(notes: Path) -> bool:
    try:
        (notes / "disturbed").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def die(notes: Path) -> None:
    if first(notes):
        os.kill(os.getpid(), signal.SIGKILL)


def wait_on(node: str, notes: Path) -> None:
    wait_for_two(notes)
    if ray.get_runtime_context().get_node_id() == node and first(notes):
        time.sleep(600)


@pytest.fixture
def two_nodes() -> Iterator[Cluster]:
    """A head and another node, with room for a worker each."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture
def same_as_in_process(
    models: Models, settings: Make, dataset: list[Sample], lines: Console, tmp_path: Path
) -> Callable[..., set[str]]:
    """Runs the four samples with Ray and in this process, which must make the same; returns the workers there were."""
    quiet = {"wandb": "disabled", "state_every": 2, "previews_every": 2}
    steps = {"steps": 5, "lr": 1e-2, "tau": 0.0}
    common = {"limit": 4, "optimization": steps, "logging": quiet, "reasoner": {"sigmas": [1.0, 0.5]}}  # as ``models``

    def run(what: Callable[[Path], None], **others: Any) -> set[str]:
        alone = fit_all(
            settings(run_dir=str(tmp_path / "alone"), **common), lines, callbacks.standard, lambda _: models
        )
        disturbed = partial(with_disturbance, tmp_path, what)
        many = fit_all(settings(run_dir=str(tmp_path / "many"), engine="ray", **common, **others), lines, disturbed)
        assert not many.problems and [r.sample for r in many.results] == [r.sample for r in alone.results] == [*"abcd"]
        assert sorted(path.name for path in (tmp_path / "many/samples").iterdir()) == [*"abcd"]
        for result in alone.results:
            one, other = (content(tmp_path / name / "samples" / result.sample) for name in ("alone", "many"))
            assert one.keys() == other.keys()
            assert not [name for name in one if one[name] != other[name] and name != "config.yaml"], result.sample
        return {path.name for path in tmp_path.glob("worker *")}

    return run


def processes(mark: str) -> set[int]:
    """The living processes that have ``mark`` in their environment."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes() and "State:\tZ" not in (path / "status").read_text():
                found.add(int(path.name))
        except OSError:
            continue
    return found - {os.getpid()}


@pytest.mark.slow
def test_two_workers_of_a_ray_of_its_own_make_what_one_process_makes(
    same_as_in_process: Callable[..., set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTOPT_TEST", mark := f"own {os.getpid()}")
    assert len(same_as_in_process(wait_for_two, workers={"count": 2, "cpus": 0.5})) == 2
    assert not ray.is_initialized() and not processes(mark)


@pytest.mark.slow
def test_the_simulated_queue_is_that_of_two_real_workers(settings: Make, lines: Console, tmp_path: Path) -> None:
    """What ``plan --gpus`` says of these samples and workers, against the clock."""
    run = tmp_path / "run"
    begin = time.time()
    found = fit_all(
        settings(
            run_dir=str(run), engine="ray", workers={"count": 2, "cpus": 0.5}, split="ood", families=["visit"], limit=16
        ),
        lines,
    )
    ends = [datetime.fromisoformat(result.finished).timestamp() - begin for result in found.results]
    begins = sorted(end - result.seconds["total"] for end, result in zip(ends, found.results, strict=True))
    start, real, work = sum(begins[:2]) / 2, max(ends), work_of_run(run)
    predicted = simulate(work, SimulatedWorkers(2, start)).makespan
    print(f"two workers: {real:.1f} s, predicted {predicted:.1f} s, {start:.1f} s of them until they were ready")
    assert predicted == pytest.approx(real, rel=0.2)
    assert real < 0.8 * (start + work.seconds.sum()), "they worked side by side"


@pytest.mark.slow
def test_the_sample_of_a_killed_worker_goes_on_at_another(
    same_as_in_process: Callable[..., set[str]], two_nodes: Cluster, lines: Console
) -> None:
    assert len(same_as_in_process(die, address=two_nodes.address)) >= 2
    assert "goes back into the queue: its worker died" in printed(lines)
    assert "goes on after step 2" in printed(lines)
    ray.init(two_nodes.address, logging_level="CRITICAL")
    assert len(ray.nodes()) == 2, "the cluster is left as it was"
    ray.shutdown()


@pytest.mark.slow
def test_the_samples_of_a_removed_node_are_solved_on_the_others(
    same_as_in_process: Callable[..., set[str]], two_nodes: Cluster, lines: Console, tmp_path: Path
) -> None:
    (node,) = two_nodes.worker_nodes

    def remove() -> None:
        while not (tmp_path / "disturbed").exists():
            time.sleep(0.1)
        two_nodes.remove_node(node, allow_graceful=False)

    threading.Thread(target=remove, daemon=True).start()
    assert len(same_as_in_process(partial(wait_on, node.node_id), address=two_nodes.address)) == 2
    assert "goes back into the queue: its worker died" in printed(lines)
    assert "goes on after step 2" in printed(lines)


FIT = [
    *(sys.executable, "-m", "ttopt", "fit", "--run-dir", "run", "--families", "[move]", "--limit", "3"),
    *("--engine", "ray", "--workers.count", "2", "--workers.cpus", "0.5", "--logging.wandb", "disabled"),
    *("--optimization.steps", "8", "--optimization.tau", "0", "--logging.state_every", "1"),
]


def command(folder: Path, mark: str, *arguments: str) -> subprocess.Popen[str]:
    """As typed into a terminal, where Ctrl-C reaches the whole group of processes."""
    slurm = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}  # Lightning must not take the job for one training
    environment = os.environ | slurm | {"PYTHONUNBUFFERED": "1", "TTOPT_TEST": mark}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*FIT, *arguments], cwd=folder, env=environment, start_new_session=True, **pipes)  # type: ignore[call-overload,no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False])
def test_ctrl_c_stops_the_workers_and_keeps_what_is_finished(
    own: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    mark = f"interrupted {os.getpid()} {own}"
    address = [] if own else ["--address", request.getfixturevalue("two_nodes").address]
    process = command(tmp_path, mark, *address)
    samples = tmp_path / "run/samples"
    while not list(samples.glob("[!.]*")) and process.poll() is None:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, output + errors
    assert errors == "interrupted; finished samples are kept, continue with the same --run-dir\n"
    deadline = time.monotonic() + 30
    while processes(mark) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not processes(mark)
    finished = {path.name for path in samples.glob("[!.]*")}
    assert finished and len(finished) < 3
    if not own:
        ray.init(address[1], logging_level="CRITICAL")
        while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
            time.sleep(0.5)
        assert ray.available_resources()["CPU"] == 2, "the cluster is free again"
        ray.shutdown()
    process = command(tmp_path, mark, *address)
    output, errors = process.communicate()
    assert process.returncode == 0 and errors == "", output + errors
    assert output.count("finished earlier") == len(finished) and len(list(samples.iterdir())) == 3
