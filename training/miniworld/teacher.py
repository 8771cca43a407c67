"""The teacher: a tiny Qwen3-VL that answers yes/no questions about sprite videos, and writes them for a prompt.

Its gradient matters more than its accuracy: an ordinarily trained teacher is easily fooled by the reasoner it grades.
So it trains adversarially. Every batch of latents is shown several times; the gradient that trains the weights also
moves the latents towards what fools the teacher ("free" adversarial training, Shafahi et al. 2019), and every moved
video is labelled anew by the rules, because a large move may change the truth. attacks.py adds what real test-time
optimization against the current teacher produces.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from training.common import Ema, rank, save_half
from training.miniworld import replies
from training.miniworld.attacks import Attacker, FirstFrames, task_of
from training.miniworld.common import Run, carry_over, cosine, shared_rows, step_bank, task_bank, update
from training.miniworld.corruptions import drawn
from training.miniworld.sight import Changes, Places, Sight
from training.miniworld.student import Bank
from training.miniworld.vae import load_vae, statistics
from ttopt.miniworld.questions import At, Both, Keeps, OffWalls, One, Passes, Question, Turned, Visits
from ttopt.miniworld.scene import Task
from ttopt.miniworld.tokenizer import teacher_tokenizer
from ttopt.miniworld.world import (
    COLOUR_NAMES,
    FPS,
    FRAMES,
    Reading,
    read,
    render,
    sprite,
    sprite_shape,
)
from ttopt.models.reasoner import LightDecoder, StandardDecoder
from ttopt.models.teacher import PackedOutput, Teacher
from ttopt.models.teacher.prompts import FILE as PROMPTS_FILE
from ttopt.models.teacher.prompts import Prompts

STEPS, WARM, ATTACK_EVERY, BATCH, QUESTIONS, REPLAYS, RATE = 7500, 2600, 80, 6, 5, 3, 1e-3
WARM_AGAIN, HEADS_RATE, RATE_AGAIN = 120, 1.5e-3, 3e-4  # with ``start``: first only the heads, which do not ship
VISITS = 0.25  # share of the videos that are of this family in any case: the hardest to read
NOISY, NOISE = 0.6, (0.02, 0.4)  # share of the videos with pixel noise, and its sigma's ends: smoother gradients
WRITE_EVERY = 2  # steps; writing questions is learnt soon
INITIAL_SCALE = 3.0  # the library's 0.02 is meant for widths in the thousands; attention here never wakes up from it
PROMPTS = Prompts(question="{question}", queries=replies.QUERIES, timestamps=False)
ALL_FRAMES = tuple(range(FRAMES))


def build() -> Teacher:
    """An untrained vision-language model of the embedded size (1.0M parameters); a vision token is one cell."""
    tokenizer = teacher_tokenizer()
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("vision_start", "vision_end", "video_pad", "image_pad")
    }
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 320,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "max_position_embeddings": 1024,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5_000_000.0, "mrope_section": [6, 5, 5]},
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        },
        vision_config={
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_heads": 4,
            "patch_size": 8,
            "temporal_patch_size": 2,
            "spatial_merge_size": 1,
            "out_hidden_size": 128,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 2],
        },
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        video_token_id=ids["video_pad"],
        image_token_id=ids["image_pad"],
        tie_word_embeddings=True,
    )
    model = Qwen3VLForConditionalGeneration(config).train()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(INITIAL_SCALE)
    return Teacher(model, tokenizer, prompts=PROMPTS)


def save(teacher: Teacher, folder: Path) -> None:
    """Writes model, tokenizer and wording in float16."""
    save_half(teacher.model, folder)
    teacher.tokenizer.save_pretrained(folder)
    words = {"question": PROMPTS.question, "queries": PROMPTS.queries, "timestamps": PROMPTS.timestamps}
    (folder / PROMPTS_FILE).write_text(json.dumps(words, indent=2) + "\n")


def ask(task: Task, rng: np.random.Generator) -> Question:
    """A random question about a task's scene; four of ten are not the task's own."""
    own = (*task.process, *task.common.values())
    chance = rng.random()
    if chance < 0.25:
        return task.goal
    if chance < 0.45:
        return task.rest(task.actors[: task.movers])
    if chance < 0.6:
        return own[int(rng.integers(len(own)))]
    actor = task.actors[int(rng.integers(len(task.actors)))]
    kind = int(rng.integers(8))
    pads = list(task.pads.items())
    rng.shuffle(pads)
    if kind == 0:
        return Keeps(actor.sprite, actor.track[0])
    if kind == 1:
        return One(actor.sprite if rng.random() < 0.7 else actor.looks[-1])
    if kind == 2 and task.walls:
        return OffWalls(actor.sprite, task.walls)
    if kind == 3:
        return Turned(actor.sprite, sprite(str(rng.choice(COLOUR_NAMES)), sprite_shape(actor.sprite)), actor.track[0])
    if kind == 4 and len(pads) > 1:
        (c1, g1), (c2, g2) = pads[:2]
        passed = Passes(actor.sprite, ((g1, c1),))
        return passed if rng.random() < 0.5 else Visits(actor.sprite, (g1, c1), (g2, c2))
    if kind == 5 and len(pads) > 1 and len(task.actors) > 1:
        other = task.actors[(task.actors.index(actor) + 1) % len(task.actors)]
        (c1, g1), (c2, g2) = pads[:2]
        return Both(At(actor.sprite, g1, c1), At(other.sprite, g2, c2))
    if kind == 6 and pads:
        return At(actor.sprite, pads[0][1], pads[0][0])
    if kind == 7:
        return task.rest([actor])
    return Keeps(actor.sprite, actor.track[0])


def choose_questions(
    tasks: list[Task], reading: Reading, rng: np.random.Generator
) -> tuple[list[list[Question]], Tensor]:
    """QUESTIONS questions a video, Yes and No about equally often; and their soft truths (B, Q)."""
    rows, truths = [], torch.empty(len(tasks), QUESTIONS)
    for i, task in enumerate(tasks):
        mine = reading[i : i + 1]
        asked: dict[str, Question] = {}
        for _ in range(12):
            question = ask(task, rng)
            asked.setdefault(question.text(), question)
        options = list(asked.values())
        values = [float(q.truth(mine)) for q in options]
        yes = sum(v > 0.5 for v in values)
        weights = np.array([1 / max(1, yes) if v > 0.5 else 1 / max(1, len(values) - yes) for v in values])
        picked = rng.choice(len(options), QUESTIONS, replace=len(options) < QUESTIONS, p=weights / weights.sum())
        rows.append([options[int(p)] for p in picked])
        truths[i] = torch.tensor([values[int(p)] for p in picked])
    return rows, truths


def answer_loss(teacher: Teacher, out: PackedOutput, truths: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy (B, Q) of the soft truths over "Yes" and "No" among the whole vocabulary, and P("Yes") (B, Q)."""
    log = out.logits.log_softmax(-1)
    yes, no = (teacher.tokenizer.convert_tokens_to_ids(w) for w in ("Yes", "No"))
    loss = -(truths * log[..., yes] + (1 - truths) * log[..., no])
    return loss, log[..., yes].detach().exp()


@dataclass
class Batch:
    """Latents (B, C, 3, 6, 6) of videos, some right and some not, and their tasks."""

    latents: Tensor
    tasks: list[Task]


class Source:
    """Where training videos come from: the encoded bank, and the folder that attacks.py fills."""

    def __init__(self, bank: Bank, pool: Path) -> None:
        self.bank, self.folder = bank, pool
        self.visits = [i for i, task in enumerate(bank.tasks[: len(bank.wrong)]) if task.family == "visit"]
        self.pool: list[tuple[Tensor, list[Task]]] = []
        self.read: set[str] = set()
        self.looked = 0.0

    def look(self) -> None:
        """Takes in new shards of the pool, at most every ten seconds; keeps the newest 80."""
        if time.time() - self.looked < 10:
            return
        self.looked = time.time()
        for path in sorted(self.folder.glob("*.safetensors"))[-80:]:
            if path.name in self.read:
                continue
            try:
                shard = load_file(path)
            except (SafetensorError, OSError):
                continue
            self.read.add(path.name)
            known: dict[tuple[int, ...], Task] = {}
            tasks = []
            for key in map(tuple, shard["tasks"].tolist()):
                if key not in known:
                    known[key] = task_of(key)
                tasks.append(known[key])
            self.pool.append((shard["latents"].float(), tasks))
            self.pool = self.pool[-80:]

    def batch(self, rng: np.random.Generator) -> Batch:
        """Most from the pool if there is one (newest first), the rest right, wrong and blended videos of the bank."""
        self.look()
        latents, tasks = [], []
        for _ in range(BATCH):
            if self.pool and rng.random() < 0.6:
                age = min(len(self.pool) - 1, int(rng.exponential(20)))
                z, owners = self.pool[len(self.pool) - 1 - age]
                i = int(rng.integers(len(owners)))
                latents.append(z[i])
                tasks.append(owners[i])
                continue
            numbers = self.visits if rng.random() < VISITS else range(len(self.bank.wrong))
            kind, i = rng.random(), numbers[int(rng.integers(len(numbers)))]
            if kind < 0.3:
                latents.append(self.bank.latents[i])
            elif kind < 0.75:
                latents.append(self.bank.wrong[i])
            else:
                part = float(rng.random())
                latents.append(torch.lerp(self.bank.latents[i], self.bank.wrong[i], part))
            tasks.append(self.bank.tasks[i])
        return Batch(torch.stack(latents), tasks)


def train(
    folder: Path,
    vae_folder: Path,
    light_folder: Path,
    student: Path | None,
    out: Path,
    steps: int = STEPS,
    start: Path | None = None,
) -> None:
    """Trains from scratch, or goes on from the run's state; a copy of the current teacher lies in ``now`` there.

    The first WARM steps only teach to see and need no student; later ones show every batch REPLAYS times under attack.
    With ``start``, a finished teacher's folder, there are only WARM_AGAIN of the first kind, in which the teacher stays
    as it is and the heads learn to read it; afterwards it changes slowly.
    Several processes share the work (see ``common.average_gradients``).
    """
    torch.manual_seed(4)
    vae = load_vae(vae_folder)
    light = LightDecoder.load(light_folder)
    mean, std = statistics(vae)
    source = Source(Bank(vae, folder.parent / "bank.safetensors"), folder / "pool")
    hard = task_bank("teacher_ood", 31, 2500) + step_bank("teacher_ood", 33, 1000)
    decoder = StandardDecoder(vae)
    attacker = Attacker(student, decoder, FirstFrames(vae, mean, std)) if student else None
    teacher, warm = build(), WARM
    if start is not None:
        known = Teacher.load(start)
        rows = shared_rows(teacher.tokenizer, known.tokenizer)
        carry_over(known.model.state_dict(), teacher.model, "model.language_model.embed_tokens.weight", rows)
        warm = WARM_AGAIN
    sight, changes, places = Sight(teacher), Changes(teacher), Places(teacher, FRAMES)
    networks = nn.ModuleList([teacher.model, sight, changes, places])
    optimizer = torch.optim.AdamW(networks.parameters(), RATE, weight_decay=0.01, betas=(0.9, 0.98))
    ema = Ema(teacher.model, 0.998)
    run = Run(folder, {"teacher": teacher.model, "sight": sight, "changes": changes, "places": places}, optimizer, ema)
    means: dict[str, float] = {}
    replay = 0
    for step in run.steps(steps):
        rng = np.random.default_rng([4, step, rank()])
        attacked = step >= warm
        if start is not None:
            teacher.model.requires_grad_(attacked)
        if attacker and attacked and step % ATTACK_EVERY == 0:
            path = folder / "pool" / f"{step:06d}-{rank()}.safetensors"
            means["reached_tau"] = attacker.run(teacher, rng, path)
        if replay == 0:
            batch = source.batch(rng)
            radius = np.exp(rng.uniform(math.log(0.7), math.log(14), BATCH)) * (rng.random(BATCH) < 0.75)
            push = torch.tensor(radius, dtype=torch.float32).view(-1, 1, 1, 1, 1) / (REPLAYS - 1)
            delta = torch.zeros_like(batch.latents)
        latents = (batch.latents + delta).requires_grad_()
        tasks = list(batch.tasks)
        pushed = attacked and replay < REPLAYS - 1  # the last showing needs no gradient for a next one
        if attacked:
            with torch.set_grad_enabled(pushed):
                frames = decoder(latents, ALL_FRAMES)
            if replay == 0:
                frames = mix_in(frames, tasks, batch, light, hard, rng)
        else:
            frames = plain_frames(tasks, batch, decoder, hard, rng)
        with torch.no_grad():
            reading = read(frames)
        questions, truths = choose_questions(tasks, reading, rng)
        sigma = np.exp(rng.uniform(math.log(NOISE[0]), math.log(NOISE[1]), BATCH)) * (rng.random(BATCH) < NOISY)
        noise = torch.from_numpy(sigma).float().view(-1, 1, 1, 1, 1) * torch.randn_like(frames)
        asked = [[q.text() for q in row] for row in questions]
        result = teacher.forward_packed(frames + noise, asked, FPS, ALL_FRAMES)
        losses, yes = answer_loss(teacher, result, truths)
        aux = sight(reading) + changes(result, reading) + places(result, reading)
        loss = losses.mean() + (0.3 if attacked else 1.0) * aux
        sources = (hard, hard, source.bank.tasks, source.bank.tasks)
        asked_for = [tasks_[int(rng.integers(len(tasks_)))] for tasks_ in sources]
        text = torch.zeros(())
        if step % WRITE_EVERY == 0:
            text = replies.reply_loss(teacher, [replies.queries(task, rng) for task in asked_for])
        loss = loss + text
        if attacked:
            peak, rise = (0.7 * RATE, 0) if start is None else (RATE_AGAIN, 60)
            rate = cosine(step - warm, steps - warm, peak, rise)
        else:
            rate = RATE * min(1.0, (step + 1) / 200) if start is None else HEADS_RATE
        update(loss, networks, optimizer, ema, rate, averaged=teacher.model)
        if pushed:
            gradient = latents.grad
            assert gradient is not None
            gradient = gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1, 1)
            delta = delta + push * gradient
        right = ((yes > 0.5) == (truths > 0.5)).float().mean()
        for name, value in (
            (f"loss{replay}", losses.detach().mean()),
            (f"right{replay}", right),
            ("aux", aux.detach()),
            *([("queries", text.detach())] if step % WRITE_EVERY == 0 else []),
        ):
            means[name] = 0.98 * means.get(name, float(value)) + 0.02 * float(value)
        replay = (replay + 1) % REPLAYS if attacked else 0
        if step % 100 == 0:
            run.log(step, **means, pool=len(source.pool))
        if step % 500 == 499 and rank() == 0:
            snapshot(teacher, ema, folder / "now")
    if rank() == 0:
        snapshot(teacher, ema, out)


def plain_frames(
    tasks: list[Task], batch: Batch, decoder: StandardDecoder, hard: list[Task], rng: np.random.Generator
) -> Tensor:
    """Warm-up videos (B, 9, 3, 48, 48): two decoded, the others rendered and a little spoilt (changes ``tasks``)."""
    with torch.no_grad():
        decoded = decoder(batch.latents[:2], ALL_FRAMES)
    codes = []
    for i in range(2, BATCH):
        if rng.random() < 0.4:
            tasks[i] = hard[int(rng.integers(len(hard)))]
        codes.append(drawn(tasks[i], rng, 0.35))
    rendered = render(torch.stack(codes))
    spoilt = rendered + 0.08 * float(rng.random()) * torch.randn_like(rendered)
    return torch.cat([decoded, spoilt])


def mix_in(
    frames: Tensor,
    tasks: list[Task],
    batch: Batch,
    light: LightDecoder,
    hard: list[Task],
    rng: np.random.Generator,
) -> Tensor:
    """Replaces a few videos by light-decoded ones and one by a rendered one (also in ``tasks``)."""
    frames = frames.clone()
    chosen = torch.from_numpy(rng.random(BATCH) < 0.2)
    if chosen.any():
        with torch.no_grad():
            frames[chosen] = light(batch.latents[chosen], ALL_FRAMES)
    place = int(rng.integers(BATCH))
    if rng.random() < 0.6:
        tasks[place] = hard[int(rng.integers(len(hard)))]
    codes = drawn(tasks[place], rng, 0.4)
    return torch.cat([frames[:place], render(codes)[None], frames[place + 1 :]])


def snapshot(teacher: Teacher, ema: Ema, folder: Path) -> None:
    """Saves the averaged weights without disturbing the training ones; complete or not at all."""
    current = {name: p.detach().clone() for name, p in teacher.model.named_parameters()}
    ema.copy_to(teacher.model)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    save(teacher, temporary)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(folder)
    with torch.no_grad():
        for name, p in teacher.model.named_parameters():
            p.copy_(current[name])
