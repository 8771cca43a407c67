"""When memory is too small: what can be had for more time, and what to say when that is not enough."""

from __future__ import annotations

import gc
from contextlib import suppress
from dataclasses import replace

import torch

from ttopt.config.settings import FitSettings
from ttopt.errors import UserError
from ttopt.models.distributed import world_size
from ttopt.models.load import TOO_SMALL, Models, too_small
from ttopt.models.reasoner import StandardDecoder
from ttopt.planning.estimate import plan
from ttopt.planning.gpus import GPUS
from ttopt.planning.plan import helping

SPARED = "memory is too small: from here on activations are computed again instead of kept, which is slower"


def spare(models: Models) -> bool:
    """Lets the backward pass compute everything again instead of keeping it, which changes no result.

    Returns whether anything was kept before. (The decoders keep little: the standard one goes latent frame by latent
    frame, which it now computes again too.)
    """
    kept = can_spare(models)
    models.reasoner.activation_checkpointing = range(len(models.reasoner.transformer.blocks))
    models.teacher.set_activation_checkpointing(True)
    if isinstance(models.decoder, StandardDecoder):
        models.decoder.activation_checkpointing = True
    return kept


def can_spare(models: Models) -> bool:
    """Whether ``spare`` would change anything."""
    reasoner, decoder = models.reasoner, models.decoder
    kept = (
        len(reasoner.activation_checkpointing) < len(reasoner.transformer.blocks)
        or not models.teacher.activation_checkpointing
    )
    return kept or (isinstance(decoder, StandardDecoder) and not decoder.activation_checkpointing)


def release(reserve: bool = False) -> None:
    """Lets go of what a sample held of a GPU: its Trainer refers to itself and would stay for a while; with ``reserve``
    also of the memory that torch keeps for later."""
    if torch.cuda.is_available():  # else memory is plenty, and this would take longer than a step
        gc.collect()
        if reserve:
            torch.cuda.empty_cache()


def advice(settings: FitSettings, error: BaseException) -> str:
    """What to do when that was not enough."""
    if not isinstance(error, torch.OutOfMemoryError):  # the CPU's, of which no plan is made
        return too_small(error)
    reasoner, teacher = (
        replace(settings.reasoner, activation_checkpointing="all"),
        replace(settings.teacher, activation_checkpointing=True),
    )
    spared = replace(settings, reasoner=reasoner, teacher=teacher)
    name = ""
    with suppress(UserError):  # models whose sizes are unknown
        found = plan(spared, GPUS["H100"], processes=world_size())  # any GPU: what is needed is the same on all
        name, _ = next(helping(spared, found), ("", found))
    return f"{TOO_SMALL}, first {name}" if name else TOO_SMALL
