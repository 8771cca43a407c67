"""A page as one HTML file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from ttopt.data.replies import storable
from ttopt.evaluate.report import charts
from ttopt.evaluate.report.views import Page, SampleView
from ttopt.evaluate.statistics import Estimate
from ttopt.evaluate.table import NUMBERS, agrees, columns
from ttopt.record.run_folder import write_text, writing

FILE = "report.html"
GLYPHS = {"right": "✓", "wrong": "✗", "failed": "!", "out": "–", "done": "·"}
WORDS = {"right": "right", "wrong": "wrong", "failed": "no usable video", "out": "left out", "done": "no scorer"}
SCRIPTS = ("plots.js", "players.js", "page.js")


def write_page(page: Page, path: Path) -> Path:
    """Writes ``page`` to ``path``; raises UserError if that cannot be written."""
    with writing(path):
        write_text(path, storable(render(page)))
    return path


def render(page: Page) -> str:
    """The whole file. Texts of samples, models and users appear as text, whatever they hold."""
    reference = next((row for row in page.table if row.method == page.reference), None)
    specs = {
        "cost": charts.score_against_cost(page.table, page.score),
        "loss": {method: charts.loss_curve(tau) for method, tau in page.taus.items()},
        "questions": charts.question_curves(),
    }
    return _template().render(
        page=page,
        columns=columns(page.table),
        names=NUMBERS,
        families=sorted({s.family for s in page.samples if s.family}),
        splits=sorted({s.split for s in page.samples if s.split}),
        glyphs=GLYPHS,
        words=WORDS,
        groups=list(dict.fromkeys(group for verdict in page.official.values() for group in verdict.summary)),
        verdicts={row.method: agrees(row, reference) for row in page.table} if reference else {},
        specs=_json(specs),
        data=_json({sample.id: _data(sample) for sample in page.samples}),
        style=_part("style.css"),
        script=Markup("\n").join(map(_part, SCRIPTS)),
        vega=Markup(_vega().replace("</script", "<\\/script")),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("ttopt.evaluate.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": _number, "exact": _exact, "signed": _signed, "interval": _interval, "percent": _percent,
        "metrics": _metrics,
    }  # fmt: skip
    return environment.get_template("page.html")


def _data(sample: SampleView) -> dict[str, Any]:
    """What the page's script needs of a sample: outcomes for the filters, where the videos are, and the curves."""
    return {
        "outcomes": {clip.method: clip.outcome for clip in sample.clips},
        "hacked": [clip.method for clip in sample.clips if clip.hacked],
        "sources": {clip.method: clip.source for clip in sample.clips if clip.source},
        "broken": {
            clip.method: [[each.words or each.rule, each.frames] for each in clip.broken if each.frames]
            for clip in sample.clips
            if clip.broken
        },
        "queries": {clip.method: clip.queries for clip in sample.clips if clip.curves},
        "curves": {clip.method: [_rounded(row) for row in clip.curves] for clip in sample.clips if clip.curves},
    }


def _rounded(row: Mapping[str, float]) -> dict[str, float]:
    """As exact as a plot can show."""
    return {name: float(f"{value:.5g}") for name, value in row.items()}


def _json(value: Any) -> Markup:
    """JSON that may stand in a <script>: no text can end it."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _vega() -> str:
    """Vega-Embed with all it needs, as the script of a page without a network."""
    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub forgets the default
    return bundle


def _part(name: str) -> Markup:
    return Markup((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8"))


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.3g}"


def _exact(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _metrics(summary: Mapping[str, Mapping[str, float]]) -> list[str]:
    """All metrics of a benchmark's groups, in their order."""
    return list(dict.fromkeys(metric for numbers in summary.values() for metric in numbers))


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %".replace("-", "−")


def _interval(value: Estimate, sign: str = "") -> str:
    if not value.n:
        return ""
    return f"[{value.low:{sign}.2f}, {value.high:{sign}.2f}]".replace("-", "−")
