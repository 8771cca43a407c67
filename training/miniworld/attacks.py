"""Latents that real test-time optimization makes against the current teacher: the hardest examples it has to read.

Instances run side by side, each with its own LoRA. Their one-step predictions along the way and their final videos
become training data, labelled by the rules and not by what the teacher believes. Runs started from a randomly disturbed
student add the mistakes that a weaker reasoner would make. And because most videos that a teacher takes for right by
mistake were never optimized, those of the student's own videos that it judges worst are added too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from training.miniworld.student import TEXT_LENGTH, embed, load, predict, sample
from training.miniworld.vae import CHANNELS
from ttopt.miniworld.multistep import legs
from ttopt.miniworld.scene import Task
from ttopt.miniworld.tasks import FAMILIES, MULTI_STEP, SPLITS, make_task
from ttopt.miniworld.tokenizer import reasoner_tokenizer
from ttopt.miniworld.world import FPS, FRAMES, read
from ttopt.models.reasoner import Adapter
from ttopt.models.reasoner.decoder import StandardDecoder
from ttopt.models.teacher.teacher import Teacher
from ttopt.optimization.reward import multi_vqa_loss

SIZE = 12
MINED, WORST = 10, 24  # batches of the student's own videos a shard, and how many of these videos are kept
CHANCES = (0.16, 0.14, 0.12, 0.26, 0.32)  # of the families: two and visit, the hardest to read, come most often


def task_of(key: tuple[int, ...]) -> Task:
    """The task of a key in a shard: split, family, seed, index, and which of its steps (-1: the whole task)."""
    split, family, seed, index, part = key
    task = make_task((*FAMILIES, *MULTI_STEP)[family], list(SPLITS)[split], seed, index)
    return task if part < 0 else legs(task)[part]


class Attacker:
    """Student, decoder and a batch of adapters; ``run`` makes one shard of the pool."""

    def __init__(self, student: Path, decoder: StandardDecoder, first_frames: FirstFrames) -> None:
        transformer, encoder = load(student)
        self.transformer: WanTransformer3DModel = transformer.eval().requires_grad_(False)
        self.encoder: UMT5EncoderModel = encoder.eval().requires_grad_(False)
        self.tokenizer = reasoner_tokenizer(TEXT_LENGTH)
        self.decoder, self.first_frames = decoder, first_frames
        self.clean = {name: p.clone() for name, p in self.transformer.named_parameters()}
        self.adapter = Adapter(self.transformer)
        self.adapter.reset([0] * SIZE)

    @torch.no_grad()
    def disturb(self, rng: np.random.Generator, scale: float) -> None:
        """Adds rank-4 noise of a relative size to every large matrix, or restores the student for scale 0."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        for name, p in self.transformer.named_parameters():
            p.copy_(self.clean[name])
            if scale and p.dim() == 2 and min(p.shape) >= 64:
                noise = torch.randn(p.shape[0], 4, generator=generator) @ torch.randn(
                    4, p.shape[1], generator=generator
                )
                p.add_(noise * (scale * p.norm() / noise.norm()))

    def draw(self, rng: np.random.Generator) -> list[tuple[int, ...]]:
        """SIZE random task keys."""
        splits = list(SPLITS)
        keys: list[tuple[int, ...]] = []
        for _ in range(SIZE):
            split = "teacher_ood" if rng.random() < 0.4 else "train"
            family, part = int(rng.choice(len(FAMILIES), p=CHANCES)), -1
            if rng.random() < 0.3:  # one step of a longer task
                family, part = len(FAMILIES) + int(rng.integers(len(MULTI_STEP))), int(rng.integers(3))
            keys.append((splits.index(split), family, 32, int(rng.integers(100_000)), part))
        return keys

    @torch.no_grad()
    def conditions(self, tasks: list[Task]) -> tuple[Tensor, Tensor]:
        """First-frame latents (n, C, 1, 6, 6) and text embeddings of tasks."""
        tokens = self.tokenizer(
            [t.prompt for t in tasks], padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt"
        )
        return self.first_frames(tasks), embed(self.encoder, tokens.input_ids, tokens.attention_mask)

    @torch.no_grad()
    def mine(self, teacher: Teacher, rng: np.random.Generator) -> tuple[Tensor, list[tuple[int, ...]]]:
        """The WORST judged of MINED batches of the student's own videos: latents (WORST, C, 3, 6, 6) and their keys.

        One-step predictions and few-step videos in turn; judged by the goal, a process question and the rest.
        """
        self.disturb(rng, 0.0)
        latents, owners, errors = [], [], []
        for batch in range(MINED):
            keys = self.draw(rng)
            tasks = [task_of(k) for k in keys]
            first, text = self.conditions(tasks)
            self.adapter.reset([int(s) for s in rng.integers(2**31, size=SIZE)])  # a fresh adapter changes nothing
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            noise = torch.randn(SIZE, CHANNELS, 3, 6, 6, generator=generator)
            if batch % 2:
                clean = sample(self.transformer, noise, first, text)
            else:
                clean = predict(self.transformer, noise, torch.ones(SIZE), first, text)
            frames = self.decoder(clean, range(FRAMES))
            reading = read(frames)
            some = [t.process[int(rng.integers(len(t.process)))] for t in tasks]
            asked = [(t.goal, one, t.rest(t.actors[: t.movers])) for t, one in zip(tasks, some, strict=True)]
            yes = (-teacher.yes_losses(frames, [[q.text() for q in row] for row in asked], FPS, range(FRAMES))).exp()
            truths = torch.tensor([[float(q.truth(reading[i : i + 1])) for q in row] for i, row in enumerate(asked)])
            latents.append(clean)
            owners += keys
            errors.append((yes - truths).abs().amax(1))
        worst = torch.cat(errors).topk(WORST).indices
        return torch.cat(latents)[worst], [owners[int(i)] for i in worst]

    def run(self, teacher: Teacher, rng: np.random.Generator, path: Path) -> float:
        """One batch of optimizations against ``teacher``, saved as latents (n, C, 3, 6, 6) and task keys (n, 5).

        Returns the share of instances that reached the paper's tau.
        """
        keys = self.draw(rng)
        tasks = [task_of(k) for k in keys]
        first, text = self.conditions(tasks)
        self.disturb(rng, float(rng.choice([0.0, 0.0, 0.1, 0.2])))
        self.adapter.reset([int(s) for s in rng.integers(2**31, size=SIZE)])
        rate = float(rng.choice([5e-4, 1e-3, 1e-3, 2e-3]))
        optimizer = torch.optim.AdamW(self.adapter.parameters(), rate, weight_decay=0.0)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        noise = torch.randn(SIZE, CHANNELS, 3, 6, 6, generator=generator)
        others = rng.random() < 0.5  # questions about other things one by one, or all in one
        questions = [[q.text() for q in ((t.goal, *t.process[:3]) if others else t.questions)] for t in tasks]
        count = min(map(len, questions))
        questions = [[q[0], *rng.permutation(q[1:])[: count - 1]] for q in questions]
        steps, kept = int(rng.integers(5, 16)), []
        sigma = torch.ones(SIZE)
        for step in range(steps):
            clean = predict(self.transformer, noise, sigma, first, text)
            if step in (0, steps // 3, 2 * steps // 3, steps - 1):
                kept.append(clean.detach())
            frames = self.decoder(clean, range(FRAMES))
            total = multi_vqa_loss(teacher.yes_losses(frames, questions, FPS, range(FRAMES)))
            gradients = torch.autograd.grad(total.sum(), self.adapter.parameters())
            for p, g in zip(self.adapter.parameters(), gradients, strict=True):
                p.grad = g
            self.adapter.clip_gradients(1.0)
            optimizer.step()
        kept.append(sample(self.transformer, noise, first, text))
        mined, owners = self.mine(teacher, rng)
        out, owners = torch.cat([*kept, mined]), keys * len(kept) + owners
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_file({"latents": out.half(), "tasks": torch.tensor(owners)}, temporary)
        temporary.replace(path)
        return float((total.detach() < 0.22).float().mean())


class FirstFrames(nn.Module):
    """First-frame latents (n, C, 1, 6, 6), normalised, of tasks."""

    def __init__(self, vae: object, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.vae, self.mean, self.std = [vae], mean, std

    @torch.no_grad()
    def forward(self, tasks: list[Task]) -> Tensor:
        from training.miniworld.vae import encode
        from ttopt.miniworld.world import render

        frames = render(torch.stack([t.codes()[:1] for t in tasks]))
        return (encode(self.vae[0], frames) - self.mean) / self.std  # type: ignore[arg-type]
