"""ttopt makes video models reason better at test time.

    import ttopt
    r = ttopt.optimize("Move the red circle to the red star.", "first.png", config="mini")
    r.video, r.base, r.loss, r.accepted, r.score, r.folder

Libraries and models are loaded when something is asked for, not by ``import ttopt``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ttopt.config.version import __version__ as __version__

if TYPE_CHECKING:
    from ttopt.data.queries import Queries
    from ttopt.data.sample import Sample
    from ttopt.errors import RunError, UserError
    from ttopt.evaluate.api import compare
    from ttopt.methods.base import Method
    from ttopt.optimization.algorithm import fit_sample
    from ttopt.optimization.context import Context
    from ttopt.record.flat import load_results
    from ttopt.record.result import Result
    from ttopt.run.api import Optimized, load_models, optimize


_PUBLIC = {
    "optimize": "ttopt.run.api",
    "Optimized": "ttopt.run.api",
    "load_models": "ttopt.run.api",
    "compare": "ttopt.evaluate.api",
    "load_results": "ttopt.record.flat",
    "Result": "ttopt.record.result",
    "Sample": "ttopt.data.sample",
    "Queries": "ttopt.data.queries",
    "Context": "ttopt.optimization.context",
    "fit_sample": "ttopt.optimization.algorithm",
    "Method": "ttopt.methods.base",
    "UserError": "ttopt.errors",
    "RunError": "ttopt.errors",
}

__all__ = [
    "Context",
    "Method",
    "Optimized",
    "Queries",
    "Result",
    "RunError",
    "Sample",
    "UserError",
    "compare",
    "fit_sample",
    "load_models",
    "load_results",
    "optimize",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'ttopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
