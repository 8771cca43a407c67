"""Which names of models may be on the hub; others are folders and files on this machine."""

from __future__ import annotations

import re
from pathlib import Path

LOCAL = {".", "..", "weights"}  # weights: where the configurations expect what has to be put there by hand


def on_hub(name: str) -> bool:
    """Whether a name that is no folder here may be a model on the hub: owner/name, the owner being no folder here."""
    owner, _, _ = name.partition("/")
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and owner not in LOCAL and not Path(owner).is_dir()
