"""The reasoner: WanTransformer3DModel with per-token timesteps and a tiny UMT5, flow matching, then step distillation.

Stage ``student`` is ordinary flow matching on right videos. Stage ``distill`` teaches a few noise levels: the
model meets its own partly denoised latents there, and the low levels also see *wrong* videos that they must keep as
they are, so that the first step decides what happens and the later ones only refine it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from training.common import Ema, save_half
from training.miniworld.common import Run, carry_over, cosine, shared_rows, step_bank, task_bank, update
from training.miniworld.corruptions import corrupt
from training.miniworld.dialogues import evolved
from training.miniworld.vae import CHANNELS, decode, encode, load_vae, statistics
from ttopt.miniworld.scene import Task
from ttopt.miniworld.tasks import MULTI_STEP
from ttopt.miniworld.tokenizer import reasoner_tokenizer
from ttopt.miniworld.world import render

SIGMAS = (1.0, 0.15, 0.1, 0.05)  # noise levels of the distillation
TEXT_LENGTH, WIDTH, HEADS, LAYERS = 48, 128, 4, 6
STEPS, DISTILL_STEPS, BATCH, RATE = 5000, 1200, 16, 1.2e-3
BANK, STEP_BANK, WRONG, WORN = 8000, 4500, 4500, 800


def build() -> tuple[WanTransformer3DModel, UMT5EncoderModel]:
    """Untrained transformer (2.4M parameters) and text encoder of the embedded size."""
    transformer = WanTransformer3DModel(
        patch_size=(1, 1, 1), num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, in_channels=CHANNELS,
        out_channels=CHANNELS, text_dim=64, freq_dim=64, ffn_dim=3 * WIDTH, num_layers=LAYERS, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=64,
    )  # fmt: skip
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(reasoner_tokenizer(TEXT_LENGTH)), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
            relative_attention_num_buckets=16, relative_attention_max_distance=32, dropout_rate=0.0, pad_token_id=0,
        )
    )  # fmt: skip
    return transformer, encoder


class Bank:
    """Tasks, their prompts' token ids and normalised latents of right (and some wrong) videos."""

    def __init__(self, vae: AutoencoderKLWan, cache: Path) -> None:
        rng = np.random.default_rng(21)
        self.tasks: list[Task] = task_bank("train", 21, BANK) + step_bank("train", 22, STEP_BANK)
        rng.shuffle(self.tasks)  # type: ignore[arg-type]
        self.codes = torch.stack([t.codes() for t in self.tasks])  # (n, 9, 36)
        full = [t.parent is not None and t.parent.family in MULTI_STEP for t in self.tasks]
        self.weights = 1 + 2 * torch.tensor(full).float()
        tokens = reasoner_tokenizer(TEXT_LENGTH)(
            [evolved(t, rng) for t in self.tasks],
            padding="max_length",
            truncation=True,
            max_length=TEXT_LENGTH,
            return_tensors="pt",
        )
        self.ids, self.mask = tokens.input_ids, tokens.attention_mask
        self.wrong_codes = torch.stack([corrupt(t, rng)[1] for t in self.tasks[:WRONG]])
        if not cache.exists():
            cache.parent.mkdir(parents=True, exist_ok=True)
            save_file(
                {"right": normalised_latents(vae, self.codes), "wrong": normalised_latents(vae, self.wrong_codes)},
                cache,
            )
        latents = load_file(cache)
        self.latents, self.wrong = latents["right"].float(), latents["wrong"].float()

    def pick(self, count: int, generator: torch.Generator) -> Tensor:
        """Random numbers (count,) of right videos; steps of long tasks, whose scenes are full, come more often."""
        return torch.multinomial(self.weights, count, replacement=True, generator=generator)

    def motion(self) -> Tensor:
        """Weights (n, 1, 3, 6, 6): cells whose content changes are learned last and count most, then what must stay."""
        moving = (self.codes[:, 1:] != self.codes[:, :1]).float()  # (n, 8, 36)
        weights = 1 + 3 * moving.unflatten(1, (2, 4)).amax(2) + (self.codes[:, :1] > 0)  # (n, 2, 36)
        return F.pad(weights.unflatten(2, (6, 6)).unsqueeze(1), (0, 0, 0, 0, 1, 0), value=0.0)

    def roles(self) -> Tensor:
        """Role of each cell in the first frame, (n, 36): nothing, subject, target, second subject, second target."""
        out = torch.zeros(len(self.tasks), 36, dtype=torch.long)
        for row, task in zip(out, self.tasks, strict=True):
            for i, stop in enumerate(task.stops):
                row[stop.cell] = 2 + 2 * i
            for i in range(task.movers):
                row[task.actors[i].track[0]] = 1 + 2 * i
        return out


def make_bank(vae_folder: Path, cache: Path) -> None:
    """Encodes the bank's videos into ``cache`` if it is not there yet."""
    vae = load_vae(vae_folder)
    Bank(vae, cache)


@torch.no_grad()
def normalised_latents(vae: AutoencoderKLWan, codes: Tensor) -> Tensor:
    """Cell codes (n, 9, 36) -> normalised latents (n, C, 3, 6, 6) float16."""
    mean, std = statistics(vae)
    return torch.cat([((encode(vae, render(c)) - mean) / std).half() for c in codes.split(64)])


@torch.no_grad()
def worn_frames(vae: AutoencoderKLWan, codes: Tensor) -> Tensor:
    """First frames (n, C, 1, 6, 6) as a chain of clips meets them: the last frames of decoded videos, encoded anew."""
    mean, std = statistics(vae)
    out = []
    for part in codes.split(32):
        still = render(part[:, :1].expand(-1, part.shape[1], -1))
        last = decode(vae, encode(vae, still))[:, -1:].clamp(0, 1)
        out.append((encode(vae, last) - mean) / std)
    return torch.cat(out)


def embed(encoder: UMT5EncoderModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Text embeddings (B, L, D), zero after each prompt's end."""
    out: Tensor = encoder(ids, mask).last_hidden_state
    return out * mask.unsqueeze(-1)


def velocity(transformer: WanTransformer3DModel, noisy: Tensor, sigma: Tensor, first: Tensor, text: Tensor) -> Tensor:
    """Velocity (B, C, 3, 6, 6) at noise levels sigma (B,), first latent frame imposed with timestep 0."""
    noisy = torch.cat([first, noisy[:, :, 1:]], 2)
    timestep = (1000 * sigma).view(-1, 1).repeat(1, 3 * 36)
    timestep[:, :36] = 0
    out: Tensor = transformer(noisy, timestep, text, return_dict=False)[0]
    return out


def predict(transformer: WanTransformer3DModel, noisy: Tensor, sigma: Tensor, first: Tensor, text: Tensor) -> Tensor:
    """Clean latents predicted in one step, first frame imposed."""
    clean = noisy - sigma.view(-1, 1, 1, 1, 1) * velocity(transformer, noisy, sigma, first, text)
    return torch.cat([first, clean[:, :, 1:]], 2)


@torch.no_grad()
def sample(transformer: WanTransformer3DModel, noise: Tensor, first: Tensor, text: Tensor) -> Tensor:
    """Latents of the few-step sampler at SIGMAS."""
    latents = noise
    for sigma, following in zip(SIGMAS, (*SIGMAS[1:], 0.0), strict=True):
        clean = predict(transformer, latents, torch.full((len(noise),), sigma), first, text)
        latents = clean + following / sigma * (latents - clean)
    return latents


class RoleHeads(nn.Module):
    """Training-only classifiers of each cell's role on early tokens: they make words bind to objects early."""

    def __init__(self, transformer: WanTransformer3DModel, blocks: tuple[int, ...] = (1, 2, 3)) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, 5) for _ in blocks)
        self.seen: dict[int, Tensor] = {}
        for index, block in enumerate(blocks):
            transformer.blocks[block].register_forward_hook(
                lambda _m, _i, out, index=index: self.seen.__setitem__(index, out)
            )

    def loss(self, roles: Tensor) -> Tensor:
        """Cross-entropy of the roles (B, 36) read from the tokens of every latent frame."""
        weight = torch.tensor([0.2, 1.0, 1.0, 1.0, 1.0])
        wanted = roles.repeat(1, 3).flatten()
        total = torch.zeros(())
        for index, head in enumerate(self.heads):
            total = total + F.cross_entropy(head(self.seen[index]).flatten(0, 1), wanted, weight)
        return total / len(self.heads)


def train(folder: Path, weights: Path, vae_folder: Path, steps: int = STEPS, start: Path | None = None) -> None:
    """Flow matching from scratch, or at half the rate from the model under ``start``; saves under ``weights``."""
    torch.manual_seed(1)
    vae = load_vae(vae_folder)
    bank = Bank(vae, folder.parent / "bank.safetensors")
    motion, roles = bank.motion(), bank.roles()
    transformer, encoder = build()
    peak = RATE
    if start is not None:
        known, words = load(start)
        transformer.load_state_dict(known.state_dict())
        old = PreTrainedTokenizerFast.from_pretrained(start / "tokenizer")
        rows = shared_rows(reasoner_tokenizer(TEXT_LENGTH), old)
        carry_over(words.state_dict(), encoder, "shared.weight", rows)
        peak = RATE / 2
    heads = RoleHeads(transformer)
    both = nn.ModuleList([transformer, encoder])
    optimizer = torch.optim.AdamW([*both.parameters(), *heads.parameters()], RATE, weight_decay=0.01, betas=(0.9, 0.98))
    ema = Ema(both, 0.998)
    run = Run(folder, {"student": both, "heads": heads}, optimizer, ema)
    for step in run.steps(steps):
        generator = torch.Generator().manual_seed(step)
        pick = bank.pick(BATCH, generator)
        clean = bank.latents[pick]
        noise = torch.randn(clean.shape, generator=generator)
        sigma = torch.rand(BATCH, generator=generator).sqrt()
        sigma[: BATCH // 2] = 1.0
        s = sigma.view(-1, 1, 1, 1, 1)
        u = velocity(
            transformer,
            (1 - s) * clean + s * noise,
            sigma,
            clean[:, :, :1],
            embed(encoder, bank.ids[pick], bank.mask[pick]),
        )
        error = (u - (noise - clean)).square() * motion[pick]
        flow, role = error[:, :, 1:].mean(), heads.loss(roles[pick])
        update(flow + 0.1 * role, both, optimizer, ema, cosine(step, steps, peak))
        if step % 100 == 0:
            run.log(step, flow=flow, first_step=error[: BATCH // 2, :, 1:].mean(), role=role)
    ema.copy_to(both)
    save(transformer, encoder, weights)


def distill(folder: Path, weights: Path, base: Path, vae_folder: Path, steps: int = DISTILL_STEPS) -> None:
    """Step distillation of the model under ``base`` to SIGMAS; saves under ``weights``."""
    torch.manual_seed(2)
    vae = load_vae(vae_folder)
    bank = Bank(vae, folder.parent / "bank.safetensors")
    motion, worn = bank.motion(), worn_frames(vae, bank.codes[:WORN])
    transformer, encoder = load(base)
    both = nn.ModuleList([transformer, encoder])
    rate = RATE / 4
    optimizer = torch.optim.AdamW(both.parameters(), rate, weight_decay=0.01, betas=(0.9, 0.98))
    ema = Ema(both, 0.995)
    run = Run(folder, {"student": both}, optimizer, ema)
    for step in run.steps(steps):
        generator = torch.Generator().manual_seed(10_000_000 + step)
        quarter = BATCH // 4
        pick = bank.pick(BATCH, generator)
        chained = torch.rand(BATCH, generator=generator) < 0.35
        pick[chained] = torch.randint(len(worn), (int(chained.sum()),), generator=generator)
        pick[3 * quarter :] = torch.randint(len(bank.wrong), (quarter,), generator=generator)
        chained[3 * quarter :] = False
        clean = bank.latents[pick]
        clean[3 * quarter :] = bank.wrong[pick[3 * quarter :]]
        noise = torch.randn(clean.shape, generator=generator)
        first = clean[:, :, :1].clone()
        wear = 2.5 * torch.rand(BATCH, 1, 1, 1, 1, generator=generator)
        first[chained] = torch.lerp(first, worn[pick % len(worn)], wear)[chained]
        text = embed(encoder, bank.ids[pick], bank.mask[pick])
        level = torch.randint(1, len(SIGMAS), (BATCH,), generator=generator)
        level[: 2 * quarter] = 0
        sigma = torch.tensor(SIGMAS)[level]
        s = sigma.view(-1, 1, 1, 1, 1)
        start = clean.clone()
        with torch.no_grad():  # third quarter: what the model itself makes of its first step
            mine = slice(2 * quarter, 3 * quarter)
            start[mine] = predict(transformer, noise[mine], torch.ones(quarter), first[mine], text[mine])
        mixed = (1 - s) * start + s * noise
        # Clean-latent error: every level counts the same, unlike the velocity error's 1/sigma^2.
        error = (predict(transformer, mixed, sigma, first, text) - clean).square() * motion[pick]
        loss = error[:, :, 1:].mean()
        update(loss, both, optimizer, ema, cosine(step, steps, rate))
        if step % 100 == 0:
            parts = error[:, :, 1:].mean((1, 2, 3, 4)).split(quarter)
            run.log(step, loss=loss, first=parts[0].mean(), own=parts[2].mean(), wrong=parts[3].mean())
    ema.copy_to(both)
    save(transformer, encoder, weights)


def load(folder: Path) -> tuple[WanTransformer3DModel, UMT5EncoderModel]:
    """Transformer and text encoder under a model folder, in float32."""
    transformer = WanTransformer3DModel.from_pretrained(
        folder / "transformer", torch_dtype=torch.float32, use_safetensors=True
    )
    encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32, use_safetensors=True)
    return transformer, encoder


def save(transformer: WanTransformer3DModel, encoder: UMT5EncoderModel, folder: Path) -> None:
    """Writes both in float16 beside the tokenizer."""
    save_half(transformer, folder / "transformer")
    save_half(encoder, folder / "text_encoder")
    reasoner_tokenizer(TEXT_LENGTH).save_pretrained(folder / "tokenizer")
