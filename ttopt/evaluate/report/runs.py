"""The page of a folder of results, whatever made them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ttopt.config.comparison import settings_of
from ttopt.config.parsing import parse
from ttopt.config.settings import FitSettings
from ttopt.errors import UserError
from ttopt.evaluate.comparison import load_comparison
from ttopt.evaluate.report.page import FILE, write_page
from ttopt.evaluate.report.views import comparison_page, fit_page
from ttopt.record.result import FILE as RESULT
from ttopt.record.result import Result
from ttopt.record.run_folder import CONFIG


def write_report(folder: Path) -> Path:
    """Writes report.html of a comparison's or a run's folder; returns its path. Raises UserError for another folder."""
    if (folder / "methods").is_dir():
        return _comparison(folder)
    if (folder / "samples").is_dir():
        return _fit(folder)
    raise UserError(f"{folder} is neither a run's nor a comparison's folder; give one as --run-dir")


def _comparison(folder: Path) -> Path:
    found = load_comparison(folder)
    s = found.settings
    about = [
        ("data set", s.dataset),
        ("seed", str(s.seed)),
        ("models", " and ".join(dict.fromkeys((s.reasoner.model, s.teacher.model)))),
    ]
    if s.dataset in ("miniworld", "vbvr"):
        about.insert(1, ("split", s.split))
    about += _made(entry.result for samples in found.entries.values() for entry in samples.values())
    slugs = {method.name: method.slug for method in s.methods}
    title = f"Comparison {folder.resolve().name}"
    taus = {method.name: settings_of(method, s, folder).optimization.tau for method in s.methods}
    page = comparison_page(folder, title, about, found.entries, slugs, found.table, s.reference, taus)
    return write_page(page, folder / FILE)


def _fit(folder: Path) -> Path:
    s = parse(FitSettings, "fit", "", ["--config", str(folder / CONFIG)])
    results = [Result.load(path.parent) for path in (folder / "samples").glob(f"[!.]*/{RESULT}")]
    results.sort(key=lambda result: (result.finished, result.sample))
    if not results:
        raise UserError(f"{folder} holds no finished sample; run ttopt fit --run-dir {folder}")
    about = [("data set", s.dataset), ("seed", str(s.seed)), ("steps", f"at most {s.optimization.steps}")]
    about += [("tau", f"{s.optimization.tau:g}"), ("learning rate", f"{s.optimization.lr:g}"), *_made(results)]
    page = fit_page(folder, f"Run {folder.resolve().name}", about, results, s.optimization.tau)
    return write_page(page, folder / FILE)


def _made(results: Iterable[Result | None]) -> list[tuple[str, str]]:
    """With what, and when the last result was finished."""
    known = [result for result in results if result is not None]
    if not known:
        return []
    last = max(known, key=lambda result: result.finished)
    finished = last.finished[:16].replace("T", " ")
    return [("device", last.device), ("ttopt", last.versions.get("ttopt", "")), ("finished", finished)]
