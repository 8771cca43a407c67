"""Samples and data sets that are wrong, one line a case."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from bad_input import FEW, JSON, LONG, Capture, Files, one_sentence, refused_untouched, write
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ttopt.__main__ import main
from ttopt.config.settings import FitSettings, TeacherSettings
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.run import run as engine

OWN = [  # what is typed after "ttopt fit --sample.prompt move"
    ("--sample.prompt ''", "sample.prompt is empty; say what should happen: --sample.prompt"),
    ("--sample.prompt ' \n\t'", "sample.prompt is empty; say what should happen"),
    ("--sample.prompt 'go \udcff'", "sample.prompt holds a half of a character (a lone surrogate); write it in UTF-8"),
    ("--sample.image missing.png", "image missing.png: there is no such file; check --sample.image"),
    ("--sample.image empty.png", "image empty.png is empty; give a PNG or JPEG file"),
    ("--sample.image text.png", "image text.png cannot be read as an image; give a PNG or JPEG file"),
    ("--sample.image vector.svg", "image vector.svg cannot be read as an image; give a PNG or JPEG file"),
    ("--sample.image cut.png", "image cut.png cannot be read as an image; give a PNG or JPEG file"),
    ("--sample.image cut.jpg", "image cut.jpg cannot be read as an image; give a PNG or JPEG file"),
    ("--sample.image tags.jpg", "image tags.jpg cannot be read as an image; give a PNG or JPEG file"),
    ("--sample.image signature.png", "image signature.png cannot be read as an image"),
    ("--sample.image damaged.png", "image damaged.png cannot be read as an image"),
    ("--sample.image bomb.png", "image bomb.png cannot be read as an image; give a PNG or JPEG file"),
    ("--sample.image folder.png", "image folder.png: there is no such file; check --sample.image"),
    ("--sample.image dangling.png", "image dangling.png: there is no such file; check --sample.image"),
    ("--sample.image circle.png", "image circle.png: there is no such file; check --sample.image"),
    ("--sample.image pipe.png", "image pipe.png: there is no such file; check --sample.image"),
    (f"--sample.image {LONG}.png", "File name too long; give another path"),
    ("--sample.image http://example.org/a.png", "image http:/example.org/a.png: there is no such file"),
    ("--sample.id ''", "sample id '' cannot name a folder: use 1-120 letters"),
    ("--sample.id '..'", "sample id '..' cannot name a folder"),
    ("--sample.id a/b", "sample id 'a/b' cannot name a folder"),
    ("--sample.id 'a b'", "sample id 'a b' cannot name a folder"),
    ("--sample.id -a", "sample id '-a' cannot name a folder"),
    (f"--sample.id {LONG}", "cannot name a folder: use 1-120 letters"),
    ("--sample.frames 0", "sample.frames is 0; give 4k+1 frames"),
    ("--sample.frames -3", "sample.frames is -3; give 4k+1 frames"),
    ("--sample.frames 10", "sample sample: 10 frames; Wan videos have 4k+1 frames (5, 9, ... 81, 89)"),
    ("--sample.frames 4000000001", "sample.frames is 4000000001; give 65,536 or less"),
    ("--sample.frames 5", "teacher.frames is 7, but the video has only 5 frames; give --teacher.frames 5 or fewer"),
    ("--sample.fps 0", "sample.fps is 0; give frames a second, e.g. 16"),
    ("--sample.fps 24.5", "--sample.fps: Expected a int. Got value: 24.5"),
    ("--sample.fps 1000000", "sample.fps is 1000000; give 1,000 or less"),
    ("--sample.height 0", "sample.height is 0; give pixels, e.g. 480"),
    ("--sample.width -48", "sample.width is -48; give pixels, e.g. 832"),
    ("--sample.height 51", "sample.height, width, multiple are 51, 96, 16; give even numbers, as H.264 needs"),
    ("--sample.multiple 1", "sample.height, width, multiple are 96, 96, 1; give even numbers, as H.264 needs"),
    ("--sample.width 1000000 --sample.image small.png", "sample.width is 1000000; give 32,768 or less"),
]  # fmt: skip


def png(width: int = 8, height: int = 8) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((width, height), 50).convert("RGB").save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def pictures(place: Path) -> Path:
    """Files that are, or only seem to be, images."""
    content = png(64, 64)
    jpeg = io.BytesIO()
    Image.open(io.BytesIO(content)).save(jpeg, "JPEG")
    tags, tagged = Image.Exif(), io.BytesIO()
    tags[0x010F], tags[0x0112] = "maker", 6
    Image.open(io.BytesIO(content)).save(tagged, "JPEG", exif=tags)
    words_for_a_width = tagged.getvalue().replace(b"\x01\x0f\x00\x02", b"\x01\x00\x00\x02")
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    files = {
        "small.png": png(), "empty.png": b"", "text.png": b"not an image", "vector.svg": b"<svg/>",
        "tags.jpg": words_for_a_width,
        "cut.png": content[:-200], "cut.jpg": jpeg.getvalue()[:400], "signature.png": content[:8],
        "damaged.png": content[:40] + b"\0" * 40 + content[80:], "bomb.png": content[:8] + chunk,
    }  # fmt: skip
    for name, data in files.items():
        (place / name).write_bytes(data)
    (place / "folder.png").mkdir()
    (place / "dangling.png").symlink_to("nowhere")
    (place / "circle.png").symlink_to("circle.png")
    os.mkfifo(place / "pipe.png")
    return place


@pytest.mark.parametrize(
    "typed, expected", OWN, ids=[typed[:60].encode("ascii", "replace").decode() for typed, _ in OWN]
)
def test_own_sample(typed: str, expected: str, pictures: Path, capsys: Capture) -> None:
    refused_untouched(pictures, ["fit", "--sample.prompt", "move", *shlex.split(typed)], expected, capsys)


PNG = png()
PAIR: Files = {"a.png": PNG, "a.txt": "go"}
FOLDERS: list[tuple[Files, str]] = [  # a folder of images and prompts
    ({}, "data holds no prompts; write one into a .txt file beside each image"),
    ({"a.csv": "go"}, "data holds no prompts"),
    ({"a.png": PNG}, "data/a.png has no prompt; write it into data/a.txt"),
    (PAIR | {"b.jpg": PNG}, "data/b.jpg has no prompt; write it into data/b.txt"),
    ({"a.txt": ""}, "sample a: the prompt is empty"),
    ({"a.txt": b"\xff\xfe go"}, "data/a.txt is not UTF-8 text; write it again"),
    (PAIR | {"a.png": b""}, "image data/a.png cannot be read; fetch the data set again"),
    (PAIR | {"a.png": PNG[:20]}, "image data/a.png cannot be read"),
    (PAIR | {"a.jpg": PNG}, "data/a.jpg and a.png are both of sample a; keep one of them"),
    (PAIR | {"a.JPG": PNG}, "data/a.JPG and a.png are both of sample a; keep one of them"),
    (PAIR | {"a.heic": b"0"}, "data/a.heic is no image that can be read; make it a PNG file, or move it elsewhere"),
    ({"a.txt": "go", "a.mp4": b"0"}, "data/a.mp4 is no image that can be read; make it a PNG file, or move it"),
    (PAIR | {"b.heic": b"0"}, "data/b.heic has no prompt; write it into data/b.txt"),
    (PAIR | {"b.tif": b"0"}, "data/b.tif has no prompt"),
    ({"readme.txt": "go", "readme.png": b""}, "image data/readme.png cannot be read"),
    (PAIR | {"a.png": b"<svg/>"}, "image data/a.png cannot be read"),
    ({"my photo.png": PNG, "my photo.txt": "go"}, "sample id 'my photo' cannot name a folder: .. a .jsonl file"),
    ({".txt": "go", "._a.txt": "go", "Thumbs.db": "", "README.txt": "about"}, "data holds no prompts"),
    ({"con.txt": "go"}, "sample id 'con' cannot name a folder: use .. no name that Windows keeps for itself"),
    ({"a.txt": "go", "A.txt": "come"}, "the samples A and a would share a folder; give each its own name"),
]
LINES: list[tuple[str | bytes, str]] = [  # a .jsonl file
    ("", "dataset folder: data.jsonl holds no samples; check --root"),
    ("{", "data.jsonl, line 1: Expecting property name"),
    ('{"prompt": "go"}\n\n{"prompt":', "data.jsonl, line 3: Expecting value"),
    ("null", "data.jsonl must hold JSON objects, one a sample"),
    ('["go"]', "data.jsonl must hold JSON objects, one a sample"),
    ('{"prompt": "go"} {"prompt": "come"}', "data.jsonl, line 1: Extra data"),
    (b'{"prompt": "\xff"}', "data.jsonl cannot be read ('utf-8' codec"),
    ("[" * 100_000, "data.jsonl, line 1: it is nested too deeply"),
    ("{}", "data.jsonl, record 1: prompt: Field required"),
    ('{"pormpt": "go"}', "data.jsonl, record 1: unknown key 'pormpt'; the nearest is 'prompt'"),
    ('{"prompt": "go", "image_path": "a.png"}', "record 1: unknown key 'image_path'; the nearest is 'image'"),
    ('{"prompt": "go"}\n{"prompt": "go", "imag": "a.png"}', "record 2: unknown key 'imag'; the nearest is 'image'"),
    ('{"prompt": "go", "prompt": "come"}', "data.jsonl, line 1: the key 'prompt' comes twice"),
    ('{"prompt": ""}', "sample 00001: the prompt is empty"),
    ('{"prompt": null}', "data.jsonl, record 1: prompt: Input should be a valid string"),
    ('{"prompt": 3}', "data.jsonl, record 1: prompt: Input should be a valid string"),
    ('{"prompt": ["go"]}', "data.jsonl, record 1: prompt: Input should be a valid string"),
    ('\n{"prompt": "\\ud800"}', "data.jsonl, line 2: half of a character, '\\ud800'; fetch the data set again"),
    ('{"prompt": "go", "family": "\\uDFFF"}', "data.jsonl, line 1: half of a character, '\\udfff'"),
    ('{"prompt": "go", "\\ud83d": 1}', "data.jsonl, line 1: half of a character, '\\ud83d'"),
    ('{"prompt": "go", "frames": 10}', "sample 00001: 10 frames; Wan videos have 4k+1 frames"),
    ('{"prompt": "go", "frames": 9.7}', "record 1: frames: Input should be a valid integer"),
    ('{"prompt": "go", "frames": "9"}', "record 1: frames: Input should be a valid integer"),
    ('{"prompt": "go", "frames": true}', "record 1: frames: Input should be a valid integer"),
    ('{"prompt": "go", "frames": NaN}', "record 1: frames: Input should be a valid integer"),
    ('{"prompt": "go", "frames": 1e999}', "record 1: frames: Input should be a valid integer"),
    ('{"prompt": "go", "frames": -3}', "sample 00001: -3 frames; Wan videos"),
    ('{"prompt": "go", "frames": ' + "9" * 5000 + "}", "data.jsonl, line 1: Exceeds the limit (4300 digits)"),
    ('{"prompt": "go", "fps": 0}', "sample 00001: 0 frames a second; give 1 to 1000"),
    ('{"prompt": "go", "fps": {}}', "record 1: fps: Input should be a valid integer"),
    ('{"prompt": "go", "id": "../../x"}', "sample id '../../x' cannot name a folder"),
    ('{"prompt": "go", "id": "a\\u0000"}', "sample id 'a\\x00' cannot name a folder"),
    ('{"prompt": "go", "id": {"a": 1}}', "record 1: id: Input should be a valid string"),
    ('{"prompt": "go", "id": true}', "record 1: id: Input should be a valid string"),
    ('{"prompt": "go", "id": 1}\n{"prompt": "go", "id": "1"}', "data.jsonl has two samples called '1'; give each"),
    ('{"prompt": "go", "image": 5}', "record 1: image: Input should be a valid string"),
    ('{"prompt": "go", "image": "no.png"}', "image no.png: there is no such file; check --root"),
    ('{"prompt": "go", "image": "a\\u0000.png"}', "image a .png: there is no such file; check --root"),
    ('{"prompt": "go", "family": ["f"]}', "record 1: family: Input should be a valid string"),
]
TASK = "In-Domain_50/T-1_move_data-generator/00000"
VBVR: Files = {f"{TASK}/first_frame.png": PNG, f"{TASK}/prompt.txt": "go"}
RULER = {"prompt": "go", "index": 1, "task_name": "t", "category": "c", "checklist": [{"Rule Coherence": "is it?"}]}
GENVIRE = {"main_category": "m", "sub_category": "s", "id": 1, "i2v_prompt": "go", "image": "a.png"}


def ruler(**changes: Any) -> tuple[str, Files]:
    return "ruler", {"data.jsonl": json.dumps(RULER | changes), "a.png": PNG}


def genvire(**changes: Any) -> tuple[str, Files]:
    return "genvire", {"samples.json": json.dumps([GENVIRE | changes]), "a.png": PNG}


PARQUET = "data/samples.parquet " + (
    "cannot be read" if find_spec("pyarrow") else "is a parquet file; pip install -e '.[benchmarks]' to read it"
)
BENCHMARKS: list[tuple[tuple[str, Files], str]] = [
    (("vbvr", {}), "data/In-Domain_50 is missing; --root must be a copy of Video-Reason/VBVR-Bench-Data"),
    (("vbvr", {"In-Domain_50/x": ""}), "data holds no samples; --root must be a copy of"),
    (("vbvr", {f"{TASK}/first_frame.png": PNG}), f"data/{TASK}/prompt.txt is missing; fetch the data set again"),
    (("vbvr", {f"{TASK}/prompt.txt": "go"}), f"image data/{TASK}/first_frame.png: there is no such file"),
    (("vbvr", VBVR | {f"{TASK}/prompt.txt": b"\xff"}), "prompt.txt is not UTF-8 text; write it again"),
    (("vbvr", VBVR | {f"{TASK}/prompt.txt": ""}), "the prompt is empty"),
    (("vbvr", VBVR | {f"{TASK}/ground_truth.mp4": "no"}), "ground_truth.mp4 cannot be read as a video; fetch"),
    (("ruler", {}), "data/data.jsonl cannot be read .. check --root"),
    (("ruler", {"data.jsonl": ""}), "dataset ruler: data holds no samples; check --root"),
    (ruler(prompt=3), "t.1: prompt is 3, which is no text; fetch the data set again"),
    (ruler(prompt=None), "t.1: the field 'prompt' is missing; fetch the data set again, or check --root"),
    (ruler(category=""), "data/data.jsonl, record 1: the field 'category' is missing"),
    (ruler(index=None), "t: the field 'index' is missing"),
    (ruler(task_name="t/u"), "'t/u' "),
    (ruler(task_name="x" * 200), "cannot name a folder"),
    (ruler(checklist=5), "data.jsonl, record 1: the checklist must be a list of {metric: question}"),
    (ruler(checklist=[{"Beauty": "is it?"}]), "the checklist must be a list of {metric: question}; metrics: Instr"),
    (ruler(checklist="x("), "data.jsonl, record 1: the checklist cannot be read; fetch the data set again"),
    (ruler(checklist="[" * 5000), "data.jsonl, record 1: the checklist cannot be read"),
    (("ruler", {"data.jsonl": '{"prompt": "\\ud800"}'}), "data/data.jsonl, line 1: half of a character"),
    (ruler(input_image_path=5), "image data/5: there is no such file; check --root"),
    (ruler(input_image_path="../a.png"), "../a.png lies outside data; check the data set"),
    (ruler(input_image_path="a\0b"), "'a\\x00b' in the data set data cannot name a file (embedded null byte)"),
    (("genvire", {"samples.json": "[]"}), "data has no .json, .jsonl or .parquet file of samples with i2v_prompt"),
    (("genvire", {"samples.parquet": "PAR1"}), PARQUET),
    (genvire(i2v_prompt=["go"]), "m.s.1: i2v_prompt is ['go'], which is no text; fetch the data set again"),
    (genvire(image={"bytes": "x"}), "m.s.1: the image's bytes are none; fetch the data set again"),
    (genvire(image=5), "image data/5: there is no such file"),
    (genvire(image="/etc/hostname"), "/etc/hostname lies outside data; check the data set"),
    (genvire(main_category=None), "data: the field 'main_category' is missing"),
    (
        ("vbvr", {"data.jsonl": "{}"}),
        "data/In-Domain_50 is missing .. data looks like RULER-Bench: give --dataset ruler",
    ),
    (("ruler", VBVR), "data/data.jsonl cannot be read .. data looks like VBVR-Bench: give --dataset vbvr"),
    (("genvire", {"eval/maze/1/x": ""}), "i2v_prompt; check --root; data looks like VR-Bench: give --dataset vrbench"),
    (("folder", {"switch-frames/a": ""}), "holds no prompts .. looks like Physics-IQ: give --dataset physics_iq"),
    (
        ("vbvr", {f"in/{TASK}/prompt.txt": "go"}),
        "is missing .. VBVR-Bench seems to lie in data/in: give --root data/in",
    ),
]


@pytest.mark.parametrize(
    "dataset, files, expected",
    [
        *(("folder", files, expected) for files, expected in FOLDERS),
        *(("folder", {"data.jsonl": content}, expected) for content, expected in LINES),
        *((*which, expected) for which, expected in BENCHMARKS),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_data_sets(dataset: str, files: Files, expected: str, place: Path, capsys: Capture) -> None:
    alone = dataset == "folder" and list(files) == ["data.jsonl"]
    (place / "data").mkdir()
    write(place if alone else place / "data", files)
    root = "data.jsonl" if alone else "data"
    refused_untouched(place, ["fit", "--dataset", dataset, "--root", root, "--teacher.frames", "5"], expected, capsys)


def test_a_damaged_image_fails_its_sample_alone(place: Path, capsys: Capture) -> None:
    content = png(48, 48)
    write(place / "data", {"a.png": content[:-200], "a.txt": "go", "b.png": content, "b.txt": "go"})
    args = ["fit", "--dataset", "folder", "--root", "data", "--method.path", "ttopt.methods.Static", "--run-dir", "run"]
    args += ["--sample.height", "48", "--sample.width", "48", "--sample.frames", "9", "--teacher.frames", "5"]
    assert main([*args, "--logging.wandb", "disabled"]) == 2
    assert "sample a: image data/a.png cannot be read; fetch the data set again" in capsys.readouterr().err
    assert [path.name for path in (place / "run/samples").iterdir()] == ["b"]


@FEW
@given(name=st.text(st.characters(codec="utf-8"), max_size=130) | st.text("aZ09._-/\\:~\u2044\u2215\uff0f", max_size=9))
def test_any_id_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    """A name of one folder, on every file system; or one sentence."""
    try:
        sample = Sample(name, "go", None, 9, 8, 48, 48)
    except UserError as error:
        one_sentence(str(error), "cannot name a folder")
    else:
        assert (tmp_path / sample.id).resolve().parent == tmp_path.resolve()
        assert re.fullmatch(r"[\w.-]+", sample.id, re.ASCII) and sample.id[0] not in ".-" and sample.id[-1] != "."


KEYS = ["prompt", "id", "image", "frames", "fps", "family"]


@FEW
@given(row=st.dictionaries(st.sampled_from(KEYS), JSON) | st.dictionaries(st.text() | st.sampled_from(KEYS), JSON))
def test_any_line(place: Path, row: dict[str, Any]) -> None:
    """A sample, or one sentence."""
    (place / "data.jsonl").write_text(json.dumps({"prompt": "go"} | row))
    wanted = FitSettings(dataset="folder", root="data.jsonl", teacher=TeacherSettings(frames=1))
    try:
        samples, _ = engine.find_samples(wanted)
    except UserError as error:
        one_sentence(str(error), "")
    else:
        assert len(samples) == 1
