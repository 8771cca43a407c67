"""The reasoner: a frozen few-step video generation model in the style of Wan2.2-TI2V."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor
from transformers import UMT5EncoderModel

from ttopt.reasoner import sampler
from ttopt.reasoner.condition import (
    Condition,
    check_same_format,
    embed_prompts,
    encode_first_frame,
    latent_shape,
    latent_statistics,
)
from ttopt.reasoner.light_decoder import LightDecoder
from ttopt.reasoner.loading import load_components
from ttopt.reasoner.sampler import Schedule
from ttopt.sample import Sample


@dataclass(repr=False, eq=False)
class Reasoner:
    """A frozen video generation model; deliberately not an nn.Module, so that no trainer moves or saves it.

    Latents are (B, C, T, h, w) float32, normalised; a video has 4 * (T - 1) + 1 frames. Everything runs with
    the adapter as currently attached and enabled on ``transformer``.
    """

    transformer: WanTransformer3DModel
    vae: AutoencoderKLWan
    text_encoder: UMT5EncoderModel
    tokenizer: Any
    schedule: Schedule
    light_decoder: LightDecoder | None = None

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        schedule: Schedule,
        transformer: str | Path | None = None,
        light_decoder: str | Path | None = None,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> Reasoner:
        """Load a model in the diffusers layout {transformer, vae, text_encoder, tokenizer}, frozen.

        ``model`` is a folder or a hub id; ``transformer`` replaces the transformer by that of another folder
        or hub id (distilled weights, say); ``light_decoder`` is a folder or a TAEHV safetensors file.
        ``dtype`` ("float32", "bfloat16", "float16") is that of the transformer, the text encoder and the light
        decoder; the VAE and what diffusers keeps in fp32 (time embedder, norms, RoPE) stay float32. Raises
        UserError naming the missing file.
        """
        parts = load_components(model, transformer, dtype, device)
        light = None
        if light_decoder is not None:
            light = LightDecoder.load(light_decoder, dtype=getattr(torch, dtype), device=device)
        return cls(*parts, schedule=schedule, light_decoder=light)

    @property
    def device(self) -> torch.device:
        return self.transformer.patch_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The frozen transformer's dtype (an attached adapter may differ)."""
        return self.transformer.patch_embedding.weight.dtype

    @torch.no_grad()
    def condition(self, samples: Sample | Sequence[Sample]) -> Condition:
        """Text embeddings and first-frame latents of samples of one format; call once per sample.

        Raises UserError when the samples differ in format or the model cannot represent it.
        """
        samples = [samples] if isinstance(samples, Sample) else list(samples)
        check_same_format(samples)
        shape = latent_shape(samples[0], self.vae, self.transformer.config["patch_size"])
        prompts = [sample.prompt for sample in samples]
        text = embed_prompts(prompts, self.tokenizer, self.text_encoder, self.dtype, self.device)
        images = [sample.image for sample in samples if sample.image is not None]
        first_frame = encode_first_frame(torch.stack(images).to(self.device), self.vae) if images else None
        return Condition(text, first_frame, shape)

    def noise(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """Pure noise z1 (B, C, T, h, w) float32, item b from ``seeds[b]``, the same on every device."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return sampler.draw_noise(condition.shape, generators, self.device)

    def velocity(self, latents: Tensor, sigma: float, condition: Condition) -> Tensor:
        """The transformer's velocity u (B, C, T, h, w) float32 at noise level ``sigma``.

        With a first frame, as Wan2.2-TI2V was trained: the first latent frame of the input is the clean
        condition and its tokens carry timestep 0. A condition of one video serves a batch of any size.
        """
        condition = condition.expand(latents.shape[0])
        latents = self.impose_first_frame(latents, condition)
        output: Tensor = self.transformer(
            hidden_states=latents.to(self.dtype),
            timestep=self._timestep(latents, sigma, condition.first_frame is not None),
            encoder_hidden_states=condition.text,
            return_dict=False,
        )[0]
        return output.float()

    def predict_clean(self, latents: Tensor, sigma: float, condition: Condition) -> Tensor:
        """One-step prediction z0 = z - sigma * u, first frame re-imposed; (B, C, T, h, w) float32."""
        clean = sampler.predict_clean(latents, self.velocity(latents, sigma, condition), sigma)
        return self.impose_first_frame(clean, condition)

    def denoise(
        self,
        latents: Tensor,
        condition: Condition,
        steps: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """The first ``steps`` steps of the schedule (all: None) from pure noise; gradients flow if enabled.

        ``generator`` draws the fresh noise of a re-noising schedule: one CPU generator for the batch or one
        per item. By default each item gets a new one with seed 0, so that a sample meets the same noise with
        and without its adapter, alone and in any batch. Returns (B, C, T, h, w), first frame re-imposed.
        """
        count = len(self.schedule) if steps is None else steps
        if generator is None:
            generators = [torch.Generator().manual_seed(0) for _ in range(latents.shape[0])]
        elif isinstance(generator, torch.Generator):
            generators = [generator] * latents.shape[0]
        else:
            generators = list(generator)
        for step in range(count):
            sigma, next_sigma = self.schedule.sigmas[step], self.schedule.next_sigma(step)
            velocity = self.velocity(latents, sigma, condition)
            if self.schedule.renoise and next_sigma > 0.0:
                noise = sampler.draw_noise(latents.shape[1:], generators, latents.device)
                latents = sampler.renoise_step(latents, velocity, sigma, next_sigma, noise)
            else:
                latents = sampler.euler_step(latents, velocity, sigma, next_sigma)
        return self.impose_first_frame(latents, condition)

    @torch.no_grad()
    def generate(
        self,
        z1: Tensor,
        condition: Condition,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Tensor:
        """Clean latents (B, C, T, h, w) after the full schedule, without gradients; see ``denoise``."""
        return self.denoise(z1, condition, generator=generator)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> video (B, frames, 3, H, W) float32 in [0, 1] by the standard VAE, without gradients."""
        mean, inverse_std = latent_statistics(self.vae, latents.device)
        video: Tensor = self.vae.decode((latents / inverse_std + mean).to(self.vae.dtype), return_dict=False)[0]
        return (video.float() * 0.5 + 0.5).clamp(0.0, 1.0).transpose(1, 2)

    def impose_first_frame(self, latents: Tensor, condition: Condition) -> Tensor:
        """``latents`` with the condition's clean first latent frame, if it has one."""
        if condition.first_frame is None:
            return latents
        first_frame = condition.first_frame.expand(latents.shape[0], -1, -1, -1, -1)
        return torch.cat([first_frame.to(latents.dtype), latents[:, :, 1:]], dim=2)

    def _timestep(self, latents: Tensor, sigma: float, has_first_frame: bool) -> Tensor:
        # One row for the whole batch: the transformer broadcasts its modulation, computed once, not B times.
        frame_patch, height_patch, width_patch = self.transformer.config["patch_size"]
        _, _, frames, height, width = latents.shape
        timestep = sampler.TIMESTEPS * sigma
        if not has_first_frame:
            return torch.full((1,), timestep, device=latents.device)
        tokens_per_frame = (height // height_patch) * (width // width_patch)
        row = torch.full((1, frames // frame_patch * tokens_per_frame), timestep, device=latents.device)
        row[:, :tokens_per_frame] = 0.0
        return row
