"""The table of a comparison's folder."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ttopt.config.comparison import CompareSettings, chosen, read_compare
from ttopt.errors import UserError
from ttopt.evaluate.files import Grades, Names, read_each, read_sample
from ttopt.evaluate.grading import JUDGED
from ttopt.evaluate.judges import OFFICIAL, Judgment, read_verdict
from ttopt.evaluate.table import BENCHMARK, QUESTIONS, SUCCESS, Entry, Judged, Row, rows
from ttopt.record.plain import read_plain, read_typed, there
from ttopt.record.result import json_safe
from ttopt.record.run_folder import CONFIG, write_text, writing

TABLE = "comparison.json"
NOT_YET = "not done yet"


@dataclass(frozen=True)
class Comparison:
    """What a call of ``ttopt compare`` made."""

    folder: Path
    settings: CompareSettings
    score: str  # what the table's score is
    entries: dict[str, dict[str, Entry]]
    table: list[Row]
    problems: list[str]
    official: dict[str, Judgment] = field(default_factory=dict)  # of each method that the benchmark's evaluator judged
    complete: bool = True


def score_name(settings: CompareSettings) -> str:
    """What the score of the table is, whatever became of the samples: a benchmark's own score where its evaluator was
    asked for, the scorer's success where the data set has one, else the teacher's satisfaction."""
    if settings.official:
        return BENCHMARK
    dataset = importlib.import_module(f"ttopt.data.{settings.dataset}")
    return SUCCESS if dataset.score is not None and settings.sample.prompt is None else QUESTIONS


def tabulate(
    settings: CompareSettings,
    folder: Path,
    families: dict[str, str],
    problems: Sequence[str] = (),
    complete: bool = True,
) -> Comparison:
    """The table of what lies in ``folder`` for the samples ``families`` (id -> family), also as comparison.json.

    Where a comparison is not ``complete``, samples without a result are left out instead of counted 0.
    """
    entries, official, unreadable = read_entries(settings, folder, list(families), complete)
    papers = {method.name: method.paper for method in settings.methods}
    name = score_name(settings)
    table = rows(entries, settings.reference, families.__getitem__, papers, name)
    content = {
        "score": name,
        "reference": settings.reference,
        "complete": complete,
        "samples": families,
        "rows": [dataclasses.asdict(row) for row in table],
        "official": {method: {"name": v.name, "summary": v.summary} for method, v in official.items()},
        "problems": list(problems),
    }
    with writing(folder):
        write_text(folder / TABLE, json.dumps(json_safe(content), indent=1, ensure_ascii=False))
    told = list(dict.fromkeys([*problems, *unreadable]))  # a run tells of a damaged result too
    return Comparison(folder, settings, name, entries, table, told, official, complete)


def load_comparison(folder: Path) -> Comparison:
    """A comparison's folder, tabulated again. Raises UserError if it holds none."""
    if not there(folder / TABLE):
        raise UserError(f"{folder / TABLE} is missing; run ttopt compare --run-dir {folder}")
    try:
        names: Names = read_typed(folder / TABLE, folder, Names)
    except UserError as error:
        raise UserError(f"{error}; run ttopt compare --run-dir {folder}") from error
    read_plain(folder / CONFIG, folder)
    settings = read_compare(["--config", str(folder / CONFIG)])
    return tabulate(settings, folder, names.samples, names.problems, names.complete)


def read_entries(
    settings: CompareSettings, folder: Path, samples: Sequence[str], complete: bool = True
) -> tuple[dict[str, dict[str, Entry]], dict[str, Judgment], list[str]]:
    """What lies in a comparison's folder: every wanted method on every sample, the verdicts of the benchmark's own
    evaluator, and what could not be read."""
    found: dict[str, dict[str, Entry]] = {}
    official: dict[str, Judgment] = {}
    problems: list[str] = []
    for method in chosen(settings):
        place = folder / "methods" / method.slug
        judged, unreadable = read_each(place / JUDGED, folder, Grades)
        problems += unreadable
        # without --official nobody has checked that what is there is of these samples and videos
        if settings.official and there(place / OFFICIAL):
            try:
                official[method.name] = read_verdict(place, folder).verdict
            except UserError as error:
                problems.append(str(error))
        verdict = official.get(method.name)
        found[method.name] = {}
        for sample in samples:
            result, left_out = None, "" if complete else NOT_YET
            try:
                result = read_sample(place / "samples" / sample, folder)
                left_out = left_out if result is None else ""
            except UserError as error:
                left_out = str(error)
                problems.append(f"{method.name}: sample {sample}: {error}")
            grades = judged.get(sample)
            found[method.name][sample] = Entry(
                result,
                Judged(grades.p_yes, grades.ssim, grades.psnr) if grades else None,
                verdict.scores.get(sample) if verdict else None,
                left_out,
                verdict.errors.get(sample, "") if verdict else "",
                verdict.parts.get(sample, {}) if verdict else {},
            )
    return found, official, problems
