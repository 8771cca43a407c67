"""Physics-IQ: its layout is read, and a video is worth what the benchmark's own code says."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ttopt.__main__ import main
from ttopt.config.settings import SampleSettings
from ttopt.data import physics_iq as data
from ttopt.data.sample import Sample
from ttopt.errors import UserError

FPS, FRAMES, SIZE = 8, 40, (96, 160)
FORM = SampleSettings(frames=41, fps=FPS, height=48, width=80, multiple=16)
VIEWS = ("left", "center", "right")
# the benchmark's own numbers of the videos that ``make`` writes, in the order of their ids
SCORES = [0.53512, 0.84696, 0.55614, 0.57793, 0.73280, 0.53370]
OVERALL = {"verified": 63.04, "spatial": 81.11, "spatiotemporal": 66.75, "weighted spatial": 78.04, "mse": 26.29,
           "original": 74.82}  # fmt: skip


def film(path: Path, frames: list[np.ndarray], cv2: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), FPS, frames[0].shape[1::-1])
    for frame in frames:
        out.write(frame)
    out.release()


def ball(x: float, y: float, speed: float, seed: int) -> list[np.ndarray]:
    """A square that moves over a soft background, with some noise, (H,W,3) uint8 BGR."""
    draw = np.random.default_rng(seed)
    height, width = SIZE
    back = np.add.outer(np.linspace(20, 90, height), np.linspace(0, 60, width))[..., None].repeat(3, 2)
    frames = []
    for number in range(FRAMES):
        frame = back + draw.normal(0, 1.5, back.shape)
        left, top = int(x + speed * number), int(y + 0.3 * speed * number)
        frame[top : top + 16, left : left + 16] = 245
        frames.append(np.clip(frame, 0, 255).astype(np.uint8))
    return frames


def make(root: Path, cv2: Any) -> Path:
    """The data set's folders as the hub has them; in videos/ what is to be judged."""
    from ttopt.evaluate.judges.physics_iq import write_mask

    rows, number = [["scenario", "description", "category", "generated_video_name"]], 0
    for take in (1, 2):
        for kind, category in enumerate(("Optics", "Solid Mechanics")):
            for side, view in enumerate(VIEWS):
                number += 1
                name = f"perspective-{view}_take-{take}_trimmed-scene-{kind}.mp4"
                made = f"{number:04d}_perspective-{view}_trimmed-scene-{kind}.mp4"
                rows.append([f"{number:04d}_{name}", f"Scene {kind}, seen from the {view}.", category, made])
                real = root / f"split-videos/testing/{FPS}FPS/{number:04d}_testing-videos_{FPS}FPS_{name}"
                film(real, ball(10 + 2 * take, 20 + 5 * side, 2 + 0.2 * kind, number), cv2)
                mask = root / f"video-masks/real/{FPS}FPS/{number:04d}_video-masks_{FPS}FPS_{name}"
                mask.parent.mkdir(parents=True, exist_ok=True)
                write_mask(cv2, real, mask, FRAMES)
                if take == 1:
                    frame = root / f"switch-frames/{number:04d}_switch-frames_anyFPS_perspective-{view}"
                    frame.parent.mkdir(exist_ok=True)
                    picture = Image.fromarray(ball(12, 20 + 5 * side, 0, 0)[0][..., ::-1])
                    picture.save(Path(f"{frame}_trimmed-scene-{kind}.jpg"))
                    film(root / "videos" / made, ball(12 + 8 * kind, 22 + 5 * side, 1.5 + 0.5 * side, 99), cv2)
    with (root / "descriptions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("physics"), pytest.importorskip("cv2"))


def samples(root: Path, **form: int) -> list[Sample]:
    return data.samples("id", None, 0, 99, root=root, form=SampleSettings(**{**vars(FORM), **form}))


def test_the_public_layout_is_read(root: Path) -> None:
    found = samples(root)
    assert [s.id for s in found][:2] == [
        "0001.perspective-left.trimmed-scene-0",
        "0004.perspective-left.trimmed-scene-1",
    ]
    assert len(found) == 6, "the second takes are no samples"
    for sample in found:
        assert (sample.frames, sample.fps, sample.height, sample.width) == (41, 8, 48, 80)
        assert sample.prompt.startswith("Scene") and sample.family in ("Optics", "Solid Mechanics")
        assert sample.image is not None and (root / "videos" / data.output_path(sample)).is_file()
        for take in (1, 2):
            assert sample.answer.real(take, FPS).is_file() and sample.answer.mask(take, FPS).is_file()


BAD = [
    ("", "descriptions.csv is missing; copy descriptions/best_practice/descriptions_base.csv"),
    ("0001_perspective-left_trimmed-a.mp4,Go.,Optics,a.mp4", "line 2: the scenario '0001_.*' is none of Physics-IQ's"),
    ("0001_perspective-left_take-1_trimmed-a.mp4,Go.,Optics,a.mp4", "has no second take"),
    ("0001_perspective-left_take-1_trimmed-a.mp4,Go.,,a.mp4", "line 2: the field 'category' is missing"),
]


@pytest.mark.parametrize("row, problem", BAD)
def test_a_layout_that_is_another(row: str, problem: str, tmp_path: Path) -> None:
    if row:
        (tmp_path / "descriptions.csv").write_text(f"scenario,description,category,generated_video_name\n{row}\n")
    with pytest.raises(UserError, match=problem):
        samples(tmp_path)
    with pytest.raises(UserError, match="37 frames at 8 a second are shorter; give --sample.frames 41"):
        samples(tmp_path, frames=37)


def test_a_video_is_worth_what_the_benchmark_says(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command line; then one video is too short and one of a rate that was not filmed: 0, and named."""
    import cv2

    videos = shutil.copytree(root / "videos", tmp_path / "videos")
    args = ["evaluate", "--dataset", "physics_iq", "--root", str(root), "--videos", f"[{videos}]", "--limit", "99"]
    args += ["--official", "true", "--questions", "false", "--report", "false", "--logging.wandb", "disabled"]
    args += ["--sample.frames", "41", "--sample.fps", "8", "--sample.height", "64", "--sample.width", "96"]
    args += ["--run-dir", str(tmp_path / "run")]
    assert main(args) == 0
    kept = json.loads((tmp_path / "run/methods/videos/official.json").read_text())["verdict"]
    found = [kept["scores"][name] for name in sorted(kept["scores"])]
    assert found == pytest.approx(SCORES, abs=0.02)
    assert kept["summary"]["overall"] == pytest.approx(OVERALL, abs=1)
    assert list(kept["summary"]) == ["overall", "Optics", "Solid Mechanics"]

    film(videos / "0001_perspective-left_trimmed-scene-0.mp4", ball(10, 20, 1, 0)[:39], cv2)
    shutil.rmtree(tmp_path / "run")
    assert main(args) == 2
    assert "0001_perspective-left_trimmed-scene-0.mp4 has 39 frames, but the first 5 seconds" in capsys.readouterr().err
    less = json.loads((tmp_path / "run/methods/videos/official.json").read_text())["verdict"]["summary"]["overall"]
    assert less["verified"] == pytest.approx(100 * sum(SCORES[1:]) / 6, abs=1) and "original" not in less


def test_the_real_take_is_worth_everything(root: Path) -> None:
    import cv2

    from ttopt.evaluate.judges import physics_iq

    for sample in samples(root)[:2]:
        same = physics_iq.measure(cv2, sample.answer, sample.answer.real(1, FPS))
        assert same.shares() == dict.fromkeys(physics_iq.METRICS, pytest.approx(1, abs=1e-6))
        assert physics_iq.original([same]) == 1
