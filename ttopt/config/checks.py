"""Values that no run could use are refused before anything is loaded.

What concerns one setting, or several of a group, stands with them (fields.py, and each group's ``problems``). Here is
what concerns all values of a kind, and files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ttopt.config.fields import problems
from ttopt.config.settings import EMBEDDED, EMBEDDED_BASE, WEIGHTS, FitSettings, to_dict
from ttopt.errors import UserError

# Methods of ours that give a sample's whole length to the model at once. Others may cut it, or make no video.
WHOLE = ("TeacherLora", "Single", "PassAtK", "PromptRewrite", "VideoTPO", "SeedEnsemble")
POSITIONS = 1024  # of Wan's rotary table along each axis, unless its configuration says otherwise


def check(settings: FitSettings) -> None:
    """Raises UserError for values that no run could use; needs no model and no data."""
    for problem in (*_impossible(to_dict(settings)), *problems(settings)):
        raise UserError(problem)


def _impossible(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Numbers that are not finite, and texts that no file can hold."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _impossible(value, f"{name}.")
            continue
        items = value if isinstance(value, list) else [value]
        yield from _impossible({str(number): item for number, item in enumerate(items) if _holds(item)}, f"{name}.")
        for item in items:
            if isinstance(item, float) and not math.isfinite(item):
                yield f"{name} is {value}; give a finite number"
            if isinstance(item, str) and "\0" in item:
                yield f"{name} holds a NUL character; leave it out"
            if isinstance(item, str) and any("\ud800" <= letter <= "\udfff" for letter in item):
                yield f"{name} holds a half of a character (a lone surrogate); write it in UTF-8"


def _holds(value: Any) -> bool:
    return isinstance(value, (Mapping, list))


def check_files(settings: FitSettings) -> None:
    """Raises UserError for files that a run needs and that are not there or do not fit; its report needs none."""
    root, bank, prompts = settings.root, settings.bank, settings.chat.prompts
    if root is not None and not Path(root).exists():
        raise UserError(f"root {root} does not exist; give the folder of the data set")
    if bank.folder is not None and not bank.add and not Path(bank.folder).is_dir():
        raise UserError(
            f"bank.folder {bank.folder} does not exist; give the folder of a bank, or --bank.add true to make one"
        )
    if prompts not in {"full", "mini"} and not Path(prompts).is_dir():
        raise UserError(
            f"chat.prompts is {prompts!r}, which is no folder; give full, mini, or a folder like loop/prompts"
        )


def check_positions(settings: FitSettings) -> None:
    """Raises UserError for videos that are longer or larger than the video model's table of positions, as far as its
    configuration lies on this machine."""
    package, _, method = settings.method.path.rpartition(".")
    fixed = settings.dataset == "miniworld" and settings.sample.prompt is None  # whose videos have their own size
    if fixed or package != "ttopt.methods" or method not in WHOLE:
        return
    r, sample = settings.reasoner, settings.sample
    model = WEIGHTS / "reasoner" if r.model == EMBEDDED else Path(r.model)
    other = WEIGHTS / "base/transformer" if r.transformer == EMBEDDED_BASE else r.transformer
    places = [Path(other), Path(other) / "transformer"] if other else [model / "transformer"]
    config = next(filter(None, (_json(place / "config.json") for place in places)), {})
    vae = _json(model / "vae/config.json")
    try:
        most = int(config.get("rope_max_seq_len", POSITIONS))
        patches = [int(patch) for patch in config["patch_size"]]
        time, space = int(vae.get("scale_factor_temporal", 4)), int(vae.get("scale_factor_spatial", 8))
    except (KeyError, TypeError, ValueError):  # not here, or damaged, which loading it will say
        return
    if len(patches) != 3:
        return
    longest = time * (most * patches[0] - 1) + 1
    limits = {"frames": longest, "height": most * patches[1] * space, "width": most * patches[2] * space}
    for name, limit in limits.items():
        if getattr(sample, name) > limit:
            raise UserError(
                f"sample.{name} is {getattr(sample, name)}, but the video model has positions for {limit} at most "
                f"(rope_max_seq_len {most}); give --sample.{name} {limit} or less"
            )


def _json(file: Path) -> dict[str, Any]:
    """What a JSON file says; nothing if it is not there or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
