"""The chat model of the step loop: it plans, verifies and routes, and learns that from the world's own rules.

It starts as a copy of the teacher, which can already see and answer, and then learns replies alone. The grader stays as
it is: what makes a gradient hard to fool and what makes words right pull the same few weights apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.code import CHANNELS, SCALE
from training.common import Ema, Run, averaged, cosine, device, matrices_and_rest, update
from training.corruptions import corrupt
from training.dialogues import PLAN, ROUTE, VERIFY, as_text, checks, done_text, is_lost, plan, reason, route
from training.dialogues import verdict as perfect
from training.distill import sample
from training.reasoner import TEXT_LENGTH, embed
from training.reasoner import load_state as load_reasoner
from training.replies import Dialogue, queries, reply_loss
from training.teacher import build, save_teacher
from training.teacher import load_state as load_teacher
from training.vae import decode, encode
from ttopt.miniworld.chains import legs
from ttopt.miniworld.look import BOARDS, PER_MOVE, Actor, Film, render
from ttopt.miniworld.questions import repaired_prompt
from ttopt.miniworld.reader import Seen, from_film, read
from ttopt.miniworld.scene import Task
from ttopt.miniworld.tasks import FAMILIES, LONG, clip_task, make_task
from ttopt.miniworld.tokenizer import reasoner_tokenizer

STEPS, SEED = 4000, 41
MUON, ADAM = 0.004, 6e-4  # learning rates
VERDICTS, PLANS = 5, 3  # rows of a step; a route and written questions come in turn
CLIPS, CLIP_BATCH = 1000, 10  # of the reasoner
REPAIRS = (0.5, 1 / 3, 1 / 6)  # chances that a prompt ends in none, one or two
WHOLE = 0.25  # share of the first steps of long tasks whose clips are judged as if they were of the whole task


def train(folder: Path, teacher: Path, reasoner: Path, vae: AutoencoderKLWan, steps: int = STEPS) -> None:
    """Trains from the teacher's state on clips of the reasoner's. ``folder`` keeps the state."""
    torch.manual_seed(7)
    clips = Clips(vae, reasoner, folder / "clips.safetensors")
    chat = build()
    chat.model.load_state_dict(load_teacher(teacher).model.state_dict())
    chat.model.to(device()).train().requires_grad_(True)
    networks = nn.ModuleDict({"model": chat.model})
    optimizers = matrices_and_rest(networks, MUON, ADAM, lambda name: "layers." in name or "blocks." in name)
    ema = Ema(networks, 0.998)
    run = Run(folder, {"all": networks}, optimizers, ema)
    means: dict[str, float] = {}
    for step in run.steps(steps):
        rng = np.random.default_rng([7, step])
        rows = {
            "verdicts": [clips.verdict(rng) for _ in range(VERDICTS)],
            "plans": [clips.plan(rng) for _ in range(PLANS)],
            "others": [clips.route(rng) if step % 2 else queries(clips.draw(rng)[0])],
        }
        losses = {name: reply_loss(chat, row) for name, row in rows.items()}
        update(torch.stack(list(losses.values())).sum(), networks, optimizers, ema, cosine(step, steps, 200))
        for name, value in losses.items():
            means[name] = 0.98 * means.get(name, float(value.detach())) + 0.02 * float(value.detach())
        if step % 50 == 0:
            run.log(step, **means)


class Clips:
    """Boards of the reasoner's clips, and films right and wrong, with the tasks (or steps of tasks) they are of."""

    def __init__(self, vae: AutoencoderKLWan, reasoner: Path, cache: Path) -> None:
        kinds = (*FAMILIES, *LONG)
        self.vae = vae
        self.tasks = [
            clip_task(kinds[i % len(kinds)], "teacher_ood" if i % 5 < 2 else "train", SEED, i // len(kinds))
            for i in range(CLIPS)
        ]
        if not cache.exists():
            cache.parent.mkdir(parents=True, exist_ok=True)
            temporary = cache.with_suffix(".tmp")
            save_file({"boards": make(vae, reasoner, self.tasks)}, temporary)
            temporary.replace(cache)
        self.boards = load_file(cache)["boards"]  # (CLIPS, 7, 3, 96, 96) uint8

    def draw(self, rng: np.random.Generator) -> tuple[Task, Tensor, Seen]:
        """A task that one clip solves, the boards (7, 3, 96, 96) of a clip of it, and what they show."""
        if rng.random() < 0.5:
            number = int(rng.integers(len(self.tasks)))
            boards = self.boards[number].float() / 255
            return self.tasks[number], boards, read(boards, boards=True)
        task = clip_task(str(rng.choice((*FAMILIES, *LONG))), _split(rng), SEED + 1, int(rng.integers(1_000_000)))
        right = rng.random() < 0.4
        film = task.film(task.choices[int(rng.integers(len(task.choices)))]) if right else corrupt(task, rng)[1]
        return task, _noisy(render(film)[::PER_MOVE], rng), from_film(film, boards=True)

    def verdict(self, rng: np.random.Generator) -> Dialogue:
        """A verdict about a clip, of a step of a long task also as if it were of the whole one."""
        task, boards, seen = self.draw(rng)
        whole = task.parent or task
        asked = repaired_prompt(task, rng, REPAIRS)
        if task.number == 0 and rng.random() < WHOLE:
            task, asked = whole, whole.prompt
        request = VERIFY.format(action=asked, prompt=whole.prompt)
        return Dialogue(boards, request, as_text(perfect(task, seen)))

    def plan(self, rng: np.random.Generator) -> Dialogue:
        """A plan at a random point of a task, sometimes one whose last step was undone, or after a clip."""
        if rng.random() < 0.6:
            whole = make_task(str(rng.choice(LONG)), _split(rng), SEED + 2, int(rng.integers(1_000_000)))
        else:
            whole = make_task(str(rng.choice(FAMILIES)), _split(rng), SEED + 2, int(rng.integers(1_000_000)))
        parts = legs(whole)
        done = int(rng.integers(len(parts) + 1))
        shown = done if done == 0 or rng.random() < 0.8 else done - 1
        film = parts[min(shown, len(parts) - 1)].film()
        board = -1 if shown == len(parts) else 0
        still = Film([Actor([a.track[board]], [a.looks[board]]) for a in film.actors], film.grounds[:1])
        steps = int(rng.choice([3, 3, 3, 4, 5, 6]))
        step = min(steps, done + 1 + int(rng.choice([0, 0, 0, 1, 2])))
        request = PLAN.format(prompt=whole.prompt, done=done_text(whole, done), step=step, steps=steps)
        reply = plan(whole, done, from_film(still, boards=True), step, steps)
        return Dialogue(_noisy(render(still), rng), request, as_text(reply))

    def route(self, rng: np.random.Generator) -> Dialogue:
        """What to do about a clip that was rejected again and again."""
        task, boards, seen = self.draw(rng)
        found = checks(task, seen)
        request = ROUTE.format(
            action=repaired_prompt(task, rng, REPAIRS), prompt=(task.parent or task).prompt, reason=reason(found)
        )
        return Dialogue(boards[:1], request, as_text(route(task, found, is_lost(task, seen))))


@torch.no_grad()
def make(vae: AutoencoderKLWan, reasoner: Path, tasks: list[Task]) -> Tensor:
    """The boards (n, 7, 3, 96, 96) uint8 of the reasoner's few-step videos."""
    transformer, encoder = load_reasoner(reasoner)
    tokenizer = reasoner_tokenizer(TEXT_LENGTH)
    random, out = torch.Generator().manual_seed(SEED), []
    for start in range(0, len(tasks), CLIP_BATCH):
        part = tasks[start : start + CLIP_BATCH]
        words = tokenizer(
            [task.prompt for task in part], padding="max_length", max_length=TEXT_LENGTH, truncation=True,
            return_tensors="pt",
        )  # fmt: skip
        first = torch.cat([encode(vae, render(task.film())[None, :1]) for task in part]) / SCALE
        noise = torch.randn((len(part), CHANNELS, BOARDS, 6, 6), generator=random)
        latents = sample(transformer, noise, first, embed(encoder, words.input_ids, words.attention_mask))
        video = decode(vae, latents * SCALE).clamp(0, 1)
        out.append((video[:, ::PER_MOVE] * 255).round().byte())
    return torch.cat(out)


def save(state: Path, folder: Path) -> None:
    """Writes the chat model of a training's state in float16 beside its tokenizer and wording."""
    chat = build()
    averaged(state, "all", nn.ModuleDict({"model": chat.model}))
    save_teacher(chat, folder)


def _split(rng: np.random.Generator) -> str:
    return "teacher_ood" if rng.random() < 0.4 else "train"


def _noisy(images: Tensor, rng: np.random.Generator) -> Tensor:
    level = 0.05 * float(rng.random())
    return (images + level * torch.from_numpy(rng.standard_normal(images.shape).astype(np.float32))).clamp(0, 1)
