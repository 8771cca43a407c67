"""The standard VAE: AutoencoderKLWan in the 2.2 style, spatial x16 and temporal x4: a latent cell is a cell of the board.

It learns from crops of three by three cells: first single frames, which are cheap, then clips of three boards. The posterior mean is trained
directly, with noise on the latents: a sampled posterior learned far too slowly at this size. The loss is about pixels
alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor

from training.common import Ema, Run, cosine, device, processes, rank, save_half, update
from training.films import random_film
from ttopt.world.look import CELL, FRAMES, GRID, PAPER, render

CHANNELS, BATCH, RATE, NOISE = 16, 12, 2.5e-3, 0.08
STEPS, IMAGE_STEPS, IMAGES, CROP, CROP_BOARDS = 3600, 700, 8, 3 * CELL, 3  # IMAGES: single frames for each clip
PAST = 0.2  # convolutions begin with this share of their weights for earlier frames


def build() -> AutoencoderKLWan:
    """An untrained VAE of the embedded size."""
    vae = AutoencoderKLWan(
        base_dim=8, decoder_base_dim=16, z_dim=CHANNELS, dim_mult=[1, 2, 4, 4], num_res_blocks=1, attn_scales=[],
        temperal_downsample=[False, True, True], dropout=0.0, latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS, is_residual=True, in_channels=12, out_channels=12, patch_size=2,
        scale_factor_temporal=4, scale_factor_spatial=16,
    )  # fmt: skip
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d) and module.kernel_size == (3, 3, 3):
            module.weight.data[:, :, :-1] *= PAST
    return vae


def load(folder: Path) -> AutoencoderKLWan:
    """The VAE under ``folder``, frozen, in float32."""
    vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)
    return vae.eval().requires_grad_(False)


def statistics(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    """Latent mean and standard deviation, each (1, C, 1, 1, 1), on the VAE's device."""
    mean, std = (
        torch.tensor(vae.config[f"latents_{k}"], device=vae.device).view(1, -1, 1, 1, 1) for k in ("mean", "std")
    )
    return mean, std


def encode(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Video (B, T, 3, H, W) in [0, 1] -> raw posterior means (B, C, t, h, w)."""
    mode: Tensor = vae.encode(video.transpose(1, 2) * 2 - 1).latent_dist.mode()
    return mode


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Raw latents -> video (B, T, 3, H, W), not clamped to [0, 1]: a clamp stops the gradient of saturated pixels."""
    vae.clear_cache()
    x = vae.post_quant_conv(latents)
    frames = []
    for i in range(latents.shape[2]):
        vae._conv_idx = [0]
        piece = vae.decoder(x[:, :, i : i + 1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=i == 0)
        frames.append(piece)
    vae.clear_cache()
    video: Tensor = unpatchify(torch.cat(frames, 2), patch_size=vae.config.patch_size)
    return video.transpose(1, 2) / 2 + 0.5


def crops(rng: np.random.Generator, count: int) -> Tensor:
    """Random videos of three by three cells and three boards, (count, 9, 3, 48, 48)."""
    out = []
    while len(out) < count:
        video = render(random_film(rng, CROP_BOARDS, float(rng.uniform(0.2, 1))))
        corners = [(y, x) for y in range(GRID - 2) for x in range(GRID - 2)]
        for corner in rng.permutation(len(corners))[:3]:
            y, x = (CELL * i for i in corners[corner])
            out.append(video[:, :, y : y + CROP, x : x + CROP])
    return torch.stack(out[:count])


def stills(rng: np.random.Generator, count: int) -> Tensor:
    """Random frames of such videos, (count, 1, 3, 48, 48)."""
    videos = crops(rng, -(-count // 4))
    frames = [video[rng.permutation(video.shape[0])[:4]] for video in videos]
    return torch.cat(frames)[:count].unsqueeze(1)


def pixel_loss(error: Tensor, target: Tensor) -> Tensor:
    """|error| + 4 error^2, by the pixel: what is not bare ground counts more, most where the frame before differs."""
    paper = torch.tensor(PAPER, device=target.device).view(3, 1, 1)
    shown = (target - paper).abs().amax(2, keepdim=True).clamp(max=0.5)
    before = torch.cat([target[:, :1], target[:, :-1]], 1)
    changed = (target - before).abs().amax(2, keepdim=True).clamp(max=0.5)
    weight = 0.4 + 3 * shown + 4 * changed
    return (weight / weight.mean() * (error.abs() + 4 * error.square())).mean()


def train(folder: Path, out: Path, steps: int = STEPS) -> None:
    """Trains on crops and saves the VAE under ``out``; ``finish`` then goes on with whole films."""
    torch.manual_seed(0)
    vae = build().to(device())
    optimizer = torch.optim.AdamW(vae.parameters(), RATE, weight_decay=0.0, betas=(0.9, 0.99))
    ema = Ema(vae, 0.998)
    run = Run(folder, {"vae": vae}, optimizer, ema)
    share = BATCH // processes()
    for step in run.steps(steps):
        rng = np.random.default_rng([1, step, rank()])
        video = (stills(rng, IMAGES * share) if step < IMAGE_STEPS else crops(rng, share)).to(device())
        generator = torch.Generator().manual_seed(2 * step + rank())
        latents = encode(vae, video)
        scale = latents.detach().std()
        noise = torch.randn(latents.shape, generator=generator).to(latents) * NOISE * scale
        error = decode(vae, latents + noise) - video
        loss = pixel_loss(error, video) + 1e-4 * latents.square().mean()
        update(loss, vae, optimizer, ema, cosine(step, steps, RATE))
        if step % 50 == 0:
            run.log(step, loss=loss, psnr=-10 * error.square().mean().log10(), latent_std=scale)
    ema.copy_to(vae)
    if rank() == 0:
        save(vae, out)


@torch.no_grad()
def save(vae: AutoencoderKLWan, out: Path) -> None:
    """Writes the VAE with the latent mean and standard deviation of random films, in float16."""
    rng = np.random.default_rng(2)
    films = torch.stack([render(random_film(rng, FRAMES // 4 + 1, 0.3)) for _ in range(32)]).to(vae.device)
    latents = torch.cat([encode(vae, part) for part in films.split(8)])
    vae.register_to_config(
        latents_mean=latents.mean((0, 2, 3, 4)).tolist(), latents_std=latents.std((0, 2, 3, 4)).tolist()
    )
    save_half(vae, out)
