"""How many optimization steps samples take: measured in a run, or as even as a mean allows.

``python -m ttopt.planning.step_counts runs/x`` prints a run's, as step_counts.json holds those of the embedded models.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ttopt.config.yaml_text import read
from ttopt.errors import UserError
from ttopt.planning.simulate import Workload
from ttopt.record.result import FILE, Optimization, Result
from ttopt.record.run_folder import CONFIG

PAPER_MEAN = 16.0  # VLM-as-Teacher, arXiv 2606.02564: "about 16"
SHIPPED = Path(__file__).parent / "step_counts.json"
LOOP = ("predict", "decode", "grade", "backward", "step", "keep state")  # parts of the time that grow with the steps


@dataclass(frozen=True)
class StepCounts:
    """Numbers of steps and how likely each is; ``source`` says whence, for a person."""

    source: str
    steps: np.ndarray
    weights: np.ndarray  # sum to 1

    @property
    def mean(self) -> float:
        return float(self.steps @ self.weights)


def even(mean: float, most: int, source: str) -> StepCounts:
    """The distribution on 0..``most`` that assumes nothing but its mean: of the largest entropy, p(k) ~ exp(ak)."""
    steps = np.arange(most + 1)
    low, high = -50.0, 50.0  # of a; the mean grows with it
    for _ in range(100):
        middle = (low + high) / 2
        weights = np.exp(middle * (steps - (most if middle > 0 else 0)))
        weights /= weights.sum()
        low, high = (middle, high) if steps @ weights < mean else (low, middle)
    return StepCounts(f"as even as {source} lets them be", steps, weights)


def shipped(most: int) -> StepCounts:
    """Those of the embedded models."""
    content = json.loads(SHIPPED.read_text(encoding="utf-8"))
    counts = np.array(content["counts"])
    return StepCounts(content["source"], np.minimum(np.arange(len(counts)), most), counts / counts.sum())


def of_run(folder: Path, most: int) -> StepCounts:
    """Those of a run's finished samples. Raises UserError if there are none."""
    steps = np.array([optimization.steps for _, optimization in _finished(folder)])
    weights = np.full(len(steps), 1 / len(steps))
    return StepCounts(f"of {len(steps)} samples in {folder}", np.minimum(steps, most), weights)


def work_of_run(folder: Path) -> Workload:
    """The seconds of a run's finished samples, as they were measured, in the order of their names. Raises UserError."""
    config = folder / CONFIG
    if config.exists() and read(config).get("batch_samples", 1) != 1:
        raise UserError(
            f"{folder} was made with --batch-samples: its samples have no seconds of their own; give another run"
        )
    finished = _finished(folder)
    total = np.array([result.seconds["total"] for result, _ in finished])
    steps = np.array([optimization.steps for _, optimization in finished])
    loop = np.array([sum(result.seconds.get(part, 0.0) for part in LOOP) for result, _ in finished])
    step = np.where(steps > 0, loop / np.maximum(steps, 1), 0.0)
    return Workload(total - steps * step, step, steps)


def _finished(folder: Path) -> list[tuple[Result, Optimization]]:
    places = sorted(path.parent for path in (folder / "samples").glob(f"[!.]*/{FILE}"))
    results = [(result, result.optimization) for result in map(Result.load, places)]
    found = [(result, optimization) for result, optimization in results if optimization is not None]
    if not found:
        raise UserError(f"{folder} holds no finished sample that was optimized; give the folder of a run of ttopt fit")
    return found


def main() -> None:
    """Prints a run's counts."""
    found = of_run(Path(sys.argv[1]), sys.maxsize)
    print(json.dumps({"source": found.source, "counts": np.bincount(found.steps).tolist()}))


if __name__ == "__main__":
    main()
