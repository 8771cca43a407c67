"""The standard VAE: AutoencoderKLWan in the 2.2 style, spatial x16 and temporal x4: a latent cell is a board's cell.

Encoder and decoder learn apart from each other, from pieces of random films: the encoder to name what it sees in the
code of code.py, the decoder to draw noisy codes, by a loss about pixels alone. The posterior mean is used, no sample.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor, nn
from torch.nn import functional as F

from training.code import CHANNELS, DOWN, LEAVES, RIGHT, SCALE, film_code
from training.common import Ema, Run, averaged, cosine, device, matrices_and_rest, save_half, update
from training.films import random_film
from training.world.look import CELL, GRID, PAPER, render

MOTION = [DOWN, RIGHT, LEAVES]  # channels that the decoder is not shown: it sees from two boards what moved
BLENDED = 0.5  # share of the videos with blends of codes, where the decoder learns from them
MUON, ADAM = 0.02, 3e-3  # learning rates
HARDEST, HARD = 0.005, 0.2  # share of a frame's pixels that count on their own at last, and their weight


@dataclass(frozen=True)
class Phase:
    """``steps`` with batches of ``count`` videos of ``cells`` x ``cells`` cells and ``boards`` boards, one: stills."""

    steps: int
    count: int
    cells: int
    boards: int
    rate: float  # share of the learning rates at its beginning
    hard: float = 0.0  # weight of the hardest pixels
    noise: float = 0.1  # most noise in the codes that a decoder learns from; their numbers are 0 and 1
    unsure: float = 0.0  # most of another code in a cell's, see ``unsure``


# Small pieces first, where much is learned in little time; then whole boards, since a small piece is all margin.
ENCODER = (Phase(2400, 8, 3, 3, 1.0), Phase(1600, 2, GRID, 4, 0.5))
DECODER = (
    Phase(3000, 24, 3, 1, 1.0),
    Phase(3000, 8, 3, 3, 0.7),
    Phase(9000, 2, GRID, 4, 0.5),
    Phase(6000, 2, GRID, 4, 0.3, HARD),
    Phase(6000, 2, GRID, 4, 0.4, HARD, noise=0.3, unsure=0.4),
    Phase(2500, 2, GRID, 4, 0.3, HARD, noise=0.12, unsure=0.3),
)


def build() -> AutoencoderKLWan:
    """An untrained VAE of the embedded size."""
    vae = AutoencoderKLWan(
        base_dim=16, decoder_base_dim=32, z_dim=CHANNELS, dim_mult=[1, 2, 2], num_res_blocks=1, attn_scales=[],
        temperal_downsample=[True, True], dropout=0.0, latents_mean=[0.0] * CHANNELS,
        latents_std=[SCALE] * CHANNELS, is_residual=True, in_channels=48, out_channels=48, patch_size=4,
        scale_factor_temporal=4, scale_factor_spatial=16,
    )  # fmt: skip
    for module in vae.modules():  # begin as if each frame were an image
        if isinstance(module, torch.nn.Conv3d) and module.kernel_size == (3, 3, 3):
            module.weight.data[:, :, :-1] *= 0.2
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


def pieces(rng: np.random.Generator, phase: Phase) -> tuple[Tensor, Tensor]:
    """Pieces of random videos (count, T, 3, 16 * cells, 16 * cells) and codes (count, 20, boards, cells, cells)."""
    videos: list[Tensor] = []
    codes: list[Tensor] = []
    size, still = phase.cells, phase.boards == 1
    while len(videos) < phase.count:
        film = random_film(rng, 3 if still else phase.boards, float(rng.uniform(0.05, 1)))
        video, code = render(film), film_code(film)
        for _ in range(1 if size == GRID else 3):
            y, x = (int(i) for i in rng.integers(GRID - size + 1, size=2))
            first = int(rng.integers(3)) if still else 0
            part = video[..., CELL * y : CELL * (y + size), CELL * x : CELL * (x + size)]
            named = code[..., y : y + size, x : x + size]
            if still:  # a board on which nothing moves
                part, named = part[4 * first :][:1], named[:, first:][:, :1].clone()
                named[MOTION] = 0
            videos.append(part)
            codes.append(named)
    return torch.stack(videos[: phase.count]), torch.stack(codes[: phase.count])


def phase_of(step: int, phases: Sequence[Phase], steps: int | None) -> tuple[Phase, float]:
    """The phase of a step and the share of the learning rates there. ``steps``: of all phases together, instead of
    their own numbers."""
    scale = 1.0 if steps is None else steps / sum(phase.steps for phase in phases)
    ends = list(accumulate(scale * phase.steps for phase in phases))
    number = min(bisect_right(ends, step), len(phases) - 1)
    phase, first = phases[number], ends[number - 1] if number else 0.0
    return phase, phase.rate * cosine(step - int(first), max(1, int(scale * phase.steps)))


def pixel_loss(error: Tensor, target: Tensor) -> Tensor:
    """|error| + 4 error^2, by the pixel: what is not bare ground counts more, most where the frame before differs.

    So does the ground close by: if it counted less, a filled circle would be cheaper than a cross.
    """
    paper = torch.tensor(PAPER, device=target.device).view(3, 1, 1)
    shown = (target - paper).abs().amax(2, keepdim=True).clamp(max=0.5)
    before = torch.cat([target[:, :1], target[:, :-1]], 1)
    changed = (target - before).abs().amax(2, keepdim=True).clamp(max=0.5)
    both = torch.cat([shown, changed], 2).flatten(0, 1)  # (B * T, 2, H, W)
    shown, changed = F.max_pool2d(both, 5, 1, 2).unflatten(0, target.shape[:2]).split(1, 2)
    weight = 0.4 + 3 * shown + 4 * changed
    return (weight / weight.mean() * (error.abs() + 4 * error.square())).mean()


def worst_loss(error: Tensor) -> Tensor:
    """The same of the HARDEST pixels of each frame alone: a thing half over a pad is a few of them, and hardly counts
    in a mean."""
    each = error.abs().amax(2).flatten(2)  # (B, T, H * W)
    worst = each.topk(int(HARDEST * each.shape[2]), dim=2).values
    return (worst + 4 * worst.square()).mean()


def train_encoder(folder: Path, steps: int | None = None) -> None:
    """Teaches the encoder the code of what it sees. ``folder`` keeps the state."""
    torch.manual_seed(0)
    vae = build().to(device())
    half = nn.ModuleDict({"encoder": vae.encoder, "quant_conv": vae.quant_conv})
    optimizers, ema = matrices_and_rest(half, MUON, ADAM), Ema(half, 0.995)
    run = Run(folder, {"half": half}, optimizers, ema)
    for step in run.steps(steps or sum(phase.steps for phase in ENCODER)):
        phase, rate = phase_of(step, ENCODER, steps)
        video, code = (x.to(device()) for x in pieces(np.random.default_rng([1, step]), phase))
        error = (encode(vae, video) - code).square()
        loss = 20 * error.mean()
        update(loss, half, optimizers, ema, rate)
        if step % 50 == 0:
            wrong = (error > 0.25).float().mean() * CHANNELS
            run.log(step, loss=loss, wrong=wrong, first=20 * error[:, :, 0].mean())


def train_decoder(folder: Path, steps: int | None = None) -> None:
    """Teaches the decoder to draw what a noisy code says, first single boards, then clips. Its loss is about pixels."""
    torch.manual_seed(1)
    vae = build().to(device())
    half = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    optimizers, ema = matrices_and_rest(half, MUON, ADAM), Ema(half, 0.995)
    run = Run(folder, {"half": half}, optimizers, ema)
    for step in run.steps(steps or sum(phase.steps for phase in DECODER)):
        phase, rate = phase_of(step, DECODER, steps)
        video, code = pieces(np.random.default_rng([2, step]), phase)
        code = unsure(code, phase, torch.Generator().manual_seed(step))
        code[:, MOTION] = 0
        video, code = video.to(device()), code.to(device())
        error = decode(vae, code) - video
        loss, hard = pixel_loss(error, video), worst_loss(error)
        update(loss + phase.hard * hard, half, optimizers, ema, rate)
        if step % 50 == 0:
            run.log(step, loss=loss, hard=hard, psnr=-10 * error.square().mean().log10(), worst=error.abs().max())


def unsure(code: Tensor, phase: Phase, generator: torch.Generator) -> Tensor:
    """Codes (B, 20, boards, h, w) as a reasoner that wavers would write them: with noise of all levels up to the
    phase's, and in some of the videos with a little of another film's code, or of its own next board's, in each cell.

    A decoder that draws the nearest clean code makes mistakes that can be seen: another color, never two mixed.
    """
    count, _, boards, h, w = code.shape

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    shifted = torch.cat([code[:, :, 1:], code[:, :, -1:]], 2)
    other = torch.where(draw(count, 1, 1, 1, 1) < 0.5, shifted, code.roll(1, 0))
    part = phase.unsure * draw(count, 1, boards, h, w) * (draw(count, 1, 1, 1, 1) < BLENDED)
    return noisy(torch.lerp(code, other, part), phase, generator)


def noisy(code: Tensor, phase: Phase, generator: torch.Generator) -> Tensor:
    """Codes (B, 20, boards, h, w) with noise, each of its own level up to the phase's."""
    level = phase.noise * torch.rand(len(code), 1, 1, 1, 1, generator=generator)
    return code + level * torch.randn(code.shape, generator=generator)


def halves(encoder_state: Path, decoder_state: Path) -> AutoencoderKLWan:
    """The VAE made of the averaged weights in the states of both trainings, frozen."""
    vae = build()
    averaged(encoder_state, "half", nn.ModuleDict({"encoder": vae.encoder, "quant_conv": vae.quant_conv}))
    averaged(decoder_state, "half", nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}))
    vae.post_quant_conv.weight.data[:, MOTION] = 0
    return vae.eval().requires_grad_(False)


def assemble(encoder_state: Path, decoder_state: Path, out: Path) -> None:
    """Writes that VAE in float16."""
    save_half(halves(encoder_state, decoder_state), out)
