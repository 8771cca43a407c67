"""The models of a process, kept while the settings that decide them stay the same."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from ttopt.config.settings import FitSettings
from ttopt.models.load import Models, load_models, load_teacher, sources
from ttopt.models.teacher import Teacher


class Loader:
    """The models of the last settings that were asked for: loaded again only if what decides them has changed."""

    def __init__(self, note: Callable[[str], None] = lambda text: None) -> None:
        self._note = note
        self._key: Any = None
        self._models: Models | None = None
        self._teacher: Teacher | None = None

    def __call__(self, settings: FitSettings) -> Models:
        key = (settings.reasoner, settings.decoder, settings.teacher, settings.adapter)
        if self._models is None or key != self._key:
            self._models = None
            gc.collect()  # the old ones must go before the new ones come; a Trainer refers to itself and holds them
            self._note(sources(settings))
            self._models, self._key = load_models(settings), key
        return self._models

    def teacher(self, settings: FitSettings) -> Teacher:
        """The teacher; without the rest if that was never needed."""
        if self._models is not None and self._key[2] == settings.teacher:
            return self._models.teacher
        self._teacher = self._teacher or load_teacher(settings)
        return self._teacher
