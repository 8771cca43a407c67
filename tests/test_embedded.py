"""The shipped models do what their card says, and the whole method runs on them through the command line."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_fit import fit
from torch import Tensor

from benchmarks.replies import plan_rows
from training.miniworld.corruptions import corrupt
from training.miniworld.vae import decode, encode, exchanged
from ttopt.config.parsing import parse_fit
from ttopt.config.settings import WEIGHTS, MethodSettings, OptimizationSettings
from ttopt.data import miniworld
from ttopt.data.video import read_video, write_video
from ttopt.miniworld.scene import Task
from ttopt.miniworld.tasks import FAMILIES, MULTI_STEP, make_task
from ttopt.miniworld.world import FPS, FRAMES, SPRITES, WALL, distances, render
from ttopt.models.load import Models, load_models
from ttopt.models.reasoner.condition import latent_statistics
from ttopt.models.teacher import Teacher
from ttopt.optimization.seeds import seed_of
from ttopt.optimization.training import TestTimeTraining
from ttopt.record.finish import scored
from ttopt.record.result import Scored
from ttopt.run.console import Console
from ttopt.run.run import fit_all


@pytest.fixture(scope="module")
def embedded() -> Models:
    return load_models(parse_fit(["--config", "mini"]))


def test_exchanged_looks_keep_the_story() -> None:
    """Training videos with other things and pads: the same cells are alike, empty or walls; each look occurs once."""
    codes = torch.stack([make_task("visit", "ood", 92, i).codes() for i in range(4)])
    other = exchanged(codes, torch.Generator().manual_seed(1))
    assert (other != codes).any()
    pairs = torch.stack([codes.flatten(), other.flatten()], 1).unique(dim=0)
    assert len(pairs) == len(pairs[:, 0].unique()) == len(pairs[:, 1].unique())
    walls = codes // SPRITES == WALL
    assert torch.equal(other[walls | (codes == 0)], codes[walls | (codes == 0)])


def test_decoded_cells_show_what_was_encoded(embedded: Models) -> None:
    """Of right videos out of distribution fewer than one cell in a hundred is read as something else after the VAE."""
    codes = torch.stack([make_task(family, "ood", 94, i).codes() for family in FAMILIES for i in range(4)])
    vae = embedded.reasoner.vae
    with torch.no_grad():
        seen = distances(decode(vae, encode(vae, render(codes)))).argmin(-1)
    assert (seen.view_as(codes) != codes).float().mean() < 0.01


def test_oracle_loss_ceiling(embedded: Models, tmp_path: Path) -> None:
    """With the true latents as the loss the loop repairs most failures: it is not the loop that holds results back."""
    samples = miniworld.samples("ood", ["move", "maze", "recolour"], 91, 12)
    reasoner = embedded.reasoner
    condition = reasoner.condition(samples)
    z1 = reasoner.noise(condition, [seed_of(0, s.id, "noise") for s in samples])
    mean, inverse_std = latent_statistics(reasoner.vae, "cpu")
    with torch.no_grad():
        target = (encode(reasoner.vae, torch.stack([miniworld.true_video(s) for s in samples])) - mean) * inverse_std

    def solved() -> int:
        with torch.no_grad():
            videos = reasoner.decode(reasoner.generate(z1, condition))
        return sum(miniworld.score(s, v).success for s, v in zip(samples, videos, strict=True))

    class Oracle:
        def __init__(self, right: Tensor) -> None:
            self.right = right

        def __call__(self, frames: Tensor, latents: Tensor) -> Tensor:
            return (latents - self.right).square().mean((1, 2, 3, 4))[:, None]

        def select(self, rows: Sequence[int]) -> Oracle:
            return Oracle(self.right[list(rows)])

    with embedded.adapter.disabled():
        before = solved()
    embedded.adapter.reset([0] * len(samples))
    decoder: Any = lambda z, _: z  # noqa: E731
    o = OptimizationSettings(steps=20, lr=2e-3, tau=0.0)
    oracle = Oracle(target)
    training = TestTimeTraining(reasoner, embedded.adapter, decoder, oracle, condition, z1, range(FRAMES), o)
    fit(training, tmp_path)
    after = solved()
    assert before < len(samples), "the reasoner must leave something to repair"
    assert after - before >= 0.5 * (len(samples) - before), (before, after)


def test_teacher_writes_the_right_questions(embedded: Models) -> None:
    samples = miniworld.samples("id", None, 92, 15) + miniworld.samples("ood", None, 92, 15)
    right = [embedded.teacher.write_queries(s) == miniworld.true_queries(s) for s in samples]
    assert sum(right) >= 0.95 * len(right), [s.prompt for s, ok in zip(samples, right, strict=True) if not ok]


def test_teacher_tells_right_videos_from_wrong_ones(embedded: Models) -> None:
    rng = np.random.default_rng(0)
    margins = []
    for sample in miniworld.samples("id", None, 93, 40):
        task = sample.answer
        assert isinstance(task, Task)
        rules: frozenset[str] = frozenset()
        while rules <= {"nothing new", "pads"}:  # no question asks about these
            _, wrong, rules = corrupt(task, rng)
        videos = render(torch.stack([task.codes(), wrong]))
        questions = [miniworld.true_queries(sample).all] * 2
        with torch.no_grad():
            losses = embedded.teacher.yes_losses(videos, questions, FPS, range(FRAMES))
        good, bad = losses.amax(1).tolist()  # the worst answer decides
        margins.append(bad - good)
    assert np.mean(np.array(margins) > 0) >= 0.8


def test_fit_through_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ttopt", "fit", "--limit", "2", "--run-dir", str(tmp_path / "run")]
    command += ["--logging.wandb", "disabled"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "id-recolour-0-0000" in done.stdout and str(tmp_path / "run") in done.stdout
    result = json.loads((tmp_path / "run" / "samples" / "id-move-0-0000" / "result.json").read_text())
    assert result["score"]["rules"] and result["optimization"]["queries"]["process"]
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, "a finished run can be called again"


SHORT = ["--config", "mini", "--split", "ood", "--seed", "3003", "--optimization.steps", "1", "--limit", "1",
         "--optimization.starts", "1", "--adapter.rank", "4", "--logging.wandb", "disabled"]  # fmt: skip
LOOP: dict[str, Any] = {"frames_per_second": 4, "shortest_clip": 9}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "static": ("ttopt.methods.Static", {}),
    "single": ("ttopt.methods.Single", {}),
    "pass at k": ("ttopt.methods.PassAtK", {"k": 2}),
    "seed ensemble": ("ttopt.methods.SeedEnsemble", {"seeds": 2}),
    "teacher LoRA": ("ttopt.methods.TeacherLora", {}),
    "PE": ("loop.PromptRewrite", {}),
    "VideoTPO": ("loop.VideoTPO", {"frames_per_second": 4}),
    "chain": ("loop.Chain", {"clips": 2}),
    "step loop": ("loop.StepLoop", LOOP),
    "step loop with LoRA": ("loop.StepLoop", LOOP | {"inner": "teacher_lora"}),
    "existing": ("ttopt.methods.Existing", {}),
}


@pytest.mark.parametrize("path, arguments", METHODS.values(), ids=METHODS.keys())
def test_the_files_on_disk_are_what_was_scored(
    path: str, arguments: dict[str, Any], embedded: Models, tmp_path: Path
) -> None:
    if path.endswith("Existing"):
        for sample in miniworld.samples("ood", None, 3003, 1):
            write_video(tmp_path / f"{sample.id}.mp4", miniworld.true_video(sample), sample.fps)
        arguments = {"videos": str(tmp_path)}

    def same(video: Path, score: Scored | None) -> bool:
        read = scored(miniworld.score, sample, read_video(video))
        assert read is not None and score is not None
        return read == dataclasses.replace(score, partial=pytest.approx(score.partial, abs=2e-3))

    settings = parse_fit([*SHORT, "--run-dir", str(tmp_path / "run")])
    settings = dataclasses.replace(settings, method=MethodSettings(path, arguments))
    found = fit_all(settings, Console(), load=lambda _: embedded)
    assert len(found.results) == 1 and not found.problems
    for sample, result in zip(miniworld.samples("ood", None, 3003, 1), found.results, strict=True):
        folder = tmp_path / "run/samples" / sample.id
        assert same(folder / "video.mp4", result.score)
        assert result.optimization is None or same(folder / "base.mp4", result.optimization.score_before)


def test_the_chat_model_plans() -> None:
    chat = Teacher.load(WEIGHTS / "chat")
    tasks = [make_task(family, "id", 93, 0) for family in MULTI_STEP]
    right = [
        row for t in tasks for row in plan_rows(lambda images, asked: chat.reply([("user", asked)], list(images)), t)
    ]
    assert len(right) == 12 and sum(right) >= 8, right


@pytest.mark.parametrize("family", ["doors", pytest.param("tour", marks=pytest.mark.slow)])
def test_step_loop_through_the_command_line(tmp_path: Path, family: str) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "ttopt", "fit", "--config", "collabvr", "--families", f"[{family}]",
               "--limit", "1", "--run-dir", str(run)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (folder,) = (run / "samples").iterdir()
    trace = json.loads((folder / "trace.json").read_text())
    assert len(trace["clips"]) >= 2 and all(clip["verdict"] for clip in trace["clips"])


def test_shipped_configurations_name_no_path() -> None:
    for path in WEIGHTS.rglob("*.json"):
        assert "_name_or_path" not in path.read_text(encoding="utf-8"), path
