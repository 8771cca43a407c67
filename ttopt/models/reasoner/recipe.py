"""What public models were trained for, off which they still run but their videos fall apart: sizes and noise levels."""

from __future__ import annotations

from typing import Any

from ttopt.config.settings import ReasonerSettings
from ttopt.models.reasoner.sampler import Schedule, shifted

# Shifted by 5, as Wan's are in training, 1, 0.75, 0.5, 0.25 become 1, 0.9375, 0.8333, 0.625. Those of
# Wan2.2-TI2V-5B-Turbo were shifted in its training; its own inference does not shift them.
NOISE_LEVELS = {
    "turbo": (1.0, 0.75, 0.5, 0.25),
    "turbo_training": (1.0, 0.9375, 0.8333, 0.625),
    "lightning": (1.0, 0.9375, 0.8333, 0.625),
    "fastwan": (1.0, 0.757, 0.522),
}

# (in_channels, blocks) of a public transformer -> (height, width) of its recipe, as its model card names them.
RECIPES: dict[tuple[int, int], tuple[str, tuple[tuple[int, int], ...]]] = {
    (48, 30): ("Wan2.2-TI2V-5B", ((704, 1280), (1280, 704))),
    (36, 40): ("Wan2.2-I2V-A14B", ((720, 1280), (1280, 720), (480, 832), (832, 480))),
}


def size_warning(transformer: Any, height: int, width: int) -> str | None:
    """What to tell a user whose size is off the recipe: the nearest good one. None if all is well or nothing is known.

    Good sizes are those of the recipe and others of about the same area and a moderate aspect.
    """
    recipe = RECIPES.get((transformer.config["in_channels"], len(transformer.blocks)))
    if recipe is None:
        return None
    name, sizes = recipe
    areas = [h * w for h, w in sizes]
    usual_area = any(0.8 <= height * width / area <= 1.1 for area in areas)
    if usual_area and 0.5 <= height / width <= 2:
        return None

    def distance(size: tuple[int, int]) -> float:
        h, w = size
        return abs(height / width - h / w) + abs(height * width - h * w) / (h * w)

    h, w = min(sizes, key=distance)
    return f"{height}x{width} (height x width) is off the recipe of {name}; the nearest good size is {h}x{w}"


def schedule_of(settings: ReasonerSettings) -> Schedule:
    """The noise levels and the kind of steps that the settings ask for. Raises UserError."""
    sigmas = settings.sigmas
    if sigmas == "shifted":
        assert settings.steps is not None and settings.shift is not None, "checked with the settings"
        levels = shifted(settings.steps, settings.shift, settings.solver)
    else:
        levels = NOISE_LEVELS[sigmas] if isinstance(sigmas, str) else tuple(sigmas)
    return Schedule(levels, settings.renoise, settings.solver)
