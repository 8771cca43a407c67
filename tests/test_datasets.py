"""Data sets from files: the official layouts are read and written, and no answer reaches a model."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ttopt.config.parsing import parse_fit
from ttopt.config.settings import SampleSettings
from ttopt.data import folder, genvire, miniworld, ruler, vbvr
from ttopt.data.files import fitted_length, fitted_size
from ttopt.data.find import find_samples
from ttopt.data.sample import Sample
from ttopt.data.video import read_video, sample_frames, write_video
from ttopt.errors import UserError

FORM = SampleSettings(frames=81, fps=24, height=704, width=1280)
SMALL = SampleSettings(frames=89, fps=24, height=48, width=48, multiple=16)


def seen(sample: Sample) -> Sample:
    """A sample as models see it."""
    return dataclasses.replace(sample, answer=None, first_frame=None)


def picture(path: Path, width: int = 64, height: int = 48, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)


def test_sizes_keep_the_aspect() -> None:
    assert fitted_size(1024, 1024, FORM) == (928, 928), "square stays square, within the area"
    height, width = fitted_size(480, 832, FORM)
    assert height % 32 == width % 32 == 0 and height * width <= 704 * 1280
    assert abs(width / height - 832 / 480) < 0.06
    assert fitted_size(10, 4000, SMALL) == (16, 960), "never empty"
    assert [fitted_length(n, FORM) for n in (2, 22, 46, 79, 100)] == [5, 21, 45, 77, 81]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A small VBVR-Bench: three tasks in its layout, made by the embedded world."""
    for split in ("id", "ood"):
        miniworld.export(tmp_path, split, ["move", "maze", "paint"], 3, 6)
    return tmp_path


def test_vbvr(world: Path) -> None:
    form = dataclasses.replace(SMALL, height=96, width=96)
    found = vbvr.samples("all", None, 0, 100, root=world, form=form)
    assert len(found) == 12 and {sample.split for sample in found} == {"id", "ood"}
    ours = miniworld.samples("id", ["move", "maze", "paint"], 3, 6)
    by_prompt = {sample.prompt: sample for sample in found if sample.split == "id"}
    for sample in ours:
        other = by_prompt[sample.prompt]
        assert (other.frames, other.fps, other.height, other.width) == (25, 8, 96, 96)
        assert other.image is not None and sample.image is not None
        assert (other.image - sample.image).abs().max() <= 1 / 255, "from the PNG, not from the coded video"
    few = vbvr.samples("id", None, 0, 3, root=world, form=SMALL)
    assert len({sample.family for sample in few}) == 3, "a few samples cover all tasks"
    more = vbvr.samples("id", None, 9, 4, root=world, form=SMALL)
    assert [s.id for s in few] == [s.id for s in more][:3], "a larger limit adds to what is there"


@pytest.mark.skipif("TTOPT_VBVR" not in os.environ, reason="TTOPT_VBVR names no copy of VBVR-Bench")
def test_vbvr_of_the_real_format() -> None:
    root = Path(os.environ["TTOPT_VBVR"])
    found = vbvr.samples("all", None, 0, 9, root=root, form=dataclasses.replace(FORM, multiple=32))
    assert found
    for sample in found:
        assert sample.image is not None and sample.height == sample.width == 928 and sample.fps == 16
        assert 21 <= sample.frames <= FORM.frames and len(sample.prompt.split()) > 5
        assert (sample.answer / "ground_truth.mp4").is_file() and (root / vbvr.output_path(sample)).parent.is_dir()


def test_vbvr_answers_reach_no_model(world: Path) -> None:
    before = vbvr.samples("all", None, 0, 100, root=world, form=SMALL)
    for place in world.glob("*/*/*/"):
        (place / "final_frame.png").unlink()
        (place / "metadata.json").unlink()
        video = place / "ground_truth.mp4"
        write_video(video, 1 - read_video(video), 8)
    after = vbvr.samples("all", None, 0, 100, root=world, form=SMALL)
    assert [seen(sample) for sample in after] == [seen(sample) for sample in before]
    for old, new in zip(before, after, strict=True):
        assert old.image is not None and new.image is not None and torch.equal(old.image, new.image)


def test_vbvr_outputs_lie_where_the_evaluator_looks(world: Path) -> None:
    paths = {str(vbvr.output_path(s)) for s in vbvr.samples("all", None, 0, 100, root=world, form=SMALL)}
    assert "Out-of-Domain_50/M-1_move_data-generator/00001.mp4" in paths and len(paths) == 12
    assert all((world / path).with_suffix("").is_dir() for path in paths), "as the ground truth's folders"


RULER = {
    "prompt": "Drop iron into acid",
    "implicit_explanation": "SECRET bubbles",
    "index": 7,
    "checklist": [{"Rule Coherence": "Does it bubble?"}, {"Visual Fidelity": "Sharp?"}],
    "task_name": "chemistry",
    "category": "science",
    "input_image_path": "images/a.png",
    "initial_scenario": "SECRET",
    "gt_image_path": "images/SECRET.png",
}


def ruler_root(root: Path, *rows: dict[str, Any]) -> Path:
    picture(root / "images/a.png")
    (root / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return root


def test_ruler(tmp_path: Path) -> None:
    as_text = RULER | {"checklist": str(RULER["checklist"]), "index": 8, "input_image_path": "", "category": "game"}
    root = ruler_root(tmp_path, RULER, as_text)
    first, second = ruler.samples("id", None, 0, 9, root=root, form=FORM)
    assert (first.id, first.family, first.prompt) == ("chemistry.7", "science", "Drop iron into acid")
    assert first.image is not None and second.image is None
    assert first.answer["checklist"] == second.answer["checklist"], "a list, and the same list as text"
    assert "SECRET" not in str(seen(first))
    assert ruler.output_path(first) == Path("chemistry/7.mp4")
    assert [s.id for s in ruler.samples("id", ["science"], 0, 9, root=root, form=FORM)] == ["chemistry.7"]


def test_genvire(tmp_path: Path) -> None:
    row = {"main_category": "Planning", "sub_category": "maze", "id": "3", "i2v_prompt": "solve it", "image": "i/m.png"}
    row |= {"eval_json_path": "rubrics/SECRET.json", "needs_frame_extraction": True}
    (tmp_path / "a_rubric.json").write_text('{"criteria": []}')
    (tmp_path / "samples.json").write_text(json.dumps([row]))
    picture(tmp_path / "i/m.png", 80, 45)
    (sample,) = genvire.samples("id", None, 0, 9, root=tmp_path, form=FORM)
    assert (sample.id, sample.prompt, sample.family) == ("Planning.maze.3", "solve it", "Planning")
    assert "SECRET" not in str(seen(sample))
    assert genvire.output_path(sample) == Path("Planning/maze/3.mp4")


def test_genvire_from_the_hub(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    picture(tmp_path / "m.png")
    image = {"bytes": (tmp_path / "m.png").read_bytes(), "path": None}
    row = {"main_category": "Planning", "sub_category": "maze", "i2v_prompt": "solve it", "image": image}
    (tmp_path / "data").mkdir()
    for number in (3, 4):
        parquet.write_table(pyarrow.Table.from_pylist([row | {"id": number}]), tmp_path / f"data/{number}.parquet")
    sample, other = genvire.samples("id", None, 0, 9, root=tmp_path, form=FORM)
    assert sample.image is not None and sample.image[0].min() > 0.99 and sample.image[1].max() < 0.01
    assert other.id == "Planning.maze.4"
    (tmp_path / "data/5.parquet").write_bytes(b"half")
    with pytest.raises(UserError, match="5.parquet cannot be read"):
        genvire.samples("id", None, 0, 9, root=tmp_path, form=FORM)


def test_folder(tmp_path: Path) -> None:
    picture(tmp_path / "b.png", 64, 64)
    (tmp_path / "b.txt").write_text("go left\n")
    (tmp_path / "a.txt").write_text("a storm")
    a, b = folder.samples("id", None, 0, 9, root=tmp_path, form=FORM)
    assert (a.id, a.prompt, a.image) == ("a", "a storm", None)
    assert (b.id, b.prompt, b.height, b.width) == ("b", "go left", 928, 928)
    lines = tmp_path / "x.jsonl"
    lines.write_text('{"prompt": "go", "image": "b.png", "frames": 9, "fps": 8, "family": "f"}\n{"prompt": "come"}')
    one, two = folder.samples("id", None, 0, 9, root=lines, form=FORM)
    assert (one.id, one.frames, one.fps, one.family) == ("00001", 9, 8, "f")
    assert (two.id, two.frames, two.fps, two.image) == ("00002", 81, 24, None)
    assert folder.output_path(one) == Path("00001.mp4")


def test_a_folder_takes_images_of_many_kinds_and_no_litter(tmp_path: Path) -> None:
    for ending in ("avif", "gif", "tif", "jfif", "jpe", "jp2", "webp", "bmp", "PNG"):
        picture(tmp_path / f"{ending}.{ending}", 64, 64)
        (tmp_path / f"{ending}.txt").write_text("go")
    for name in ("._gif.txt", ".DS_Store", "Thumbs.db", "desktop.ini", "README.txt", "notes.md"):
        (tmp_path / name).write_text("litter")
    (tmp_path / "__MACOSX").mkdir()
    found = folder.samples("id", None, 0, 99, root=tmp_path, form=SMALL)
    assert len(found) == 9
    for sample in found:
        assert sample.image is not None and sample.image[0].min() > 0.9 and sample.image[1].max() < 0.1, sample.id


def test_thousands_of_samples_cost_neither_time_nor_memory(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 944, 944)
    record = {"prompt": "go", "image": "a.png"}
    (tmp_path / "all.jsonl").write_text("\n".join([json.dumps(record)] * 5000))
    begin, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = folder.samples("id", None, 0, 5000, root=tmp_path / "all.jsonl", form=FORM)
    assert len(found) == 5000 and time.process_time() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024, "KB; 15 images as tensors"
    assert found[-1].image is not None and found[-1].image.shape == (3, 928, 928)


def test_a_time_that_python_does_not_know(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    times = pyarrow.array([2**62], pyarrow.timestamp("us"))
    parquet.write_table(pyarrow.table({"i2v_prompt": ["go"], "when": times}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet cannot be read \(.+\); fetch the data set again"):
        genvire.samples("id", None, 0, 9, root=tmp_path, form=FORM)


Make = Callable[[Path], Any]
BAD: dict[str, tuple[Make, str]] = {
    "no prompt": (lambda p: (picture(p / "b.png"), folder.samples("id", None, 0, 1, root=p, form=FORM)), "no prompt"),
    "empty": (lambda p: folder.samples("id", None, 0, 1, root=p, form=FORM), "holds no prompts"),
    "not VBVR": (lambda p: vbvr.samples("id", None, 0, 1, root=p, form=FORM), "In-Domain_50 is missing"),
    "task": (
        lambda p: (
            miniworld.export(p, "id", ["move"], 3, 1),
            vbvr.samples("id", ["M-1_mov"], 0, 1, root=p, form=FORM),
        ),
        "the nearest is 'M-1_move'",
    ),
    "broken line": (
        lambda p: ((p / "data.jsonl").write_text("{}\n{"), ruler.samples("id", None, 0, 1, root=p, form=FORM)),
        "data.jsonl, line 2",
    ),
    "no data": (lambda p: ruler.samples("id", None, 0, 1, root=p, form=FORM), "data.jsonl cannot be read"),
    "checklist": (
        lambda p: ruler.samples("id", None, 0, 1, root=ruler_root(p, RULER | {"checklist": "x("}), form=FORM),
        "record 1: the checklist cannot be read",
    ),
    "escape": (
        lambda p: ruler.samples(
            "id", None, 0, 1, root=ruler_root(p, RULER | {"input_image_path": "../x.png"}), form=FORM
        ),
        "lies outside",
    ),
    "traversal": (
        lambda p: ruler.output_path(
            ruler.samples("id", None, 0, 1, root=ruler_root(p, RULER | {"task_name": "a/../../b"}), form=FORM)[0]
        ),
        "cannot name a file",
    ),
    "no samples": (lambda p: genvire.samples("id", None, 0, 1, root=p, form=FORM), "has no .json"),
}


@pytest.mark.parametrize("act, message", BAD.values(), ids=BAD.keys())
def test_what_is_missing_is_named(act: Make, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        act(tmp_path)


def test_command_line_names_a_data_set(world: Path) -> None:
    settings = parse_fit(["--config", "mini", "--dataset", "vbvr", "--root", str(world), "--limit", "2"])
    samples, scorer = find_samples(settings)
    assert len(samples) == 2 and scorer is None
    with pytest.raises(UserError, match="dataset vbvr needs its files; give their folder as --root"):
        parse_fit(["--dataset", "vbvr"])
    with pytest.raises(UserError, match="root nowhere does not exist"):
        parse_fit(["--dataset", "vbvr", "--root", "nowhere"])


def test_short_videos_show_all_their_frames() -> None:
    assert sample_frames(3, 9) == [0, 4, 8]
    with pytest.warns(UserWarning, match="only 21 frames: all are looked at instead of 24"):
        assert sample_frames(24, 21) == list(range(21))
