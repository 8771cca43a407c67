"""Latents that real test-time optimization makes against the current teacher: the hardest examples it has to read.

Instances run side by side, each with its own LoRA. Their one-step predictions along the way, and few-step videos of the
same noises, become training data, labeled by the reader and not by what the teacher believes. Runs started from a
randomly disturbed reasoner add the mistakes that a weaker one would make.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.code import CHANNELS, SCALE, film_code
from training.distill import sample
from training.reasoner import FIRST_NOISE, TEXT_LENGTH, embed, load_state, predict
from ttopt.miniworld.look import BOARDS, FPS
from ttopt.miniworld.questions import questions
from ttopt.miniworld.scene import Task
from ttopt.miniworld.tasks import FAMILIES, LONG, SPLITS, clip_task
from ttopt.miniworld.tokenizer import reasoner_tokenizer
from ttopt.models.reasoner import Adapter, LightDecoder
from ttopt.models.teacher import Teacher
from ttopt.optimization.reward import multi_vqa_loss

SIZE, SEED, NEWEST = 8, 32, 60  # instances a run; of the tasks; shards that a pool keeps
KINDS = (*FAMILIES, *LONG)  # of a long task one step
DISTURBED = (0.0, 0.0, 0.1, 0.2)  # relative sizes of the disturbance
RATES = (5e-4, 1e-3, 1e-3, 2e-3)
Key = tuple[int, int, int]  # split, family, index


def task_of(key: Key) -> Task:
    """The task of a key in a shard."""
    split, family, index = key
    return clip_task(KINDS[family], list(SPLITS)[split], SEED, index)


class Attacker:
    """Reasoner, light decoder and a batch of adapters; ``run`` makes one shard of a pool."""

    def __init__(self, state: Path, light: LightDecoder, shown: tuple[int, ...]) -> None:
        transformer, encoder = load_state(state)
        where = next(light.parameters()).device
        self.transformer, self.encoder = (m.to(where).requires_grad_(False) for m in (transformer, encoder))
        self.tokenizer = reasoner_tokenizer(TEXT_LENGTH)
        self.light, self.shown, self.where = light, shown, where
        self.clean = [(p, p.clone()) for p in self.transformer.parameters()]  # the adapter's are not among them
        self.adapter = Adapter(self.transformer)

    @torch.no_grad()
    def disturb(self, scale: float, generator: torch.Generator) -> None:
        """Adds rank-4 noise of a relative size to every large matrix, or restores the reasoner for scale 0."""
        for p, clean in self.clean:
            p.copy_(clean)
            if scale and p.dim() == 2 and min(p.shape) >= 64:
                down, up = (
                    torch.randn(p.shape[0], 4, generator=generator),
                    torch.randn(4, p.shape[1], generator=generator),
                )
                noise = (down @ up).to(p)
                p.add_(noise * (scale * p.norm() / noise.norm()))

    def draw(self, rng: np.random.Generator) -> list[Key]:
        """SIZE random task keys."""
        splits = list(SPLITS)
        picked = ["teacher_ood" if rng.random() < 0.4 else "train" for _ in range(SIZE)]
        return [(splits.index(s), int(rng.integers(len(KINDS))), int(rng.integers(1_000_000))) for s in picked]

    @torch.no_grad()
    def conditions(self, tasks: list[Task], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """First-board latents (n, C, 1, 6, 6) and text embeddings of tasks."""
        tokens = self.tokenizer(
            [t.prompt for t in tasks], padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt"
        ).to(self.where)
        first = torch.stack([film_code(t.film())[:, :1] for t in tasks]) / SCALE
        first = first + FIRST_NOISE * torch.randn(first.shape, generator=generator)
        return first.to(self.where), embed(self.encoder, tokens.input_ids, tokens.attention_mask)

    def run(self, teacher: Teacher, rng: np.random.Generator, path: Path) -> float:
        """One batch of optimizations against ``teacher``, saved as latents (n, C, 7, 6, 6) and task keys (n, 3).

        Returns the share of instances that reached the paper's tau.
        """
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        keys = self.draw(rng)
        tasks = [task_of(key) for key in keys]
        first, text = self.conditions(tasks, generator)
        self.disturb(float(rng.choice(DISTURBED)), generator)
        self.adapter.reset([int(s) for s in rng.integers(2**31, size=SIZE)])
        optimizer = torch.optim.AdamW(self.adapter.parameters(), float(rng.choice(RATES)), weight_decay=0.0)
        noise = torch.randn((SIZE, CHANNELS, BOARDS, 6, 6), generator=generator).to(self.where)
        asked = [[q.text for q in questions(task)] for task in tasks]
        count = min(map(len, asked))
        asked = [[row[0], *(str(q) for q in rng.permutation(row[1:])[: count - 1])] for row in asked]
        steps = int(rng.integers(5, 16))
        kept: list[Tensor] = []
        for step in range(steps):
            found = predict(self.transformer, noise, 1.0, first, text)
            if step in (0, steps // 3, 2 * steps // 3, steps - 1):
                kept.append(found.detach())
            losses = teacher.yes_losses(self.light(found, self.shown), asked, FPS, self.shown)
            total = multi_vqa_loss(losses)
            gradients = torch.autograd.grad(total.sum(), self.adapter.parameters())
            for p, g in zip(self.adapter.parameters(), gradients, strict=True):
                p.grad = g
            self.adapter.clip_gradients(1.0)
            optimizer.step()
        kept.append(sample(self.transformer, noise, first, text))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        save_file({"latents": torch.cat(kept).half().cpu(), "tasks": torch.tensor(keys * len(kept))}, temporary)
        temporary.replace(path)
        return float((total.detach() < 0.22).float().mean())


class Pool:
    """The newest shards of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: dict[str, tuple[Tensor, list[Key]]] = {}

    def look(self) -> None:
        """Takes in new shards and forgets old ones."""
        names = sorted(path.name for path in self.folder.glob("*.safetensors"))[-NEWEST:]
        self.shards = {name: self.shards[name] for name in names if name in self.shards}
        for name in names:
            if name not in self.shards:
                shard = load_file(self.folder / name)
                self.shards[name] = shard["latents"].float(), [tuple(key) for key in shard["tasks"].tolist()]

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Task]:
        """Latents (C, 7, 6, 6) and their task, newer ones more often."""
        names = sorted(self.shards)
        latents, keys = self.shards[names[len(names) - 1 - min(len(names) - 1, int(rng.exponential(15)))]]
        number = int(rng.integers(len(keys)))
        return latents[number], task_of(keys[number])
