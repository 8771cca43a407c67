"""``ttopt app`` begins: a missing extra is a sentence."""

from __future__ import annotations

import importlib

from ttopt.config.app import AppSettings
from ttopt.errors import UserError


def start(own: AppSettings) -> int:
    """Serves the app until it is interrupted. Raises UserError if Gradio is not installed."""
    try:
        importlib.import_module("gradio")
    except ImportError as error:
        raise UserError("the app needs Gradio; install it with pip install -e '.[app]'") from error
    importlib.import_module("ttopt.evaluate.app.page").serve(own)
    return 0
