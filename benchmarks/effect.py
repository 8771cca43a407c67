"""Does it help? Single, static, Pass@k, ours and the oracle-loss ceiling on fresh samples of the embedded world.

    python -m benchmarks.effect --split id --seed 1001 --samples 256 --out runs/evaluate/id.json

Success is the scorer's, over all frames; "last frame" names that of the last frame alone. Intervals are paired
bootstraps over samples; McNemar counts compare with single.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from callbacks import LossThreshold
from training.vae import encode
from ttopt.config.parsing import parse_fit
from ttopt.config.settings import EMBEDDED_BASE, KEEP, WEIGHTS, FitSettings, OptimizationSettings
from ttopt.data import miniworld
from ttopt.data.queries import Queries
from ttopt.data.sample import Sample
from ttopt.data.video import sample_frames
from ttopt.errors import UserError
from ttopt.evaluate.statistics import estimate, failures_cut, paired
from ttopt.miniworld.look import render as draw
from ttopt.miniworld.scene import Task
from ttopt.models.load import Models
from ttopt.models.reasoner import Adapter, Condition, Reasoner, StandardDecoder
from ttopt.models.reasoner.condition import latent_statistics
from ttopt.models.reasoner.recipe import schedule_of
from ttopt.models.teacher.teacher import Teacher
from ttopt.optimization.algorithm import TeacherReward, begin, choose, grade, render, start_noise, train
from ttopt.optimization.reward import multi_vqa_loss
from ttopt.optimization.seeds import noise_seed, seed_of
from ttopt.optimization.training import Reward, Row, TestTimeTraining
from ttopt.record.meter import Meter
from ttopt.record.result import ACCEPTED, json_safe, versions


class Evaluation:
    """Models and settings of one evaluation; ``run`` gives one row of booleans and numbers a sample."""

    def __init__(self, settings: FitSettings, weights: Path, teacher: Path, seeds: int, true_queries: bool) -> None:
        self.settings, self.seeds, self.true_queries = settings, seeds, true_queries
        r = settings.reasoner
        light = weights / "light_decoder" if settings.decoder.kind == "light" else None
        self.reasoner = Reasoner.load(
            weights / "reasoner",
            schedule=schedule_of(r),
            transformer=weights / "base/transformer" if r.transformer == EMBEDDED_BASE else r.transformer,
            light_decoder=light,
        )
        self.decoder = self.reasoner.light_decoder or StandardDecoder(self.reasoner.vae)
        self.teacher = Teacher.load(teacher)
        a = settings.adapter
        adapter = Adapter(self.reasoner.transformer, a.rank, a.alpha, a.targets, a.blocks)
        self.models = Models(self.reasoner, adapter, self.decoder, self.teacher)
        self.meter = Meter(self.reasoner)

    def queries(self, sample: Sample) -> Queries | None:
        """The teacher's own questions (the world's own if so asked); None where it writes none that can be read."""
        if self.true_queries:
            return miniworld.true_queries(sample)
        try:
            return self.teacher.write_queries(sample)
        except UserError:
            return None

    def run(self, samples: Sequence[Sample], queries: Sequence[Queries], ceiling: set[str]) -> list[dict[str, float]]:
        """All methods on samples with the same number of queries; the oracle loss only for those in ``ceiling``."""
        s, o, count = self.settings, self.settings.optimization, len(samples)
        numbers = sample_frames(s.teacher.frames, samples[0].frames)
        condition = self.reasoner.condition(samples)
        judge = TeacherReward(self.teacher, queries, samples[0].fps, numbers)

        def total(frames: Tensor) -> Tensor:
            return multi_vqa_loss(judge(frames), o.goal_weight)

        def scores(videos: Tensor) -> list[miniworld.Explained]:
            return [miniworld.score(x, v) for x, v in zip(samples, videos, strict=True)]

        def success(videos: Tensor) -> list[bool]:
            return [score.success for score in scores(videos)]

        rows: list[dict[str, float]] = [{} for _ in samples]

        def note(name: str, values: Sequence[float]) -> None:
            for row, value in zip(rows, values, strict=True):
                row[name] = float(value)

        with self.models.adapter.disabled():
            wins, losses, noises = [], [], []
            for k in range(self.seeds):
                z1 = self.reasoner.noise(condition, [noise_seed(s.seed, x, k) for x in samples])
                video = self.reasoner.decode(self.reasoner.generate(z1, condition))
                found = scores(video)
                wins.append([score.success for score in found])
                if k == 0:
                    note("single, last frame", [score.last for score in found])
                with torch.no_grad():
                    losses.append(total(video[:, numbers]))
                noises.append(z1)
            won, loss = torch.tensor(wins), torch.stack(losses)  # (k, B)
            for k in (1, 2, 4, 5, 8, 10, 16, 20):
                if k <= self.seeds:
                    best = loss[:k].argmin(0)
                    note(f"pass@{k}", won[best, torch.arange(count)].tolist())
                    note(f"oracle of {k}", won[:k].any(0).tolist())
            first = torch.stack([x.image for x in samples if x.image is not None])
            note("static", success(first.unsqueeze(1).expand(-1, samples[0].frames, -1, -1, -1)))
            answers = self.answers(samples)
            back = self.reasoner.decode(answers[:, 0])  # the right video after the VAE
            note("round trip", success(back))
            note("right queries", [q == miniworld.true_queries(x) for q, x in zip(queries, samples, strict=True)])
            one_step = self.reasoner.predict_clean(noises[0], 1.0, condition).detach()
            note("single, one-step", success(self.reasoner.decode(one_step)))
        seeds = [[noise_seed(s.seed, x, k) for k in range(o.starts)] for x in samples]
        z1, _, tried = start_noise(self.models, condition, seeds, numbers, judge, o, self.meter)
        note("noises", tried)

        adapters = [seed_of(s.seed, x.id, "adapter") for x in samples]
        training = self.train(judge, condition, z1, numbers, o, adapters)
        note("steps", [row.kept.step for row in training.rows])
        note("loss", [row.kept.total for row in training.rows])
        note("accepted", [row.stop == ACCEPTED for row in training.rows])
        videos = render(self.models, condition, z1, training, "best", self.meter)
        grades = grade(judge, videos, numbers, o.goal_weight)
        seen_of = {name: scores(video) for name, video in videos.items()}
        wins_of = {name: [score.success for score in found] for name, found in seen_of.items()}
        note("start", wins_of["base"])
        note("ours, one-step", wins_of["prediction"])
        for keep in get_args(KEEP):
            seen = videos if keep == "best" else ("base", "adapter")
            kept = []
            for number, row in enumerate(training.rows):
                losses_of = {name: grades[number][name].loss for name in seen}
                kept.append(seen_of[choose(keep, row.stop == ACCEPTED, losses_of)][number])
            note(f"keep {keep}", [score.success for score in kept])
            if keep == o.keep:
                note("ours", [score.success for score in kept])
                note("ours, last frame", [score.last for score in kept])
        if any(x.id in ceiling for x in samples):
            best_case = OptimizationSettings(steps=20, lr=o.lr, tau=0.0, clip_norm=o.clip_norm)
            training = self.train(Oracle(answers), condition, z1, numbers, best_case, adapters)
            solved = success(render(self.models, condition, z1, training, "last", self.meter, base=False)["adapter"])
            for result, sample, value in zip(rows, samples, solved, strict=True):
                if sample.id in ceiling:
                    result["ceiling"] = float(value)
        for result, sample in zip(rows, samples, strict=True):
            result["single"] = result["pass@1"]
            result["family"] = sample.family  # type: ignore[assignment]
        return rows

    def answers(self, samples: Sequence[Sample]) -> Tensor:
        """The latents (B, 2, C, t, h, w) of two right answers each, the same twice where there is one."""
        mean, inverse_std = latent_statistics(self.reasoner.vae, "cpu")
        found = []
        for sample in samples:
            assert isinstance(sample.answer, Task)
            two = sample.answer.choices[0], sample.answer.choices[-1]
            videos = torch.stack([draw(sample.answer.film(actors)) for actors in two])
            found.append((encode(self.reasoner.vae, videos) - mean) * inverse_std)
        return torch.stack(found)

    def train(
        self,
        reward: Reward,
        condition: Condition,
        z1: Tensor,
        numbers: Sequence[int],
        o: OptimizationSettings,
        seeds: Sequence[int],
    ) -> TestTimeTraining:
        """Algorithm 1 for a batch, writing nothing."""
        rows = [Row() for _ in seeds]
        training = begin(self.models, reward, condition, z1, numbers, o, seeds, self.meter, rows)
        train(training, [LossThreshold(o.tau)], Path())
        return training

    def clock(self, sample: Sample, queries: Queries) -> dict[str, float]:
        """Seconds of a graded video and of an optimization step, one sample at a time (medians of five)."""
        numbers = sample_frames(self.settings.teacher.frames, sample.frames)
        condition = self.reasoner.condition(sample)
        z1 = self.reasoner.noise(condition, [0])
        adapter = self.models.adapter
        adapter.reset([0])
        optimizer = torch.optim.AdamW(adapter.parameters(), 1e-3)
        videos, steps = [], []
        for _ in range(5):
            begin = time.perf_counter()
            with torch.no_grad():
                video = self.reasoner.decode(self.reasoner.generate(z1, condition))
                self.teacher.yes_losses(video[:, numbers], [queries.all], sample.fps, numbers)
            videos.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            frames = self.decoder(self.reasoner.predict_clean(z1, 1.0, condition), numbers)
            total = self.teacher.yes_losses(frames, [queries.all], sample.fps, numbers).sum()
            optimizer.zero_grad()
            total.backward()
            adapter.clip_gradients(1.0)
            optimizer.step()
            steps.append(time.perf_counter() - begin)
        return {"graded video": float(np.median(videos)), "step": float(np.median(steps))}


class Oracle:
    """The reward that knows the answer: the squared distance to the nearest right latents."""

    def __init__(self, answers: Tensor) -> None:
        self.answers = answers  # (B, choices, C, t, h, w)

    def __call__(self, frames: Tensor, latents: Tensor) -> Tensor:
        return (latents.unsqueeze(1) - self.answers).square().mean((2, 3, 4, 5)).amin(1, keepdim=True)

    def select(self, rows: Sequence[int]) -> Oracle:
        return Oracle(self.answers[list(rows)])


def summary(rows: list[dict[str, float]]) -> dict[str, object]:
    """Every method's success with intervals, against single; steps and hacking of the optimization."""
    single = np.array([r["single"] for r in rows])
    out: dict[str, object] = {"samples": len(rows)}
    names = [
        n
        for n in dict.fromkeys(n for r in rows for n in r)
        if n.startswith(("static", "round", "single", "pass@", "oracle", "start", "keep", "ours", "ceiling"))
    ]
    for name in names:
        have = [i for i, r in enumerate(rows) if name in r]
        values = np.array([rows[i][name] for i in have])
        success, against = estimate(values), paired(list(values), list(single[have]))
        gain = against.difference
        out[name] = {
            "n": success.n,
            "success": round(success.mean, 4),
            "interval": [round(success.low, 3), round(success.high, 3)],
            "gain": round(gain.mean, 4),
            "gain_interval": [round(gain.low, 3), round(gain.high, 3)],
            "repaired": against.better,
            "broken": against.worse,
            "p": round(against.p, 5),
        }
    accepted = [r for r in rows if r["accepted"]]
    out["accepted"] = round(len(accepted) / len(rows), 4)
    for name in ("ours", "ours, one-step") if accepted else ():
        out[f"hacked, {name}"] = round(1 - float(np.mean([r[name] for r in accepted])), 4)
    out["steps"] = round(float(np.mean([r["steps"] for r in rows])), 2)
    out["starting noises graded"] = round(float(np.mean([r["noises"] for r in rows])), 2)
    out["right queries"] = round(float(np.mean([r["right queries"] for r in rows])), 4)
    cut = failures_cut([r["ours"] for r in rows], list(single))
    out["failures cut"] = round(cut.mean, 4)
    out["failures cut, interval"] = [round(cut.low, 3), round(cut.high, 3)]
    return out


def show(out: dict[str, object]) -> None:
    """Prints a summary as a table."""
    for name, value in out.items():
        if isinstance(value, dict):
            low, high = value["gain_interval"]
            print(
                f"{name:18s} {value['success']:.3f} [{value['interval'][0]:.3f}, {value['interval'][1]:.3f}]  "
                f"gain {value['gain']:+.3f} [{low:+.3f}, {high:+.3f}]  "
                f"repaired/broken {value['repaired']}/{value['broken']} p {value['p']:.4f}  n {value['n']}"
            )
        else:
            print(f"{name:18s} {value}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--split", default="id", choices=["id", "ood", "dev_id", "dev_ood"])
    parser.add_argument("--seed", type=int, default=1001)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds Pass@k may use")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--teacher", type=Path, help="another teacher's folder")
    parser.add_argument("--true-queries", action="store_true", help="the world's own questions, not the teacher's")
    parser.add_argument("--ceiling", type=int, default=64, help="how many samples also get the oracle loss")
    parser.add_argument("--out", type=Path, help="JSON file for rows and summary")
    args, overrides = parser.parse_known_args()
    settings = parse_fit(["--config", "mini", "--seed", str(args.seed), *overrides])
    evaluation = Evaluation(
        settings, args.weights, args.teacher or args.weights / "teacher", args.seeds, args.true_queries
    )
    samples = miniworld.samples(args.split, settings.families, args.seed, args.samples)
    begin, unreadable = time.perf_counter(), 0
    ceiling = {sample.id for sample in samples[: args.ceiling]}
    groups: dict[int, list[tuple[Sample, Queries]]] = {}
    for sample in samples:
        queries = evaluation.queries(sample)
        if queries is None:
            unreadable += 1
        else:
            groups.setdefault(len(queries.all), []).append((sample, queries))
    print(f"{len(samples)} sets of queries written, {time.perf_counter() - begin:.0f} s", flush=True)
    if unreadable:
        raise SystemExit(f"error: the teacher wrote no usable questions for {unreadable} samples")
    rows: list[dict[str, float]] = []
    for group in groups.values():
        for start in range(0, len(group), args.batch):
            chunk, asked = zip(*group[start : start + args.batch], strict=True)
            rows += evaluation.run(chunk, asked, ceiling)
            print(f"{len(rows)}/{len(samples)} {time.perf_counter() - begin:.0f} s", flush=True)
    out = summary(rows)
    seconds = evaluation.clock(samples[0], miniworld.true_queries(samples[0]))
    out |= {f"seconds per {name}": round(value, 3) for name, value in seconds.items()}
    o = settings.optimization
    videos = {"last": 1, "best": 3}.get(o.keep, 2)  # made and graded
    turns = float(np.mean([r["steps"] + 1 + r["noises"] for r in rows]))  # a one-step prediction costs less than a turn
    ours = turns * seconds["step"] + videos * seconds["graded video"]
    out["pass@k of equal time"] = round(ours / seconds["graded video"], 1)
    show(out)
    families = sorted({str(r["family"]) for r in rows})
    for family in families:
        mine = [r for r in rows if r["family"] == family]
        means = {
            k: round(float(np.mean([r[k] for r in mine])), 3)
            for k in ("round trip", "single", "ours", "ours, one-step", "steps")
        }
        print(family, len(mine), means)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            json.dumps(
                {
                    "command": vars(args) | {"overrides": overrides},
                    "versions": versions(),
                    "summary": json_safe(out),
                    "rows": rows,
                },
                indent=1,
                default=str,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
