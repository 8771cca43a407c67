"""Attention over packed rows (ttopt/models/teacher/packing.py) without a mask as large as the video squared.

The prefix is causal, for which there are kernels that skip what is hidden and read no mask; only the questions' few
tokens need one. On an H200 in bfloat16, 10,600 prefix and 200 question tokens: 3.4 times faster than one masked call.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "ttopt_packed"  # the name for set_attn_implementation; without ``prefix_tokens`` it is "sdpa"


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prefix_tokens: int = 0,
    **settings: Any,
) -> tuple[Tensor, None]:
    """``query`` (B,H,S,d), ``key`` and ``value`` (B,G,S,d) -> (B,S,H,d).

    The first ``prefix_tokens`` P tokens are causal, the others obey ``attention_mask`` (B,1,S-P,S), True = may attend.
    """
    p = prefix_tokens
    if not p:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    # Repeated, as not every fused kernel takes fewer key heads than query heads.
    key, value = (repeat_kv(x, query.shape[1] // x.shape[1]) for x in (key, value))
    attend = partial(F.scaled_dot_product_attention, scale=settings["scaling"], dropout_p=settings.get("dropout", 0.0))
    prefix = attend(query[:, :, :p], key[:, :, :p], value[:, :, :p], is_causal=True)
    questions = attend(query[:, :, p:], key, value, attn_mask=attention_mask)
    return torch.cat([prefix, questions], dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
