"""Tiny random models of the real classes, written to a folder in the diffusers layout."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from ttopt.data.sample import Sample

WORDS = "move the red blue green square cross triangle to pad and then a every object".split()


def tiny_tokenizer(length: int = 24) -> PreTrainedTokenizerFast:
    """Word-level tokenizer that, like UMT5's, ends each text with </s> and pads with id 0."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=length,
    )


def tiny_transformer(in_channels: int = 16, layers: int = 3) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=16,
        text_dim=8,
        freq_dim=16,
        ffn_dim=32,
        num_layers=layers,
        rope_max_seq_len=32,
    )


def tiny_reasoner_folder(path: str | Path, seed: int = 0) -> Path:
    """Write random {transformer, vae, text_encoder, tokenizer} under ``path`` and return it.

    Wan2.2 style: 48x48 pixels and 9 frames become latents (16, 3, 6, 6).
    """
    path = Path(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = tiny_transformer()
        vae = AutoencoderKLWan(
            base_dim=4,
            decoder_base_dim=4,
            z_dim=16,
            dim_mult=[1, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[True, True],
            is_residual=True,
            in_channels=12,
            out_channels=12,
            patch_size=2,
            scale_factor_temporal=4,
            scale_factor_spatial=8,
        )
        tokenizer = tiny_tokenizer()
        text_encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer),
                d_model=8,
                d_kv=4,
                d_ff=16,
                num_layers=1,
                num_heads=2,
                relative_attention_num_buckets=8,
                pad_token_id=0,
                eos_token_id=1,
            )
        )
    transformer.save_pretrained(path / "transformer")
    vae.save_pretrained(path / "vae")
    text_encoder.save_pretrained(path / "text_encoder")
    tokenizer.save_pretrained(path / "tokenizer")
    return path


def tiny_vae_21() -> AutoencoderKLWan:
    """In the style of Wan 2.1's: no patches, other residual blocks; 48x48 pixels and 9 frames become (16, 3, 6, 6)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 2, 2], num_res_blocks=1)


def tiny_two_experts_folder(path: str | Path, seed: int = 1) -> Path:
    """As ``tiny_reasoner_folder`` in the style of Wan2.2-I2V-A14B: Wan 2.1's VAE, two experts with 36 channels."""
    path = tiny_reasoner_folder(path)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tiny_transformer(in_channels=36).save_pretrained(path / "transformer")
        tiny_transformer(in_channels=36).save_pretrained(path / "transformer_2")
    tiny_vae_21().save_pretrained(path / "vae")
    (path / "model_index.json").write_text('{"boundary_ratio": 0.9}')
    return path


def tiny_sample(identifier: str = "a", prompt: str = "move the red square to the pad", image: bool = True) -> Sample:
    """A 48x48 sample of 9 frames with a random first image (or none)."""
    generator = torch.Generator().manual_seed(sum(map(ord, identifier)))
    picture = torch.rand((3, 48, 48), generator=generator) if image else None
    return Sample(id=identifier, prompt=prompt, first_frame=picture, frames=9, fps=8, height=48, width=48)
