"""Settings: files, overrides, and every mistake answered by one clear sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ttopt.__main__ import COMMANDS, main
from ttopt.config import yaml_text
from ttopt.config.comparison import CompareSettings, parse_compare
from ttopt.config.files import merged, resolve
from ttopt.config.parsing import CONFIG_FOLDERS, changed, config_path, parse_fit, setting_names
from ttopt.config.settings import FitSettings, flat, is_free, is_shared, to_dict, to_yaml
from ttopt.errors import UserError
from ttopt.models.reasoner.recipe import schedule_of

# Those with methods belong to another command: tests/test_compare.py reads them.
SHIPPED = sorted(p.stem for p in CONFIG_FOLDERS[0].glob("*.yaml") if "\nmethods:" not in p.read_text())


def test_default_is_the_embedded_configuration() -> None:
    settings = parse_fit([])
    assert settings == parse_fit(["--config", "mini"])
    assert (settings.reasoner.model, settings.teacher.model, settings.teacher.frames) == ("embedded", "embedded", 7)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configuration_parses_and_survives_yaml(name: str, tmp_path: Path) -> None:
    settings = parse_fit(["--config", name])
    (tmp_path / "again.yaml").write_text(to_yaml(settings))
    assert parse_fit(["--config", str(tmp_path / "again.yaml")]) == settings


@pytest.mark.parametrize("path", sorted(CONFIG_FOLDERS[0].glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_say_only_what_their_base_does_not(path: Path) -> None:
    own = yaml.safe_load(path.read_text())
    base = own.pop("base")
    if base is not None:
        said = flat(resolve(CompareSettings, [base], None).values)
        assert not [name for name, value in flat(own).items() if name in said and said[name] == value]


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
    assert settings.teacher.frames == 7, "mini's, although another file came later"


def test_flags_win_wherever_they_stand_and_later_files_over_earlier(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: mini\noptimization: {steps: 5, tau: 0.3}\nfamilies: [maze]")
    (tmp_path / "b.yaml").write_text("optimization.tau: 0.4")
    files = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    flags = ["--optimization.steps", "3", "--families", "move"]
    for args in (files + flags, flags + files, [*files[:2], *flags, *files[2:]]):
        settings = parse_fit(args)
        assert (settings.optimization.steps, settings.optimization.tau) == (3, 0.4)
        assert (settings.families, settings.teacher.frames) == (["move"], 7)


BASES = {  # files, what is typed; teacher.frames, optimization.lr
    "none: mini": ({"a.yaml": "seed: 1"}, "a.yaml", (7, 2e-3)),
    "mini": ({"a.yaml": "base: mini"}, "a.yaml", (7, 2e-3)),
    "null: the paper's": ({"a.yaml": "base: null"}, "a.yaml", (24, 5e-5)),
    "shipped": ({"a.yaml": "base: wan22_5b_24gb\nteacher: {frames: 12}"}, "a.yaml", (12, 5e-5)),
    "chain": (
        {"a.yaml": "base: b.yaml\nteacher: {frames: 7}", "b.yaml": "base: mini\noptimization: {lr: 1}"},
        "a.yaml",
        (7, 1.0),
    ),
    "beside the file that names it": (
        {"x/a.yaml": "base: ../b.yaml", "b.yaml": "base: mini\noptimization: {lr: 2}"},
        "x/a.yaml",
        (7, 2.0),
    ),
    "a base of none: mini": ({"a.yaml": "base: b.yaml", "b.yaml": "optimization: {lr: 2}"}, "a.yaml", (7, 2.0)),
    "typed instead": ({"a.yaml": "base: mini\noptimization: {lr: 3}"}, "a.yaml --base wan22_5b", (24, 3.0)),
}


@pytest.mark.parametrize("files, typed, expected", BASES.values(), ids=BASES.keys())
def test_bases(
    files: dict[str, str], typed: str, expected: tuple[int, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    settings = parse_fit(["--config", *typed.split()])
    assert (settings.teacher.frames, settings.optimization.lr) == expected
    (tmp_path / "c.yaml").write_text(f"base: {typed.split()[0]}\nmethods: [{{name: single}}]")
    if "--base" not in typed:
        compared = parse_compare(["--config", "c.yaml"])
        assert (compared.teacher.frames, compared.optimization.lr) == expected, "the same idiom"


def test_bases_in_a_circle(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "c"), ("c", "./a")):
        (tmp_path / f"{name}.yaml").write_text(f"base: {base}.yaml")
    with pytest.raises(UserError, match=r"base leads in a circle \(.*a.yaml -> .*b.yaml -> .*c.yaml -> .*a.yaml\)"):
        parse_fit(["--config", str(tmp_path / "a.yaml")])


def test_a_file_without_a_base_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    for text, told in (("seed: 1", True), ("base: mini\nseed: 1", False), (to_yaml(parse_fit([])), False)):
        file.write_text(text)
        parse_fit(["--config", str(file)])
        said = capsys.readouterr().out
        assert said.count("\n") == told and ("mine.yaml says no base, so what it leaves out is mini's" in said) == told
    file.write_text(yaml.safe_dump(to_dict(parse_fit([]))))  # all settings, as runs wrote them before there were bases
    parse_fit(["--config", str(file)])
    assert capsys.readouterr().out == ""


def test_print_config_is_a_complete_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_fit(["--config", "collabvr", "--seed", "3", "--print_config"])
    assert ended.value.code == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    again = parse_fit(["--config", str(tmp_path / "again.yaml")])
    assert again == parse_fit(["--config", "collabvr", "--seed", "3"])
    assert capsys.readouterr().out == ""


def test_another_method_does_not_get_the_arguments_of_its_base(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("base: collabvr\nmethod: {arguments: {attempts: 7}}")
    assert parse_fit(["--config", str(file)]).method.arguments["attempts"] == 7
    assert parse_fit(["--config", str(file)]).method.arguments["max_steps"] == 3
    file.write_text("base: collabvr\nmethod: {path: ttopt.methods.PassAtK, arguments: {k: 2}}")
    assert parse_fit(["--config", str(file)]).method.arguments == {"k": 2}


WORDS = {  # in a file; setting -> value
    "answers": ("teacher: {answers: [Yes, yes]}", "teacher.answers", ["Yes", "yes"]),
    "answers in a block": ("teacher:\n  answers:\n  - on\n  - 1e3\n", "teacher.answers", ["on", "1e3"]),
    "dotted": ("teacher.answers: [Yes, yes]", "teacher.answers", ["Yes", "yes"]),
    "id": ("sample: {id: no}", "sample.id", "no"),
    "id 1e3": ("sample: {id: 1e3}", "sample.id", "1e3"),
    "id 007": ("sample: {id: 007}", "sample.id", "007"),
    "prompt": ("sample: {prompt: yes}", "sample.prompt", "yes"),
    "date": ("sample: {prompt: 2026-11-20}", "sample.prompt", "2026-11-20"),
    "families": ("families: [off, 12, null_]", "families", ["off", "12", "null_"]),
    "null stays null": ("families: null\nroot: ~", "root", None),
    "number of a number": ("optimization: {lr: 1e-3}", "optimization.lr", 1e-3),
    "merged": ("sample: {<<: {id: no}}", "sample.id", "no"),
}


@pytest.mark.parametrize("text, name, expected", WORDS.values(), ids=WORDS.keys())
def test_words_stay_words_where_text_is_wanted(text: str, name: str, expected: object, tmp_path: Path) -> None:
    file = tmp_path / "words.yaml"
    file.write_text(f"base: mini\n{text}")
    settings = parse_fit(["--config", str(file)])
    assert flat(to_dict(settings))[name] == expected
    file.write_text(to_yaml(settings))
    assert parse_fit(["--config", str(file)]) == settings


@pytest.mark.parametrize(
    "typed, name, expected",
    [
        (["--teacher.answers", "[Yes,yes]"], "teacher.answers", ["Yes", "yes"]),
        (["--teacher.answers=no"], "teacher.answers", ["no"]),
        (["--families", "move"], "families", ["move"]),
        (["--families=[move, maze]"], "families", ["move", "maze"]),
        (["--families", "null"], "families", None),
        (["--sample.id", "1e3"], "sample.id", "1e3"),
        (["--sample.prompt", "yes: no # maybe"], "sample.prompt", "yes: no # maybe"),
        (["--teacher", "{answers: [on]}"], "teacher.answers", ["on"]),
        (["--run-dir", "null"], "run_dir", None),
    ],
)
def test_words_on_the_command_line(typed: list[str], name: str, expected: object) -> None:
    assert flat(to_dict(parse_fit(typed)))[name] == expected


def test_words_in_lists_of_methods_and_callbacks(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "base: mini\nreference: no\n"
        "methods: [{name: no, settings: {teacher.answers: [Yes, yes], decoder: {kind: standard}, seed: 0}}]\n"
        "dataset: folder\nroot: .\ncallbacks: [{path: on, arguments: {a: yes}}]\n"
    )
    settings = parse_compare(["--config", str(tmp_path / "c.yaml")])
    assert settings.methods[0].name == settings.reference == "no"
    assert settings.methods[0].settings["teacher.answers"] == ["Yes", "yes"]
    assert settings.callbacks[0].path == "on"


ODD = ["yes", "5e-4", "1e3", "null", "~", "", "0x10", "1:30", "2026-11-20", ".inf", "- a", "<<"]
TEXTS = st.sampled_from(ODD) | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


@hypothesis_settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(content=st.dictionaries(TEXTS, PLAIN, max_size=4))
def test_what_is_dumped_is_read_back(content: dict[str, object]) -> None:
    assert yaml_text.parse(yaml_text.dump(content), None) == content


@hypothesis_settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(old=st.dictionaries(TEXTS, PLAIN), new=st.dictionaries(TEXTS, PLAIN))
def test_merging(old: dict[str, object], new: dict[str, object]) -> None:
    found = merged(old, new)
    assert list(found) == list(dict.fromkeys([*old, *new]))
    assert merged(found, new) == found == merged({}, found)


FREE = {
    *("run_dir", "limit", "batch_samples", "engine", "address", "bank.add", "reasoner.device", "reasoner.offload"),
    *("workers.count", "workers.gpus", "workers.cpus", "workers.retries", "reasoner.activation_checkpointing"),
    *("logging.wandb", "logging.project", "logging.previews_every", "logging.state_every", "reasoner.shard"),
    *("decoder.activation_checkpointing", "teacher.device", "teacher.activation_checkpointing", "chat.base_url"),
    *(
        "chat.key_env",
        "chat.timeout",
        "chat.max_retries",
        "chat.requests_per_minute",
        "chat.price_in",
        "chat.price_out",
    ),
}
SHARED = {
    *("run_dir", "dataset", "root", "split", "families", "limit", "engine", "address", "workers.count", "workers.gpus"),
    *(
        "ids",
        "workers.cpus",
        "workers.retries",
        "sample.id",
        "sample.prompt",
        "sample.image",
        "method.path",
        "method.arguments",
    ),
}


def test_what_may_change_between_calls_and_what_all_methods_share() -> None:
    names = {name for name in setting_names() if not any(other.startswith(f"{name}.") for other in setting_names())}
    assert {name for name in names if is_free(name)} == FREE
    assert {name for name in names if is_shared(name)} == SHARED
    assert is_shared("method.arguments.k") and is_shared("workers") and not is_shared("sample")


def test_videos_longer_than_the_table_of_positions(tmp_path: Path) -> None:
    """Wan's holds 1024 along each axis, of latents that are four frames long and, in the 5B model, 32 pixels wide."""
    for part, text in (
        ("transformer", '{"patch_size": [1, 2, 2], "rope_max_seq_len": 1024}'),
        ("vae", '{"scale_factor_spatial": 16, "scale_factor_temporal": 4}'),
    ):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(text)
    args = ["--reasoner.model", str(tmp_path), "--sample.prompt", "go", "--sample.frames"]
    assert parse_fit([*args, "4093"]).sample.frames == 4093
    with pytest.raises(UserError, match=r"sample.frames is 8001, .* 4093 at most .* give --sample.frames 4093 or"):
        parse_fit([*args, "8001"])
    with pytest.raises(UserError, match="sample.frames is 8001"):
        parse_fit(["--sample.prompt", "go", "--sample.frames", "8001", "--reasoner.transformer", str(tmp_path)])
    assert parse_fit([*args, "8001", "--method.path", "loop.StepLoop"]), "which cuts it into clips"
    assert isinstance(parse_fit(["--sample.frames", "8001"]), FitSettings), "the data set's are as long as they are"


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
    "wrong choice": (
        ["--split", "odd"],
        "--split: Expected id, ood, all, train, eval, dev_id or dev_ood. Got value: odd",
    ),
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
        ["--sample.prompt", "move", "--teacher.frames", "26"],
        "teacher.frames is 26, but the video has only 25 frames; give --teacher.frames 25 or fewer",
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


def test_short_names_are_settings() -> None:
    found = parse_fit(["--prompt", "go", "--image=a.png", "--steps", "3"])
    assert (found.sample.prompt, found.sample.image, found.optimization.steps) == ("go", "a.png", 3)


def test_help_has_the_usual_settings_and_help_all_has_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = []
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            parse_fit([flag, "--config", "wan22_5b"])
        said.append(capsys.readouterr().out)
        assert max(map(len, said[-1].splitlines())) <= 80
    usual, everything = said
    assert usual.count("\n  --") == 12 and "--steps, --optimization.steps INTEGER  (default: 40)" in usual
    leaves = [name for name in setting_names() if not any(n.startswith(f"{name}.") for n in setting_names())]
    assert all(f"--{name.replace('_', '-')}" in everything for name in leaves)


def test_a_shell_completes_commands_settings_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert all(text in script for text in (*COMMANDS, "--optimization.tau", "wan22_5b_fast", "--gpu-price"))
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert main(["completion", "fish"]) == 2


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
