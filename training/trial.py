"""Does it help? Single, the teacher's choice among noises, the teacher's LoRA and its ceiling, on fresh samples.

    python -m training.trial --out runs/training --split dev_id --count 64 [--optimization.tau 0.1 ...]

The software itself runs, on the weights in OUT/weights and the questions of a perfect teacher. Success is the first
scorer's, over all frames; "end" is its rule of the goal alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from callbacks import LossThreshold
from training.code import SCALE, film_code
from training.world import dataset
from training.world.sheets import write_sheet
from ttopt.config.parsing import parse_fit
from ttopt.data.sample import Sample
from ttopt.data.video import sample_frames
from ttopt.models.load import load_models
from ttopt.optimization.algorithm import TeacherReward, begin, choose, grade, render, start_noise, train
from ttopt.optimization.reward import multi_vqa_loss
from ttopt.optimization.seeds import noise_seed, seed_of
from ttopt.optimization.training import Reward, Row, TestTimeTraining
from ttopt.record.meter import Meter
from ttopt.record.result import ACCEPTED

CONFIG = Path(__file__).parent / "trial.yaml"
Line = dict[str, float | str]


class Oracle:
    """The reward that knows the nearest right answer: the squared distance to its latents."""

    def __init__(self, truths: Tensor) -> None:  # (1, choices, C, T, h, w)
        self.truths = truths

    def __call__(self, frames: Tensor, latents: Tensor) -> Tensor:
        return (latents.unsqueeze(1) - self.truths).square().mean((2, 3, 4, 5)).amin(1, keepdim=True)

    def select(self, rows: Sequence[int]) -> Oracle:
        return self


class Trial:
    """Models and settings; ``run`` judges all methods on one sample."""

    def __init__(self, arguments: list[str], weights: Path, seeds: int, ceiling: bool) -> None:
        places = {
            "reasoner.model": weights / "reasoner",
            "decoder.model": weights / "light_decoder",
            "teacher.model": weights / "teacher",
        }
        given = [word for name, place in places.items() for word in (f"--{name}", str(place))]
        self.settings = parse_fit(["--config", str(CONFIG), *given, *arguments])
        self.models = load_models(self.settings)
        self.seeds, self.ceiling = seeds, ceiling
        self.meter = Meter(self.models.reasoner)

    def run(self, sample: Sample) -> tuple[Line, dict[str, Tensor]]:
        """What came of it, and videos (25, 3, 96, 96) by name."""
        s, models = self.settings, self.models
        o, reasoner = s.optimization, models.reasoner
        numbers = sample_frames(s.teacher.frames, sample.frames)
        condition = reasoner.condition([sample])
        queries = dataset.true_queries(sample)
        judge = TeacherReward(models.teacher, [queries], sample.fps, numbers)

        def loss_of(video: Tensor) -> float:
            with torch.no_grad():
                return float(multi_vqa_loss(judge(video[:, numbers]), o.goal_weight))

        line: Line = {"sample": sample.id, "family": str(sample.family)}

        def note(name: str, video: Tensor) -> bool:
            score = dataset.score(sample, video)
            line[name], line[f"{name} end"] = float(score.success), float(score.rules["goal"])
            if name in ("single", "ours"):
                line.update({f"{name} {rule}": float(holds) for rule, holds in score.rules.items()})
            return score.success

        found = []
        with models.adapter.disabled():
            for k in range(self.seeds):
                noise = reasoner.noise(condition, [noise_seed(s.seed, sample, k)])
                video = reasoner.decode(reasoner.generate(noise, condition))
                found.append((loss_of(video), dataset.score(sample, video[0]).success, video[0]))
                if k == 0:
                    note("single", video[0])
                    one = reasoner.decode(reasoner.predict_clean(noise, 1.0, condition).detach())
                    note("one-step", one[0])
                    line["single loss"] = found[0][0]
        for k in (5, 10, 20):
            if k <= self.seeds:
                line[f"pass@{k}"] = float(min(found[:k], key=lambda x: x[0])[1])
                line[f"oracle of {k}"] = float(any(right for _, right, _ in found[:k]))
        started = time.perf_counter()
        seeds = [[noise_seed(s.seed, sample, k) for k in range(o.starts)]]
        noise, _, tried = start_noise(models, condition, seeds, numbers, judge, o, self.meter)
        training = self.train(judge, condition, noise, numbers, [seed_of(s.seed, sample.id, "adapter")])
        row = training.rows[0]
        videos = render(models, condition, noise, training, "best", self.meter)
        grades = {name: g.loss for name, g in grade(judge, videos, numbers, o.goal_weight)[0].items()}
        kept = choose(o.keep, row.stop == ACCEPTED, grades)
        ours = videos[kept][0]
        line |= {"kept": kept, "steps": row.kept.step, "tried": float(tried[0]), "loss": grades[kept]}
        line |= {"accepted": float(row.stop == ACCEPTED), "seconds": time.perf_counter() - started}
        note("ours", ours)
        for name, video in videos.items():
            note(f"kept {name}", video[0])
        shown = {"single": found[0][2], "ours": ours}
        if self.ceiling:
            task = sample.answer
            answers = torch.stack([film_code(task.film(a)) for a in task.choices])[None] / SCALE  # type: ignore[attr-defined]
            training = self.train(
                Oracle(answers), condition, noise, numbers, [seed_of(s.seed, sample.id, "adapter")], 0.0
            )
            best = render(models, condition, noise, training, "last", self.meter, base=False)["adapter"][0]
            note("ceiling", best)
        return line, shown

    def train(
        self, reward: Reward, condition: object, noise: Tensor, numbers: Sequence[int], seeds: Sequence[int],
        tau: float | None = None,
    ) -> TestTimeTraining:  # fmt: skip
        """Algorithm 1, writing nothing."""
        o = self.settings.optimization
        training = begin(self.models, reward, condition, noise, numbers, o, seeds, self.meter, [Row() for _ in seeds])  # type: ignore[arg-type]
        train(training, [LossThreshold(o.tau if tau is None else tau)], Path())
        return training


def summary(lines: Sequence[Line]) -> str:
    """Means of all numbers, repaired and broken counts against single, and rights by family."""
    out = []
    for name in dict.fromkeys(name for line in lines for name in line):
        values = [line[name] for line in lines if name in line]
        if all(isinstance(v, float | int) for v in values):
            text = f"{name:16s} {sum(float(v) for v in values) / len(values):.3f}"
            if "single" in lines[0] and name in ("ours", "ceiling", "pass@5", "pass@10", "pass@20", "kept adapter"):
                better = sum(line[name] > line["single"] for line in lines)  # type: ignore[operator]
                worse = sum(line[name] < line["single"] for line in lines)  # type: ignore[operator]
                text += f"  repaired {better}, broken {worse}"
            out.append(text)
    accepted = [line for line in lines if line["accepted"]]
    if accepted:
        out.append(f"accepted but wrong {sum(1 - float(x['ours']) for x in accepted) / len(accepted):.3f}")
    for family in dict.fromkeys(str(line["family"]) for line in lines):
        mine = [line for line in lines if line["family"] == family]
        means = {n: sum(float(x[n]) for x in mine) / len(mine) for n in ("single", "ours")}
        out.append(f"{family}: single {means['single']:.3f}, ours {means['ours']:.3f} of {len(mine)}")
    return "\n".join(out)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="training.trial")
    parser.add_argument("--out", type=Path, default=Path("runs/training"), help="the trainings' folder")
    parser.add_argument("--split", default="dev_id")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--trial_seed", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1, help="noises that the teacher chooses from (Pass@k)")
    parser.add_argument("--ceiling", action="store_true", help="also with the reward that knows the answer")
    args, rest = parser.parse_known_args()
    torch.set_num_threads(1)
    trial = Trial(rest, args.out / "weights", args.seeds, args.ceiling)
    place = args.out / "trial"
    place.mkdir(exist_ok=True)
    lines: list[Line] = []
    rows: list[Tensor] = []
    for sample in dataset.samples(args.split, None, args.trial_seed, args.count):
        line, videos = trial.run(sample)
        lines.append(line)
        print(json.dumps(line), flush=True)
        if line["single"] != line["ours"] and len(rows) < 40:
            rows += [videos["single"], videos["ours"]]
    print(summary(lines))
    if rows:
        write_sheet(place / f"changed-{args.split}.png", rows, 1)


if __name__ == "__main__":
    main()
