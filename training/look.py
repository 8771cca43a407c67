"""Pictures and numbers to look at before training on: sheets, truth after the decoders, what reasoner and teacher make.

python -m training.look sheets|vae|light|teacher|agree|reasoner|codes --out FOLDER [--split ood] [--count N] [--seed S]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from transformers import UMT5EncoderModel

from training.code import CHANNELS, SCALE, film_code
from training.drawing import boards
from training.light import load_state as load_light
from training.reasoner import TEXT_LENGTH, Batch, embed, evaluate, load_state, predict
from training.teacher import SHOWN
from training.teacher import load_state as load_teacher
from training.vae import decode, encode, halves
from training.world.corruptions import corrupt
from training.world.look import BOARDS, FPS, render
from training.world.questions import questions
from training.world.scene import Task
from training.world.scorer import score_videos
from training.world.second import judge_videos
from training.world.sheets import write_sheet
from training.world.tasks import FAMILIES, task_bank
from training.world.tokenizer import reasoner_tokenizer
from ttopt.optimization.reward import multi_vqa_loss

OFF = 0.4  # of a pixel's range: a thing that is not there, or another color


@torch.no_grad()
def after_vae(vae: AutoencoderKLWan, videos: Tensor) -> Tensor:
    """Videos (N, T, 3, H, W) in [0, 1] encoded and decoded, a few at a time."""
    return torch.cat([decode(vae, encode(vae, part)).clamp(0, 1) for part in videos.split(4)])


def truth_after_vae(vae: AutoencoderKLWan, split: str, count: int, seed: int = 5) -> dict[str, float]:
    """How many right films are right in every frame after the VAE, by the first and the second scorer."""
    right: dict[str, list[bool]] = {"first": [], "second": []}
    for task in task_bank(split, seed, count):
        video = after_vae(vae, render(task.film())[None])
        score = score_videos(task, video)[0]
        right["first"].append(score.success)
        right["second"].append(all(judge_videos(task, video)[0].values()))
        right.setdefault(task.family, []).append(score.success)
        for rule, holds in score.rules.items():
            right.setdefault(f"rule {rule}", []).append(holds)
    return {name: float(np.mean(values)) for name, values in right.items()}


@torch.no_grad()
def truth_after_light(state: Path, split: str, count: int, seed: int = 5) -> dict[str, float]:
    """How many right films the light decoder draws from clean codes with no pixel more than OFF off, by family."""
    light = load_light(state)
    right: dict[str, list[bool]] = {"all": []}
    for task in task_bank(split, seed, count):
        film = task.film()
        drawn = light(film_code(film)[None] / SCALE, SHOWN)[0]
        right["all"].append(bool((drawn - render(film)[list(SHOWN)]).abs().max() <= OFF))
        right.setdefault(task.family, []).append(right["all"][-1])
    return {name: float(np.mean(values)) for name, values in right.items()}


@torch.no_grad()
def losses_of_truth(state: Path, split: str, count: int, seed: int = 5) -> dict[str, float]:
    """The teacher's loss on right films as they are rendered, by family: the median."""
    teacher = load_teacher(state)
    losses: dict[str, list[float]] = {}
    for task in task_bank(split, seed, count):
        frames, asked = render(task.film())[None, list(SHOWN)], [question.text for question in questions(task)]
        loss = multi_vqa_loss(teacher.yes_losses(frames, [asked], FPS, SHOWN))
        losses.setdefault(task.family, []).append(float(loss))
    return {name: float(np.median(values)) for name, values in losses.items()}


@torch.no_grad()
def made(
    vae: AutoencoderKLWan, transformer: WanTransformer3DModel, encoder: UMT5EncoderModel, tasks: list[Task], seed: int
) -> Tensor:
    """One-step videos (N, 25, 3, 96, 96) of tasks."""
    batch = Batch(tasks, reasoner_tokenizer(TEXT_LENGTH))
    first = torch.cat([encode(vae, render(t.film())[None, :1]) for t in tasks]) / SCALE
    noise = torch.randn((len(tasks), CHANNELS, BOARDS, 6, 6), generator=torch.Generator().manual_seed(seed))
    found = predict(transformer, noise, 1.0, first, embed(encoder, batch.ids, batch.mask))
    return torch.cat([decode(vae, part * SCALE).clamp(0, 1) for part in found.split(4)])


def agreement(task: Task, videos: Tensor) -> list[tuple[bool, bool]]:
    """Verdicts of both scorers on several videos of a task."""
    first, second = score_videos(task, videos), judge_videos(task, videos)
    return [(a.success, all(b.values())) for a, b in zip(first, second, strict=True)]


def disagreements(vae: AutoencoderKLWan | None, split: str, count: int, seed: int = 5) -> tuple[int, list[str]]:
    """Judges ``count`` right and wrong films, and the same after the VAE: how many, and where the verdicts differ."""
    rng = np.random.default_rng(seed)
    judged, differ = 0, []
    for task in task_bank(split, seed, count // 2):
        name, film, _ = corrupt(task, rng)
        videos = torch.stack([render(task.film()), render(film)])
        if vae is not None:
            videos = torch.cat([videos, after_vae(vae, videos)])
        for what, (first, second) in zip(("right", name) * 2, agreement(task, videos), strict=False):
            judged += 1
            if first != second:
                differ.append(f"{task.name} {what} {first} {second}")
    return judged, differ


def sheets(out: Path, split: str, seed: int, each: int = 12) -> None:
    """Writes a sheet of each family's right films, every second frame."""
    for family in FAMILIES:
        tasks = task_bank(split, seed, each, (family,))
        write_sheet(out / f"{split}-{family}.png", [render(t.film())[::2] for t in tasks], 1)


@torch.no_grad()
def codes(state: Path, out: Path, split: str, count: int, seed: int) -> None:
    """Writes a sheet of the reasoner's one-step predictions as boards drawn from their codes, beside the right ones."""
    transformer, encoder = load_state(state)
    tasks = task_bank(split, seed, count)
    batch = Batch(tasks, reasoner_tokenizer(TEXT_LENGTH))
    noise = torch.randn((count, CHANNELS, BOARDS, 6, 6), generator=torch.Generator().manual_seed(seed))
    clean = batch.first()
    found = predict(transformer, noise, 1.0, clean[:, :, :1], embed(encoder, batch.ids, batch.mask))
    rows = [torch.cat([boards(a * SCALE), boards(b * SCALE)]) for a, b in zip(clean, found, strict=True)]
    write_sheet(out / f"codes-{split}.png", rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="training.look")
    parser.add_argument("what", choices=("sheets", "vae", "light", "teacher", "agree", "reasoner", "codes"))
    parser.add_argument("--out", type=Path, default=Path("runs/training"), help="the trainings' folder")
    parser.add_argument("--split", default="dev_id")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    given = (args.split, args.count, args.seed)
    encoder, decoder, state = (args.out / n / "state.safetensors" for n in ("encoder", "decoder", "reasoner"))
    vae = halves(encoder, decoder) if encoder.exists() and decoder.exists() else None
    if args.what == "sheets":
        sheets(args.out / "sheets", args.split, args.seed)
    elif args.what == "vae":
        assert vae is not None
        print(truth_after_vae(vae, *given))
        shown = task_bank(args.split, args.seed, 10)
        videos = [render(task.film())[None] for task in shown]
        rows = [row[0] for video in videos for row in (video, after_vae(vae, video))]
        write_sheet(args.out / "sheets" / f"vae-{args.split}.png", rows)
    elif args.what == "light":
        print(truth_after_light(args.out / "light" / "state.safetensors", *given))
    elif args.what == "teacher":
        print(losses_of_truth(args.out / "teacher" / "state.safetensors", *given))
    elif args.what == "agree":
        judged, differ = disagreements(vae, *given)
        print(f"{judged - len(differ)} of {judged} agree", *differ, sep="\n")
    elif args.what == "codes":
        codes(state, args.out / "sheets", *given)
    else:
        print(evaluate(state, *given))


if __name__ == "__main__":
    main()
