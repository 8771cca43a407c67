"""The light decoder: a small TAEHV that stands in for the standard decoder inside the optimization loop.

It learns from clean and noisy latents of right and wrong videos, and copies the standard decoder on blends of two
videos, which is what a one-step prediction that cannot decide looks like.
"""

from __future__ import annotations

from pathlib import Path

import torch

from training.common import Ema
from training.miniworld.common import Run, cosine, update
from training.miniworld.student import Bank
from training.miniworld.vae import CHANNELS, decode, load_vae, pixel_loss, statistics
from ttopt.miniworld.world import render
from ttopt.models.reasoner.light_decoder import LightDecoder, LightDecoderConfig

STEPS, BATCH, RATE = 1700, 12, 2e-3
CONFIG = LightDecoderConfig(
    channels=(48, 24, 12, 12), latent_channels=CHANNELS, patch_size=2, space_upscale=(True, True, False)
)


def train(folder: Path, vae_folder: Path, out: Path, steps: int = STEPS) -> None:
    """Trains against the VAE in ``vae_folder`` and saves under ``out``."""
    torch.manual_seed(3)
    vae = load_vae(vae_folder)
    mean, std = statistics(vae)
    bank = Bank(vae, folder.parent / "bank.safetensors")
    latents = torch.cat([bank.latents, bank.wrong])
    codes = torch.cat([bank.codes, bank.wrong_codes])
    light = LightDecoder(CONFIG)
    optimizer = torch.optim.AdamW(light.parameters(), RATE, weight_decay=0.0, betas=(0.9, 0.99))
    ema = Ema(light, 0.998)
    run = Run(folder, {"light": light}, optimizer, ema)
    blends = BATCH // 4
    for step in run.steps(steps):
        generator = torch.Generator().manual_seed(20_000_000 + step)
        pick = torch.randint(len(latents), (BATCH,), generator=generator)
        z = latents[pick]
        other = latents[torch.randint(len(latents), (blends,), generator=generator)]
        z[:blends] = torch.lerp(z[:blends], other, torch.rand(blends, 1, 1, 1, 1, generator=generator))
        level = 0.3 * torch.rand(BATCH, 1, 1, 1, 1, generator=generator).square()
        noise = torch.randn(z.shape, generator=generator) * level
        with torch.no_grad():
            target = render(codes[pick])
            target[:blends] = decode(vae, z[:blends] * std + mean).clamp(0, 1)
        error = light(z + noise, range(9)) - target
        weight = 0.5 + 2.0 * (target - target[:, :1]).abs().amax(2, keepdim=True) + target.amax(2, keepdim=True)
        loss = pixel_loss(error, weight)
        update(loss, light, optimizer, ema, cosine(step, steps, RATE))
        if step % 100 == 0:
            run.log(step, loss=loss, psnr=-10 * error.square().mean().log10())
    ema.copy_to(light)
    light.half().save(out)
