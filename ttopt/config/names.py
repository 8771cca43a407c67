"""The names of settings, and the nearest one to a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ttopt.config.settings import METHOD_ARGUMENTS
from ttopt.errors import UserError


def check_name(name: str, shown: str, known: Iterable[str], flag: str = "") -> None:
    """UserError for an unknown setting, naming the known one that looks most like it. ``flag``: what is typed before a
    name."""
    if name in known or name.startswith(f"{METHOD_ARGUMENTS}."):
        return

    def likeness(candidate: str) -> float:
        # "--tau" means optimization.tau, so the last part counts as much as the whole name.
        pairs = ((name, candidate), (name.rpartition(".")[2], candidate.rpartition(".")[2]))
        whole, last = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return max(whole, last) + 0.1 * whole

    nearest = max(known, key=likeness)
    raise UserError(f"{shown}: there is no such setting; the nearest is {flag}{nearest} (--help-all lists all)")
