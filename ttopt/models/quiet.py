"""Libraries keep their progress bars and news to themselves while models are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_loading() -> Iterator[None]:
    """As it was before on leaving; errors still come as exceptions."""
    libraries = (diffusers_logging, transformers_logging, hub_logging)
    levels = [(library, library.get_verbosity()) for library in libraries]
    bars, hub_bars = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    try:
        for library, _ in levels:
            library.set_verbosity_error()
        for library in (diffusers_logging, transformers_logging):
            library.disable_progress_bar()
        disable_progress_bars()
        yield
    finally:
        for library, level in levels:
            library.set_verbosity(level)
        if bars:
            diffusers_logging.enable_progress_bar()
            transformers_logging.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()
