"""Settings of ``ttopt report``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ttopt.config.fields import Group
from ttopt.config.parsing import parse
from ttopt.errors import UserError


@dataclass(frozen=True)
class ReportSettings(Group):
    """Report"""

    run_dir: str = ""
    """Folder that ttopt fit or ttopt compare has written."""


def parse_report(args: Sequence[str]) -> ReportSettings:
    """Settings of ``ttopt report``. Raises UserError."""
    what = "Write report.html of a run or a comparison again, from what lies in its folder."
    settings = parse(ReportSettings, "report", what, args)
    if not settings.run_dir:
        raise UserError("run_dir is missing; give the folder of a run or a comparison as --run-dir")
    return settings
