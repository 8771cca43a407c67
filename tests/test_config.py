"""Settings: files, overrides, and every mistake answered by one clear sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ttopt.config.parsing import CONFIG_FOLDERS, changed, config_path, parse_fit, setting_names
from ttopt.config.settings import flat, to_dict, to_yaml
from ttopt.errors import UserError
from ttopt.models.reasoner.recipe import schedule_of

# Those with methods belong to another command: tests/test_compare.py reads them.
SHIPPED = sorted(p.stem for p in CONFIG_FOLDERS[0].glob("*.yaml") if "\nmethods:" not in p.read_text())


def test_default_is_the_embedded_configuration() -> None:
    settings = parse_fit([])
    assert settings == parse_fit(["--config", "mini"])
    assert (settings.reasoner.model, settings.teacher.model, settings.teacher.frames) == ("embedded", "embedded", 9)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configuration_parses_and_survives_yaml(name: str, tmp_path: Path) -> None:
    settings = parse_fit(["--config", name])
    (tmp_path / "again.yaml").write_text(to_yaml(settings))
    assert parse_fit(["--config", str(tmp_path / "again.yaml")]) == settings


def test_paper_numbers() -> None:
    """VLM-as-Teacher, section 4."""
    s = parse_fit(["--config", "wan22_5b"])
    o = s.optimization
    assert (o.steps, o.lr, o.tau, o.goal_weight, o.denoise_step) == (40, 5e-5, 0.22, 0.5, "first")
    assert (s.adapter.rank, s.teacher.frames, s.sample.frames, len(schedule_of(s.reasoner))) == (16, 24, 89, 4)


def test_later_arguments_win_and_names_may_have_dashes(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 3\noptimization: {tau: 0.5}\n")
    args = ["--config", "mini", "--optimization.steps", "7", f"--config={file}", "--seed=4", "--run-dir", "runs/x"]
    settings = parse_fit([*args, "--families", "[move,maze]", "--optimization.lr", "1e-2"])
    assert (settings.seed, settings.optimization.tau, settings.optimization.steps) == (4, 0.5, 7)
    assert (settings.run_dir, settings.families, settings.optimization.lr) == ("runs/x", ["move", "maze"], 0.01)
    assert settings.teacher.frames == 9, "mini's, although another file came later"


def test_a_methods_arguments_keep_their_types(tmp_path: Path) -> None:
    """What is quoted in a file stays a text, also on its way into a run's config.yaml and out of it."""
    file = tmp_path / "mine.yaml"
    file.write_text('method: {path: loop.StepLoop, arguments: {a: "12", b: "x: y", c: 12, d: 5e-4}}\n')
    args = ["--config", str(file), "--method.arguments.c", "13", "--method.arguments.e=null"]
    settings = parse_fit([*args, "--callbacks", '[{path: mine.My, arguments: {a: "12"}}]'])
    assert settings.method.arguments == {"a": "12", "b": "x: y", "c": 13, "d": 0.0005, "e": None}
    assert settings.callbacks[0].arguments == {"a": "12"}
    file.write_text(to_yaml(settings))
    assert parse_fit(["--config", str(file)]) == settings == changed(settings, {}, "")


def test_setting_names_are_all_settings() -> None:
    names = setting_names()
    assert set(flat(to_dict(parse_fit([])))) <= set(names)
    assert {"sample.queries.goal", "sample.queries", "optimization.tau"} <= set(names)


MISTAKES = {
    "misspelled": (
        ["--teacher.frmes", "9"],
        "--teacher.frmes: there is no such setting; the nearest is --teacher.frames",
    ),
    "without its group": (["--tau", "0.3"], "the nearest is --optimization.tau"),
    "misspelled, with =": (["--optimisation.steps=3"], "the nearest is --optimization.steps"),
    "wrong type": (["--teacher.frames", "many"], "--teacher.frames: Expected a int. Got value: many"),
    "wrong choice": (["--split", "odd"], "--split: Expected a Literal['id', 'ood',"),
    "value missing": (["--seed"], "--seed: expected one argument"),
    "stray word": (["movie"], "unrecognized arguments: movie"),
    "no such configuration": (["--config", "maxi"], "no such configuration; there are"),
    "no such file": (["--config", "a/b.yaml"], "a/b.yaml: there is no such file"),
    "limit 0": (["--limit", "0"], "limit is 0; give --limit 1 or more"),
    "no families": (["--families", "[]"], "families is empty"),
    "a family twice": (["--families", "[move,move]"], "families names one twice"),
    "tau below 0": (["--optimization.tau", "-0.1"], "a loss is never below 0; give 0.22"),
    "no steps": (["--optimization.steps", "0"], "optimization.steps is 0; give 1 or more"),
    "lr 0": (["--optimization.lr", "0"], "give a positive learning rate"),
    "lr NaN": (["--optimization.lr", "nan"], "--optimization.lr: Expected a float. Got value: nan"),
    "goal weight": (["--optimization.goal_weight", "2"], "give a number from 0 to 1"),
    "rising sigmas": (["--reasoner.sigmas", "[0.5,1.0]"], "give falling noise levels"),
    "no sigmas": (["--reasoner.sigmas", "[]"], "give falling noise levels"),
    "empty prompt": (["--sample.prompt", " "], "sample.prompt is empty; say what should happen"),
    "image without prompt": (["--sample.image", "x.png"], "there is no prompt; say what should happen"),
    "process without goal": (["--sample.queries.process", "[a?]"], "give --sample.queries.goal too"),
    "goal without process": (["--sample.queries.goal", "a?"], "has 0 questions; give one to three"),
    "K larger than the video": (
        ["--sample.prompt", "go", "--teacher.frames", "10"],
        "teacher.frames is 10, but the video has only 9 frames; give --teacher.frames 9 or fewer",
    ),
}


@pytest.mark.parametrize("args, message", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake(args: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_fit(args)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ("teacher: {frmes: 3}", "teacher.frmes: there is no such setting; the nearest is teacher.frames"),
        ("teacher: [", "is not valid YAML"),
        ("just words", "must hold settings"),
        ("teacher: {frames: many}", "Expected a int"),
    ],
)
def test_mistake_in_a_file(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(UserError, match="c.yaml|frames") as error:
        parse_fit(["--config", str(tmp_path / "c.yaml")])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_config_path_takes_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.yaml").write_text("seed: 1")
    monkeypatch.chdir(tmp_path)
    assert config_path("own.yaml") == Path("own.yaml")
    assert config_path("mini").name == "mini.yaml"


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys, ttopt.__main__\n"
        "try: ttopt.__main__.main(['fit', '--help'])\n"
        "except SystemExit: pass\n"
        "print('HEAVY', [name for name in ('torch', 'lightning', 'wandb', 'numpy') if name in sys.modules])"
    )
    before = os.times()
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in found.stdout
    assert "--optimization.tau" in found.stdout and "Stop as soon as the loss is at most tau" in found.stdout
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 2, "seconds of CPU, so that a busy machine does not count"
