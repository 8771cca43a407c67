"""RULER-Bench (arXiv 2512.02622): rules of science, games, semantics, ...; judged by a vision-language model.

``root`` holds data.jsonl and the images that it names. A model sees ``prompt`` and ``input_image_path``; the
explanation, the checklist and the ground-truth image are the judge's, and fields that are not named here the
benchmark's business.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttopt.config.settings import SampleSettings
from ttopt.data.files import choose, field, first_frame, inside, path_part, records, sample_id, words
from ttopt.data.sample import Sample
from ttopt.errors import UserError

FILE = "data.jsonl"
METRICS = ("Instruction Following", "Visual Consistency", "Visual Fidelity", "Rule Coherence")

score = None  # judged by ttopt/evaluate/judges/ruler.py


def samples(
    split: str, families: Sequence[str] | None, seed: int, limit: int, *, root: Path, form: SampleSettings
) -> list[Sample]:
    """``limit`` samples, categories in turn; ``families`` are categories or tasks. No split, no seed.

    VLM-as-Teacher reports the 30 tasks outside the category game: name the other categories. Raises UserError for what
    is missing.
    """
    by_category: dict[str, list[dict[str, Any]]] = {}
    by_task: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(records(root / FILE), start=1):
        where = f"{root / FILE}, record {number}"
        row["checklist"] = checklist(row.get("checklist"), where)
        by_category.setdefault(str(field(row, "category", where)), []).append(row)
        by_task.setdefault(str(field(row, "task_name", where)), []).append(row)
    groups = by_category if families is None else by_task | by_category
    return [_sample(row, root, form) for row in choose(groups, families, limit, "RULER-Bench category or task")]


def _sample(row: dict[str, Any], root: Path, form: SampleSettings) -> Sample:
    name = sample_id(row["task_name"], field(row, "index", row["task_name"]))
    prompt = words(row, "prompt", name)
    given = row.get("input_image_path")
    image = first_frame(inside(root, given), form) if given else None
    height, width = (form.height, form.width) if image is None else (image.height, image.width)
    sample = Sample(name, prompt, image, form.frames, form.fps, height, width, str(row["category"]), "", row)
    output_path(sample)  # a record that names no place for its video is refused now, not when all videos are made
    return sample


def checklist(value: Any, where: str) -> list[tuple[str, str]]:
    """[(metric, question), ...] of a record; the hub's parquet files hold it as text. Raises UserError."""
    if isinstance(value, str):
        try:
            try:
                value = json.loads(value)
            except json.JSONDecodeError:
                value = ast.literal_eval(value)  # Python's way of writing the same list; evaluates nothing
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise UserError(f"{where}: the checklist cannot be read; fetch the data set again") from error
    value = value if isinstance(value, list) else []
    pairs = [pair for item in value if isinstance(item, dict) for pair in item.items()]
    if not pairs or len(pairs) != len(value) or any(metric not in METRICS for metric, _ in pairs):
        raise UserError(f"{where}: the checklist must be a list of {{metric: question}}; metrics: {', '.join(METRICS)}")
    return [(str(metric), str(question)) for metric, question in pairs]


def output_path(sample: Sample) -> Path:
    """Where the official evaluator looks for this sample's video: {task_name}/{index}.mp4."""
    return Path(path_part(sample.answer["task_name"])) / f"{path_part(sample.answer['index'])}.mp4"
