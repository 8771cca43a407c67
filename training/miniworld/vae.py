"""The standard VAE: AutoencoderKLWan in the 2.2 style, 0.5M parameters, spatial x8 and temporal x4.

One latent cell is one grid cell, so the VAE learns from crops of three by three cells. Its posterior mean is trained
directly, with noise on the latents: a sampled posterior learned far too slowly at this size.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from torch.nn import functional as F

from training.common import Ema, processes, rank, save_half
from training.miniworld.common import Run, cosine, step_bank, task_bank, update
from ttopt.miniworld.scene import Task
from ttopt.miniworld.tasks import TWO_STOPS
from ttopt.miniworld.world import (
    CODES,
    COLOURS,
    FRAMES,
    GRID,
    GROUNDS,
    SPRITES,
    TEMPLATES,
    distances,
    render,
)

STEPS, POLISH_STEPS, BATCH, RATE, LATENT_NOISE = 3600, 3200, 16, 2.5e-3, 0.08
CHANNELS, CROP = 16, 3
LATE, FULL, LAST = 3.0, 2.0, 5.0  # what polishing favours: late moves, two and visit, and the last frame
MISREAD = 0.2  # weight of taking a cell for another beside the error of its pixels


def build(decoder_dim: int = 16) -> AutoencoderKLWan:
    """An untrained VAE of the embedded size."""
    return AutoencoderKLWan(
        base_dim=8, decoder_base_dim=decoder_dim, z_dim=CHANNELS, dim_mult=[1, 2, 2], num_res_blocks=1, attn_scales=[],
        temperal_downsample=[True, True], dropout=0.0, latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS, is_residual=True, in_channels=12, out_channels=12, patch_size=2,
        scale_factor_temporal=4, scale_factor_spatial=8,
    )  # fmt: skip


def crops(codes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random 3x3-cell videos (B, 9, 3, 24, 24) in [0, 1] and a weight map that favours what is not background.

    codes: (n, 9, 36). A tenth of the cells is overwritten by random content so that rare codes are seen.
    """
    grid = codes.view(-1, FRAMES, GRID, GRID)
    batch = BATCH // processes()
    pick = torch.randint(len(grid), (batch,), generator=generator)
    rows, columns = torch.randint(GRID - CROP + 1, (2, batch), generator=generator)
    out = torch.stack([grid[p, :, r : r + CROP, c : c + CROP] for p, r, c in zip(pick, rows, columns, strict=True)])
    other = torch.randint(CODES, out.shape, generator=generator)
    whole = torch.rand(batch, 1, CROP, CROP, generator=generator) < 0.12  # the cell holds one random code throughout
    first = torch.randint(1, FRAMES, (batch, 1, CROP, CROP), generator=generator)
    change = (torch.rand(batch, 1, CROP, CROP, generator=generator) < 0.06) & (
        torch.arange(FRAMES).view(1, -1, 1, 1) >= first
    )
    out = torch.where(whole, other[:, :1], out)
    out = torch.where(change, other[:, 1:2], out)
    cells = TEMPLATES[out]  # (B, 9, 3, 3, 3, 8, 8)
    video = cells.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, FRAMES, 3, CROP * 8, CROP * 8)
    busy = (out != 0).float().add(1.5 * (out % SPRITES > 0))
    busy = busy + 2.0 * torch.cat([torch.zeros_like(busy[:, :1]), (out[:, 1:] != out[:, :-1]).float()], 1)
    weight = 0.4 + busy.repeat_interleave(8, 2).repeat_interleave(8, 3).unsqueeze(2)
    return video.contiguous(), weight / weight.mean()


def load_vae(folder: Path) -> AutoencoderKLWan:
    """The VAE under ``folder``, frozen, in float32."""
    vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True)
    return vae.eval().requires_grad_(False)


def statistics(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    """Latent mean and standard deviation, each (1, C, 1, 1, 1)."""
    mean, std = (torch.tensor(vae.config[f"latents_{k}"]).view(1, -1, 1, 1, 1) for k in ("mean", "std"))
    return mean, std


def encode(vae: AutoencoderKLWan, video: Tensor) -> Tensor:
    """Video (B, T, 3, H, W) in [0, 1] -> raw posterior means (B, C, t, h, w)."""
    return vae.encode(video.transpose(1, 2) * 2 - 1).latent_dist.mode()


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Raw latents -> video (B, T, 3, H, W) in [0, 1]."""
    return vae.decode(latents).sample.transpose(1, 2) / 2 + 0.5


def pixel_loss(error: Tensor, weight: Tensor) -> Tensor:
    """The weighted mean of |error| + 4 error^2, of video pixels in [0, 1]."""
    return (weight * (error.abs() + 4 * error.square())).mean()


def train(folder: Path, out: Path, steps: int = STEPS) -> None:
    """Trains, measures latent statistics and saves the VAE under ``out``."""
    torch.manual_seed(0)
    vae = build()
    optimizer = torch.optim.AdamW(vae.parameters(), RATE, weight_decay=0.0, betas=(0.9, 0.99))
    ema = Ema(vae, 0.998)
    run = Run(folder, {"vae": vae}, optimizer, ema)
    codes = torch.stack([t.codes() for t in task_bank("train", 11, 3000)])
    for step in run.steps(steps):
        generator = torch.Generator().manual_seed(2 * step + rank())
        video, weight = crops(codes, generator)
        latents = encode(vae, video)
        scale = latents.detach().std()
        noise = torch.randn(latents.shape, generator=generator) * LATENT_NOISE * scale
        error = decode_unclamped(vae, latents + noise) - video
        loss = pixel_loss(error, weight) + 1e-4 * latents.square().mean()
        update(loss, vae, optimizer, ema, cosine(step, steps, RATE))
        if step % 100 == 0:
            psnr = -10 * error.square().mean().log10()
            run.log(step, loss=loss, psnr=psnr, latent_std=scale)
    ema.copy_to(vae)
    if rank() == 0:
        save(vae, out)


def polish(folder: Path, vae_folder: Path, steps: int = POLISH_STEPS) -> None:
    """Trains the decoder on, on whole videos, with the encoder frozen: latents and what uses them stay valid.

    Besides the pixels, each cell must be told from all others by its template: a pixel error hardly notices that a
    square has become a cross. Unlike the reasoner it also sees scenes of the hard kind, and in two of five videos all
    things and pads change their looks by chance: a VAE is a generalist.
    """
    torch.manual_seed(5)
    vae = load_vae(vae_folder)
    _, std = statistics(vae)
    tasks = task_bank("train", 21, 2500) + task_bank("teacher_ood", 13, 2500)
    tasks += step_bank("train", 22, 800) + step_bank("teacher_ood", 14, 800)
    codes = torch.stack([t.codes() for t in tasks])
    late = (codes[:, 1:] != codes[:, :-1]).any(2)[:, 5:].any(1)  # something moves to the end: the hardest
    chance = 1 + LATE * late.float() + FULL * torch.tensor([t.family in TWO_STOPS for t in tasks]).float()
    trained = torch.nn.ModuleList([vae.decoder, vae.post_quant_conv]).requires_grad_(True)
    optimizer = torch.optim.AdamW(trained.parameters(), RATE / 2, weight_decay=0.0, betas=(0.9, 0.99))
    ema = Ema(trained, 0.995)
    run = Run(folder, {"decoder": trained}, optimizer, ema)
    for step in run.steps(steps):
        generator = torch.Generator().manual_seed(30_000_000 + 2 * step + rank())
        shown = codes[torch.multinomial(chance, 5, replacement=True, generator=generator)]
        shown = torch.stack([exchanged(c, generator) if i % 2 else c for i, c in enumerate(shown)])
        target = render(shown)
        with torch.no_grad():
            latents = encode(vae, target)
        latents = latents + LATENT_NOISE * std * torch.randn(latents.shape, generator=generator)
        video = decode_unclamped(vae, latents)
        error = video - target
        changed = (target - target[:, :1]).abs().amax(2, keepdim=True)
        weight = 0.3 + target.amax(2, keepdim=True) + 6 * changed
        weight[:, -1] *= LAST  # most rules are about it
        loss = pixel_loss(error, weight)
        misread = F.cross_entropy(-distances(video).flatten(0, 2), shown.flatten(), reduction="none").view_as(shown)
        cells = 0.2 + 2 * (shown != shown[:, :1]) + 0.5 * (shown % SPRITES > 0)
        cells[:, -1] *= 3
        misread = (cells * misread).sum() / cells.sum()
        update(loss + MISREAD * misread, trained, optimizer, ema, cosine(step, steps, RATE / 2, 30))
        if step % 50 == 0:
            run.log(step, loss=loss, misread=misread, psnr=-10 * error.square().mean().log10())
    ema.copy_to(trained)
    if rank() == 0:
        save_half(vae, vae_folder)


def exchanged(codes: Tensor, generator: torch.Generator) -> Tensor:
    """The same video with other things and other pads: each of the 18 sprites, and each of the 6 pads, becomes one."""
    sprites, grounds = torch.arange(SPRITES), torch.arange(GROUNDS)
    sprites[1:] = 1 + torch.randperm(SPRITES - 1, generator=generator)
    grounds[1 : 1 + len(COLOURS)] = 1 + torch.randperm(len(COLOURS), generator=generator)
    return grounds[codes // SPRITES] * SPRITES + sprites[codes % SPRITES]


def decode_unclamped(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """As decode(), without the clamp to [0, 1], which would stop the gradient of saturated pixels."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    vae.clear_cache()
    x = vae.post_quant_conv(latents)
    frames = []
    for i in range(latents.shape[2]):
        vae._conv_idx = [0]
        frames.append(
            vae.decoder(x[:, :, i : i + 1], feat_cache=vae._feat_map, feat_idx=vae._conv_idx, first_chunk=i == 0)
        )
    vae.clear_cache()
    return unpatchify(torch.cat(frames, 2), patch_size=vae.config.patch_size).transpose(1, 2) / 2 + 0.5


@torch.no_grad()
def save(vae: AutoencoderKLWan, out: Path) -> None:
    """Writes the VAE with the latent mean and standard deviation of training videos, in float16."""
    tasks: list[Task] = task_bank("train", 12, 200)
    latents = encode(vae, render(torch.stack([t.codes() for t in tasks])))
    vae.register_to_config(
        latents_mean=latents.mean((0, 2, 3, 4)).tolist(), latents_std=latents.std((0, 2, 3, 4)).tolist()
    )
    save_half(vae, out)
