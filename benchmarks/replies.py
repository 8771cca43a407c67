"""How well do the shipped vision-language models ask, plan and verify? On held-out samples, against the world's rules.

    python -m benchmarks.replies --split dev_id --seed 2002 --samples 200

The teacher writes questions for one-clip tasks; the chat model plans and verifies. Verdicts are asked about clips of
whole one-clip tasks and of single steps of tasks with several stops: of the reasoner, right ones and wrong ones, all
after the VAE, judged by the scorer over all frames; those on which the two scorers differ are left out. Plans are
asked about clean frames.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from training import dialogues
from training.corruptions import corrupt
from training.vae import encode
from ttopt.config.parsing import parse_fit
from ttopt.config.settings import WEIGHTS
from ttopt.data import miniworld
from ttopt.data.replies import parse_reply
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.evaluate.statistics import estimate
from ttopt.miniworld import second
from ttopt.miniworld.chains import legs
from ttopt.miniworld.look import PER_MOVE, render
from ttopt.miniworld.reader import read
from ttopt.miniworld.scene import Task
from ttopt.miniworld.scorer import score_videos
from ttopt.miniworld.tasks import FAMILIES, LONG, make_task
from ttopt.models.reasoner import Reasoner
from ttopt.models.reasoner.condition import latent_statistics
from ttopt.models.reasoner.recipe import schedule_of
from ttopt.models.teacher.teacher import Teacher
from ttopt.optimization.seeds import noise_seed

Ask = Callable[[Tensor, str], str]  # images (n, 3, 96, 96), request -> reply


class PlanReply(BaseModel):
    """What is compared of a plan."""

    task_complete: bool
    instruction: str = ""


class VerdictReply(BaseModel):
    """A whole verdict, as the step loop needs it."""

    reason: str
    action_executed: bool
    progress: float
    good_fraction: float
    suggestion: str
    verdict: Literal["accept", "reject"]


R = TypeVar("R", bound=BaseModel)


def parsed(reply: str, schema: type[R]) -> R | None:
    """The reply, or None if it cannot be read."""
    try:
        return parse_reply(reply, schema)
    except ValueError:
        return None


def plan_rows(ask: Ask, task: Task) -> list[bool]:
    """Is each plan of a task exactly the rule's, at every point of the task?"""
    films = [part.film() for part in legs(task)]
    boards = [render(film)[:1] for film in films] + [render(films[-1])[-1:]]
    rows = []
    for done, board in enumerate(boards):
        step = min(3, done + 1)
        request = dialogues.PLAN.format(prompt=task.prompt, done=dialogues.done_text(task, done), step=step, steps=3)
        wanted = dialogues.plan(task, done, read(board, boards=True), step, 3)
        said = parsed(ask(board, request), PlanReply)
        rows.append(said is not None and said.model_dump() == {k: wanted[k] for k in ("task_complete", "instruction")})
    return rows


def judged(task: Task) -> list[Task]:
    """What a loop may ask a verdict of: a long task's steps; of a task of several stops that one clip solves, both."""
    if task.family in LONG:
        return legs(task)
    return [*legs(task), task] if len(task.stops) > 1 else [task]


def verdict_row(ask: Ask, task: Task, video: Tensor) -> tuple[bool, bool] | None:
    """Truth and reply ("accept") about a clip (25, 3, 96, 96); None where the two scorers differ."""
    truth = score_videos(task, video[None])[0].success
    if truth != all(second.judge_videos(task, video[None])[0].values()):
        return None
    request = dialogues.VERIFY.format(action=task.prompt, prompt=(task.parent or task).prompt)
    said = parsed(ask(video[::PER_MOVE], request), VerdictReply)
    return truth, not truth if said is None else said.verdict == "accept"  # unreadable is wrong either way


def writes_right_queries(teacher: Teacher, sample: Sample) -> bool:
    """Are the teacher's questions about a one-clip task exactly the rule's?"""
    try:
        return teacher.write_queries(sample) == miniworld.true_queries(sample)
    except UserError:
        return False


@torch.no_grad()
def clips(reasoner: Reasoner, task: Task, index: int, rng: np.random.Generator) -> Tensor:
    """A video (25, 3, 96, 96) of a one-clip task: of the reasoner, the right one or a wrong one, in turn."""
    sample = miniworld.to_sample(task)
    condition = reasoner.condition(sample)
    if index % 3 == 0:
        z1 = reasoner.noise(condition, [noise_seed(0, sample)])
        return reasoner.decode(reasoner.generate(z1, condition))[0]
    film = task.film() if index % 3 == 1 else corrupt(task, rng)[1]
    mean, inverse_std = latent_statistics(reasoner.vae, "cpu")
    return reasoner.decode((encode(reasoner.vae, render(film)[None]) - mean) * inverse_std)[0]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--split", default="dev_id", choices=["id", "ood", "dev_id", "dev_ood"])
    parser.add_argument("--seed", type=int, default=2002)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--teacher", type=Path, help="another teacher's folder")
    parser.add_argument("--chat", type=Path, help="another chat model's folder")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    args = parser.parse_args()
    torch.manual_seed(0)
    settings = parse_fit(["--config", "mini"]).reasoner
    reasoner = Reasoner.load(args.weights / "reasoner", schedule=schedule_of(settings))
    teacher = Teacher.load(args.teacher or args.weights / "teacher")
    chat = Teacher.load(args.chat or args.weights / "chat")
    rng = np.random.default_rng(args.seed)
    begin = time.perf_counter()

    def ask(images: Tensor, request: str) -> str:
        return chat.reply([("user", request)], list(images))

    families = (*FAMILIES, *LONG)
    plans: dict[str, list[bool]] = {}
    questions, verdicts, wrong = [], [], []
    for index in range(args.samples):
        family = families[index % len(families)]
        task = make_task(family, args.split, args.seed, index // len(families))
        plans.setdefault(family, []).extend(plan_rows(ask, task))
        if family in FAMILIES:
            questions.append(writes_right_queries(teacher, miniworld.to_sample(task)))
        parts = judged(task)
        step = parts[int(rng.integers(len(parts)))]
        row = verdict_row(ask, step, clips(reasoner, step, index, rng))
        if row is not None:
            verdicts.append(row)
            if row[0] != row[1]:
                wrong.append(step.name)
    accept = [said for truth, said in verdicts if truth]
    reject = [not said for truth, said in verdicts if not truth]
    everything = [x for rows in plans.values() for x in rows]
    out: dict[str, object] = {}
    for name, values in (("right queries", questions), ("plans exactly right", everything),
                         ("right videos accepted", accept), ("wrong videos rejected", reject)):  # fmt: skip
        e = estimate(np.array(values, dtype=float))
        out[name] = {"n": e.n, "mean": round(e.mean, 4), "interval": [round(e.low, 3), round(e.high, 3)]}
        print(f"{name:24s} {e.mean:.3f} [{e.low:.3f}, {e.high:.3f}]  n {e.n}")
    out["plans by family"] = {family: round(float(np.mean(rows)), 3) for family, rows in plans.items()}
    print(out["plans by family"])
    out["clips left out"] = args.samples - len(verdicts)
    print(f"{time.perf_counter() - begin:.0f} s; wrong verdicts: {' '.join(wrong)}")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"split": args.split, "seed": args.seed, **out}, indent=1) + "\n")


if __name__ == "__main__":
    main()
