"""What a run would refuse, as far as torch alone can tell: before the libraries that take longer are loaded."""

from __future__ import annotations

import dataclasses

from ttopt.config.checks import WHOLE
from ttopt.config.comparison import CompareSettings
from ttopt.config.settings import FitSettings
from ttopt.data.find import find_samples
from ttopt.models.devices import find_device


def refuse(settings: FitSettings) -> None:
    """Raises UserError for an image that cannot be read, for families that do not exist, and for devices that are not
    here. Records of data sets are read once, later."""
    package, _, method = settings.method.path.rpartition(".")
    needs_models = package == "ttopt.methods" and method in WHOLE
    if needs_models and settings.engine == "in_process" and not isinstance(settings, CompareSettings):
        find_device(settings.reasoner.device, "reasoner.device")
        find_device(settings.teacher.device, "teacher.device")
    if settings.sample.prompt is not None or settings.dataset == "miniworld":
        find_samples(dataclasses.replace(settings, limit=min(settings.limit, len(settings.families or [0]))))
