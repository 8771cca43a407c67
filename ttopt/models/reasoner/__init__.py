"""The reasoner: a frozen video generation model, its conditions, samplers, decoders and adapter."""

from __future__ import annotations

from ttopt.models.reasoner.adapter import Adapter
from ttopt.models.reasoner.condition import Condition
from ttopt.models.reasoner.decoder import StandardDecoder, straight_through_clamp
from ttopt.models.reasoner.forward import Activation
from ttopt.models.reasoner.light_decoder import LightDecoder
from ttopt.models.reasoner.reasoner import Reasoner
from ttopt.models.reasoner.sampler import Schedule
from ttopt.models.reasoner.taehv import LightDecoderConfig

__all__ = [
    "Activation",
    "Adapter",
    "Condition",
    "LightDecoder",
    "LightDecoderConfig",
    "Reasoner",
    "Schedule",
    "StandardDecoder",
    "straight_through_clamp",
]
