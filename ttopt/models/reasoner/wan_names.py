"""Names of a Wan transformer's weights: diffusers' own, and the original ones, which most public files use."""

from __future__ import annotations

import re

# diffusers' part of a name -> the original one (github.com/Wan-Video/Wan2.2, wan/modules/model.py), where they differ.
IN_BLOCK = {
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "add_k_proj": "k_img",
    "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "norm2": "norm3",
    "scale_shift_table": "modulation",
}
OUTSIDE = {
    "scale_shift_table": "head.modulation",
    "proj_out": "head.head",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
}


def original_name(name: str) -> str:
    """The original name of diffusers' layer or weight: ``blocks.0.attn1.to_q`` is ``blocks.0.self_attn.q``."""
    block = re.match(r"blocks\.\d+\.", name)
    start = block[0] if block else ""
    rest = name.removeprefix(start)
    for ours, theirs in (IN_BLOCK if block else OUTSIDE).items():
        rest = re.sub(rf"(^|\.){re.escape(ours)}(?=\.|$)", rf"\g<1>{theirs}", rest)
    return start + rest
