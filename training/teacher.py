"""The teacher: a tiny Qwen3-VL that answers yes/no questions about videos, a frame a board, a vision token a cell, and
writes the questions for a prompt.

Its gradient matters more than its accuracy: an ordinarily trained teacher is easily fooled by the reasoner it grades.
So after a warm-up it trains adversarially: every batch of latents is shown several times, and the gradient that trains
the weights also moves the latents towards what fools the teacher ("free" adversarial training, Shafahi et al. 2019).

Labels: of rendered films from what they show; of decoded latents, moved or not, from the reader, which looks at the
pixels and shares nothing with the scorer.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from training.attacks import Attacker, Pool
from training.code import COLOR, SCALE, SHAPE, film_code
from training.common import Ema, Run, averaged, cosine, device, matrices_and_rest, save_half, update
from training.corruptions import corrupt
from training.light import load_state as load_light
from training.replies import QUERIES, queries, reply_loss
from training.sight import Changes, Faults, Gaze, Names, Places, Sight, contents
from ttopt.miniworld.look import BOARDS, EMPTY, FPS, PER_MOVE, WALL, Film, render
from ttopt.miniworld.questions import Question, questions
from ttopt.miniworld.reader import Seen, from_film, read
from ttopt.miniworld.scene import Stop, Task
from ttopt.miniworld.tasks import FAMILIES, LONG, clip_task
from ttopt.miniworld.tokenizer import teacher_tokenizer
from ttopt.models.teacher import PackedOutput, Teacher
from ttopt.models.teacher.prompts import FILE as PROMPTS_FILE
from ttopt.models.teacher.prompts import Prompts

STEPS, WARM, BATCH, QUESTIONS, REPLAYS = 20000, 10000, 6, 5, 3
MUON, ADAM = 0.01, 1.5e-3  # learning rates
ATTACK_EVERY, POOLED = 60, 0.7  # steps between runs of real optimization; share of decoded latents from them
MIXED = 0.25  # share of decoded latents in which a thing has two colors mixed, the mistake that passed most often
GROWTH = ((500, 1), (800, 2), (1100, 3), (1400, 5))  # until a step it sees so many boards, the last ones of a film
WRITE_EVERY, WRITTEN = 3, 4  # steps between replies that it learns to write, and how many
HARDEST = {"visit": 0.3, "paint": 0.25, "two": 0.2}  # how often these families come
OTHERS = [name for name in (*FAMILIES, *LONG) if name not in HARDEST]  # they share the rest
CHANCES = HARDEST | dict.fromkeys(OTHERS, (1 - sum(HARDEST.values())) / len(OTHERS))
RADIUS = (0.7, 14.0)  # ends of how far latents are moved, in all; a film's latents have a norm of about 75
NOISY, NOISE = 0.6, (0.02, 0.3)  # share of the videos with pixel noise, and its sigma's ends: smoother gradients
SHOWN = tuple(range(0, PER_MOVE * BOARDS, PER_MOVE))  # the numbers of the frames that it sees
INITIAL_SCALE = 3.0  # the library's 0.02 is meant for widths in the thousands; attention here never wakes up from it
PROMPTS = Prompts(question="{question}", queries=QUERIES, timestamps=True)


def build() -> Teacher:
    """An untrained vision-language model of the embedded size (1.1M parameters)."""
    tokenizer = teacher_tokenizer()
    names = ("vision_start", "vision_end", "video_pad", "image_pad")
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names}
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
            "depth": 3,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_heads": 4,
            "patch_size": 16,
            "temporal_patch_size": 1,
            "spatial_merge_size": 1,
            "out_hidden_size": 128,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0, 1],
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


def load_state(state: Path) -> Teacher:
    """The averaged teacher of a training's state."""
    teacher = build()
    averaged(state, "all", nn.ModuleDict({"model": teacher.model}))
    teacher.model.eval().requires_grad_(False)
    return teacher


def save(state: Path, folder: Path) -> None:
    """Writes that teacher."""
    save_teacher(load_state(state), folder)


def save_teacher(teacher: Teacher, folder: Path) -> None:
    """Writes model, tokenizer and wording, in float16."""
    save_half(teacher.model, folder)
    teacher.tokenizer.save_pretrained(folder)
    words = {"question": PROMPTS.question, "queries": PROMPTS.queries, "timestamps": PROMPTS.timestamps}
    (folder / PROMPTS_FILE).write_text(json.dumps(words, indent=2) + "\n", encoding="utf-8")


def other_task(task: Task, rng: np.random.Generator) -> Task:
    """The same scene with another wish in it, so that questions are also about what nobody asked for."""
    order = [int(i) for i in rng.permutation(len(task.actors))]
    actors = [task.actors[i] for i in order]
    pads = [int(c) for c in rng.permutation(np.flatnonzero((task.grounds != EMPTY) & (task.grounds != WALL)))]
    if not pads:
        return task
    count = min(2, len(pads), len(actors))
    kind = int(rng.integers(3))
    stops: tuple[Stop, ...]
    if kind == 0 or count < 2:
        stops, movers = (Stop(0, pads[0], int(task.grounds[pads[0]])),), 1
    elif kind == 1:  # one after the other
        stops, movers = tuple(Stop(0, c, int(task.grounds[c])) for c in pads[:2]), 1
    else:
        stops, movers = tuple(Stop(i, c, int(task.grounds[c])) for i, c in enumerate(pads[:2])), 2
    return dataclasses.replace(task, actors=actors, movers=movers, stops=stops, turns=(), in_turn=False)


def choose(task: Task, seen: Seen, rng: np.random.Generator) -> tuple[list[Question], list[float]]:
    """QUESTIONS questions about a video and their truths, Yes and No about equally often, most of them the task's."""
    scenes = (task, other_task(task, rng), other_task(task, rng))
    asked = {q.text: q for scene in scenes for q in questions(scene)}
    options = list(asked.values())
    own = {q.text for q in questions(task)}
    values = [q.truth(seen) for q in options]
    yes = sum(values)
    chances = np.array(
        [
            (2.5 if q.text in own else 1.0) / max(1, yes if value else len(values) - yes)
            for q, value in zip(options, values, strict=True)
        ]
    )
    picked = rng.choice(len(options), QUESTIONS, replace=len(options) < QUESTIONS, p=chances / chances.sum())
    return [options[int(i)] for i in picked], [float(values[int(i)]) for i in picked]


def board_truths(asked: list[Question], seen: Seen) -> list[list[float]]:
    """For each question and board: whether the rule holds in the move that ends there; of a goal, whether it is reached
    on this board; of an order, whether it has been kept to its end by then."""

    def part(about: str, board: int) -> Seen:
        first = {"goal": board, "order": 0}.get(about, max(0, board - 1))
        return seen[first : board + 1]

    return [[float(q.truth(part(q.about, board))) for board in range(len(seen))] for q in asked]


def answer_loss(teacher: Teacher, out: PackedOutput, truths: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy (B, Q) of the truths over "Yes" and "No" among the whole vocabulary, and P("Yes") (B, Q)."""
    log = out.logits.log_softmax(-1)
    yes, no = (teacher.tokenizer.convert_tokens_to_ids(w) for w in ("Yes", "No"))
    loss = -(truths * log[..., yes] + (1 - truths) * log[..., no])
    return loss, log[..., yes].detach().exp()


def log_uniform(rng: np.random.Generator, ends: tuple[float, float]) -> NDArray[np.float64]:
    """BATCH numbers between two ends."""
    return np.exp(rng.uniform(math.log(ends[0]), math.log(ends[1]), BATCH))


def mixed(latents: Tensor, rng: np.random.Generator) -> Tensor:
    """Latents (20, T, 6, 6) with a quarter to three quarters of another color in one thing, on a board or several on
    which it lies still."""
    colors = latents[COLOR:SHAPE] * SCALE
    spots = (colors.amax(0) > 0.5).nonzero().tolist()
    if not spots:
        return latents
    board, row, column = spots[int(rng.integers(len(spots)))]
    own = colors[:, board, row, column].argmax()
    other = int(rng.choice([color for color in range(len(colors)) if color != own]))
    last = board + 1
    while last < latents.shape[1] and colors[own, last, row, column] > 0.5 and rng.random() < 0.7:
        last += 1
    part, out = float(rng.uniform(0.25, 0.75)), latents.clone()
    out[COLOR + own, board:last, row, column] *= 1 - part
    out[COLOR + other, board:last, row, column] += part / SCALE
    return out


def draw(rng: np.random.Generator) -> tuple[Task, Film]:
    """A task of the training splits and a film of it, right in a third of the cases."""
    split = "teacher_ood" if rng.random() < 0.4 else "train"
    family = str(rng.choice(list(CHANCES), p=list(CHANCES.values())))
    task = clip_task(family, split, 31, int(rng.integers(1_000_000)))
    if rng.random() < 0.35:
        return task, task.film(task.choices[int(rng.integers(len(task.choices)))])
    return task, corrupt(task, rng)[1]


def train(folder: Path, light_state: Path, reasoner_state: Path, steps: int = STEPS, warm: int = WARM) -> None:
    """Trains from nothing, or goes on from the run's state. The first ``warm`` steps see rendered films alone and need
    no other model; in the later ones two thirds are decoded latents under attack, most of them from the pool of real
    optimizations, if there is a reasoner."""
    torch.manual_seed(6)
    teacher = build()
    teacher.model.to(device())
    sight, places = Sight(teacher).to(device()), Places(teacher, BOARDS).to(device())
    changes, faults = Changes(teacher).to(device()), Faults(teacher, BOARDS).to(device())
    gaze, names = Gaze(teacher), Names(teacher)
    networks = nn.ModuleDict(
        {"model": teacher.model, "sight": sight, "places": places, "changes": changes, "faults": faults}
    )
    optimizers = matrices_and_rest(networks, MUON, ADAM, lambda name: "layers." in name or "blocks." in name)
    ema = Ema(networks, 0.998)
    run = Run(folder, {"all": networks}, optimizers, ema)
    light = load_light(light_state).to(device()) if light_state.exists() else None
    attacker = Attacker(reasoner_state, light, SHOWN) if light and reasoner_state.exists() else None
    pool = Pool(folder / "pool")
    means: dict[str, float] = {}
    replay = 0
    for step in run.steps(steps):
        rng = np.random.default_rng([6, step])
        torch.manual_seed(step)
        attacked = step >= warm and light is not None
        if attacker and attacked and (step - warm) % ATTACK_EVERY == 0:
            means["reached_tau"] = attacker.run(teacher, rng, folder / "pool" / f"{step:06d}.safetensors")
            pool.look()
        if replay == 0:
            drawn = [draw(rng) for _ in range(BATCH)]
            tasks, films = [task for task, _ in drawn], [film for _, film in drawn]
            rendered = torch.stack([render(film)[::PER_MOVE] for film in films]).to(device())
            told = [from_film(film, boards=True) for film in films]
            latents = torch.stack([film_code(film) for film in films]).to(device()) / SCALE
            radius = log_uniform(rng, RADIUS) * (rng.random(BATCH) < 0.75)
            push = torch.tensor(radius, dtype=torch.float32, device=device()).view(-1, 1, 1, 1, 1) / (REPLAYS - 1)
            delta = 0.1 * torch.randn_like(latents) * float(rng.random())
            decoded = rng.random(BATCH) < 0.67
            for i in np.flatnonzero(decoded & (rng.random(BATCH) < POOLED)) if pool.shards else ():
                found, tasks[i] = pool.draw(rng)
                latents[i] = found.to(device())
            for i in np.flatnonzero(decoded & (rng.random(BATCH) < MIXED)) if attacked else ():
                latents[i] = mixed(latents[i], rng)
        moved = (latents + delta).requires_grad_()
        frames, seen = rendered, told
        if attacked and light is not None:
            rows = torch.from_numpy(np.flatnonzero(decoded)).to(device())
            if len(rows):
                frames = rendered.index_copy(0, rows, light(moved[rows], SHOWN))
            seen = [read(frames[i].detach(), boards=True) if decoded[i] else told[i] for i in range(BATCH)]
        boards = next((count for end, count in GROWTH if step < end), BOARDS)
        frames, seen = frames[:, -boards:], [what[-boards:] for what in seen]
        picked = [choose(task, what, rng) for task, what in zip(tasks, seen, strict=True)]
        truths = torch.tensor([values for _, values in picked], device=device())
        sigma = log_uniform(rng, NOISE) * (rng.random(BATCH) < NOISY)
        noise = torch.from_numpy(sigma).float().view(-1, 1, 1, 1, 1).to(device()) * torch.randn_like(frames)
        out = teacher.forward_packed(frames + noise, [[q.text for q in row] for row, _ in picked], FPS, SHOWN[-boards:])
        losses, yes = answer_loss(teacher, out, truths)
        things, grounds = (x.to(device()) for x in contents(seen))
        named = names(out, things, grounds)
        holds = torch.tensor([board_truths(row, what) for (row, _), what in zip(picked, seen, strict=True)])
        heads = {
            "looked": sight(things, grounds),
            "found": places(out, named),
            "gazed": gaze(out, named),
            "changed": changes(out, things, grounds),
            "fault": faults(out, holds.to(device())),
        }
        loss = losses.mean() + (0.3 if attacked else 1.0) * sum(heads.values())
        if step % WRITE_EVERY == 0:
            written = reply_loss(teacher, [queries(draw(rng)[0]) for _ in range(WRITTEN)])
            means["written"] = 0.9 * means.get("written", float(written.detach())) + 0.1 * float(written.detach())
            loss = loss + written
        update(loss, networks, optimizers, ema, cosine(step, steps, 200))
        if moved.grad is not None:
            length = moved.grad.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1, 1)
            delta = delta + push * moved.grad / length
        right = ((yes > 0.5) == (truths > 0.5)).float()
        kinds = [q.about for row, _ in picked for q in row]
        by_kind = {kind: right.flatten()[[k == kind for k in kinds]].mean() for kind in dict.fromkeys(kinds)}
        for name, value in {"loss": losses.mean(), "right": right.mean(), **by_kind, **heads}.items():
            key = f"{name}{replay}" if attacked else name
            number = float(value.detach())
            means[key] = 0.98 * means.get(key, number) + 0.02 * number
        replay = (replay + 1) % REPLAYS if attacked else 0
        if step % 50 == 0:
            run.log(step, **means)
