"""ttopt from Python: methods side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttopt.config.comparison import parse_compare
from ttopt.config.lookup import standard_callbacks
from ttopt.evaluate.compare import compare as compare_methods
from ttopt.evaluate.comparison import Comparison
from ttopt.run.console import Console


def compare(config: str = "compare", settings: Mapping[str, Any] | None = None, quiet: bool = False) -> Comparison:
    """Runs methods on the same samples; their table, with all results in ``folder``.

        found = ttopt.compare("compare", settings={"limit": 4, "split": "ood"})
        [(row.method, row.score.mean) for row in found.table]

    ``settings`` change the configuration by dotted names. What is finished in the folder ("run_dir") is kept. Raises
    UserError for what stops all of it; what one method could not do is among ``problems``.
    """
    arguments = [f"--{name}={_text(value)}" for name, value in (settings or {}).items()]
    return compare_methods(parse_compare(["--config", config, *arguments]), Console(quiet=quiet), standard_callbacks)


def _text(value: Any) -> str:
    return str(value) if isinstance(value, (str, Path)) else json.dumps(value)
