"""Gen-ViRe (arXiv 2511.13853): 6 categories x 4 x 3 samples, judged with a rubric by a vision-language model.

``root`` is a checkout of the benchmark's code, with the rubrics, that also holds the data set's samples as .json,
.jsonl or .parquet (fields main_category, sub_category, id, image, i2v_prompt and the judge's needs_frame_extraction,
frame_crop_mode, eval_json_path), in itself or in data/. A model sees ``image`` and ``i2v_prompt``.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttopt.config.settings import SampleSettings
from ttopt.data.files import choose, field, first_frame, inside, path_part, records, sample_id, words
from ttopt.data.sample import Sample
from ttopt.errors import UserError

score = None  # judged by ttopt/evaluate/judges/genvire.py


def samples(
    split: str, families: Sequence[str] | None, seed: int, limit: int, *, root: Path, form: SampleSettings
) -> list[Sample]:
    """``limit`` samples, main categories in turn; ``families`` are main or sub categories. No split, no seed.

    Raises UserError for what is missing.
    """
    by_main: dict[str, list[dict[str, Any]]] = {}
    by_sub: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(root):
        by_main.setdefault(str(field(row, "main_category", root)), []).append(row)
        by_sub.setdefault(str(field(row, "sub_category", root)), []).append(row)
    groups = by_main if families is None else by_sub | by_main
    return [_sample(row, root, form) for row in choose(groups, families, limit, "Gen-ViRe category")]


def _rows(root: Path) -> list[dict[str, Any]]:
    """The records of the files of samples, which lie in ``root`` or (as fetched from the hub) in its data folder; of
    the first ending that has any, so that the same samples in two formats do not come twice."""
    for place in (root, root / "data"):
        for ending in ("json", "jsonl", "parquet"):
            rows = [row for file in sorted(place.glob(f"*.{ending}")) for row in _records(file)]
            if rows:
                return rows
    raise UserError(f"{root} has no .json, .jsonl or .parquet file of samples with i2v_prompt; check --root")


def _records(file: Path) -> list[dict[str, Any]]:
    try:
        rows = records(file)
    except UserError:
        if file.suffix == ".json":
            return []  # one that is no list is something else, such as a rubric
        raise
    return rows if rows and "i2v_prompt" in rows[0] else []


def _sample(row: dict[str, Any], root: Path, form: SampleSettings) -> Sample:
    name = sample_id(row["main_category"], row["sub_category"], field(row, "id", row["sub_category"]))
    source = open_image(field(row, "image", name), root, name)
    image = first_frame(source if isinstance(source, Path) else source.getvalue(), form)
    answer = {**row, "root": root}
    prompt = words(row, "i2v_prompt", name)
    sample = Sample(
        name, prompt, image, form.frames, form.fps, image.height, image.width, str(row["main_category"]), "", answer
    )
    output_path(sample)  # a record that names no place for its video is refused now, not when all videos are made
    return sample


def open_image(given: Any, root: Path, name: str) -> Path | io.BytesIO:
    """The file of a record's image, or its bytes, as parquet holds them. Raises UserError."""
    if not isinstance(given, dict):
        return inside(root, given)
    content = field(given, "bytes", name)
    if not isinstance(content, bytes):
        raise UserError(f"{name}: the image's bytes are none; fetch the data set again")
    return io.BytesIO(content)


def output_path(sample: Sample) -> Path:
    """Where the official scripts look for this sample's video: {main_category}/{sub_category}/{id}.mp4."""
    main, sub, number = (path_part(sample.answer[name]) for name in ("main_category", "sub_category", "id"))
    return Path(main) / sub / f"{number}.mp4"
