"""The reasoner: a frozen few-step video generation model in the style of Wan2.2-TI2V or Wan2.2-I2V-A14B."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import UMT5EncoderModel

from ttopt.config.settings import LoraSettings
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.models.reasoner import forward, sampler, sharding
from ttopt.models.reasoner.condition import (
    Condition,
    check_same_format,
    embed_prompts,
    encode_channels,
    encode_first_frame,
    latent_shape,
    latent_statistics,
)
from ttopt.models.reasoner.forward import Activation
from ttopt.models.reasoner.light_decoder import LightDecoder, weights_file
from ttopt.models.reasoner.loading import load_networks
from ttopt.models.reasoner.recipe import size_warning
from ttopt.models.reasoner.sampler import Schedule
from ttopt.models.reasoner.speed import change_places, visiting


@dataclass(repr=False, eq=False)
class Reasoner:
    """A frozen video generation model; deliberately not an nn.Module, so that no trainer moves or saves it.

    Latents are (B, C, T, h, w) float32, normalized; a video has 4 * (T - 1) + 1 frames. Everything runs with
    the adapter as currently attached and enabled on ``transformer``.
    """

    transformer: WanTransformer3DModel
    vae: AutoencoderKLWan
    text_encoder: UMT5EncoderModel
    tokenizer: Any
    schedule: Schedule
    light_decoder: LightDecoder | None = None
    low_noise: WanTransformer3DModel | None = None  # a second expert, for noise levels below ``boundary``
    boundary: float = 0.0
    ignore_image: bool = False  # the model was distilled without a first frame (FastWan)
    clean_frame: bool = True  # an image may be given as the clean first latent frame
    guidance: float = 0.0  # of 1 or less: none
    negative_prompt: str = ""
    offload: bool = False  # the text encoder and the expert that is not needed wait in the CPU's memory
    activation_checkpointing: Collection[int] = ()  # blocks whose activations the backward pass computes again
    run_block: Callable[..., Tensor] | None = None  # a compiled block
    advance: Callable[..., Activation] = forward.advance  # that of a sharded transformer, if it is one
    observers: list[Callable[[Tensor], object]] = field(default_factory=list)  # shown every velocity, to count

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        schedule: Schedule,
        transformer: str | Path | None = None,
        light_decoder: str | Path | None = None,
        shrink: int = 0,
        dtype: str = "float32",
        device: str = "cpu",
        loras: Sequence[LoraSettings] = (),
        low_noise_loras: Sequence[LoraSettings] = (),
        low_noise_transformer: str | Path | None = None,
        ignore_image: bool = False,
        guidance: float = 0.0,
        negative_prompt: str = "",
        vae_dtype: str = "float32",
        offload: bool = False,
        mesh: DeviceMesh | None = None,
    ) -> Reasoner:
        """Load a model in the diffusers layout {transformer, vae, text_encoder, tokenizer}, frozen.

        ``model`` is a folder or a hub id; ``transformer`` replaces the transformer by that of another folder
        or hub id (distilled weights, say); ``light_decoder`` is a folder or a public TAEHV file, whose last
        ``shrink`` up-scalings are switched off.
        ``dtype`` ("float32", "bfloat16", "float16") is that of the transformer, the text encoder and the light
        decoder; what diffusers keeps in fp32 (time embedder, norms, RoPE) stays float32. A model with a
        ``transformer_2`` has two experts: ``low_noise_transformer`` replaces the second. ``loras`` and
        ``low_noise_loras`` are merged into them. The processes of ``mesh`` share out the transformers' blocks.
        Raises UserError naming the missing file.
        """
        if light_decoder is not None:
            weights_file(Path(light_decoder))  # a missing one should not wait for the large networks
        loras_of_both = (loras, low_noise_loras)
        parts = load_networks(
            model, transformer, dtype, vae_dtype, device, loras_of_both, offload, mesh, low_noise_transformer
        )
        light = None
        if light_decoder is not None:
            light = LightDecoder.load(
                light_decoder,
                shrink=shrink,
                dtype=getattr(torch, dtype),
                device=device,
                statistics=(parts.vae.config["latents_mean"], parts.vae.config["latents_std"]),
            )
        return cls(
            parts.transformer,
            parts.vae,
            parts.text_encoder,
            parts.tokenizer,
            schedule,
            light,
            parts.low_noise,
            parts.boundary,
            ignore_image,
            parts.clean_frame,
            guidance,
            negative_prompt,
            offload,
            advance=forward.advance if mesh is None else sharding.advance,
        )

    @property
    def device(self) -> torch.device:
        """Where the work is done; the VAE is always there."""
        return next(self.vae.parameters()).device

    @property
    def takes_channels(self) -> bool:
        """Whether the image is given as further input channels instead of as the clean first latent frame."""
        return bool(self.transformer.config["in_channels"] != self.vae.config["z_dim"])

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
        advice = size_warning(self.transformer, samples[0].height, samples[0].width)
        if advice is not None:
            warnings.warn(f"sample {samples[0].id}: {advice}", stacklevel=2)
        with visiting(self.text_encoder, self.device) if self.offload else nullcontext():
            text = embed_prompts(prompts, self.tokenizer, self.text_encoder, self.dtype, self.device)
            negative = None
            if self.guidance > 1:
                one = embed_prompts([self.negative_prompt], self.tokenizer, self.text_encoder, self.dtype, self.device)
                negative = one.expand(len(samples), -1, -1)
        images = [sample.image for sample in samples if sample.image is not None]
        if self.takes_channels:
            if not images:
                raise UserError(f"sample {samples[0].id} has no image to animate; give --sample.image")
            pixels = torch.stack(images).to(self.device)
            channels = encode_channels(pixels, self.vae, samples[0].frames)
            return Condition(text, None, shape, channels, negative)
        if images and self.ignore_image:
            warnings.warn("this model was distilled without a first frame: the image is ignored", stacklevel=2)
            images = []
        if images and not self.clean_frame:
            raise UserError(
                f"sample {samples[0].id} has an image, but this model makes videos from text alone (its "
                "model_index.json lacks expand_timesteps); give Wan2.2-TI2V-5B, or --reasoner.ignore_image true"
            )
        first_frame = encode_first_frame(torch.stack(images).to(self.device), self.vae) if images else None
        return Condition(text, first_frame, shape, negative=negative)

    def noise(self, condition: Condition, seeds: Sequence[int]) -> Tensor:
        """Pure noise z1 (B, C, T, h, w) float32, item b from ``seeds[b]``, the same on every device."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return sampler.draw_noise(condition.shape, generators, self.device)

    def velocity(self, latents: Tensor, sigma: float, condition: Condition, prefix: Activation | None = None) -> Tensor:
        """The transformer's velocity u (B, C, T, h, w) float32 at noise level ``sigma``.

        With a first frame, as Wan2.2-TI2V was trained: the first latent frame of the input is the clean
        condition and its tokens carry timestep 0. A condition of one video serves a batch of any size.
        ``prefix``, from ``self.prefix`` with the same arguments, is where the forward begins. With guidance there is
        a second forward, without the prompt, and the velocity leads away from that one's.
        """
        velocity = self._forward(latents, sigma, condition, prefix)
        if condition.negative is None:
            return velocity
        other = self._forward(latents, sigma, condition.unguided())
        return other + self.guidance * (velocity - other)

    def _forward(self, latents: Tensor, sigma: float, condition: Condition, prefix: Activation | None = None) -> Tensor:
        x = prefix or self.prefix(latents, sigma, condition)
        expert = self._expert(sigma)
        x = self.advance(expert, x, len(expert.blocks), self.activation_checkpointing, self.run_block)
        velocity = forward.head(expert, x).float()
        for observer in self.observers:
            observer(velocity)
        return velocity

    def prefix(self, latents: Tensor, sigma: float, condition: Condition, blocks: int = 0) -> Activation:
        """The forward up to, not including, block number ``blocks``.

        While latents, noise level and condition stay the same and no earlier block is adapted, so does this: computed
        once (without gradients) it saves that part of every forward and backward (``velocity``'s ``prefix``).
        """
        condition = condition.expand(latents.shape[0])
        latents = self.impose_first_frame(latents, condition)
        if condition.channels is not None:
            latents = torch.cat([latents, condition.channels], dim=1)
        expert, timestep = self._expert(sigma), sampler.TIMESTEPS * sigma
        x = forward.embed(expert, latents.to(self.dtype), timestep, condition.text, condition.first_frame is not None)
        return self.advance(expert, x, blocks, run=self.run_block)

    def _expert(self, sigma: float) -> WanTransformer3DModel:
        if self.low_noise is None:
            return self.transformer
        high = sigma >= self.boundary
        needed, other = (self.transformer, self.low_noise) if high else (self.low_noise, self.transformer)
        if self.offload and needed.device != self.device:
            change_places(other, needed)
        return needed

    def predict_clean(
        self, latents: Tensor, sigma: float, condition: Condition, prefix: Activation | None = None
    ) -> Tensor:
        """One-step prediction z0 = z - sigma * u, first frame re-imposed; (B, C, T, h, w) float32."""
        clean = sampler.predict_clean(latents, self.velocity(latents, sigma, condition, prefix), sigma)
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
        solver = sampler.unipc(self.schedule) if self.schedule.solver == "unipc" else None
        for step in range(count):
            if solver is not None:
                timestep = solver.timesteps[step]
                velocity = self.velocity(latents, float(timestep) / sampler.TIMESTEPS, condition)
                latents = solver.step(velocity, timestep, latents, return_dict=False)[0]
                continue
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
