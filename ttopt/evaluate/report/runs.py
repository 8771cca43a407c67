"""The page of a folder of results, whatever made them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from ttopt.config.comparison import settings_of
from ttopt.config.parsing import parse
from ttopt.config.settings import FitSettings
from ttopt.errors import UserError
from ttopt.evaluate.comparison import load_comparison
from ttopt.evaluate.report.page import FILE, write_page
from ttopt.evaluate.report.views import Page, comparison_page, fit_page
from ttopt.record.plain import read_plain
from ttopt.record.result import Result
from ttopt.record.run_folder import CONFIG


def write_report(folder: Path, note: Callable[[str], None] = lambda text: None) -> Path:
    """Writes report.html of a comparison's or a run's folder; returns its path. ``note`` is told what had to be left
    out. Raises UserError for another folder."""
    if (folder / "methods").is_dir():
        page = _comparison(folder)
    elif (folder / "samples").is_dir():
        page = _fit(folder)
    else:
        raise UserError(f"{folder} is neither a run's nor a comparison's folder; give one as --run-dir")
    for problem in page.problems:
        note(problem)
    return write_page(page, folder / FILE)


def _comparison(folder: Path) -> Page:
    found = load_comparison(folder)
    s = found.settings
    about = [
        ("data set", s.dataset),
        ("seed", str(s.seed)),
        ("models", " and ".join(dict.fromkeys((s.reasoner.model, s.teacher.model, *s.teacher.others)))),
    ]
    if s.dataset in ("miniworld", "vbvr"):
        about.insert(1, ("split", s.split))
    about += _made(entry.result for samples in found.entries.values() for entry in samples.values())
    slugs = {method.name: method.slug for method in s.methods}
    title = f"Comparison {folder.resolve().name}"
    taus = {method.name: settings_of(method, s, folder).optimization.tau for method in s.methods}
    return comparison_page(found, title, about, slugs, taus)


def _fit(folder: Path) -> Page:
    read_plain(folder / CONFIG, folder)
    s = parse(FitSettings, "fit", "", ["--config", str(folder / CONFIG)])
    results, problems = [], []
    for place in sorted((folder / "samples").iterdir()):
        if place.name.startswith(".") or not place.is_dir():
            continue
        try:
            results.append(Result.load(place, place.name, folder))
        except UserError as error:
            problems.append(f"{error}; it is left out")
    results.sort(key=lambda result: (result.finished, result.sample))
    if not results:
        more = f" ({problems[0]})" if problems else ""
        raise UserError(f"{folder} holds no finished sample{more}; run ttopt fit --run-dir {folder}")
    about = [("data set", s.dataset), ("seed", str(s.seed)), ("steps", f"at most {s.optimization.steps}")]
    about += [("tau", f"{s.optimization.tau:g}"), ("learning rate", f"{s.optimization.lr:g}"), *_made(results)]
    return fit_page(folder, f"Run {folder.resolve().name}", about, results, s.optimization.tau, problems)


def _made(results: Iterable[Result | None]) -> list[tuple[str, str]]:
    """With what, and when the last result was finished."""
    known = [result for result in results if result is not None]
    if not known:
        return []
    last = max(known, key=lambda result: result.finished)
    finished = last.finished[:16].replace("T", " ")
    return [("device", last.device), ("ttopt", last.versions.get("ttopt", "")), ("finished", finished)]
