"""Sizes of the public models, so that they can be planned for and measured with random weights without a download.

Copied from the models' own config.json files on the hub. Numbers only; a local folder's config.json comes first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ttopt.config.settings import EMBEDDED, WEIGHTS
from ttopt.errors import UserError
from ttopt.models.reasoner.condition import TEXT_TOKENS

WAN_5B: dict[str, dict[str, Any]] = {
    "transformer": {
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "in_channels": 48,
        "out_channels": 48,
        "text_dim": 4096,
        "ffn_dim": 14336,
        "num_layers": 30,
    },
    "vae": {
        "base_dim": 160,
        "decoder_base_dim": 256,
        "z_dim": 48,
        "temperal_downsample": [False, True, True],
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "latents_mean": [0.0] * 48,  # not the real statistics: they change no size
        "latents_std": [1.0] * 48,
    },
}
WAN_14B: dict[str, dict[str, Any]] = {
    "transformer": {"in_channels": 36, "text_dim": 4096},  # the rest are diffusers' defaults
    "transformer_2": {"in_channels": 36, "text_dim": 4096},
    "vae": {},
    "model_index": {"boundary_ratio": 0.9},
}
UMT5_XXL = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}


def _qwen3_vl(vision: dict[str, Any], text: dict[str, Any], tied: bool) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    shared = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    return {
        "model_type": "qwen3_vl",
        "vision_config": {"patch_size": 16, "num_heads": 16, "num_position_embeddings": 2304, **vision},
        "text_config": {"vocab_size": 151936, "rope_parameters": rope, **shared, **text},
        "video_token_id": 151656,
        "image_token_id": 151655,
        "tie_word_embeddings": tied,
    }


TEACHERS = {
    "Qwen/Qwen3-VL-4B-Instruct": _qwen3_vl(
        {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "out_hidden_size": 2560,
            "deepstack_visual_indexes": [5, 11, 17],
        },
        {"hidden_size": 2560, "intermediate_size": 9728},
        tied=True,
    ),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen3_vl(
        {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "out_hidden_size": 4096,
            "deepstack_visual_indexes": [8, 16, 24],
        },
        {"hidden_size": 4096, "intermediate_size": 12288},
        tied=False,
    ),
}
REASONERS: dict[str, dict[str, dict[str, Any]]] = {
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": {**WAN_5B, "text_encoder": UMT5_XXL},
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": {**WAN_14B, "text_encoder": UMT5_XXL},
    "FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers": {**WAN_5B, "text_encoder": UMT5_XXL},
    # Trained from the two first, which they are as large as.
    "Video-Reason/VBVR-Wan2.2": {**WAN_14B, "text_encoder": UMT5_XXL},
    "Video-Reason/VBVR-Pro-Wan2.2-TI2V-5B-RLVR": {**WAN_5B, "text_encoder": UMT5_XXL},
}


def reasoner_config(model: str, part: str) -> dict[str, Any] | None:
    """The config of a reasoner's part; None if the model has no such part (transformer_2). Raises UserError."""
    folder = WEIGHTS / "reasoner" if model == EMBEDDED else Path(model)
    if folder.is_dir():
        file = folder / ("model_index.json" if part == "model_index" else f"{part}/config.json")
        return _read(file) if file.is_file() else None
    if model in REASONERS:
        return REASONERS[model].get(part)
    raise UserError(
        f"reasoner.model {model}: no such folder, and its sizes are not known; known: {', '.join(REASONERS)}"
    )


def text_tokens(model: str) -> int:
    """How many text tokens the reasoner sees: Wan's 512, or fewer where its tokenizer says so."""
    folder = WEIGHTS / "reasoner" if model == EMBEDDED else Path(model)
    file = folder / "tokenizer" / "tokenizer_config.json"
    return min(TEXT_TOKENS, int(_read(file).get("model_max_length", TEXT_TOKENS))) if file.is_file() else TEXT_TOKENS


def teacher_config(model: str) -> dict[str, Any]:
    """The config of a teacher. Raises UserError."""
    folder = WEIGHTS / "teacher" if model == EMBEDDED else Path(model)
    if folder.is_dir():
        return _read(folder / "config.json")
    if model in TEACHERS:
        return TEACHERS[model]
    raise UserError(f"teacher.model {model}: no such folder, and its sizes are not known; known: {', '.join(TEACHERS)}")


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}); restore it") from error
    return content
