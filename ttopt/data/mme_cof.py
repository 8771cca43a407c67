"""MME-CoF (arXiv 2510.26802): 59 images that ask for twelve kinds of reasoning; judged by a vision-language model.

``root`` holds data.json and the images that it names. A model sees ``reasoning_prompt`` and the image, made 16:9 by
white borders as the benchmark does. The question that the image is about, which nobody is asked, is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttopt.config.settings import SampleSettings
from ttopt.data.files import choose, field, fitted_size, inside, path_part, records, sample_id, words
from ttopt.data.images import FirstFrame, image_size
from ttopt.data.sample import Sample

FILE = "data.json"
ASPECT = 16 / 9

score = None  # judged by ttopt/evaluate/judges/mme_cof.py


def samples(
    split: str, families: Sequence[str] | None, seed: int, limit: int, *, root: Path, form: SampleSettings
) -> list[Sample]:
    """``limit`` samples, categories in turn; ``families`` are categories. No split, no seed. Raises UserError for what
    is missing."""
    by_category: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(records(root / FILE), start=1):
        category = str(field(row, "category", f"{root / FILE}, record {number}"))
        by_category.setdefault(category, []).append(row)
    return [_sample(row, root, form) for row in choose(by_category, families, limit, "MME-CoF category")]


def _sample(row: dict[str, Any], root: Path, form: SampleSettings) -> Sample:
    name = sample_id(row["category"], field(row, "idx", row["category"]))
    path = inside(root, field(row, "image", name))
    height, width = image_size(path, str(path))
    border = borders(height, width)
    fitted = fitted_size(height + 2 * border[0], width + 2 * border[1], form)
    image = FirstFrame(path, *fitted, str(path), border)
    prompt, answer = words(row, "reasoning_prompt", name), {**row, "root": root}
    sample = Sample(
        name, prompt, image, form.frames, form.fps, image.height, image.width, str(row["category"]), "", answer
    )
    output_path(sample)  # a record that names no place for its video is refused now, not when all videos are made
    return sample


def borders(height: int, width: int) -> tuple[int, int]:
    """The white pixels that the benchmark adds above and below, and at both sides, so that an image is 16:9."""
    if width / height > ASPECT:
        return (int(width / ASPECT) - height) // 2, 0
    return 0, (int(height * ASPECT) - width) // 2


def output_path(sample: Sample) -> Path:
    """Where the benchmark's script keeps this sample's first video: {image without ending}_videos/."""
    image = Path(str(sample.answer["image"]))
    parts = [path_part(part) for part in image.with_suffix("").parts]
    return Path(*parts[:-1], f"{parts[-1]}_videos") / "generated_video_1.mp4"
