"""The command line: the whole way once, and one clear sentence with exit code 2 for everything a user can mend."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import GOAL, PROCESS
from torch import Tensor

from ttopt.__main__ import COMMANDS, _named, main


@pytest.fixture
def tiny(folders: dict[str, Path]) -> list[str]:
    """Arguments that put the tiny models and given queries in place of the embedded ones."""
    return [
        *("--reasoner.model", str(folders["reasoner"]), "--teacher.model", str(folders["teacher"])),
        *("--decoder.kind", "light", "--decoder.model", str(folders["light"]), "--optimization.steps", "2"),
        *("--sample.queries.goal", GOAL, "--sample.queries.process", json.dumps(PROCESS)),
    ]


def test_whole_way(tiny: list[str], tmp_path: Path) -> None:
    """As a user types it, without a network: two samples of the data set, then one more in the same folder."""
    command = [sys.executable, "-m", "ttopt", "fit", "--families", "[move,maze]", "--run-dir", "run", *tiny]
    command += ["--logging.wandb", "offline"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        environment.pop(name, None)
    for limit, lines in ((2, ["1/2", "2/2"]), (3, ["finished earlier", "3/3"])):
        ran = subprocess.run(
            [*command, "--limit", str(limit)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.startswith("loading libraries ...\n")
        for text in (*lines, "id-move-0-0000", "id-maze-0-0000", "all steps used", "scorer before", "results: run"):
            assert text in ran.stdout
        assert ran.stderr == "", "no noise of libraries"
    samples = sorted(path.name for path in (tmp_path / "run/samples").iterdir())
    assert samples == ["id-maze-0-0000", "id-move-0-0000", "id-move-0-0001"]
    folder = tmp_path / "run/samples/id-maze-0-0000"
    assert sorted(path.name for path in folder.iterdir()) == [
        *(
            "adapter",
            "base.mp4",
            "before_after.png",
            "config.yaml",
            "curves.csv",
            "curves.png",
            "previews",
            "result.json",
            "video.mp4",
        )
    ]
    with (folder / "curves.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "1", "2"]
    result = json.loads((folder / "result.json").read_text())
    assert result["score"]["success"] is False and result["family"] == "maze"
    assert len(list((tmp_path / "run/wandb").glob("offline-run-*"))) == 3


def test_cheap_refusals_come_before_what_takes_long_to_load(tmp_path: Path) -> None:
    wrong = [["--families", "juggle"], ["--sample.prompt", "move", "--sample.image", "no.png"]]
    code = (
        "import sys\n"
        "from ttopt.__main__ import main\n"
        f"for args in {[*wrong, ['--reasoner.device', 'cuda:99']]}:\n"
        "    assert main(['fit', *args]) == 2\n"
        "print({'lightning', 'transformers', 'diffusers', 'peft', 'wandb', 'matplotlib'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.stdout == "loading libraries ...\nset()\n" and ran.stderr.count("error: ") == 3, ran.stderr


BAD: dict[str, tuple[list[str], str]] = {
    "no command": (["fitt"], "'fitt' is no command; the nearest is fit"),
    "no prompt": (["fit", "--sample.prompt", ""], "sample.prompt is empty; say what should happen"),
    "no such image": (["fit", "--sample.prompt", "move", "--sample.image", "no.png"], "image no.png: there is no such"),
    "empty image": (
        ["fit", "--sample.prompt", "move", "--sample.image", "empty.png"],
        "empty.png is empty; give a PNG",
    ),
    "no image": (["fit", "--sample.prompt", "move", "--sample.image", "text.png"], "cannot be read as an image; give"),
    "image is a folder": (["fit", "--sample.prompt", "move", "--sample.image", "thesis"], "there is no such file"),
    "name of a sample": (
        ["fit", "--sample.prompt", "move", "--sample.id", "a/b"],
        "sample id 'a/b' cannot name a folder",
    ),
    "odd number of frames": (
        ["fit", "--sample.prompt", "move", "--sample.frames", "10"],
        "10 frames; Wan videos have 4k+1",
    ),
    "unknown family": (["fit", "--families", "[move,juggle]"], "unknown family 'juggle'; choose from move"),
    "limit 0": (["fit", "--limit", "0"], "limit is 0; give --limit 1 or more"),
    "another configuration": (["fit", "--run-dir", "old", "--seed", "2"], "seed was 1, now it is 2; set it back, or"),
    "somebody's folder": (["fit", "--run-dir", "thesis"], "is not empty and no run's folder"),
    "missing weights": (["fit", "--reasoner.model", "nowhere/at/all"], "no folder nowhere/at/all; give a folder"),
    "missing teacher": (["fit", "--teacher.model", "empty"], "config.json is missing"),
    "missing decoder": (["fit", "--decoder.model", "nowhere/light"], "nowhere/light is missing; give"),
    "K larger than the video": (["fit", "--teacher.frames", "26"], "only 25 frames; give --teacher.frames 25 or fewer"),
    "tau below 0": (["fit", "--optimization.tau", "-1"], "a loss is never below 0; give 0.22"),
    "read-only output": (
        ["fit", "--run-dir", "/dev/null/run"],
        "cannot write to /dev/null/run (Not a directory); give",
    ),
    "no GPU": (["fit", "--reasoner.device", "cuda:7"], "reasoner.device is cuda:7, but torch finds"),
    "block range": (["fit", "--adapter.blocks", "7-9"], "blocks"),
    "callback": (["fit", "--callbacks", "[{path: nowhere.Mine}]"], "callback nowhere.Mine cannot be made"),
}


@pytest.mark.parametrize("args, message", BAD.values(), ids=BAD.keys())
def test_bad_input(
    args: list[str],
    message: str,
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ttopt.config.parsing import parse_fit
    from ttopt.record.run_folder import RunFolder

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in ("thesis", "empty"):
        Path(name).mkdir()
    Path("thesis/chapter.tex").write_text("")
    Path("empty.png").write_bytes(b"")
    Path("text.png").write_text("not an image")
    RunFolder(Path("old"), parse_fit([*tiny, "--seed", "1"]))
    assert main([args[0], *tiny, *args[1:]]) == 2
    stderr = capsys.readouterr().err
    assert message in stderr
    assert stderr.startswith("error: ") and stderr.count("\n") == 1, "one line"


def test_unwritable_folder(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a read-only disk (which the user root never meets)."""

    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["fit", *tiny, "--run-dir", "x"]) == 2
    assert "cannot write to x (Permission denied); give a --run-dir that can be written" in capsys.readouterr().err


def test_nan_loss(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is written, and the exit code says that something was wrong."""

    def broken(self: Any, frames: Tensor, latents: Tensor | None = None) -> Tensor:
        return frames.mean().reshape(1, 1) * math.nan

    monkeypatch.setattr("ttopt.optimization.algorithm.TeacherReward.__call__", broken)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert main(["fit", *tiny, "--limit", "1", "--run-dir", str(tmp_path / "run")]) == 2
    out, err = capsys.readouterr()
    assert "non-finite loss" in out and "lower --optimization.lr" in err
    assert (tmp_path / "run/samples/id-move-0-0000/result.json").exists()


def test_queries_that_the_teacher_cannot_write(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A random teacher writes no JSON: the sample fails with a cure, not the program."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    models = ["--reasoner.model", str(folders["reasoner"]), "--teacher.model", str(folders["teacher"])]
    prompt = ["--sample.prompt", "move the red cross to the green pad", "--sample.id", "mine"]
    run = ["--decoder.model", str(folders["light"]), "--run-dir", str(tmp_path / "run")]
    assert main(["fit", *models, *prompt, *run]) == 2
    assert "error: sample mine: " in capsys.readouterr().err
    assert list((tmp_path / "run/samples").iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_parts(name: str) -> None:
    command = COMMANDS[name]
    parts = [part for part in (command.parse, command.work, command.callbacks) if part is not None]
    assert all(callable(_named(part)) for part in parts)


def test_an_interrupted_command_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ttopt.planning.plan_arguments.parse_plan", interrupt)
    assert main(["plan"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("args, code, text", [([], 2, "commands:"), (["--help"], 0, "fit"), (["--version"], 0, "0.")])
def test_top_level(args: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == code
    assert text in capsys.readouterr().out
