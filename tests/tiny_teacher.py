"""A tiny random teacher in transformers' folder layout: the real classes, a word-level vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
PHRASES = ["red cross", "blue square", "green pad"]
WORDS = [
    "user",
    "assistant",
    "seconds",
    "Yes",
    "No",
    "is",
    "does",
    "the",
    "on",
    "at",
    "end",
    "by",
    "a",
    "whole",
    "and",
]
WORDS += ["stay", "move", "to", "goal", "process"]
# Qwen3-VL's template, reduced to what the teacher uses
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% for c in m.content %}"
    "{% if c.type == 'text' %}{{ c.text }}"
    "{% else %}<|vision_start|><|{{ c.type }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}{{ '<|im_start|>assistant\\n' }}"
)
PUNCTUATION = list("{}[]\",:.?<>0123456789-'()=")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Noun phrases first, then words, then single punctuation marks; decodes to tokens joined by spaces."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, "<unk>", *PHRASES, *WORDS, *PUNCTUATION])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pattern = "|".join([*PHRASES, r"[A-Za-z]+", r"[^\sA-Za-z]"])
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=SPECIAL[1:2] + SPECIAL[3:],
    )


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """Patch 8, merge 2: a 48x48 frame is 36 patches, 9 tokens."""
    ids = tokenizer.get_vocab()
    return Qwen3VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 8,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": 48,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.2,
        },
        text_config={
            "vocab_size": len(ids),
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
            "initializer_range": 0.2,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def tiny_teacher_folder(path: Path, seed: int = 0) -> Path:
    """Saves a random teacher (60k parameters) under ``path`` and returns it; 48x48 frames are not resized."""
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(tiny_config(tokenizer))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    wording = {"question": "{question}", "queries": "{prompt}", "timestamps": False}
    (path / "ttopt_prompts.json").write_text(json.dumps(wording))
    return path
