"""VR-Bench's scores (arXiv 2511.15065; ImYangC7/VR-Bench): the player is followed and its path compared, no judge.

The rules are those of the benchmark's code with the settings of its scripts/videomodel_evaluate.sh, written again with
the same OpenCV calls; docs/benchmarks.md says how equality was checked. Of several true videos the nearest counts.

    PR   precision rate: how much of the true path is followed, to within 5 % of the picture, until it first is not
    SR   success: whether the player (a box, where there are boxes) is ever on the goal
    SD   step deviation: how much longer the path is than the true one; only of those that succeed and are not shorter
    EM   exact match: success, PR at least .98, SD at most .1
    MF   maze fidelity: the share of the background that stays as it was

The benchmark leaves missing videos out of its means; here they count 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ttopt.config.comparison import CompareSettings
from ttopt.data.sample import Sample
from ttopt.data.vrbench import Maze, output_path
from ttopt.errors import UserError
from ttopt.evaluate.judges import Evaluator, Judgment, mean_of, measured, opencv
from ttopt.record.plain import read_typed

NEAR = 0.05  # of the picture's width and height
POINTS = 1000  # of a path that are compared
MARGIN = 50  # pixels around its last place in which the player is looked for
ALIKE = 0.6  # correlation at which it is found
EXACT, LONGER = 0.98, 0.1
EVERY = 5  # frames; for the background
SAME = 5  # levels of gray

Box = tuple[int, int, int, int]  # x, y, width, height in pixels
METRICS = ("EM", "SR", "PR", "SD", "MF")


class _Open(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Bounds(_Open):
    x: int
    y: int
    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]

    def scaled(self, across: float, down: float) -> Box:
        return int(self.x * across), int(self.y * down), int(self.width * across), int(self.height * down)


class Entity(_Open):
    bbox: Bounds


class Entities(_Open):
    player: Entity
    goal: Entity
    boxes: list[Entity] = []


class Picture(_Open):
    image_width: Annotated[int, Field(gt=0)]
    image_height: Annotated[int, Field(gt=0)]


class State(_Open):
    """A maze's states/*.json, as much of it as is needed."""

    entities: Entities
    render: Picture


def evaluator(settings: CompareSettings) -> Evaluator:
    """Needs OpenCV. Raises UserError."""
    cv2 = opencv("VR-Bench")

    def evaluate(videos: Path, judged: Sequence[Sample], samples: Sequence[Sample], work: Path) -> Judgment:
        parts, errors = measured(judged, lambda sample: measure(cv2, sample.answer, videos / output_path(sample)))
        scores = {name: numbers["EM"] for name, numbers in parts.items()}
        about = {"opencv": str(cv2.__version__), "tracker": f"ncc, {MARGIN} pixels", "tolerance": str(NEAR)}
        return Judgment("VR-Bench exact match", scores, summary(samples, parts), errors, about, parts)

    return evaluate


def measure(cv2: Any, maze: Maze, video: Path) -> dict[str, float]:
    """The metrics of one video; SD only where it is defined. Raises UserError for a file that cannot be read."""
    state: State = read_typed(maze.state, maze.root, State)
    first = next(_frames(cv2, video))
    size = first.shape[1], first.shape[0]
    scale = size[0] / state.render.image_width, size[1] / state.render.image_height
    player = state.entities.player.bbox.scaled(*scale)
    path = follow(cv2, video, player, size) / size
    carried = path
    if state.entities.boxes:
        carried = follow(cv2, video, state.entities.boxes[0].bbox.scaled(*scale), size) / size
    success = _reaches(carried, state)
    best: dict[str, float] = {}
    for solution in maze.solutions:
        true = follow(cv2, solution, player, size) / size
        found = compare(true, path, success)
        if not best or _rank(found) > _rank(best):
            best = found
    if len(path) > 1:
        best["MF"] = fidelity(cv2, video, path * size, player, state.entities.goal.bbox.scaled(*scale), size)
    return {name: round(value, 6) for name, value in best.items()}


def _rank(numbers: dict[str, float]) -> float:
    return numbers["PR"] - abs(numbers.get("SD", 0.0))


def compare(true: np.ndarray, path: np.ndarray, success: bool) -> dict[str, float]:
    """A path against a true one, both (N,2) in shares of the picture."""
    if min(len(true), len(path)) < 2:
        return {"PR": 0.0, "SR": 0.0, "EM": 0.0, "MF": 0.0}
    whole, length = (float(np.sum(np.linalg.norm(np.diff(way, axis=0), axis=1))) for way in (true, path))
    near = np.linalg.norm(_resampled(true, whole) - _resampled(path, whole), axis=1) <= NEAR
    precision = float(POINTS if near.all() else near.argmin()) / POINTS
    found = {"PR": precision, "SR": float(success), "EM": 0.0, "MF": 0.0}
    longer = length / whole - 1 if whole >= 1e-10 else 0.0
    if success and longer >= 0:
        found["SD"] = float(longer)
    found["EM"] = float(success and precision >= EXACT and found.get("SD", 0.0) <= LONGER)
    return found


def _along(path: np.ndarray) -> np.ndarray:
    """The way to each of its points."""
    return np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))])


def _resampled(path: np.ndarray, length: float) -> np.ndarray:
    """Evenly spaced points of the first ``length`` of a path, which may end before."""
    along = _along(path)
    at = np.minimum(np.linspace(0, length, POINTS), along[-1])
    return np.column_stack([np.interp(at, along, path[:, axis]) for axis in (0, 1)])


def _reaches(path: np.ndarray, state: State) -> bool:
    goal, picture = state.entities.goal.bbox, state.render
    low = np.array([goal.x / picture.image_width, goal.y / picture.image_height])
    high = low + np.array([goal.width / picture.image_width, goal.height / picture.image_height])
    return len(path) > 1 and bool(((path >= low) & (path <= high)).all(axis=1).any())


def follow(cv2: Any, video: Path, box: Box, size: tuple[int, int]) -> np.ndarray:
    """The middle of what lies in ``box`` at first, in every frame: (N,2) float64 in pixels of ``size``. Where it is not
    found it stays at its last place."""
    frames = _frames(cv2, video, size)
    first = next(frames)
    width, height = size
    x, y = max(0, min(box[0], width - 1)), max(0, min(box[1], height - 1))
    w, h = max(1, min(box[2], width - x)), max(1, min(box[3], height - y))
    pattern, path = first[y : y + h, x : x + w].copy(), [(x + w / 2, y + h / 2)]
    for frame in frames:
        left, top = max(0, x - MARGIN), max(0, y - MARGIN)
        region = frame[top : min(height, y + h + MARGIN), left : min(width, x + w + MARGIN)]
        alike = 0.0
        if region.shape[0] >= h and region.shape[1] >= w:
            matched = cv2.matchTemplate(region, pattern, cv2.TM_CCOEFF_NORMED)
            _, alike, _, (right, down) = cv2.minMaxLoc(matched)
            x, y = left + right, top + down
        path.append((x + w / 2, y + h / 2) if alike > ALIKE else path[-1])
    return np.array(path, dtype=np.float32).astype(np.float64)


def fidelity(cv2: Any, video: Path, path: np.ndarray, player: Box, goal: Box, size: tuple[int, int]) -> float:
    """The share of pixels that keep the first frame's gray, in every fifth frame; without the goal, and the player's
    first and present places."""
    grays = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in _frames(cv2, video)]
    still = np.ones(size[::-1], dtype=bool)
    _leave_out(still, player)
    _leave_out(still, goal)
    found = []
    for number in range(EVERY, len(grays), EVERY):
        x, y = path[min(int(number / len(grays) * (len(path) - 1)), len(path) - 1)]
        counted = still.copy()
        _leave_out(counted, (int(x - player[2] / 2), int(y - player[3] / 2), player[2], player[3]))
        moved = np.abs(grays[0][counted].astype(np.int16) - grays[number][counted].astype(np.int16)) > SAME
        found.append(1.0 - moved.sum() / len(moved) if len(moved) else 1.0)
    return float(np.mean(found)) if found else 0.0


def _leave_out(mask: np.ndarray, box: Box) -> None:
    x, y = (max(0, min(place, side - 1)) for place, side in zip(box[:2], mask.shape[::-1], strict=True))
    mask[y : y + min(box[3], mask.shape[0] - y), x : x + min(box[2], mask.shape[1] - x)] = False


def _frames(cv2: Any, path: Path, size: tuple[int, int] | None = None) -> Iterator[np.ndarray]:
    """Every frame, (H,W,3) uint8 BGR, of ``size`` (width, height) if it is given. Raises UserError for none."""
    reader, number = cv2.VideoCapture(str(path)), 0
    while True:
        there, frame = reader.read()
        if not there:
            break
        number += 1
        resize = size is not None and frame.shape[1::-1] != size
        yield cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR) if resize else frame
    if not number:
        raise UserError(f"{path} cannot be read as a video; make it again, or fetch the data set again")


def summary(samples: Sequence[Sample], parts: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The means of all samples, of each kind of maze and of each difficulty; SD of those that have one."""
    groups = {"overall": list(samples)}
    for sample in sorted(samples, key=lambda s: s.family):
        groups.setdefault(sample.family, []).append(sample)
    for sample in samples:
        groups.setdefault(sample.answer.folder.parts[3], []).append(sample)
    found = {}
    for label, chosen in groups.items():
        numbers = {m: mean_of([parts.get(s.id, {}).get(m, 0.0) for s in chosen]) for m in METRICS if m != "SD"}
        longer = [parts[s.id]["SD"] for s in chosen if "SD" in parts.get(s.id, {})]
        numbers |= {"SD": mean_of(longer)} if longer else {}
        found[label] = {name: round(value, 4) for name, value in numbers.items()}
    return found
