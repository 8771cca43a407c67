"""The table of a comparison's folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ttopt.config.comparison import CompareSettings, chosen, read_compare
from ttopt.errors import UserError
from ttopt.evaluate.grading import JUDGED
from ttopt.evaluate.judges import OFFICIAL
from ttopt.evaluate.table import Entry, Judged, Row, rows, score_name
from ttopt.record.result import FILE, Result, json_safe
from ttopt.record.run_folder import CONFIG, read_json, write_text, writing

TABLE = "comparison.json"


@dataclass(frozen=True)
class Comparison:
    """What a call of ``ttopt compare`` made."""

    folder: Path
    settings: CompareSettings
    entries: dict[str, dict[str, Entry]]
    table: list[Row]
    problems: list[str]


def tabulate(
    settings: CompareSettings, folder: Path, families: dict[str, str], problems: Sequence[str] = ()
) -> Comparison:
    """The table of what lies in ``folder`` for the samples ``families`` (id -> family), also as comparison.json."""
    entries = read_entries(settings, folder, list(families))
    papers = {method.name: method.paper for method in settings.methods}
    table = rows(entries, settings.reference, families.__getitem__, papers)
    content = {
        "score": score_name(entries),
        "reference": settings.reference,
        "samples": families,
        "rows": [dataclasses.asdict(row) for row in table],
    }
    with writing(folder):
        write_text(folder / TABLE, json.dumps(json_safe(content), indent=1, ensure_ascii=False))
    return Comparison(folder, settings, entries, table, list(problems))


def load_comparison(folder: Path) -> Comparison:
    """A comparison's folder, tabulated anew. Raises UserError if it holds none."""
    families = read_json(folder / TABLE).get("samples")
    if not isinstance(families, dict):
        raise UserError(f"{folder / TABLE} names no samples; run ttopt compare --run-dir {folder}")
    settings = read_compare(["--config", str(folder / CONFIG)])
    return tabulate(settings, folder, families)


def read_entries(settings: CompareSettings, folder: Path, samples: Sequence[str]) -> dict[str, dict[str, Entry]]:
    """What lies in a comparison's folder: every wanted method on every sample."""
    found: dict[str, dict[str, Entry]] = {}
    for method in chosen(settings):
        place = folder / "methods" / method.slug
        judged = read_json(place / JUDGED)
        # without --official nobody has checked that what is there is of these samples and videos
        official = read_json(place / OFFICIAL).get("scores", {}) if settings.official else {}
        found[method.name] = {}
        for sample in samples:
            where = place / "samples" / sample
            result = Result.load(where) if (where / FILE).exists() else None
            grades = judged.get(sample)
            seen = Judged(grades["p_yes"], grades["ssim"], grades["psnr"]) if grades else None
            found[method.name][sample] = Entry(result, seen, official.get(sample))
    return found
