"""The reasoner: WanTransformer3DModel with per-token timesteps and a tiny UMT5, flow matching at full noise first.

Where a task has two right answers the reasoner always learns the first: one step can then be sharp. Its undistilled
twin learns both, and its noises differ. (A coupling in which
a sum of the noise tosses a coin was not learned at this size.)

Latents are the code of code.py divided by SCALE, (B, 20, 7, 6, 6); the first board is the condition.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from training.code import CHANNELS, SCALE, film_code
from training.common import Ema, Optimizers, Run, averaged, cosine, device, matrices_and_rest, save_half, update
from ttopt.miniworld.look import BOARDS, CELLS, GRID
from ttopt.miniworld.questions import repaired_prompt
from ttopt.miniworld.scene import Task
from ttopt.miniworld.tasks import FAMILIES, LONG, clip_task, make_task
from ttopt.miniworld.tokenizer import reasoner_tokenizer
from ttopt.models.reasoner import forward

TEXT_LENGTH, WIDTH, HEADS, LAYERS, FFN = 40, 128, 4, 6, 384
STEPS, BATCH, SEED = 9500, 8, 21
MUON, ADAM = 0.006, 1e-3  # learning rates
IGNORED, OFFSETS = -100, 2 * GRID - 1
REPAIRED = 0.2  # share of the prompts that end in a repair
FIRST_NOISE = 0.15  # of the first board's latents: an encoder is not exact


def build() -> tuple[WanTransformer3DModel, UMT5EncoderModel]:
    """Untrained transformer and text encoder of the embedded size."""
    transformer = WanTransformer3DModel(
        patch_size=(1, 1, 1), num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, in_channels=CHANNELS,
        out_channels=CHANNELS, text_dim=64, freq_dim=64, ffn_dim=FFN, num_layers=LAYERS, cross_attn_norm=True,
        qk_norm="rms_norm_across_heads", rope_max_seq_len=64,
    )  # fmt: skip
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(reasoner_tokenizer(TEXT_LENGTH)), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
            relative_attention_num_buckets=16, relative_attention_max_distance=32, dropout_rate=0.0, pad_token_id=0,
        )
    )  # fmt: skip
    return transformer, encoder


class Batch:
    """Tasks as tensors: codes of right answers (B, 2, 20, 7, 6, 6), token ids and mask (B, L)."""

    def __init__(self, tasks: list[Task], tokenizer: PreTrainedTokenizerFast) -> None:
        self.tasks = tasks
        answers = [[t.choices[0], t.choices[-1]] for t in tasks]
        self.codes = torch.stack([torch.stack([film_code(t.film(a)) for a in two]) for t, two in zip(tasks, answers)])
        tokens = tokenizer(
            [t.prompt for t in tasks], padding="max_length", truncation=True, max_length=TEXT_LENGTH,
            return_tensors="pt",
        )  # fmt: skip
        self.ids, self.mask = tokens.input_ids, tokens.attention_mask

    def first(self) -> Tensor:
        """The latents (B, 20, 7, 6, 6) of the first right answers."""
        return self.answers(torch.zeros(len(self.tasks), dtype=torch.bool))

    def answers(self, second: Tensor) -> Tensor:
        """The latents of the first or second (B,) of the right answers."""
        return self.codes[torch.arange(len(second)), second.long()] / SCALE


def roles(task: Task) -> Tensor:
    """Role of each cell on the first board (36,): none, first and second subject and target (1, 2; 3, 4)."""
    out = torch.zeros(CELLS, dtype=torch.long)
    for i, stop in enumerate(task.stops[:2]):
        out[stop.cell] = 2 + 2 * i
    for i in range(min(task.movers, 2)):
        out[task.actors[i].track[0]] = 1 + 2 * i
    return out


def training_tasks(step: int, count: int) -> list[Task]:
    """The tasks of one training step, steps of long ones among them: all of the split "train", no two the same. Some
    prompts end in a repair, as the step loop makes them."""
    kinds = (*FAMILIES, *LONG)
    rng = np.random.default_rng([SEED, step])
    numbers = range(step * count, (step + 1) * count)
    tasks = [clip_task(kinds[n % len(kinds)], "train", SEED, n // len(kinds)) for n in numbers]
    return [
        dataclasses.replace(task, prompt=repaired_prompt(task, rng)) if rng.random() < REPAIRED else task
        for task in tasks
    ]


def embed(encoder: UMT5EncoderModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Text embeddings (B, L, D), zero after each prompt's end."""
    out: Tensor = encoder(ids, mask).last_hidden_state
    return out * mask.unsqueeze(-1)


def velocity(transformer: WanTransformer3DModel, noisy: Tensor, sigma: float, first: Tensor, text: Tensor) -> Tensor:
    """Velocity (B, C, T, h, w) at noise level sigma, the first latent frame imposed with timestep 0."""
    latents = torch.cat([first, noisy[:, :, 1:]], 2)
    x = forward.embed(transformer, latents, 1000 * sigma, text, first_frame=True)
    return forward.head(transformer, forward.advance(transformer, x, len(transformer.blocks)))


def predict(transformer: WanTransformer3DModel, noisy: Tensor, sigma: float, first: Tensor, text: Tensor) -> Tensor:
    """Clean latents predicted in one step, first frame imposed."""
    clean = noisy - sigma * velocity(transformer, noisy, sigma, first, text)
    return torch.cat([first, clean[:, :, 1:]], 2)


def cell_weights(codes: Tensor) -> Tensor:
    """Weights (B, 1, 1, h, w) from the codes of both right answers (B, 2, 20, T, h, w): cells in which something ever
    changes, and those next to them, count more. What is there and what is not counts the same, or the model would
    rather show a thing in every direction than miss it."""
    changed = (codes - codes[:, :, :, :1]).abs().amax((1, 2, 3))  # (B, h, w)
    near = F.max_pool2d(changed.unsqueeze(1), 3, 1, 1)
    return (1 + 2 * near.clamp(max=1)).unsqueeze(2)


class Plans:
    """What the training-only heads learn from the first board's tokens, each (B, 36): see ``Heads``."""

    def __init__(self, tasks: list[Task], second: Tensor) -> None:
        self.roles = torch.stack([roles(task) for task in tasks])
        self.offsets = torch.full((len(tasks), CELLS, 6), IGNORED)
        self.arrivals = torch.full((len(tasks), CELLS, 2), IGNORED)
        rows, columns = torch.arange(CELLS) // GRID, torch.arange(CELLS) % GRID
        for row, (task, late) in enumerate(zip(tasks, second.tolist(), strict=True)):
            movers = task.choices[-1 if late else 0][: task.movers]
            named = [movers[0].track[0], *(stop.cell for stop in task.stops)][:3]
            for i, cell in enumerate(named):
                self.offsets[row, :, 2 * i] = cell // GRID - rows + GRID - 1
                self.offsets[row, :, 2 * i + 1] = cell % GRID - columns + GRID - 1
            if task.stops:
                self.arrivals[row] = 0
                for number, mover in enumerate(movers[:2]):
                    for board, cell in reversed(list(enumerate(mover.track))):
                        self.arrivals[row, cell, number] = board


class Heads(nn.Module):
    """Training-only classifiers on the first board's tokens: after one and two blocks the role of a cell, after three
    where from here the mover and its pads are, after four on which board a mover first comes here, if ever."""

    def __init__(self) -> None:
        super().__init__()
        self.role = nn.ModuleList(nn.Linear(WIDTH, 5) for _ in range(2))
        self.offset = nn.Linear(WIDTH, 6 * OFFSETS)
        self.arrival = nn.Linear(WIDTH, 2 * BOARDS)

    def forward(self, block: int, tokens: Tensor, plans: Plans) -> Tensor:
        """Cross-entropy of what is learned after so many blocks from tokens (B, 36, D)."""
        where = tokens.device
        if block < 3:
            weight = torch.tensor([0.2, 1.0, 1.0, 1.0, 1.0], device=where)
            return F.cross_entropy(self.role[block - 1](tokens).flatten(0, 1), plans.roles.flatten().to(where), weight)
        if block == 3:
            logits, wanted, weight = self.offset(tokens).unflatten(-1, (6, OFFSETS)), plans.offsets, torch.ones(OFFSETS)
        else:
            logits, wanted = self.arrival(tokens).unflatten(-1, (2, BOARDS)), plans.arrivals
            weight = torch.tensor([0.3] + [1.0] * (BOARDS - 1))
        return F.cross_entropy(logits.flatten(0, 2), wanted.flatten().to(where), weight.to(where), ignore_index=IGNORED)


def train(folder: Path, steps: int = STEPS, twin: Path | None = None) -> None:
    """One-step training at full noise. ``folder`` keeps the state.

    ``twin``: the state of such a training, from which its undistilled twin goes on instead: usual flow matching, half
    of the steps at other noise levels, and either of the right answers.
    """
    torch.manual_seed(3)
    tokenizer = reasoner_tokenizer(TEXT_LENGTH)
    transformer, encoder = (m.to(device()) for m in (build() if twin is None else load_state(twin)))
    everything = nn.ModuleDict({"transformer": transformer, "encoder": encoder, "heads": Heads().to(device())})
    optimizers, ema = optimizers_for(everything), Ema(everything, 0.995)
    run = Run(folder, {"all": everything}, optimizers, ema)
    means: dict[str, float] = {}
    for step in run.steps(steps):
        batch = Batch(training_tasks(step, BATCH), tokenizer)
        generator = torch.Generator().manual_seed(step)
        noise = torch.randn((BATCH, CHANNELS, BOARDS, GRID, GRID), generator=generator).to(device())
        second, sigma = torch.zeros(BATCH, dtype=torch.bool), 1.0
        if twin is not None:
            second = torch.rand(BATCH, generator=generator) < 0.5
            sigma = 1.0 if step % 2 else float(torch.rand((), generator=generator)) ** 0.5
        clean = batch.answers(second).to(noise)
        plans = Plans(batch.tasks, second)
        noisy = (1 - sigma) * clean + sigma * noise
        first = clean[:, :, :1] + FIRST_NOISE * torch.randn(clean[:, :, :1].shape, generator=generator).to(noise)
        text = embed(encoder, batch.ids.to(device()), batch.mask.to(device()))
        x = forward.embed(transformer, torch.cat([first, noisy[:, :, 1:]], 2), 1000 * sigma, text, first_frame=True)
        losses: dict[str, Tensor] = {}
        for block in (1, 2, 3, 4):
            x = forward.advance(transformer, x, block)
            losses[f"head{block}"] = everything["heads"](block, x.hidden[:, :CELLS], plans)
        u = forward.head(transformer, forward.advance(transformer, x, LAYERS))
        error = ((u - (noise - clean)) * SCALE).square()[:, :, 1:]
        losses["flow"] = 40 * (error * cell_weights(batch.codes.to(noise))).mean()
        loss = losses["flow"] + 0.1 * sum(value for name, value in losses.items() if name != "flow")
        update(loss, everything, optimizers, ema, cosine(step, steps, 100))
        right = rightness((noisy - sigma * u)[:, :, 1:], clean[:, :, 1:]).float()
        seen = {**losses, "boards": right.mean(), "videos": right.amin(1).mean()}
        for name, value in seen.items():
            means[name] = 0.97 * means.get(name, float(value.detach())) + 0.03 * float(value.detach())
        if step % 50 == 0:
            run.log(step, **means)


def rightness(predicted: Tensor, clean: Tensor) -> Tensor:
    """Which boards (B, T) of predicted latents say what the clean ones do, every number rounded."""
    wrong = ((predicted - clean) * SCALE).abs() > 0.5
    return ~wrong.permute(0, 2, 1, 3, 4).flatten(2).any(2)


def optimizers_for(network: nn.Module) -> Optimizers:
    """Muon for the filters and matrices in the blocks, AdamW for embeddings, heads and the rest."""
    return matrices_and_rest(network, MUON, ADAM, lambda name: ".blocks." in name or ".block." in name)


@torch.no_grad()
def evaluate(state: Path, split: str, count: int, seed: int = 5) -> dict[str, float]:
    """How many one-step predictions are right by their latents, by family. For a look; the scorer reads pixels."""
    transformer, encoder = load_state(state)
    tokenizer = reasoner_tokenizer(TEXT_LENGTH)
    out: dict[str, float] = {}
    for family in FAMILIES:
        batch = Batch([make_task(family, split, seed, i) for i in range(count)], tokenizer)
        noise = torch.randn((count, CHANNELS, BOARDS, 6, 6), generator=torch.Generator().manual_seed(seed))
        clean = batch.first()
        text = embed(encoder, batch.ids, batch.mask)
        found = predict(transformer, noise, 1.0, clean[:, :, :1], text)
        right = rightness(found, clean)
        out |= {family: float(right.all(1).float().mean()), f"{family} end": float(right[:, -1].float().mean())}
    return out


def load_state(state: Path) -> tuple[WanTransformer3DModel, UMT5EncoderModel]:
    """The averaged networks of a training's state."""
    transformer, encoder = build()
    averaged(state, "all", nn.ModuleDict({"transformer": transformer, "encoder": encoder}))
    return transformer.eval(), encoder.eval()


def save(transformer: WanTransformer3DModel, encoder: UMT5EncoderModel, folder: Path) -> None:
    """Writes both in float16 beside the tokenizer."""
    save_half(transformer, folder / "transformer")
    save_half(encoder, folder / "text_encoder")
    reasoner_tokenizer(TEXT_LENGTH).save_pretrained(folder / "tokenizer")
