"""Folders of random models as large as the public ones: what a configuration takes, before anything is downloaded.

    python -m ttopt.planning.random_models big --device cuda

The videos mean nothing, but seconds and memory are those of the real weights. Text is read byte by byte, which makes
questions about four times as many tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    UMT5Config,
    UMT5EncoderModel,
)

from ttopt.models.reasoner import LightDecoder, LightDecoderConfig
from ttopt.models.teacher.prompts import END, IMAGE_PAD, START, VIDEO_PAD, VISION_END, VISION_START
from ttopt.planning.bench_models import default_dtype
from ttopt.planning.model_sizes import REASONERS, TEACHERS

CLASSES: dict[str, Any] = {
    "transformer": WanTransformer3DModel,
    "transformer_2": WanTransformer3DModel,
    "vae": AutoencoderKLWan,
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, and the chat's and the vision tokens; knows every text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [START, END, VISION_START, VISION_END, VIDEO_PAD, IMAGE_PAD]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token=END, extra_special_tokens=special,
        model_max_length=2**20,
    )  # fmt: skip


def save_reasoner(folder: Path, parts: dict[str, dict[str, Any]], device: str, dtype: torch.dtype) -> None:
    """A model in diffusers' layout; ``parts`` are configs by the names of its folders (model_sizes.py)."""
    for name, kind in CLASSES.items():
        if name in parts:
            _say(folder / name)
            with torch.device(device), default_dtype(torch.float32 if name == "vae" else dtype):
                network = kind.from_config(parts[name])
            network.save_pretrained(folder / name)
            del network
    tokenizer = byte_tokenizer()
    _say(folder / "text_encoder")
    with torch.device(device), default_dtype(dtype):
        encoder = UMT5EncoderModel(UMT5Config(**parts["text_encoder"], pad_token_id=tokenizer.pad_token_id))
    encoder.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    two = "transformer_2" in parts
    index = {"_class_name": "WanImageToVideoPipeline", "expand_timesteps": not two, **parts.get("model_index", {})}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def save_teacher(folder: Path, config: dict[str, Any], device: str, dtype: torch.dtype) -> None:
    """A Qwen3-VL of these sizes."""
    _say(folder)
    tokenizer = byte_tokenizer()
    names = {"video": VIDEO_PAD, "image": IMAGE_PAD, "vision_start": VISION_START, "vision_end": VISION_END}
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    text = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
    config = {**config, **ids, "text_config": {**config["text_config"], **text, "bos_token_id": None}}
    with torch.device(device), default_dtype(dtype):
        network = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config))
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _say(path: Path) -> None:
    print(f"writing {path}", flush=True)


def main(args: Sequence[str]) -> None:
    """``python -m ttopt.planning.random_models``."""
    parser = argparse.ArgumentParser(prog="ttopt.planning.random_models", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--reasoner", choices=list(REASONERS), default=next(iter(REASONERS)))
    parser.add_argument("--teacher", choices=list(TEACHERS), default=next(iter(TEACHERS)))
    parser.add_argument("--device", default="cpu", help="where the weights are made: cuda is much faster")
    own = parser.parse_args(args)
    torch.manual_seed(0)
    parts = REASONERS[own.reasoner]
    save_reasoner(own.folder / "reasoner", parts, own.device, torch.bfloat16)
    channels = parts["vae"].get("z_dim", 16)  # diffusers' default
    LightDecoder(LightDecoderConfig.public(channels)).save(own.folder / "light_decoder")
    save_teacher(own.folder / "teacher", TEACHERS[own.teacher], own.device, torch.bfloat16)


if __name__ == "__main__":
    main(sys.argv[1:])
