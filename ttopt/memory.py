"""When the GPU's memory is too small: what can be had for more time, and what to say when that is not enough."""

from __future__ import annotations

from ttopt.models import TOO_SMALL, Models
from ttopt.plan import CURES
from ttopt.reasoner import StandardDecoder
from ttopt.settings import FitSettings

SPARED = "the GPU's memory is too small: from here on activations are computed again instead of kept, which is slower"


def spare(models: Models) -> bool:
    """Lets the backward pass compute everything again instead of keeping it, which changes no result.

    Returns whether anything was kept before. (The decoders keep little: the standard one goes latent frame by latent
    frame, which it now computes again too.)
    """
    reasoner, decoder, teacher = models.reasoner, models.decoder, models.teacher
    blocks = len(reasoner.transformer.blocks)
    kept = len(reasoner.recompute) < blocks or not teacher.recompute
    reasoner.recompute = range(blocks)
    teacher.set_recompute(True)
    if isinstance(decoder, StandardDecoder):
        kept, decoder.checkpoint = kept or not decoder.checkpoint, True
    return kept


def advice(settings: FitSettings) -> str:
    """What to do when that was not enough."""
    left = [name for name, change in CURES if "recompute" not in name and change(settings) != settings]
    return f"{TOO_SMALL}, first {left[0]}" if left else TOO_SMALL
