"""One self-contained HTML page for a comparison or a run of fits: no network, everything escaped."""

from __future__ import annotations

from ttopt.evaluate.report.page import FILE
from ttopt.evaluate.report.runs import write_report

__all__ = ["FILE", "write_report"]
