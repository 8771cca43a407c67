"""Result folders that are damaged or made by others: what is wrong is named and left out, the rest is shown, and
nothing from outside the folder is read."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_input import FEW, JSON, Capture, one_sentence
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from test_report import comparison, fits  # noqa: F401

from ttopt.__main__ import main
from ttopt.data import miniworld
from ttopt.data.video import write_video
from ttopt.evaluate.report import FILE, page, write_report
from ttopt.record.flat import load_results

SECRET = "not for others"
MP4 = b"\0\0\0\x20ftypisom"


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the plots' library, which takes most of a page's time."""
    monkeypatch.setattr(page, "_vega", lambda: Markup(""))


def at(content: Any, where: str, value: Any) -> str:
    """JSON with the value at a place such as "score.partial" exchanged; ... removes it."""
    content = copy.deepcopy(content)
    *way, last = where.split(".")
    part = content
    for name in way:
        part = part[int(name) if isinstance(part, list) else name]
    key: Any = int(last) if isinstance(part, list) else last
    if value is ...:
        del part[key]
    else:
        part[key] = value
    return json.dumps(content)


RESULT = [
    ("sample", 3), ("sample", "b"), ("sample", "../b"), ("sample", "a\0"), ("family", ["move"]), ("family", None),
    ("family", ...),
    ("split", {}), ("prompt", 7), ("prompt", "\ud800"), ("method", ["m"]), ("method", None), ("accepted", "yes"),
    ("stop", []), ("score", 1), ("score", []), ("score.success", "yes"), ("score.success", 1), ("score.partial", None),
    ("score.partial", "0.5"), ("score.partial", float("nan")), ("score.partial", 10**400), ("score.rules", ["goal"]),
    ("score.rules", {"goal": "broken"}), ("score.rules", None), ("cost", "cheap"), ("cost", None), ("cost", [1, 2]),
    ("cost.wall_seconds", "long"), ("cost.reasoner_forwards", 1.5), ("cost.reasoner_forwards", 10**400),
    ("cost.vlm_calls", -1), ("cost.vlm_calls", None), ("first_frame_ssim", "high"), ("seeds", []), ("seconds", {}),
    ("seconds", {"total": "1"}), ("peak_mb", None), ("device", 0), ("versions", "1"), ("versions", {"ttopt": 1}),
    ("finished", 2026), ("finished", None), ("error", None), ("error", 5), ("details", "none"), ("inputs", []),
    ("unknown", 1), ("optimization", {}), ("optimization", []), ("optimization", "no"),
    ("optimization.queries", []), ("optimization.queries", {}), ("optimization.queries.goal", ...),
    ("optimization.queries.goal", 1), ("optimization.queries.process", "one"), ("optimization.queries.process", [1]),
    ("optimization.steps", "2"), ("optimization.steps", None), ("optimization.kept", 1),
    ("optimization.prediction_before", None), ("optimization.video_after", {"loss": 1}),
    ("optimization.video_after.p_yes", "0.5"), ("optimization.video_after.p_yes", ["0.5"]),
    ("optimization.video_before.p_yes", None), ("optimization.video_before.loss", "low"),
    ("optimization.score_before", "right"), ("optimization.lora_norm", "big"), ("optimization.drift", [1]),
]  # fmt: skip
WHOLE = [b"", b"{", b"null", b"[]", b"3", b'"text"', b"\xff\xfe", b"\0\0", b"[" * 100_000, b'{"a": ' * 500]


@pytest.mark.parametrize("where, value", RESULT, ids=lambda value: str(value)[:20].encode("ascii", "replace").decode())
def test_a_damaged_result_is_left_out(fits: Path, where: str, value: Any, capsys: Capture) -> None:
    path = fits / "samples/a/result.json"
    path.write_text(at(json.loads(path.read_text()), where, value))
    left_out(fits, "a/result.json", capsys)


@pytest.mark.parametrize("content", WHOLE, ids=range(len(WHOLE)))
def test_a_result_that_is_none_is_left_out(fits: Path, content: bytes, capsys: Capture) -> None:
    (fits / "samples/a/result.json").write_bytes(content)
    left_out(fits, "a/result.json", capsys)


def left_out(folder: Path, named: str, capsys: Capture) -> None:
    assert main(["report", "--run-dir", str(folder)]) == 0
    said = capsys.readouterr().err
    assert said.startswith("note: ") and named in said
    one_sentence(said.strip(), "left out")
    text = (folder / FILE).read_text()
    assert 'data-id="b"' in text and 'data-id="a"' not in text, "the other is shown"
    assert named in text, "and the page says what is missing"


CURVES = [
    b"step,loss\n0,x\n", b"step,loss\n0\n", b"step,loss\n0,1,2,3\n", b"loss\n1\n", b"\xff\xfe", b"step,loss\nnan,1\n",
    b"step,loss\n" + b"0,1\n" * 20_000, b"step,loss\n" + b"0,1\n" * 8_000_000, b"step,loss\n" + b'"' * 200_000,
]  # fmt: skip
TRACES = [
    ("clips", 3), ("clips", {"a": 1}), ("clips", [3]), ("clips", [{"verdict": "accept"}]), ("clips", [{"step": "one"}]),
    ("clips", [{"verdict": {"verdict": 1}}]), ("clips", [{"verdict": {"progress": "half"}}]), ("calls", "none"),
    ("calls", [None]), ("calls", [{"role": "planner"}]), ("calls.0.role", ...), ("calls.0.clip", "0"),
    ("calls.0.text", {"a": 1}), ("calls.0.error", 1), ("calls.0.text", "\ud800"),
]  # fmt: skip


@pytest.mark.parametrize("content", CURVES, ids=range(len(CURVES)))
def test_damaged_curves_are_left_out(fits: Path, content: bytes, capsys: Capture) -> None:
    (fits / "samples/a/curves.csv").write_bytes(content)
    without(fits, "curves.csv", capsys)


@pytest.mark.parametrize("where, value", TRACES)
def test_a_damaged_trace_is_left_out(fits: Path, where: str, value: Any, capsys: Capture) -> None:
    path = fits / "samples/a/trace.json"
    path.write_text(at(json.loads(path.read_text()), where, value))
    without(fits, "trace.json", capsys)


def without(folder: Path, named: str, capsys: Capture) -> None:
    assert main(["report", "--run-dir", str(folder)]) == 0
    one_sentence(capsys.readouterr().err.strip(), f"{named} .. left out")
    text = (folder / FILE).read_text()
    assert 'data-id="a"' in text and named in text, "the sample is shown, and what it lacks is named"


SHARED = [
    ("queries.json", "a.goal", 3), ("queries.json", "a.process", "one"), ("queries.json", "a.process", []),
    ("queries.json", "a", "?"), ("queries.json", "a.goal", "\ud800"), ("queries.json", "a", None),
    ("methods/lora_loop/judged.json", "a.p_yes", "0.9"), ("methods/lora_loop/judged.json", "a.p_yes", ["0.9"]),
    ("methods/lora_loop/judged.json", "a", []), ("methods/lora_loop/judged.json", "a.ssim", "high"),
    ("methods/lora_loop/judged.json", "a.psnr", {}), ("methods/lora_loop/judged.json", "a.p_yes", ...),
]  # fmt: skip


@pytest.mark.parametrize("file, where, value", SHARED)
def test_damaged_grades_are_left_out(
    comparison: Path, file: str, where: str, value: Any, capsys: Capture  # noqa: F811
) -> None:  # fmt: skip
    path = comparison / file
    path.write_text(at(json.loads(path.read_text()), where, value))
    assert main(["report", "--run-dir", str(comparison)]) == 0
    said = capsys.readouterr().err
    assert path.name in said and "Traceback" not in said
    text = (comparison / FILE).read_text()
    assert all(f'data-id="{sample}"' in text for sample in "abc") and path.name in text


@pytest.mark.parametrize("content", WHOLE, ids=range(len(WHOLE)))
@pytest.mark.parametrize("file", ["comparison.json", "queries.json", "methods/lora_loop/judged.json"])
def test_files_that_are_none(comparison: Path, file: str, content: bytes, capsys: Capture) -> None:  # noqa: F811
    (comparison / file).write_bytes(content)
    code = main(["report", "--run-dir", str(comparison)])
    assert code == (2 if file == "comparison.json" else 0)
    one_sentence(capsys.readouterr().err.strip(), f"{Path(file).name} cannot be read")


NAMES: list[Any] = [
    [], {}, None, "a", {"../../elsewhere/samples/x": "move"}, {"a/b": "move"}, {"": "move"}, {"a": 3}, {"a": ["move"]},
    {"a\0": "move"}, {"a": "\ud800"}, {"/etc": ""},
]  # fmt: skip


@pytest.mark.parametrize("samples", NAMES, ids=range(len(NAMES)))
def test_a_comparison_names_its_samples(comparison: Path, samples: Any, capsys: Capture) -> None:  # noqa: F811
    (comparison / "comparison.json").write_text(json.dumps({"samples": samples}))
    assert main(["report", "--run-dir", str(comparison)]) == 2
    one_sentence(capsys.readouterr().err.strip(), "comparison.json cannot be read .. run ttopt compare")


def outside(folder: Path) -> Path:
    """A run that others must not see, beside the folder."""
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "secret.txt").write_bytes(SECRET.encode())
    (elsewhere / "secret.mp4").write_bytes(MP4 + SECRET.encode())
    shutil.copytree(folder / "samples/a", elsewhere / "samples/x")
    return elsewhere


LINKS = [
    ("samples/a/base.mp4", "secret.txt"), ("samples/a/base.mp4", "secret.mp4"), ("samples/a/video.mp4", "secret.mp4"),
    ("samples/a/curves.csv", "secret.txt"), ("samples/a/trace.json", "secret.txt"),
    ("samples/a/result.json", "secret.txt"),
    ("samples/x", "samples/x"), ("samples/a/base.mp4", "samples/x/base.mp4"), ("samples/a/base.mp4", "gone"),
    ("config.yaml", "secret.txt"),
]  # fmt: skip


@pytest.mark.parametrize("link, target", LINKS)
def test_nothing_outside_is_read(fits: Path, link: str, target: str, capsys: Capture) -> None:
    elsewhere, path = outside(fits), fits / link
    path.unlink(missing_ok=True)
    path.symlink_to(elsewhere / target)
    code = main(["report", "--run-dir", str(fits)])
    one_sentence(capsys.readouterr().err.strip(), path.name)
    assert code == (2 if link == "config.yaml" else 0)
    if code == 0:
        text = (fits / FILE).read_text()
        assert (
            SECRET not in text
            and "data:video/mp4;base64,AAAAIGZ0eXBpc29tbm90" not in text
            and 'data-id="x"' not in text
        )


def test_a_file_must_be_what_it_is_called(fits: Path, capsys: Capture) -> None:
    for name, content in {"base.mp4": b"#EXTM3U\n/etc/passwd\n", "video.mp4": MP4 + b"\0" * 99}.items():
        (fits / "samples/a" / name).write_bytes(content)
    assert main(["report", "--run-dir", str(fits)]) == 0
    said = capsys.readouterr().err
    assert "base.mp4 is no mp4 file" in said and "video.mp4 cannot be read as a video" in said
    assert (fits / FILE).read_text().count("<video muted") == 1


@pytest.mark.parametrize("name", ["result.json", "curves.csv", "trace.json", "base.mp4", "video.mp4"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "huge"])
def test_what_is_no_plain_file_is_not_waited_for(fits: Path, name: str, kind: str, capsys: Capture) -> None:
    path = fits / "samples/a" / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.write(MP4)
            file.truncate(2**30)
    assert main(["report", "--run-dir", str(fits)]) == 0
    one_sentence(capsys.readouterr().err.strip(), f"{name} .. left out")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("good")
    run = fits.__wrapped__(folder)  # type: ignore[attr-defined]
    yield run, {name: json.loads((run / f"samples/a/{name}").read_text()) for name in ("result.json", "trace.json")}


@FEW
@given(data=st.data())
def test_whatever_is_exchanged_the_other_sample_is_shown(good: Any, data: st.DataObject) -> None:
    """Any part of a good file by anything that JSON can say."""
    run, files = good
    name = data.draw(st.sampled_from(sorted(files)))
    content: Any = copy.deepcopy(files[name])
    part, way = content, []
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        if not keys:
            return
        way.append(data.draw(st.sampled_from(keys)))
        if not isinstance(part[way[-1]], (dict, list)) or data.draw(st.booleans()):
            break
        part = part[way[-1]]
    part[way[-1]] = data.draw(JSON)
    path = run / "samples/a" / name
    path.write_text(json.dumps(content))
    try:
        write_report(run)
    finally:
        path.write_text(json.dumps(files[name]))
    assert 'data-id="b"' in (run / FILE).read_text()


@FEW
@given(name=st.sampled_from(["result.json", "trace.json", "curves.csv", "base.mp4"]), content=st.binary(max_size=99))
def test_bytes_of_any_kind(good: Any, name: str, content: bytes) -> None:
    run, _ = good
    path = run / "samples/a" / name
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        write_report(run)
    finally:
        path.write_bytes(before)
    assert 'data-id="b"' in (run / FILE).read_text()


@pytest.mark.parametrize("way, damage", [(["drift"], {}), (["video_after", "p_yes"], [])])
def test_flat_results_leave_a_damaged_one_out(way: list[str], damage: Any, fits: Path) -> None:
    path = fits / "samples/a/result.json"
    content = json.loads(path.read_text())
    part = content["optimization"]
    for key in way[:-1]:
        part = part[key]
    part[way[-1]] = damage
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="a/result.json cannot be read .*left out"):
        found = load_results(fits)
    assert [record["sample"] for record in found] == ["b"]


EVALUATED = [
    ("methods/x/judged.json", b"[", "made again"),
    ("methods/x/judged.json", b'{"id-move-0-0000": {"p_yes": "text"}}', "made again"),
    ("queries.json", b'{"id-move-0-0000": {"goal": 1}}', "made again"),
    ("comparison.json", b"\0", ""),
    ("methods/x/samples/{id}/result.json", b"{}", "result.json cannot be read"),
    ("methods/x/samples/{id}/result.json", "inputs", "was made with another prompt or image (unknown, now"),
    ("methods/x/samples/{id}/result.json", "sample", "is of sample other, not of"),
]


@pytest.mark.parametrize("file, damage, said", EVALUATED)
def test_a_comparison_goes_on_beside_damaged_files(
    file: str, damage: bytes | str, said: str, tmp_path: Path, capsys: Capture
) -> None:
    (sample,) = miniworld.samples("id", ["move"], 3, 1)
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / f"videos/{sample.id}.mp4", miniworld.true_video(sample), 8)
    args = ["evaluate", "--videos", f"[{tmp_path / 'videos'}]", "--names", "[x]", "--seed", "3", "--families", "[move]"]
    args += ["--limit", "1", "--questions", "false", "--report", "false", "--logging.wandb", "disabled"]
    args += ["--run-dir", str(tmp_path / "run")]
    assert main(args) == 0
    path = tmp_path / "run" / file.format(id=sample.id)
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        path.write_text(at(json.loads(path.read_text()), damage, {} if damage == "inputs" else "other"))
    capsys.readouterr()
    code = main(args)
    out, err = capsys.readouterr()
    assert said in re.sub(r"\s+", " ", out + err) and "Traceback" not in err
    assert code == (2 if "result.json" in file else 0)
    if code == 2:
        one_sentence(err.strip(), "error: ")


DAMAGED = [("result.json", b"{}"), ("result.json", None), ("video.mp4", b"no video"), ("video.mp4", MP4 + b"\0" * 99),
           ("video.mp4", None)]  # fmt: skip


@pytest.mark.parametrize("file, content", DAMAGED)
def test_a_comparison_leaves_a_damaged_sample_out(
    file: str, content: bytes | None, tmp_path: Path, capsys: Capture
) -> None:
    """Named once; the other method and the other sample are in the table and on the page. None: a pipe."""
    samples = miniworld.samples("id", ["move"], 3, 2)
    for name in "xy":
        (tmp_path / name).mkdir()
        for sample in samples:
            write_video(tmp_path / name / f"{sample.id}.mp4", miniworld.true_video(sample), 8)
    args = ["evaluate", "--videos", f"[{tmp_path / 'x'},{tmp_path / 'y'}]", "--seed", "3", "--families", "[move]"]
    args += ["--limit", "2", "--questions", "false", "--logging.wandb", "disabled", "--run-dir", str(tmp_path / "run")]
    assert main(args) == 0
    path = tmp_path / "run/methods/x/samples" / samples[0].id / file
    path.unlink()
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
        (tmp_path / "run/methods/x/judged.json").unlink()  # else nothing is read again
    capsys.readouterr()
    assert main(args) == 2
    err = capsys.readouterr().err
    one_sentence(err.strip(), "error: ")
    assert f"x: sample {samples[0].id}: " in err and file in err
    rows = json.loads((tmp_path / "run/comparison.json").read_text())["rows"]
    decodable = content is not None and file == "video.mp4" and content.startswith(MP4)
    assert [row["left_out"] for row in rows] == [[] if decodable else [samples[0].id], []]
    text = (tmp_path / "run/report.html").read_text()
    assert text.count("<video muted") == 3 and file in text
