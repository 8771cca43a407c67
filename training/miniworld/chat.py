"""The chat model of the step loop: it plans, verifies and routes, and learns that from the world's own rules.

It starts as a copy of the teacher, which can already see and name things, and then learns replies alone. The grader
stays as it is: what makes a gradient hard to fool and what makes words right pull the same few weights apart.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from training.common import Ema, rank
from training.miniworld import replies
from training.miniworld.common import Run, carry_over, cosine, shared_rows, task_bank, update
from training.miniworld.corruptions import drawn, with_copies
from training.miniworld.sight import Sight
from training.miniworld.student import TEXT_LENGTH, embed, load, sample
from training.miniworld.teacher import build, choose_questions, snapshot
from training.miniworld.vae import CHANNELS, decode, encode, load_vae, statistics
from ttopt.miniworld.multistep import legs
from ttopt.miniworld.scene import Task
from ttopt.miniworld.tasks import FAMILIES, MULTI_STEP, TWO_STOPS
from ttopt.miniworld.tokenizer import reasoner_tokenizer, teacher_tokenizer
from ttopt.miniworld.world import read, render
from ttopt.models.teacher import Teacher

STEPS, RATE, WARM_UP = 4000, 7e-4, 200
FRESH = 400  # steps in which the heads of ``Sight`` learn alone
SHORT_TASKS, LONG_TASKS, PAIRS = 2400, 900, 800  # of them the clips are made; pairs are tasks of two stops
VERDICTS, ANSWERS, PLANS, QUERIES, ROUTES = 6, 3, 6, 2, 2  # rows of a step
TOLD_VERDICTS, TOLD_PLANS, TOLD_ROUTES = 10, 4, 2  # rows of every step, without pictures
LOOK_EVERY = 3  # the others come in one step of so many
WHOLE = 0.3  # share of the first steps whose clips are judged as if they were of the whole task


def train(folder: Path, vae_folder: Path, student: Path, start: Path, out: Path, steps: int = STEPS) -> None:
    """Trains from the teacher under ``start`` on clips of the reasoner under ``student``; saves under ``out``."""
    torch.manual_seed(7)
    vae = load_vae(vae_folder)
    clips = Clips(vae, student, folder / "clips.safetensors")
    known = Teacher.load(start)
    chat = build()
    rows = shared_rows(teacher_tokenizer(), known.tokenizer)
    carry_over(known.model.state_dict(), chat.model, "model.language_model.embed_tokens.weight", rows)
    chat.model.train().requires_grad_(True)
    sight = Sight(chat)
    networks = nn.ModuleList([chat.model, sight])
    optimizer = torch.optim.AdamW(networks.parameters(), RATE, weight_decay=0.01, betas=(0.9, 0.98))
    ema = Ema(chat.model, 0.998)
    run = Run(folder, {"chat": chat.model, "sight": sight}, optimizer, ema)
    means: dict[str, float] = {}
    for step in run.steps(steps):
        rng = np.random.default_rng([7, step, rank()])
        sight.fresh = step < FRESH
        kinds = {**clips.told(rng), **(clips.dialogues(rng) if step % LOOK_EVERY == 0 else {})}
        losses = {name: replies.reply_loss(chat, rows, sight) for name, rows in kinds.items()}
        loss = torch.stack(list(losses.values())).sum()
        update(loss, networks, optimizer, ema, cosine(step, steps, RATE, WARM_UP), averaged=chat.model)
        for name, value in losses.items():
            means[name] = 0.98 * means.get(name, float(value.detach())) + 0.02 * float(value.detach())
        if step % 100 == 0:
            run.log(step, **means)
        if step % 500 == 499 and rank() == 0:
            snapshot(chat, ema, folder / "now")
    if rank() == 0:
        snapshot(chat, ema, out)


class Clips:
    """Clips of a reasoner, step after step as the loop makes them, and the tasks (or steps of tasks) they are of."""

    def __init__(self, vae: AutoencoderKLWan, student: Path, cache: Path) -> None:
        def bank(seed: int, size: int, families: tuple[str, ...] = FAMILIES) -> list[Task]:
            return [t for s in ("train", "teacher_ood") for t in task_bank(s, seed, size // 2, families)]

        self.short, self.long = bank(41, SHORT_TASKS), bank(42, LONG_TASKS, MULTI_STEP)
        divided = [legs(task) for task in (*self.long, *bank(43, PAIRS, TWO_STOPS))]
        if not cache.exists() and rank() == 0:
            cache.parent.mkdir(parents=True, exist_ok=True)
            temporary = cache.with_suffix(".tmp")
            save_file({"frames": make(vae, student, self.short, divided)}, temporary)
            temporary.replace(cache)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        self.vae = vae
        self.frames = load_file(cache)["frames"]  # (n, 9, 3, 48, 48) uint8
        self.tasks = [*self.short, *(leg for parts in divided for leg in parts)]
        assert len(self.tasks) == len(self.frames)
        self.kinds: dict[str, list[int]] = {}  # numbers of each family's tasks, of steps of long ones and of pairs
        for i, task in enumerate(self.tasks):
            kind = task.family if task.parent is None else "pair" if task.parent.family in TWO_STOPS else "step"
            self.kinds.setdefault(kind, []).append(i)

    def pick(self, rng: np.random.Generator) -> int:
        """Number of a task; each family as often as all steps of long tasks together, and as those of pairs."""
        numbers = list(self.kinds.values())[int(rng.integers(len(self.kinds)))]
        return numbers[int(rng.integers(len(numbers)))]

    def clip(self, rng: np.random.Generator, *, decoded: float = 0.5, copies: float = 0.0) -> tuple[Task, Tensor]:
        """A task or step and a video of it (9, 3, 48, 48): the reasoner's, or a drawn one, right or wrong.

        Of the drawn ones the share ``decoded`` goes through the VAE, and the share ``copies`` has things twice.
        """
        i = self.pick(rng)
        task = self.tasks[i]
        if rng.random() < 0.45:
            return task, self.frames[i].float() / 255
        codes = drawn(task, rng, 0.4)
        video = render((with_copies(codes, rng) if rng.random() < copies else codes)[None])
        if rng.random() < decoded:
            with torch.no_grad():
                video = decode(self.vae, encode(self.vae, video)).clamp(0, 1)
        return task, replies.noisy(video[0], rng)

    def told(self, rng: np.random.Generator) -> dict[str, list[replies.Dialogue]]:
        """The rows of one step in which what there is to see is only told, and what follows is learnt."""
        verdicts: list[replies.Dialogue] = []
        routes: list[replies.Dialogue] = []
        while len(verdicts) < TOLD_VERDICTS:
            task, frames = self.clip(rng, decoded=0.0, copies=0.4)
            task, reading = _perhaps_whole(task, rng), read(frames[None])
            if len(routes) < TOLD_ROUTES:
                routes.append(replies.told(replies.route(task, frames, reading, rng)))
            if verdict := replies.verify(task, frames, reading, rng):
                verdicts.append(replies.told(verdict, '"reason"'))
        plans = [replies.told(replies.plan(self._any(rng), rng), '"observation"') for _ in range(TOLD_PLANS)]
        return {"told verdicts": verdicts, "told plans": plans, "told routes": routes}

    def dialogues(self, rng: np.random.Generator) -> dict[str, list[replies.Dialogue]]:
        """The rows of one step, those of like length together."""
        checked: list[replies.Dialogue] = []
        answers: list[replies.Dialogue] = []
        routes: list[replies.Dialogue] = []
        plans: list[replies.Dialogue] = []
        while len(checked) < VERDICTS:
            task, frames = self.clip(rng, copies=0.25)
            reading = read(frames[None])
            if len(plans) < 2 and (after := replies.plan_after(task, frames, rng)):
                plans.append(after)
            if len(answers) < ANSWERS:
                ((question, *_),), truths = choose_questions([task], reading, rng)
                answers.append(replies.answer(question, frames, float(truths[0, 0])))
            task = _perhaps_whole(task, rng)
            if len(routes) < ROUTES:
                routes.append(replies.route(task, frames, reading, rng))
            if verdict := replies.verify(task, frames, reading, rng):
                checked.append(verdict)
        plans += [replies.plan(self._any(rng), rng) for _ in range(PLANS - len(plans))]
        queries = [replies.queries(self._any(rng), rng) for _ in range(QUERIES)]
        return {"verdicts": checked, "answers": answers, "routes": routes, "plans": plans, "queries": queries}

    def _any(self, rng: np.random.Generator) -> Task:
        return self.long[int(rng.integers(len(self.long)))] if rng.random() < 0.4 else self.tasks[self.pick(rng)]


def _perhaps_whole(task: Task, rng: np.random.Generator) -> Task:
    """For some first steps the whole task, as a loop that does not plan has its clips verified."""
    return task.parent if task.parent is not None and task.number == 0 and rng.random() < WHOLE else task


@torch.no_grad()
def make(vae: AutoencoderKLWan, student: Path, short: list[Task], divided: list[list[Task]]) -> Tensor:
    """Clips (n, 9, 3, 48, 48) uint8: one of every short task, then of every step of every divided one.

    A step starts where the step before it ended, as the loop goes on from an accepted clip.
    """
    generate = Generator(vae, student)
    size, out = 50, []
    for i in range(0, len(short), size):
        tasks = short[i : i + size]
        out.append(generate(tasks, _starts(tasks)))
    for i in range(0, len(divided), size):
        steps = divided[i : i + size]
        made: list[list[Tensor]] = [[] for _ in steps]
        for number in range(max(map(len, steps))):
            going = [k for k, parts in enumerate(steps) if number < len(parts)]
            tasks = [steps[k][number] for k in going]
            first = _starts(tasks)
            if number:
                last = torch.stack([made[k][-1][-1:] for k in going]).float() / 255
                same = (read(last).codes() == torch.stack([task.codes()[:1] for task in tasks])).flatten(1).all(1)
                first[same] = last[same]  # the loop does not go on from a clip that failed
            for k, clip in zip(going, generate(tasks, first), strict=True):
                made[k].append(clip)
        out += [torch.stack(clips) for clips in made]
    return torch.cat(out)


def _starts(tasks: list[Task]) -> Tensor:
    return render(torch.stack([task.codes()[:1] for task in tasks]))


class Generator:
    """The reasoner's few-step sampler for many tasks at once."""

    def __init__(self, vae: AutoencoderKLWan, student: Path) -> None:
        self.vae, (self.transformer, self.encoder) = vae, load(student)
        self.mean, self.std = statistics(vae)
        self.tokenizer = reasoner_tokenizer(TEXT_LENGTH)
        self.random = torch.Generator().manual_seed(7)

    def __call__(self, tasks: list[Task], frames: Tensor) -> Tensor:
        """Clips (B, 9, 3, 48, 48) uint8 that start from ``frames`` (B, 1, 3, 48, 48)."""
        first = (encode(self.vae, frames) - self.mean) / self.std
        words = self.tokenizer(
            [task.prompt for task in tasks], padding="max_length", max_length=TEXT_LENGTH, truncation=True,
            return_tensors="pt",
        )  # fmt: skip
        text = embed(self.encoder, words.input_ids, words.attention_mask)
        noise = torch.randn(len(tasks), CHANNELS, 3, 6, 6, generator=self.random)
        latents = sample(self.transformer, noise, first, text)
        return (decode(self.vae, latents * self.std + self.mean).clamp(0, 1) * 255).round().byte()
