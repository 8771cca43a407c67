"""Results as flat records: one line a sample and method, ready for pandas."""

from __future__ import annotations

import csv
import math
import warnings
from pathlib import Path
from typing import Any

from ttopt.errors import UserError
from ttopt.record.result import FILE, Result
from ttopt.record.run_folder import replacing, writing

CSV = "results.csv"


def load_results(folder: str | Path) -> list[dict[str, Any]]:
    """One flat record a finished sample of a run's folder, or of every method of a comparison's.

        pandas.DataFrame(ttopt.load_results("runs/x"))

    Numbers that a method does not have are None, as are NaN and infinity. A result that cannot be read is left out,
    with a warning. Raises UserError for another folder.
    """
    found, problems = _read(Path(folder))
    for problem in problems:
        warnings.warn(f"{problem}; it is left out", stacklevel=2)
    return found


def _read(place: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The records, and what cannot be read."""
    if (place / "methods").is_dir():
        runs = {path.name: path for path in sorted((place / "methods").iterdir()) if (path / "samples").is_dir()}
    elif (place / "samples").is_dir():
        runs = {"": place}
    else:
        raise UserError(
            f"{place} is neither a run's nor a comparison's folder; give one that fit or compare has written"
        )
    found, problems = [], []
    for row, run in runs.items():
        for path in sorted((run / "samples").glob(f"[!.]*/{FILE}")):
            try:
                result = Result.load(path.parent)
            except UserError as error:
                problems.append(str(error))
                continue
            found.append({"row": row or result.method, **flat(result), "folder": str(path.parent)})
    return found, problems


def flat(result: Result) -> dict[str, Any]:
    """A result without its lists and groups."""
    o, score, cost = result.optimization, result.score, result.cost
    before = o.score_before if o else None
    record = {
        "sample": result.sample,
        "family": result.family,
        "split": result.split,
        "method": result.method,
        "success": None if score is None else score.success,
        "partial": None if score is None else score.partial,
        "success_before": None if before is None else before.success,
        "accepted": result.accepted,
        "hacked": o.hacked if o else None,
        "stop": result.stop,
        "kept": o.kept if o else None,
        "steps": o.steps if o else None,
        "loss_before": o.video_before.loss if o else None,
        "loss_after": o.video_after.loss if o else None,
        "p_goal_before": o.video_before.p_yes[0] if o else None,
        "p_goal_after": o.video_after.p_yes[0] if o else None,
        "lora_norm": o.lora_norm if o else None,
        "drift_ssim": o.drift["ssim"] if o else None,
        "first_frame_ssim": result.first_frame_ssim,
        "generated_seconds": cost.generated_seconds,
        "reasoner_forwards": cost.reasoner_forwards,
        "vlm_calls": cost.vlm_calls,
        "wall_seconds": cost.wall_seconds,
        "error": result.error,
        "prompt": result.prompt,
        "finished": result.finished,
    }
    return {key: _finite(value) for key, value in record.items()}


def write_results(folder: Path) -> list[str]:
    """Writes ``results.csv`` of a run's or a comparison's folder and returns what it leaves out because it cannot be
    read. Raises RunError where the file cannot be written."""
    records, problems = _read(folder)
    with writing(folder), replacing(folder / CSV) as path, path.open("w", newline="", encoding="utf-8") as file:
        if records:
            table = csv.DictWriter(file, list(records[0]))
            table.writeheader()
            table.writerows(records)
    return problems


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
