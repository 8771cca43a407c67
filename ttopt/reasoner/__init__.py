"""The reasoner: a frozen video generation model, its conditions, samplers, decoders and adapter."""

from __future__ import annotations

from ttopt.reasoner.adapter import Adapter
from ttopt.reasoner.batched import BatchedAdapter
from ttopt.reasoner.condition import Condition
from ttopt.reasoner.decoder import StandardDecoder, straight_through_clamp
from ttopt.reasoner.forward import Activation
from ttopt.reasoner.light_decoder import LightDecoder, LightDecoderConfig
from ttopt.reasoner.reasoner import Reasoner
from ttopt.reasoner.sampler import Schedule

__all__ = [
    "Activation",
    "Adapter",
    "BatchedAdapter",
    "Condition",
    "LightDecoder",
    "LightDecoderConfig",
    "Reasoner",
    "Schedule",
    "StandardDecoder",
    "straight_through_clamp",
]
