"""Methods on the same samples: what is finished is kept, and the table is of the samples that were asked for."""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import rich.console
from conftest import GOAL, PROCESS
from tiny import tiny_sample
from tiny_fit import fit_sample

import callbacks
from ttopt.__main__ import main
from ttopt.config.comparison import CompareSettings, parse_compare, settings_of
from ttopt.config.parsing import CONFIG_FOLDERS
from ttopt.config.settings import to_yaml
from ttopt.data import miniworld
from ttopt.data.find import given_queries
from ttopt.data.video import write_video
from ttopt.errors import RunError, UserError
from ttopt.evaluate import compare as comparing
from ttopt.evaluate.compare import compare
from ttopt.evaluate.comparison import Comparison
from ttopt.record.result import Graded
from ttopt.run import loader
from ttopt.run.console import Console
from ttopt.run.loader import Loader

COMPARISONS = sorted(p.stem for p in CONFIG_FOLDERS[0].glob("*.yaml") if "\nmethods:" in p.read_text())
METHODS = """
methods:
  - {name: static, path: ttopt.methods.Static}
  - {name: single, path: ttopt.methods.Single}
  - {name: "Pass@2, chosen", path: ttopt.methods.PassAtK, arguments: {k: 2}}
  - {name: LoRA, settings: {optimization.steps: 1, optimization.starts: 1, optimization.keep: last, adapter.rank: 2}}
"""


@pytest.fixture
def tiny(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (tmp_path / "mine.yaml").write_text(METHODS)
    return [
        *("--config", str(tmp_path / "mine.yaml"), "--run-dir", str(tmp_path / "run"), "--limit", "2"),
        *("--reasoner.model", str(folders["reasoner"]), "--teacher.model", str(folders["teacher"])),
        *("--decoder.kind", "light", "--decoder.model", str(folders["light"])),
        *("--sample.queries.goal", GOAL, "--sample.queries.process", json.dumps(PROCESS), "--report", "false"),
    ]


def run(settings: CompareSettings) -> Comparison:
    return compare(settings, Console(), callbacks.standard)


def test_all_methods_on_all_samples_then_only_what_is_missing(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse_compare(tiny)
    found = run(settings)
    assert [row.method for row in found.table] == ["static", "single", "Pass@2, chosen", "LoRA"]
    assert all(row.score.n == 2 and not row.failed for row in found.table) and not found.problems
    static, single, chosen, lora = found.table
    assert static.generated_seconds == 0 and static.first_frame_ssim == pytest.approx(1, abs=1e-3)
    assert (single.reasoner_forwards, chosen.reasoner_forwards, lora.reasoner_forwards) == (3, 6, 3 + 1 + 2 + 1)
    assert single.ssim == pytest.approx(1), "the reference's drift from itself"
    assert lora.steps == 1 and all(row.satisfied is not None for row in found.table)
    assert found.entries["single"]["id-move-0-0000"].judged is not None
    table = json.loads((found.folder / "comparison.json").read_text())
    assert table["score"] == "success" and len(table["rows"]) == 4
    assert (found.folder / "methods/pass_2_chosen/samples/id-move-0-0000/video.mp4").exists()

    def unwanted(*_: Any) -> Any:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(loader, "load_models", unwanted)
    assert run(settings).table == found.table
    config = found.folder / "config.yaml"
    before = config.read_text()
    with pytest.raises(UserError, match="another configuration: seed was 0, now it is 9"):
        run(dataclasses.replace(settings, seed=9))
    assert config.read_text() == before, "what is refused changes nothing"
    fewer = parse_compare([*tiny, "--only", "[single,LoRA]", "--limit", "1"])
    assert [(row.method, row.score.n) for row in run(fewer).table] == [("single", 1), ("LoRA", 1)]


@pytest.mark.parametrize("why, code", [(KeyboardInterrupt(), 130), (RunError("the disk is full"), 2)])
def test_an_interrupted_comparison_shows_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], why: BaseException, code: int
) -> None:
    """The second system is interrupted, or its disk is full; nothing of it counts 0, and the next call goes on."""
    (sample,) = miniworld.samples("id", ["move"], 3, 1)
    for name in "ab":
        (tmp_path / name).mkdir()
        write_video(tmp_path / name / f"{sample.id}.mp4", miniworld.true_video(sample), 8)
    args = ["evaluate", "--videos", f"[{tmp_path / 'a'},{tmp_path / 'b'}]", "--seed", "3", "--families", "[move]"]
    args += ["--limit", "1", "--questions", "false", "--logging.wandb", "disabled", "--run-dir", str(tmp_path / "run")]
    fit_all = comparing.fit_all

    def interrupted(settings: Any, *rest: Any) -> Any:
        if settings.run_dir.endswith("b"):
            raise why
        return fit_all(settings, *rest)

    monkeypatch.setattr(comparing, "fit_all", interrupted)
    assert main(args) == code
    assert "page of what is done: " in capsys.readouterr().out
    assert main(["report", "--run-dir", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run/report.html").read_text()
    assert "This comparison is not complete" in page and page.count("<video muted") == 1 and "not done yet" in page
    rows = json.loads((tmp_path / "run/comparison.json").read_text())["rows"]
    assert [(row["score"]["n"], row["failed"], row["left_out"]) for row in rows] == [(1, [], []), (0, [], [sample.id])]
    monkeypatch.setattr(comparing, "fit_all", fit_all)
    assert main(args) == 0
    assert f"page: {tmp_path / 'run/report.html'}" in capsys.readouterr().out.replace("\n", "")
    assert "not complete" not in (tmp_path / "run/report.html").read_text()


def test_the_first_table_is_of_the_videos_that_are_judged() -> None:
    """Their losses, which video was kept, and repairs without a step apart."""
    from test_report import optimization
    from test_table import result

    made = []
    for name, kept, steps in (("a", "adapter", 4), ("b", "prediction", 0), ("c", "base", 2)):
        seen = {"video_before": Graded(0.9, [0.1]), "video_after": Graded(0.25, [0.8])}
        own = dataclasses.replace(optimization(), kept=kept, steps=steps, **seen)
        made.append(result(name, kept != "base", optimization=own))
    output = rich.console.Console(width=140, file=io.StringIO())
    Console(output).summary(made)
    assert isinstance(output.file, io.StringIO)
    said = output.file.getvalue()
    assert said.count("0.900 → 0.250") == 3 and "0.400" not in said, "not those of the predictions"
    assert all(word in said for word in ("adapter", "prediction", "frozen"))
    assert "right by the scorer: 0 of 3 → 2 of 3; 2 repaired (1 without a step), 0 broken" in said


def test_a_benchmark_gets_its_layout(tiny: list[str], tmp_path: Path) -> None:
    miniworld.export(tmp_path / "world", "id", ["move"], 3, 2)
    settings = parse_compare(
        [*tiny, "--dataset", "vbvr", "--root", str(tmp_path / "world"), "--split", "all", "--only", "[single]"]
    )
    with pytest.raises(UserError, match="Out-of-Domain_50 is missing"):
        run(settings)
    found = run(dataclasses.replace(settings, split="id"))
    written = sorted(str(p.relative_to(found.folder / "outputs")) for p in (found.folder / "outputs").rglob("*.mp4"))
    assert written == [f"single/In-Domain_50/M-1_move_data-generator/0000{n}.mp4" for n in (0, 1)]
    assert found.table[0].score.mean == found.table[0].satisfied, "no scorer: the teacher's questions"


def test_what_a_method_cannot_do_is_said_and_counted(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A random teacher rewrites no prompt."""
    tiny[1] = str(Path(tiny[1]).with_name("other.yaml"))
    Path(tiny[1]).write_text(
        "methods:\n- {name: single, path: ttopt.methods.Single}\n- {name: PE, path: ttopt.methods.PromptRewrite}\n"
    )
    assert main(["compare", *tiny, "--limit", "1"]) == 2
    out, err = capsys.readouterr()
    assert "PE: no usable video for id-move-0-0000; counted as 0" in out
    assert "error: PE: sample id-move-0-0000:" in err


@pytest.mark.parametrize("name", COMPARISONS)
def test_shipped_comparison_parses_and_survives_yaml(name: str, tmp_path: Path) -> None:
    settings = parse_compare(["--config", name, "--root", str(tmp_path)])
    (tmp_path / "again.yaml").write_text(to_yaml(settings))
    assert parse_compare(["--config", str(tmp_path / "again.yaml")]) == settings


def test_gen_vire_has_the_papers_clips(tmp_path: Path) -> None:
    settings = parse_compare(["--config", "genvire", "--root", str(tmp_path)])
    assert (settings.sample.frames - 1) / settings.sample.fps == 6
    loops = [method.arguments for method in settings.methods if method.path == "loop.StepLoop"]
    assert loops and all(arguments["clip_seconds"] == [6, 3] for arguments in loops)


def test_the_base_comes_first(tmp_path: Path) -> None:
    assert parse_compare([]).teacher.frames == 7
    real = parse_compare(["--base", "wan22_5b", "--optimization.lr", "1e-4"])
    assert (real.teacher.frames, real.optimization.lr, real.sample.multiple) == (24, 1e-4, 32)
    (tmp_path / "c.yaml").write_text("base: wan22_5b\nteacher: {frames: 12}" + METHODS)
    mine = parse_compare(["--config", str(tmp_path / "c.yaml"), "--seed", "3"])
    assert (mine.teacher.frames, mine.reasoner.renoise, mine.seed) == (12, True, 3)
    lora = settings_of(mine.methods[3], mine, Path("x"))
    assert (lora.optimization.steps, lora.adapter.rank, lora.teacher.frames, lora.run_dir) == (1, 2, 12, "x")


MISTAKES = {
    "no methods": ("seed: 1", "methods is empty"),
    "two of a name": ("methods:\n- {name: single}\n- {name: Single}", "too like another"),
    "samples": ("methods:\n- {name: single, settings: {seed: 1}}", "method single: seed must be the same for all"),
    "prompts": ("methods:\n- {name: single, settings: {chat.prompts: gone}}", "method single: chat.prompts is 'gone'"),
    "setting": ("methods:\n- {name: single, settings: {teacher.frmes: 3}}", "the nearest is teacher.frames"),
    "reference": ("methods:\n- {name: a}", "reference is 'single', but the methods are a"),
    "only": ("only: [b]\nmethods:\n- {name: single}", "only names 'b'"),
    "method": ("method: {path: x.Y}\nmethods:\n- {name: single}", "leave --method out"),
    "key": ("referense: x", "the nearest is reference"),
}


@pytest.mark.parametrize("content, message", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        parse_compare(["--config", str(tmp_path / "c.yaml")])


def test_old_models_are_gone_before_new_ones_come(settings: Any, tmp_path: Path) -> None:
    """Although a Trainer, which refers to itself, still knows them."""
    load, first = Loader(), settings(optimization={"steps": 1})
    fit_sample(tiny_sample(), load(first), first, tmp_path, queries=given_queries(first))
    old = weakref.ref(load(first).reasoner.transformer)
    gc.disable()
    try:
        load(settings(adapter={"rank": 2}))
    finally:
        gc.enable()
    assert old() is None


def test_models_are_loaded_again_only_for_other_models(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []
    monkeypatch.setattr(loader, "load_models", lambda settings: loaded.append(settings) or len(loaded))
    load, settings = Loader(), parse_compare([])
    more = dataclasses.replace(settings, seed=5, optimization=dataclasses.replace(settings.optimization, steps=1))
    other = dataclasses.replace(settings, adapter=dataclasses.replace(settings.adapter, rank=2))
    assert [load(s) for s in (settings, more, other, settings)] == [1, 1, 2, 3]
