"""One self-contained HTML page for a comparison or a run of fits: no network, everything escaped."""

from __future__ import annotations

from ttopt.report.page import FILE
from ttopt.report.runs import write_report

__all__ = ["FILE", "write_report"]
