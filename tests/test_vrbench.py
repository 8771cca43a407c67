"""VR-Bench: its layout is read, and a video's path is worth what the benchmark's own code says."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ttopt.__main__ import main
from ttopt.config.settings import SampleSettings
from ttopt.data import vrbench as data
from ttopt.data.sample import Sample
from ttopt.errors import UserError

CELL, GRID = 32, 6
FORM = SampleSettings(frames=25, fps=15, height=48, width=48, multiple=16)
Way = list[tuple[int, int]]
TRUE: Way = [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (3, 2), (4, 2)]
OTHER: Way = [(0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (3, 2), (4, 2)]
CARRIED: Way = [(2, 2), (3, 2), (4, 2)]
# maze, difficulty and number: the true ways, the way of the video, its box's; and the benchmark's own numbers
CASES: dict[str, tuple[str, list[Way], Way, Way | None, dict[str, float]]] = {
    "easy_0001": ("maze", [TRUE], TRUE, None, {"PR": 1.0, "SR": 1.0, "SD": 0.0, "EM": 1.0, "MF": 0.9929}),
    "easy_0002": ("maze", [TRUE, OTHER], OTHER, None, {"PR": 1.0, "SR": 1.0, "SD": 0.0, "EM": 1.0, "MF": 0.9928}),
    "medium_0001": ("maze", [TRUE], TRUE[:4], None, {"PR": 0.53, "SR": 0.0, "EM": 0.0, "MF": 0.9928}),
    "hard_0001": (
        "trapfield",
        [TRUE],
        [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (3, 2), (4, 2)],
        None,
        {"PR": 0.385, "SR": 1.0, "SD": 0.0, "EM": 0.0, "MF": 0.9929},
    ),
    "hard_0002": (
        "trapfield",
        [TRUE],
        [*TRUE, (4, 3), (4, 2)],
        None,
        {"PR": 1.0, "SR": 1.0, "SD": 0.3478, "EM": 0.0, "MF": 0.9941},
    ),
    "easy_0003": ("sokoban", [TRUE], TRUE, CARRIED, {"PR": 1.0, "SR": 1.0, "SD": 0.0, "EM": 1.0, "MF": 0.9676}),
    "easy_0004": ("sokoban", [TRUE], TRUE, CARRIED[:1], {"PR": 1.0, "SR": 0.0, "EM": 0.0, "MF": 0.9927}),
}


def film(path: Path, frames: list[np.ndarray]) -> None:
    """Frames (H,W,3) uint8 RGB as H.264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=15, options={"crf": "8"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def play(way: Way, boxes: Way | None) -> list[np.ndarray]:
    """The player on its way, four frames a step; a box that is pushed jumps from cell to cell."""
    draw = np.random.default_rng(2)
    floor, player, goal, box = (
        np.clip(np.full((CELL, CELL, 3), color) + draw.integers(-25, 25, (CELL, CELL, 3)), 0, 255).astype(np.uint8)
        for color in ((120, 120, 120), (220, 40, 40), (40, 200, 40), (40, 160, 200))
    )
    player[8:24, 8:24] = (250, 250, 0)
    box[10:22] = 0
    back = np.tile(floor, (GRID, GRID, 1))
    put(back, goal, 4, 2)
    frames = []
    for number, (here, there) in enumerate(itertools.pairwise(way)):
        for quarter in range(4):
            frame = back.copy()
            if boxes:
                put(frame, box, *boxes[min(number // 2, len(boxes) - 1)])
            x, y = (a + (b - a) * quarter / 4 for a, b in zip(here, there, strict=True))
            put(frame, player, x, y)
            frames.append(frame)
    return frames


def put(image: np.ndarray, tile: np.ndarray, x: float, y: float) -> None:
    left, top = int(x * CELL), int(y * CELL)
    image[top : top + CELL, left : left + CELL] = tile


def make(root: Path) -> Path:
    """The data set's folders as the hub has them, with the prompts that the benchmark's code writes; in videos/ what is
    to be judged."""
    rows: dict[Path, list[list[str]]] = {}
    for name, (maze, ways, way, boxes, _) in CASES.items():
        difficulty = name.split("_")[0]
        place = Path(f"eval/{maze}/1/{difficulty}")
        table = rows.setdefault(root / f"metadata/eval/{maze}_1_{difficulty}/metadata.csv", [])
        for number, true in enumerate(ways):
            film(root / place / f"videos/{name}_{number}.mp4", play(true, boxes))
            table.append([f"{place}/videos/{name}_{number}.mp4", "Go to the goal.", f"{place}/images/{name}.png"])
        film(root / "videos" / place / f"{name}.mp4", play(way, boxes))
        for folder in ("images", "states"):
            (root / place / folder).mkdir(exist_ok=True)
        Image.fromarray(play(TRUE, boxes)[0]).save(root / place / f"images/{name}.png")
        entities = {"player": entity(0, 0), "goal": entity(4, 2), "boxes": [entity(*boxes[0])] if boxes else []}
        picture = {"cell_size": CELL, "image_width": CELL * GRID, "image_height": CELL * GRID}
        state = {"version": "1.0", "game_type": maze, "entities": entities, "render": picture, "metadata": {}}
        (root / place / f"states/{name}.json").write_text(json.dumps(state))
    for file, table in rows.items():
        file.parent.mkdir(parents=True)
        with file.open("w", newline="") as opened:
            csv.writer(opened).writerows([["video", "prompt", "input_image"], *table])
    return root


def entity(x: int, y: int) -> dict[str, Any]:
    bbox = {"x": x * CELL, "y": y * CELL, "width": CELL, "height": CELL, "center_x": 0, "center_y": 0}
    return {"pixel_pos": {"x": x * CELL + 16, "y": y * CELL + 16}, "bbox": bbox, "grid_pos": {"row": y, "col": x}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("vrbench"))


def samples(root: Path) -> list[Sample]:
    return data.samples("eval", None, 0, 99, root=root, form=FORM)


def test_the_public_layout_is_read(root: Path) -> None:
    found = samples(root)
    assert [s.id for s in found][:3] == [
        "eval.maze.1.easy_0001",
        "eval.sokoban.1.easy_0003",
        "eval.trapfield.1.hard_0001",
    ]
    assert len(found) == len(CASES), "two solutions of one maze are one sample"
    for sample in found:
        assert (sample.prompt, sample.split, sample.frames, sample.height) == ("Go to the goal.", "eval", 25, 48)
        assert (root / "videos" / data.output_path(sample)).is_file()
        assert sample.answer.state.is_file() and all(path.is_file() for path in sample.answer.solutions)
    assert {s.family for s in data.samples("all", ["sokoban"], 0, 99, root=root, form=FORM)} == {"sokoban"}


@pytest.mark.parametrize(
    "split, row, problem",
    [
        ("id", "", "VR-Bench has no split 'id'; give --split train, eval or all"),
        ("train", "", "metadata/train has no prompts .*python -m prompts.generate_metadata"),
        ("eval", "x.mp4,Go.,train/maze/1/easy/images/a.png", "line 2: 'train/.*' is no image of the eval split"),
        ("eval", "x.mp4,Go.,eval/../../easy/images/a.png", "'..' in the data set cannot name a file"),
        ("eval", "x.mp4," + "x" * 200_000 + ",a.png", "metadata.csv cannot be read .field larger than field limit"),
        ("eval", "x.mp4,,eval/maze/1/easy/images/a.png", "line 2: the field 'prompt' is missing"),
        ("eval", "x.mp4,Go.,eval/maze/1/easy/images/a.png", "a.png: there is no such file"),
    ],
)
def test_a_layout_that_is_another(split: str, row: str, problem: str, tmp_path: Path) -> None:
    if row:
        (tmp_path / "metadata/eval/a").mkdir(parents=True)
        (tmp_path / "metadata/eval/a/metadata.csv").write_text(f"video,prompt,input_image\n{row}\n")
    with pytest.raises(UserError, match=problem):
        data.samples(split, None, 0, 9, root=tmp_path, form=FORM)


def test_a_path_is_worth_what_the_benchmark_says(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command line; one video is missing, one is none, one state is damaged: counted 0 and named."""
    pytest.importorskip("cv2")
    videos = shutil.copytree(root / "videos", tmp_path / "videos")
    args = ["evaluate", "--dataset", "vrbench", "--root", str(root), "--videos", f"[{videos}]", "--official", "true"]
    args += ["--split", "eval", "--limit", "99", "--questions", "false", "--report", "false"]
    args += ["--sample.frames", "9", "--sample.height", "64", "--sample.width", "64"]
    args += ["--run-dir", str(tmp_path / "run"), "--logging.wandb", "disabled"]
    assert main(args) == 0
    kept = json.loads((tmp_path / "run/methods/videos/official.json").read_text())["verdict"]
    for sample in samples(root):
        found, expected = kept["parts"][sample.id], CASES[sample.answer.name][-1]
        assert {"SD": 0.0} | found == pytest.approx({"SD": 0.0} | expected, abs=0.02), sample.id
    both = json.loads((tmp_path / "run/comparison.json").read_text())["official"]
    assert both["static"]["summary"]["overall"]["SR"] == 0, "the baseline stands beside it"
    own = both["videos"]["summary"]
    assert own["maze"]["SR"] == pytest.approx(2 / 3, abs=1e-3) and own["sokoban"]["EM"] == 0.5
    assert list(own) == ["overall", "maze", "sokoban", "trapfield", "easy", "hard", "medium"]
    assert "SD" not in own["medium"], "nothing succeeds there"

    (videos / "eval/maze/1/easy/easy_0001.mp4").unlink()
    shutil.rmtree(tmp_path / "run")
    assert main(args) == 2
    assert "no video for eval.maze.1.easy_0001; counted as 0" in capsys.readouterr().err
    own = json.loads((tmp_path / "run/comparison.json").read_text())["official"]["videos"]["summary"]
    assert own["maze"]["SR"] == pytest.approx(1 / 3, abs=1e-3)


def test_a_damaged_state_is_named(root: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    from ttopt.evaluate.judges import vrbench

    copy = shutil.copytree(root, tmp_path / "root")
    sample = samples(copy)[0]
    sample.answer.state.write_text('{"entities": {}, "render": {"image_width": 0, "image_height": 9}}')
    with pytest.raises(UserError, match=r"easy_0001.json cannot be read .*entities.player: Field required"):
        vrbench.measure(cv2, sample.answer, copy / "videos" / data.output_path(sample))
