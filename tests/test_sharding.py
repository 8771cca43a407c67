"""Several processes that share one reasoner, and a teacher on another device, against one process on one device."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend import PretendedDevices
from test_resume import content
from tiny import tiny_two_experts_folder
from tiny_fit import QUERIES, prepare

from ttopt.__main__ import main
from ttopt.config.checks import check
from ttopt.config.settings import FitSettings, to_yaml
from ttopt.data.images import write_image
from ttopt.errors import UserError
from ttopt.models.distributed import joined
from ttopt.models.load import Models, load_models

Make = Callable[..., FitSettings]
TESTS = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ttopt"]
FORKED = [sys.executable, str(TESTS / "two_processes.py"), "torchrun"]
SLURM = [sys.executable, str(TESTS / "two_processes.py"), "slurm"]
SHARD = ["--reasoner.shard", "true"]


def together(folder: Path, how: list[str], *arguments: str, code: int = 0) -> str:
    """Runs ``ttopt fit`` in two processes; what they print."""
    folder.mkdir(exist_ok=True)
    places = {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*how, "fit", *arguments, *SHARD],
        cwd=folder,
        env=os.environ | places,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def alone(folder: Path, *arguments: str) -> None:
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", *arguments]) == 0


def result(folder: Path) -> dict[str, Any]:
    """What the finished samples' folders hold; the setting that tells the two runs apart is left out."""
    samples = list((folder / "run/samples").iterdir())
    found = {sample.name: content(sample) for sample in samples}
    for files in found.values():
        files["config.yaml"] = files["config.yaml"].replace(b"shard: true", b"shard: false")
    assert found
    return found


@pytest.fixture
def tiny_run(settings: Make, tmp_path: Path) -> Callable[..., list[str]]:
    """Arguments of a run on the tiny models, with a first image."""

    def make(**groups: Any) -> list[str]:
        write_image(tmp_path / "first.png", torch.rand((3, 48, 48), generator=torch.Generator().manual_seed(0)))
        made = settings(**groups)
        (tmp_path / "tiny.yaml").write_text(to_yaml(made))
        sample = ["--sample.prompt", "move the red square to the pad", "--sample.image", str(tmp_path / "first.png")]
        return ["--config", str(tmp_path / "tiny.yaml"), *sample, "--run-dir", "run"]

    return make


def test_two_processes_end_as_one_to_the_bit_with_half_the_weights_each(
    tiny_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    watch = {"path": "two_processes.Watch", "arguments": {"folder": str(tmp_path)}}
    arguments = [
        *tiny_run(optimization={"steps": 4, "starts": 2, "keep": "better"}, adapter={"blocks": "1-2"}),
        *("--callbacks", json.dumps([watch]), "--logging.state_every", "2"),
    ]
    alone(tmp_path / "one", *arguments)
    together(tmp_path / "two", FORKED, *arguments)
    assert result(tmp_path / "two") == result(tmp_path / "one")
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"run"}, "what other processes write vanishes"
    one, *two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", "0", "1"))
    assert two[0]["processes"] == 2 and {seen["trained"] for seen in two} == {one["trained"]}
    assert sum(seen["held"] for seen in two) == one["held"]
    assert all(0.4 < seen["held"] / one["held"] < 0.6 for seen in two)


@pytest.mark.slow
@pytest.mark.parametrize("how", [TORCHRUN, SLURM], ids=["torchrun", "slurm"])
def test_two_experts_recomputed_in_bfloat16(tiny_run: Callable[..., list[str]], tmp_path: Path, how: list[str]) -> None:
    reasoner = {
        "model": str(tiny_two_experts_folder(tmp_path / "experts")),
        "sigmas": [1.0, 0.5],
        "dtype": "bfloat16",
        "activation_checkpointing": "all",
        "offload": True,
    }
    arguments = tiny_run(reasoner=reasoner, decoder={"kind": "standard"})
    alone(tmp_path / "one", *arguments)
    together(tmp_path / "two", how, *arguments)
    assert result(tmp_path / "two") == result(tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("interrupted", [False, True])
def test_the_step_loop_asks_its_model_in_one_process(tmp_path: Path, interrupted: bool) -> None:
    loop = ["--config", "collabvr", "--families", "[tour]", "--limit", "1", "--method.arguments.inner", "teacher_lora"]
    steps = ["--optimization.steps", "2", "--optimization.tau", "0", "--method.arguments.max_steps", "2"]
    arguments = [*loop, *steps, "--logging.wandb", "disabled", "--run-dir", "run"]
    if interrupted:
        breaks = {"path": "two_processes.Break", "arguments": {"process": 1, "how": "killed in its second clip"}}
        arguments += ["--callbacks", json.dumps([breaks])]
        together(tmp_path / "two", FORKED, *arguments, code=signal.SIGKILL)
    alone(tmp_path / "one", *arguments)
    together(tmp_path / "two", FORKED, *arguments)
    one, two = result(tmp_path / "one"), result(tmp_path / "two")
    for found in (one, two):
        for files in found.values():
            del files["trace.json"], files["result.json"]["details"]["vlm_seconds"]  # these name seconds
    assert two == one


@pytest.mark.slow
@pytest.mark.parametrize(
    "process, how, said",
    [
        (0, "disk", "error: cannot write to x"),
        (1, "memory", "error: sample sample: the GPU's memory is too small"),
        (1, "bug", "RuntimeError: a bug"),
        (0, "killed", ""),
        (1, "killed", "error: another process has ended"),
    ],
)
def test_a_process_that_fails_ends_all_and_the_run_goes_on_alone(
    tiny_run: Callable[..., list[str]], tmp_path: Path, process: int, how: str, said: str
) -> None:
    breaks = {"path": "two_processes.Break", "arguments": {"process": process, "how": how}}
    arguments = [*tiny_run(), "--callbacks", json.dumps([breaks]), "--logging.state_every", "1"]
    code = {"killed": signal.SIGKILL, "bug": 1}.get(how, 2)
    assert said in together(tmp_path / "two", FORKED, *arguments, code=code)
    assert not list((tmp_path / "two/run/samples").glob("[!.]*"))
    alone(tmp_path / "one", *arguments)
    alone(tmp_path / "two", *arguments)
    assert result(tmp_path / "two") == result(tmp_path / "one")


@pytest.mark.slow
def test_an_error_that_all_processes_meet_costs_one_sample(tmp_path: Path) -> None:
    breaks = {"path": "two_processes.Break", "arguments": {"process": None, "how": "sample"}}
    run = ["--families", "[move]", "--limit", "2", "--optimization.tau", "0", "--optimization.starts", "1"]
    said = together(tmp_path, FORKED, *run, "--logging.wandb", "disabled", "--callbacks", json.dumps([breaks]), code=2)
    assert said.count("error: sample id-move-0-0000: it cannot be") == 1
    assert said.count("error: sample id-move-0-0001: it cannot be") == 1


@pytest.mark.parametrize("command", ["fit", "compare"])
def test_one_process_is_told_how_to_start_several(command: str, tmp_path: Path, capsys: Any) -> None:
    arguments = ["--run-dir", str(tmp_path / "x"), "--limit", "1", "--logging.wandb", "disabled", *SHARD]
    assert main([command, *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: reasoner.shard") and said.count("\n") == 1
    assert "start torchrun --nproc-per-node 2 -m ttopt fit --reasoner.shard true" in said


def test_processes_that_do_not_share_are_refused(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(UserError, match="torchrun started 2 processes, .* give --reasoner.shard true"),
        joined(settings()),
    ):
        pass


def test_slurm_must_say_how_many_processes_a_node_has(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    with pytest.raises(UserError, match="give srun --ntasks-per-node"), joined(settings(reasoner={"shard": True})):
        pass


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"batch_samples": 2}, "give batch_samples 1"),
        ({"reasoner": {"compile": True}}, "leave out one of them"),
        ({"teacher": {"device": "cuda:1"}}, "takes the GPU of its own number"),
    ],
)
def test_what_cannot_be_shared(settings: Make, wrong: dict[str, Any], message: str) -> None:
    groups = wrong | {"reasoner": wrong.get("reasoner", {}) | {"shard": True}}
    with pytest.raises(UserError, match=message):
        check(settings(**groups))


def test_a_scheduler_s_other_processes_do_not_concern_an_unshared_run(
    models: Any, settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tiny import tiny_sample
    from tiny_fit import fit_sample

    from ttopt.data.find import given_queries

    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    s = settings(optimization={"steps": 1})
    assert fit_sample(tiny_sample(), models, s, tmp_path, queries=given_queries(s)).optimization is not None


def test_reasoner_and_teacher_on_different_devices(settings: Make) -> None:
    """Nothing meets that lies on different devices, and the loss and its gradient are the same."""

    def step(models: Models) -> list[torch.Tensor]:
        module = prepare(models)
        losses, total = module.losses()
        total.sum().backward()
        video = models.reasoner.decode(models.reasoner.generate(module.z1, module.condition))
        return [losses.detach(), video, *(weight.grad for weight in module.lora if weight.grad is not None)]

    s = settings(reasoner={"sigmas": [1.0, 0.5]})
    expected = step(load_models(s))
    models, devices = load_models(s), PretendedDevices()
    reasoner = models.reasoner
    for network in (reasoner.transformer, reasoner.vae, reasoner.text_encoder, reasoner.light_decoder):
        devices.put(network, "xpu:0")  # type: ignore[arg-type]
    devices.put(torch.nn.ParameterList(models.adapter.parameters()), "xpu:0")
    devices.put(models.teacher.model, "xpu:1")
    with devices:
        found = step(models)
        assert models.teacher.yes_losses(found[1][:, :5], [QUERIES.all], 8, [0, 2, 4, 6, 8]).device.index == 0
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    crossed = [shape for here, there, shape in devices.moved if {here, there} == {"xpu:0", "xpu:1"}]
    assert crossed == [(1, 5, 3, 48, 48), (1, 3)] * 2, "the teacher gets the frames and gives the losses"
