"""What the reasoner is conditioned on, computed once per sample: text and the clean first latent frame."""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ftfy
import torch
from torch import Tensor

from ttopt.data.sample import Sample
from ttopt.errors import UserError

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
    from transformers import UMT5EncoderModel

TEXT_TOKENS = 512  # Wan was trained with text embeddings zero-padded to this length


@dataclass
class Condition:
    """Condition of B videos of one size.

    ``text`` (B, L, D) in the transformer's dtype, zeros after each prompt's end; ``first_frame``
    (B, C, 1, h, w) float32 normalized latents, or None for text-to-video; ``shape`` (C, T, h, w) of one
    video's latents. ``channels`` (B, 4 + C, T, h, w) float32, in image-to-video models that see the first frame as
    further input channels instead (Wan2.2-I2V-A14B). ``negative`` (B, L, D), like ``text``: what guidance leads away
    from; None without guidance.
    """

    text: Tensor
    first_frame: Tensor | None
    shape: tuple[int, int, int, int]
    channels: Tensor | None = None
    negative: Tensor | None = None

    def __len__(self) -> int:
        return self.text.shape[0]

    def unguided(self) -> Condition:
        """The same with the negative prompt in the prompt's place."""
        assert self.negative is not None
        return replace(self, text=self.negative, negative=None)

    def to(self, device: torch.device | str) -> Condition:
        """The same condition on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def expand(self, count: int) -> Condition:
        """One video's condition for ``count`` videos, as views; raises ValueError when B is not 1."""
        if len(self) == count:
            return self
        if len(self) != 1:
            raise ValueError(f"a condition of {len(self)} videos cannot serve {count} videos")
        return self._map(lambda tensor: tensor.expand(count, *tensor.shape[1:]))

    def select(self, indices: Sequence[int]) -> Condition:
        """The condition of some of the videos, in the order of ``indices``."""
        rows = list(indices)
        return self._map(lambda tensor: tensor[rows])

    @classmethod
    def stack(cls, conditions: Sequence[Condition]) -> Condition:
        """The conditions of videos of one format as one, in their order."""
        if len(conditions) == 1:
            return conditions[0]

        def together(tensors: Sequence[Tensor | None]) -> Tensor | None:
            present = [tensor for tensor in tensors if tensor is not None]
            return torch.cat(present) if present else None

        return cls(
            torch.cat([each.text for each in conditions]),
            together([each.first_frame for each in conditions]),
            conditions[0].shape,
            together([each.channels for each in conditions]),
            together([each.negative for each in conditions]),
        )

    def _map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        tensors = (self.first_frame, self.channels, self.negative)
        first_frame, channels, negative = (None if tensor is None else function(tensor) for tensor in tensors)
        return Condition(function(self.text), first_frame, self.shape, channels, negative)


def clean_prompt(prompt: str) -> str:
    """Repair, HTML-unescape and single-space a prompt, as the diffusers Wan pipelines do before tokenizing."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


def embed_prompts(
    prompts: Sequence[str],
    tokenizer: Any,
    text_encoder: UMT5EncoderModel,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    """Text embeddings (B, L, D) with zeros after each prompt's end.

    L is the tokenizer's model_max_length, at most 512; of a longer prompt the rest is not read, which is warned of.
    The Wan transformer has no text mask: it was trained to see these zeros, so the padding is part of the model.
    """
    length = min(TEXT_TOKENS, int(tokenizer.model_max_length))
    texts = [clean_prompt(prompt) for prompt in prompts]
    for text, ids in zip(texts, tokenizer(texts, verbose=False).input_ids, strict=True):
        if len(ids) > length:
            warnings.warn(f'only {length} of the {len(ids)} tokens of "{text[:50]}..." are read', stacklevel=2)
    tokens = tokenizer(
        texts,
        padding="max_length",
        max_length=length,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    encoder_device = next(text_encoder.parameters()).device
    mask = tokens.attention_mask.to(encoder_device)  # (B, L)
    hidden: Tensor = text_encoder(tokens.input_ids.to(encoder_device), mask).last_hidden_state  # (B, L, D)
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, 0.0).to(device=device, dtype=dtype)


def encode_first_frame(images: Tensor, vae: AutoencoderKLWan) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] -> latents (B, C, 1, h, w) float32: posterior mode, (z - mean) / std."""
    mean, inverse_std = latent_statistics(vae, images.device)
    pixels = (2.0 * images - 1.0).unsqueeze(2).to(vae.dtype)  # (B, 3, 1, H, W)
    latents: Tensor = vae.encode(pixels).latent_dist.mode().float()
    return (latents - mean) * inverse_std


def encode_channels(images: Tensor, vae: AutoencoderKLWan, frames: int) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] -> the input channels (B, 4 + C, T, h, w) float32 of Wan's 36-channel models.

    A mask, 1 in the first latent frame, and the latents of a video that is gray after its first frame.
    """
    mean, inverse_std = latent_statistics(vae, images.device)
    pixels = (2.0 * images - 1.0).unsqueeze(2)  # (B, 3, 1, H, W)
    gray = pixels.new_zeros(()).expand(*pixels.shape[:2], frames - 1, *pixels.shape[3:])
    latents: Tensor = vae.encode(torch.cat([pixels, gray], dim=2).to(vae.dtype)).latent_dist.mode().float()
    latents = (latents - mean) * inverse_std
    mask = torch.zeros_like(latents[:, :1]).repeat(1, vae.config["scale_factor_temporal"], 1, 1, 1)
    mask[:, :, 0] = 1.0
    return torch.cat([mask, latents], dim=1)


def latent_statistics(vae: AutoencoderKLWan, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Mean and 1/std of the latents, each (1, C, 1, 1, 1) float32."""
    mean = torch.tensor(vae.config["latents_mean"], device=device).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config["latents_std"], device=device).view(1, -1, 1, 1, 1)
    return mean, 1.0 / std


def latent_shape(sample: Sample, vae: AutoencoderKLWan, patch: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Latent shape (C, T, h, w) of a sample's video; UserError for a size the model cannot represent."""
    space, time = vae.config["scale_factor_spatial"], vae.config["scale_factor_temporal"]
    multiple = space * patch[1]
    if sample.height % multiple or sample.width % multiple:
        raise UserError(
            f"sample {sample.id}: {sample.width}x{sample.height} pixels; "
            f"this model needs width and height to be multiples of {multiple}"
        )
    frames = (sample.frames - 1) // time + 1
    return vae.config["z_dim"], frames, sample.height // space, sample.width // space


def check_same_format(samples: Sequence[Sample]) -> None:
    """Raise UserError unless all samples fit one batch: same frames and size, all or none with an image."""
    if not samples:
        raise UserError("no samples: give at least one")
    formats = {(s.frames, s.height, s.width, s.first_frame is not None) for s in samples}
    if len(formats) > 1:
        raise UserError(
            f"samples {samples[0].id}...{samples[-1].id} differ in frames, size or having a first image; "
            "run samples of different formats one at a time"
        )
