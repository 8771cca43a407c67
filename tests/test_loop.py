"""The step loop with a scripted chat model on a tiny random reasoner: who decides what, and what is kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOAL, PROCESS
from pydantic import BaseModel
from tiny import tiny_sample
from tiny_loop import NO, UNREACHABLE, YES, Scripted, plan, solve, verdict
from torch import Tensor

import callbacks
from benchmarks import step_loop as evaluate
from benchmarks.step_loop import with_baselines
from loop import Chain, StepLoop, clips
from loop.oracle import WorldChat
from loop.planner import Plan
from loop.router import Route
from loop.verifier import Verdict
from loop.wording import Wording, done_text, message
from training import dialogues
from ttopt.config.comparison import parse_compare
from ttopt.config.parsing import parse_fit
from ttopt.config.settings import FitSettings, LoggingSettings, MethodSettings
from ttopt.data import miniworld
from ttopt.data.images import read_image
from ttopt.data.replies import parse_reply
from ttopt.data.sample import Sample
from ttopt.data.video import read_video
from ttopt.errors import UserError
from ttopt.methods import Context, make_method
from ttopt.miniworld.chains import legs
from ttopt.miniworld.look import PER_MOVE, render
from ttopt.models.load import Models
from ttopt.models.teacher import Queries
from ttopt.optimization.seeds import seed_of
from ttopt.record.meter import Meter
from ttopt.record.result import Result, Scored
from ttopt.run import run as engine
from ttopt.run.console import Console

Make = Callable[..., FitSettings]
DONE = plan(complete=True)


@pytest.fixture
def mini(settings: Make) -> FitSettings:
    return settings(chat={"prompts": "mini"}, seed=3)


def seeds(result: Result) -> list[int]:
    return [seed for name, seed in result.seeds.items() if name.startswith("noise")]


# The loop


def test_two_steps(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    """Every clip is made from the last frame of the one before, by tensor; the joint frame is shown once."""
    videos: list[Tensor] = []
    chat = Scripted(plan=[plan("move the red square"), plan("move the blue cross"), DONE], verify=[YES])
    found, trace = solve(chat, models, mini, tmp_path, videos=videos)
    assert found.accepted is True and not found.error and found.stop == "the planner sees the task complete"
    assert (videos[0].shape[0], len(read_video(tmp_path / "video.mp4"))) == (17, 17)
    assert found == Result.load(tmp_path)
    assert (found.cost.generated_seconds, found.cost.vlm_calls, trace["totals"]["clips"]) == (18 / 8, 5, 2)
    assert found.cost.reasoner_forwards == 2 * len(models.reasoner.schedule)

    task = tiny_sample().prompt
    assert chat.prompts("plan") == [
        f"Plan: {task} Done: nothing. Step 1 of 3.",
        f"Plan: {task} Done: move the red square Step 2 of 3.",
        f"Plan: {task} Done: move the red square move the blue cross Step 3 of 3.",
    ]
    assert chat.prompts("verify")[1] == f"Check: move the blue cross Task: {task}"
    shown = [asked.images for role, asked in chat.asked if role == "verify"]
    assert [len(images) for images in shown] == [9, 9]
    planned = [asked.images[0] for role, asked in chat.asked if role == "plan"]
    start = tiny_sample().image
    assert start is not None and torch.equal(planned[0], start)
    assert torch.equal(planned[1], shown[0][-1]), "not read back from a lossy file"
    assert torch.equal(videos[0], torch.cat([torch.stack(shown[0]), torch.stack(shown[1][1:])]))
    written = read_image(tmp_path / "clips/02_step2_attempt1_condition.png", 48, 48)
    assert torch.allclose(written, shown[0][-1], atol=1 / 500)


def test_first_noise_is_that_of_every_method(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    found, _ = solve(Scripted(plan=[plan()], verify=[YES]), models, mini, tmp_path, max_steps=1)
    assert seeds(found) == [seed_of(3, "a", "noise")]


def test_same_seed_same_video(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    videos: list[Tensor] = []
    for name in "ab":
        (tmp_path / name).mkdir()
        solve(Scripted(plan=[plan(), DONE], verify=[NO, YES]), models, mini, tmp_path / name, videos=videos)
    assert torch.equal(*videos)


def test_repairs_keep_what_is_good(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    """A prefix stays to the bit, also through a second repair; the whole is judged again, and is never longer."""
    first, second = verdict(False, 0.34), verdict(False, 0.6)
    chat = Scripted(plan=[plan(), DONE], verify=[first, second, YES])
    found, trace = solve(chat, models, mini, tmp_path)
    shown = [torch.stack(asked.images) for role, asked in chat.asked if role == "verify"]
    assert [len(clip) for clip in shown] == [9, 9, 9]
    assert torch.equal(shown[1][:3], shown[0][:3]) and not torch.equal(shown[1][3:], shown[0][3:])
    assert torch.equal(shown[2][:5], shown[1][:5]) and torch.equal(shown[2][:3], shown[0][:3])
    assert not torch.equal(shown[2][5:], shown[1][5:])
    assert [clip["kept_frames"] for clip in trace["clips"]] == [0, 3, 5]
    assert [clip["generated_frames"] for clip in trace["clips"]] == [9, 9, 5]
    assert found.cost.generated_seconds == 23 / 8
    assert len(set(seeds(found))) == 3, "every retry has its own seed"
    assert not torch.equal(shown[1][3], shown[1][2]), "the joint frame is not shown twice"


def test_a_worse_verdict_gives_nothing_back(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    answers = [verdict(False, 0.6), verdict(False, 0.3), verdict(False, 0.1), YES]
    _, trace = solve(Scripted(plan=[plan(), DONE], verify=answers), models, mini, tmp_path, attempts=4)
    assert [clip["kept_frames"] for clip in trace["clips"]] == [0, 5, 5, 0]


def test_prompts_evolve(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    answers = [verdict(False), verdict(False, suggestion=" Go to  the PAD "), verdict(False, suggestion=""), YES]
    chat = Scripted(plan=[plan("move the red square."), DONE], verify=answers)
    _, trace = solve(chat, models, mini, tmp_path, attempts=4)
    assert [clip["prompt"] for clip in trace["clips"]] == [
        "move the red square.", *["move the red square. go to the pad"] * 3
    ]  # fmt: skip
    assert set(chat.prompts("verify")) == {f"Check: move the red square. Task: {tiny_sample().prompt}"}
    assert [text for text in trace["warnings"] if "SSIM" not in text] == [
        "step 1, attempt 3: rejected without a suggestion"
    ]


def test_the_newest_suggestion_is_never_cut_off(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    """Also after a task that is longer than an instruction may be, which stays whole."""
    task = tiny_sample().prompt.rstrip(".")
    chat = Scripted(verify=[NO, verdict(False, suggestion="then stop"), YES])
    _, trace = solve(chat, models, mini, tmp_path, planning=False, longest_prompt=len(task) - 1)
    assert [clip["prompt"] for clip in trace["clips"]] == [
        tiny_sample().prompt, f"{task}. go to the pad", f"{task}. then stop"
    ]  # fmt: skip
    (tmp_path / "x").mkdir()
    chat = Scripted(verify=[verdict(False, suggestion=""), YES])
    _, trace = solve(chat, models, mini, tmp_path / "x", planning=False, longest_prompt=len(task) - 1)
    assert [clip["prompt"] for clip in trace["clips"]] == [tiny_sample().prompt] * 2, "nothing to add"


def test_an_endless_instruction_is_cut(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    chat = Scripted(plan=[plan("move the " + "very " * 2000 + "red square"), DONE], verify=[YES])
    _, trace = solve(chat, models, mini, tmp_path, longest_prompt=100)
    assert len(trace["clips"][0]["prompt"]) <= 100 and trace["clips"][0]["prompt"].endswith("very")
    assert any("was cut to 100" in text for text in trace["warnings"])


def test_a_planner_that_never_finishes(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    chat = Scripted(plan=[plan(remaining=5)], verify=[YES])
    found, trace = solve(chat, models, mini, tmp_path, max_steps=2)
    assert len(trace["clips"]) == 2 and found.accepted is False and "planner wants more" in found.stop
    assert len(read_video(tmp_path / "video.mp4")) == 17
    (tmp_path / "x").mkdir()
    chat = Scripted(plan=[plan(remaining=5), plan(remaining=5), DONE], verify=[YES])
    assert solve(chat, models, mini, tmp_path / "x", max_steps=2)[0].accepted is True, "it counted wrong"


def test_a_planner_that_is_done_at_once(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    found, trace = solve(Scripted(plan=[DONE], verify=[YES]), models, mini, tmp_path)
    assert [clip["prompt"] for clip in trace["clips"]] == [tiny_sample().prompt]
    assert found.accepted is True and "before anything was done" in trace["warnings"][0]


# Failing


def test_regen_is_one_more_try(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    chat = Scripted(
        plan=[plan(), DONE],
        verify=[NO, NO, verdict(False, 0.5), YES],
        route=[{"action": "regen", "suggestion": "then stop", "reason": "nearly"}],
    )
    found, trace = solve(chat, models, mini, tmp_path)
    assert found.accepted is True and len(trace["clips"]) == 4
    assert trace["clips"][3]["prompt"].endswith("go to the pad. then stop") and trace["clips"][3]["kept_frames"] == 4
    assert chat.prompts("route") == [f"Route: move the red square Task: {tiny_sample().prompt} Wrong: it stays"]


def test_rejected_to_the_end_is_the_best_attempt(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    """Of two rejected alike, the one that the verifier is less sure of."""
    answers = [verdict(False, 0.1, *rest) for rest in ((0.2,), (0.6,), (0.6,))]
    answers = [a | {"confidence": c} for a, c in zip(answers, (0.9, 0.3, 0.8), strict=True)]
    chat = Scripted(plan=[plan()], verify=[*answers, verdict(False, 0.0, 0.5)], route=[{"action": "regen"}])
    videos: list[Tensor] = []
    found, _ = solve(chat, models, mini, tmp_path, videos=videos)
    assert found.accepted is False and not found.error and found.stop == "step 1 was rejected 4 times"
    shown = [torch.stack(asked.images) for role, asked in chat.asked if role == "verify"]
    assert torch.equal(videos[0], shown[1])


def test_split_plans_again_and_ends(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    """A router that always splits gets one, then the whole task in one clip: no endless loop."""
    chat = Scripted(
        plan=[plan("move the red square"), plan("go to")],
        verify=[NO],
        route=[{"action": "split", "estimated_steps": 1000}],
    )
    found, trace = solve(chat, models, mini, tmp_path)
    assert [text.split("Step ")[1] for text in chat.prompts("plan")] == ["1 of 3.", "1 of 6."]
    assert [clip["action"] for clip in trace["clips"]] == [
        *["move the red square"] * 3, *["go to"] * 3, tiny_sample().prompt
    ]  # fmt: skip
    assert found.accepted is False and "so was the whole task in one clip" in found.stop


def test_what_is_accepted_holds_no_rejected_clip(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    """The planner finds the task complete when it is to split a step whose clips were all rejected."""
    chat = Scripted(plan=[plan(), plan(), DONE], verify=[YES, NO], route=[{"action": "split"}])
    found, _ = solve(chat, models, mini, tmp_path)
    assert found.accepted is True and len(read_video(tmp_path / "video.mp4")) == 9


def test_fallback_replaces_everything(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    chat = Scripted(plan=[plan()], verify=[YES, NO, NO, NO, YES], route=[{"action": "Fallback"}])
    videos: list[Tensor] = []
    found, trace = solve(chat, models, mini, tmp_path, videos=videos)
    assert found.accepted is True and found.details["steps"] == [tiny_sample().prompt]
    shown = [torch.stack(asked.images) for role, asked in chat.asked if role == "verify"]
    assert torch.equal(videos[0], shown[-1])
    assert trace["clips"][-1]["kept_frames"] == 0


def test_a_failed_step_does_not_lose_the_accepted_ones(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    chat = Scripted(plan=[plan()], verify=[YES, NO], route=[{"action": "fallback"}])
    found, _ = solve(chat, models, mini, tmp_path)
    assert found.accepted is False and len(read_video(tmp_path / "video.mp4")) == 17


@pytest.mark.parametrize(
    ("answers", "clips_made", "frames", "blamed"),
    [
        ({"plan": [UNREACHABLE]}, 0, 0, "the planner failed in step 1: the server cannot be reached"),
        ({"plan": ["maybe"]}, 0, 0, "the planner failed in step 1: .*asked twice"),
        ({"plan": [plan()], "verify": [UNREACHABLE]}, 1, 9, "the verifier failed in step 1"),
        ({"plan": [plan()], "verify": ["accept"]}, 1, 9, "the verifier failed in step 1"),
        ({"plan": [plan()], "verify": [verdict(True, 1.0, 90)]}, 1, 9, "progress: Input should be less than"),
        ({"plan": [plan()], "verify": [YES, UNREACHABLE]}, 2, 9, "the verifier failed in step 2"),
        ({"plan": [plan()], "verify": [NO], "route": [UNREACHABLE]}, 3, 9, "the router failed in step 1"),
        (
            {"plan": [plan(), plan(""), plan("")], "verify": [YES]},
            1,
            9,
            "planner failed in step 2: .*instruction is empty",
        ),
    ],
)
def test_no_failing_model_accepts(
    answers: dict[str, Any],
    clips_made: int,
    frames: int,
    blamed: str,
    models: Models,
    mini: FitSettings,
    tmp_path: Path,
) -> None:
    found, trace = solve(Scripted(**answers), models, mini, tmp_path)
    assert found.accepted is False
    with pytest.raises(AssertionError, match=blamed):
        raise AssertionError(found.error)
    assert len(trace["clips"]) == len(list((tmp_path / "clips").glob("*.mp4"))) == clips_made
    assert trace["calls"][-1]["error"] and trace["accepted"] is False
    if frames:
        assert len(read_video(tmp_path / "video.mp4")) == frames
    else:
        assert not (tmp_path / "video.mp4").exists() and found.score is None


def test_a_run_tries_failed_samples_again(
    models: Models, mini: FitSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A server that dies in the middle of a run: nothing is lost, and the same command finishes the rest."""
    samples = [tiny_sample(name) for name in "ab"]
    monkeypatch.setattr(engine, "find_samples", lambda settings: (samples, None))
    monkeypatch.setattr(engine, "load_models", lambda settings: models)
    method = MethodSettings("loop.StepLoop", {"max_steps": 1, "frames_per_second": 8})
    s = dataclasses.replace(mini, run_dir=str(tmp_path / "run"), method=method)

    def run(chat: Scripted) -> engine.Run:
        monkeypatch.setattr(engine, "make_chat", lambda settings, teacher: chat)
        return engine.fit_all(s, Console(), callbacks.standard)

    first = run(Scripted(plan=[plan()], verify=[YES, UNREACHABLE]))
    assert [r.accepted for r in first.results] == [True, False]
    assert first.problems == ["sample b: the verifier failed in step 1: the server cannot be reached"]
    assert list((tmp_path / "run/samples/b/clips").glob("*.mp4"))
    again = run(Scripted(plan=[plan()], verify=[YES]))
    assert [r.accepted for r in again.results] == [True, True] and not again.problems
    assert again.results[0] == first.results[0]


# The teacher's LoRA inside

QUERIES = Queries("is the red cross on the green pad ?", ("is the blue square whole ?", "is the red cross whole ?"))


@pytest.fixture
def asked_about(models: Models, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that the teacher is asked to write queries for; it can write none about a suggestion."""
    prompts: list[str] = []

    def write(sample: Sample, seed: int = 0) -> Queries:
        prompts.append(sample.prompt)
        if "unheard" in sample.prompt:
            raise UserError("the teacher's vocabulary lacks a word")
        return QUERIES

    monkeypatch.setattr(models.teacher, "write_queries", write)
    return prompts


@pytest.mark.parametrize(
    ("keep", "fresh"),
    [("none", [True] * 4), ("attempts", [True, False, True, False]), ("steps", [True, False, False, False])],
)
def test_clips_are_optimized(
    keep: str, fresh: list[bool], asked_about: list[str], models: Models, mini: FitSettings, tmp_path: Path
) -> None:
    """Two steps of two attempts: queries follow the evolved prompt, and the adapter is kept as told."""
    bad = [verdict(False, 0.5, suggestion=text) for text in ("to the green pad", "defenestrate it")]
    chat = Scripted(plan=[plan("move the red square."), plan("go to."), DONE], verify=[bad[0], YES, bad[1], YES])
    found, trace = solve(
        chat, models, mini, tmp_path, inner="teacher_lora", keep_adapter=keep,
        callbacks=lambda: callbacks.standard(mini), diagnosis_query="is the red cross ( {suggestion} )?",
    )  # fmt: skip
    assert found.method == "loop + teacher_lora" and found.accepted is True
    assert asked_about == [
        "move the red square.", "move the red square. to the green pad", "go to.", "go to. defenestrate it"
    ]  # fmt: skip
    clips_made = trace["clips"]
    assert [clip["adapter_seed"] is not None for clip in clips_made] == fresh
    assert [len(clip["queries"]["process"]) for clip in clips_made] == [2, 3, 2, 2]
    assert clips_made[1]["queries"]["process"][0] == "is the red cross ( to the green pad )?"
    assert [clip["optimization_steps"] for clip in clips_made] == [3] * 4
    # Each clip: 4 graded predictions, 3 backward passes that count twice, and the schedule.
    assert found.cost.reasoner_forwards == 4 * (4 + 6 + len(models.reasoner.schedule))
    assert found.cost.vlm_calls == found.details["vlm_calls"] + 4 + 4 * 4
    assert (tmp_path / "clips/02_step1_attempt2/curves.csv").is_file()
    assert (tmp_path / "clips/02_step1_attempt2/adapter").is_dir()


def test_every_diagnosis_becomes_a_query_where_there_is_room(
    asked_about: list[str], models: Models, mini: FitSettings, tmp_path: Path
) -> None:
    """The newest first; what the teacher cannot read is left out, and one of its own stays."""
    bad = [
        verdict(False, suggestion=text)
        for text in ("to the green pad", "defenestrate it", "the blue square", "the red cross")
    ]
    _, trace = solve(
        Scripted(plan=[plan(), DONE], verify=[*bad, YES]), models, mini, tmp_path, inner="teacher_lora", attempts=5,
        diagnosis_query="{suggestion} ?",
    )  # fmt: skip
    own = list(QUERIES.process)
    assert [clip["queries"]["process"] for clip in trace["clips"]] == [
        own, ["to the green pad ?", *own], ["to the green pad ?", *own],
        ["the blue square ?", "to the green pad ?", own[0]], ["the red cross ?", "the blue square ?", own[0]],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("keep", "fresh"), [("attempts", [None, True, False, None, True]), ("none", [None, True, True, None, True])]
)
def test_only_repairs_are_optimized(
    keep: str, fresh: list[bool | None], asked_about: list[str], models: Models, mini: FitSettings, tmp_path: Path
) -> None:
    """Three attempts, then two: the first of each is the frozen model's, and no step inherits another's adapter."""
    bad = verdict(False, 0.0, suggestion="to the green pad")
    chat = Scripted(plan=[plan("move the red square."), plan("go to."), DONE], verify=[bad, bad, YES, bad, YES])
    found, trace = solve(chat, models, mini, tmp_path, inner="teacher_lora", inner_from=2, keep_adapter=keep)
    assert found.accepted is True
    clips_made = trace["clips"]
    assert [c["adapter_seed"] is not None if "adapter_seed" in c else None for c in clips_made] == fresh


def test_optimized_clips_differ_and_the_next_method_is_untouched(
    asked_about: list[str], models: Models, mini: FitSettings, tmp_path: Path
) -> None:
    videos: list[Tensor] = []
    for name, inner in (("before", None), ("lora", "teacher_lora"), ("after", None)):
        (tmp_path / name).mkdir()
        solve(Scripted(plan=[plan(), DONE], verify=[YES]), models, mini, tmp_path / name, videos=videos, inner=inner)
    before, lora, after = videos
    assert torch.equal(before, after) and not torch.equal(before, lora)


def test_the_inner_loop_follows_the_optimization_settings(
    asked_about: list[str], models: Models, settings: Make, tmp_path: Path
) -> None:
    """The best of two noises, and the frozen model's clip where the loss never reached tau."""
    s = settings(chat={"prompts": "mini"}, optimization={"steps": 1, "starts": 2, "keep": "accepted"})
    videos: list[Tensor] = []
    chat = Scripted(plan=[plan(), DONE], verify=[YES])
    found, trace = solve(chat, models, s, tmp_path, videos=videos, inner="teacher_lora")
    (clip,) = trace["clips"]
    assert clip["kept"] == "base" and clip["optimization_steps"] == 1
    assert found.seeds == {"run": s.seed, "noise": clip["seed"]}
    # Two videos were sampled.
    assert found.cost.generated_seconds == found.details["generated_seconds"] == 18 / 8
    with Meter(models.reasoner) as meter:
        context = Context(models, s, meter, chat)
        part = dataclasses.replace(tiny_sample(), prompt="move the red square")
        assert torch.equal(videos[0], context.generate(part, clip["seed"]))


def test_a_loss_that_is_nan(
    asked_about: list[str], models: Models, mini: FitSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "loop.inner.TeacherReward.__call__",
        lambda self, frames, latents=None: frames.mean().reshape(1, 1) * float("nan"),
    )
    chat = Scripted(plan=[plan(), DONE], verify=[YES])
    found, trace = solve(chat, models, mini, tmp_path, inner="teacher_lora")
    assert found.accepted is True and trace["clips"][0]["loss_before"] is None
    assert any("NaN" in text for text in trace["warnings"])


def test_the_users_questions_are_about_the_whole_task(
    asked_about: list[str], models: Models, mini: FitSettings, tmp_path: Path
) -> None:
    own = Queries(GOAL, tuple(PROCESS))
    for planning, used in ((False, True), (True, False)):
        folder = tmp_path / str(planning)
        folder.mkdir()
        with Meter(models.reasoner) as meter:
            context = Context(models, mini, meter, Scripted(plan=[plan(), DONE], verify=[YES]), queries=own)
            StepLoop(planning=planning, inner="teacher_lora", frames_per_second=8).solve(tiny_sample(), folder, context)
        asked = json.loads((folder / "trace.json").read_text())["clips"][0]["queries"]
        assert (asked == {"goal": GOAL, "process": PROCESS}) == used
    assert asked_about == ["move the red square"]


@pytest.mark.parametrize("enough", [True, False])
def test_too_little_memory_is_tried_once_more_and_loses_no_clip(
    enough: bool, models: Models, mini: FitSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second clip needs more than there is, unless (or even if) everything is computed again."""
    made: list[str] = []

    def generate(self: Context, sample: Sample, seed: int) -> Tensor:
        made.append(sample.prompt)
        if len(made) > 1 and not (enough and self.models.reasoner.activation_checkpointing):
            raise torch.OutOfMemoryError
        return torch.zeros(9, 3, 48, 48)

    monkeypatch.setattr(Context, "generate", generate)
    monkeypatch.setattr(engine, "find_samples", lambda settings: ([tiny_sample()], None))
    monkeypatch.setattr(engine, "load_models", lambda settings: models)
    chat = Scripted(plan=[plan("one"), plan("two"), DONE], verify=[YES])
    monkeypatch.setattr(engine, "make_chat", lambda settings, teacher: chat)
    s = dataclasses.replace(mini, run_dir=str(tmp_path / "run"), method=MethodSettings("loop.StepLoop"))
    try:
        found = engine.fit_all(s, Console(), callbacks.standard)
    finally:
        models.reasoner.activation_checkpointing = ()
        models.teacher.set_activation_checkpointing(False)
    (result,) = found.results
    assert made == ["one", "two", "two"], "what was made is not made again"
    assert result.accepted is enough and ("memory is too small" in result.error) is not enough
    assert len(read_video(tmp_path / "run/samples/a/video.mp4")) == (17 if enough else 9)


def test_queries_about_the_bare_action_where_the_suggestion_is_unheard_of(
    asked_about: list[str], models: Models, mini: FitSettings, tmp_path: Path
) -> None:
    chat = Scripted(plan=[plan(), DONE], verify=[verdict(False, suggestion="unheard"), YES])
    found, _ = solve(chat, models, mini, tmp_path, inner="teacher_lora")
    assert found.accepted is True
    assert asked_about == ["move the red square", "move the red square. unheard", "move the red square"]
    (tmp_path / "x").mkdir()
    found, trace = solve(
        Scripted(plan=[plan("unheard")], verify=[YES]), models, mini, tmp_path / "x", inner="teacher_lora"
    )
    assert found.accepted is False and "lacks a word" in found.error and not trace["clips"]


# Settings


def test_parts_can_be_switched_off(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    made, videos = {}, []
    verifier = Scripted(verify=[NO, YES])
    for name, chat, arguments in (
        ("planning only", Scripted(plan=[plan(), DONE]), {"verification": False}),
        ("verification only", verifier, {"planning": False}),
        ("single", Scripted(), {"planning": False, "verification": False}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        made[name], _ = solve(chat, models, mini, folder, videos=videos, **arguments)
        assert made[name].method == name
    assert [r.accepted for r in made.values()] == [None, True, None]
    assert [r.details["clips"] for r in made.values()] == [1, 2, 1]
    assert made["single"].cost.vlm_calls == 0
    assert torch.equal(videos[2], torch.stack(verifier.asked[0][1].images))


def test_clip_lengths(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    chat = Scripted(plan=[plan(), plan(), DONE], verify=[YES])
    _, trace = solve(chat, models, mini, tmp_path, clip_seconds=[1.6, 0.6])
    assert [clip["frames"] for clip in trace["clips"]] == [13, 5]
    (tmp_path / "x").mkdir()
    chat = Scripted(plan=[plan(), DONE], verify=[verdict(False, 0.6), YES])
    _, trace = solve(chat, models, mini, tmp_path / "x", shortest_clip=9)
    assert [(clip["generated_frames"], clip["frames"]) for clip in trace["clips"]] == [(9, 9), (9, 9)]
    (tmp_path / "y").mkdir()
    chat = Scripted(plan=[plan(), DONE], verify=[YES])
    _, trace = solve(chat, models, mini, tmp_path / "y", clip_seconds=[0.6], shortest_clip=9)
    assert [(clip["generated_frames"], clip["frames"]) for clip in trace["clips"]] == [(9, 5)]


def test_text_to_video(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    chat = Scripted(plan=[plan(), plan(), DONE], verify=[YES])
    found, trace = solve(chat, models, mini, tmp_path, sample=tiny_sample(image=False))
    assert found.accepted is True and trace["clips"][0]["first_frame_ssim"] is None
    assert [len(asked.images) for role, asked in chat.asked if role == "plan"] == [0, 1, 1]


def test_lines_for_a_terminal(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    notes: list[str] = []
    bad = verdict(False, 0.5, suggestion="go \x1b[2J to\nthe pad")
    solve(Scripted(plan=[plan(), DONE], verify=[bad, YES]), models, mini, tmp_path, notes=notes)
    assert any("step 1/3, attempt 1: reject (progress 0.50, good 0.50). go [2J to the pad" in line for line in notes)
    assert all(line.isprintable() for line in notes)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"max_step": 3}, "max_step: Extra inputs .* there are max_steps, attempts"),
        ({"attempts": 0}, "attempts: Input should be greater than 0"),
        ({"inner": "magic"}, "inner: Input should be 'teacher_lora'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        make_method(MethodSettings("loop.StepLoop", arguments))


def test_configurations(tmp_path: Path) -> None:
    mini = parse_fit(["--config", "collabvr", "--method.arguments.attempts", "2"])
    made = make_method(mini.method)
    assert isinstance(made, StepLoop) and (made.settings.attempts, made.settings.shortest_clip) == (2, 25)
    assert mini.chat.prompts == "mini"
    real = parse_fit(["--config", "collabvr_wan22", "--sample.prompt", "go", "--sample.frames", "81"])
    assert isinstance(make_method(real.method), StepLoop) and real.chat.backend == "openai"
    with pytest.raises(UserError, match="chat.prompts"):
        parse_fit(["--config", "collabvr", "--chat.prompts", str(tmp_path / "none")])


# Prompts


def test_shipped_prompts() -> None:
    full = Wording.load("full")
    asked = message(full.verify, torch.zeros(3, 4, 4), [torch.ones(3, 4, 4)] * 3, "clip_images", prompt="p {done}",
                    done="nothing.", action="a", seconds="0.0")  # fmt: skip
    assert len(asked.images) == 4 and "Images 2 to 4 are frames of the clip" in asked.text
    assert 'task: "p {done}"' in asked.text, "a prompt's own braces are left alone"
    assert '{"reason": "what happens' in asked.text
    schemas: list[tuple[str, type[BaseModel]]] = [(full.plan, Plan), (full.verify, Verdict), (full.route, Route)]
    for text, schema in schemas:
        assert "JSON" in text
        with pytest.raises(ValueError):  # a model that only repeats the example has not answered
            parse_reply(text, schema)
    assert Wording.load("mini") == Wording(dialogues.PLAN, dialogues.VERIFY, dialogues.ROUTE), "what was trained"


@pytest.fixture
def telling(tmp_path: Path, settings: Make) -> FitSettings:
    """Prompts that tell all that the full ones do."""
    texts = {"plan": "Plan: {prompt} {done} Failed: {failed}", "verify": "Check: {action} Then: {target_state}"}
    for name, text in {**texts, "route": "Route: {action} {reason}"}.items():
        (tmp_path / "prompts").mkdir(exist_ok=True)
        (tmp_path / "prompts" / f"{name}.txt").write_text(text)
    full = Wording.load("full")
    assert "{failed}" in full.plan and "{target_state}" in full.verify
    return settings(chat={"prompts": str(tmp_path / "prompts")}, seed=3)


def test_the_target_state_reaches_verifier_and_queries(
    asked_about: list[str], models: Models, telling: FitSettings, tmp_path: Path
) -> None:
    chat = Scripted(plan=[plan(), DONE], verify=[verdict(False, suggestion="unheard"), YES])
    _, trace = solve(chat, models, telling, tmp_path, inner="teacher_lora")
    assert chat.prompts("verify") == ["Check: move the red square Then: there"] * 2
    assert asked_about == [
        "move the red square. In the end: there", "move the red square. unheard. In the end: there",
        "move the red square",
    ]  # fmt: skip
    assert [clip["prompt"] for clip in trace["clips"]] == ["move the red square", "move the red square. unheard"]


def test_the_planner_is_told_once_why_a_step_is_split(models: Models, telling: FitSettings, tmp_path: Path) -> None:
    ordered = {"action": "split", "reason": "It is too far.", "suggestion": "go half the way"}
    chat = Scripted(plan=[plan("go"), plan("half"), DONE], verify=[NO, NO, NO, YES], route=[ordered])
    solve(chat, models, telling, tmp_path)
    failed = [text.split("Failed: ")[1] for text in chat.prompts("plan")]
    assert failed == ["nothing.", "go. It is too far. go half the way", "nothing."]


def test_own_prompts(tmp_path: Path) -> None:
    for name in ("plan", "verify", "route"):
        (tmp_path / f"{name}.txt").write_text("{prompt} {done} {action} {reason}\n")
    assert Wording.load(str(tmp_path)).plan == "{prompt} {done} {action} {reason}"
    (tmp_path / "verify.txt").write_text("Fine?")
    with pytest.raises(UserError, match="does not hold {action}"):
        Wording.load(str(tmp_path))
    (tmp_path / "plan.txt").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        Wording.load(str(tmp_path))


def test_verdicts_round_but_do_not_guess() -> None:
    assert parse_reply(json.dumps(verdict(False, 1.004, -0.01)), Verdict).rank == (0.0, 1.0, 0.0)
    for wrong in (1.2, -0.2, 80, "most", None, float("nan")):
        with pytest.raises(ValueError, match="good_fraction"):
            parse_reply(json.dumps(verdict(True, wrong)), Verdict)  # type: ignore[arg-type]


# Clips


@pytest.mark.parametrize(
    ("fraction", "kept"), [(0.0, 0), (0.2, 0), (0.23, 2), (0.5, 4), (2 / 3, 5), (0.9, 5), (1.0, 5)]
)
def test_good_frames(fraction: float, kept: int) -> None:
    """Of 9, at a threshold of 0.2; at least a latent frame is made anew."""
    assert clips.good_frames(fraction, 9, 0.2) == kept


def test_lengths() -> None:
    assert [clips.reasoner_length(n, 5) for n in (1, 5, 6, 9, 10)] == [5, 5, 9, 9, 13]
    assert [clips.frames_of(s, 16) for s in (6, 3, 0.1)] == [97, 49, 5]
    assert clips.shown_frames(81, 16, 1) == [0, 16, 32, 48, 64, 80]
    assert clips.shown_frames(9, 8, 8) == clips.shown_frames(9, 8, 100) == list(range(9))
    assert clips.shown_frames(50, 16, 1) == [0, 16, 32, 48, 49]


# The numbers


def test_baselines_may_cost_what_the_loop_costs() -> None:
    settings = parse_compare(["--config", "collabvr_compare", "--only", "[single,loop]"])
    wide = with_baselines(settings, 7.0, 1.125)
    assert [method.name for method in wide.methods[-2:]] == [
        "best of 6",
        "3 clips, best of 2",
    ] and wide.only is not None
    assert wide.methods[-2].arguments == {"k": 6, "judge": "scorer"}
    assert set(wide.only) == {"single", "loop", "best of 6", "3 clips, best of 2"}
    assert [method.name for method in with_baselines(settings, 1.125, 1.125).methods[-1:]] == ["best of 1"]
    for method in wide.methods:
        assert make_method(MethodSettings(method.path, method.arguments))


def test_evaluation(
    models: Models, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Two rounds over two samples; the second only adds the baselines."""
    chat = Scripted(plan=[plan()], verify=[YES])
    monkeypatch.setattr(engine, "make_chat", lambda settings, teacher: chat)
    arguments = [
        *("--limit", "2", "--families", "[move]", "--run-dir", str(tmp_path / "run"), "--report", "false"),
        *("--decoder.model", str(folders["light"])),
        *("--reasoner.model", str(folders["reasoner"]), "--teacher.model", str(folders["teacher"])),
        *("--sample.queries.goal", GOAL, "--sample.queries.process", json.dumps(PROCESS)),
        *("--only", "[single,loop]"),
    ]  # fmt: skip
    assert evaluate.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "best of 3" in printed and "loop: samples 2, accepted 1, errors 0, steps 3, clips 3" in printed
    rows = json.loads((tmp_path / "run/comparison.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["single", "loop", "best of 3"]
    traces = json.loads((tmp_path / "run/traces.json").read_text(), parse_constant=pytest.fail)
    assert traces["loop"]["success if not"] is None, "none was refused"
    asked = len(chat.asked)
    assert evaluate.main(arguments) == 0 and len(chat.asked) == asked, "everything was finished"
    assert evaluate.main(["--only", "[lop]"]) == 2 and "lop" in capsys.readouterr().err


def test_chains(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    """As long as the loop's video; the first clip is that of every method."""
    videos: list[Tensor] = []

    def scorer(sample: Sample, video: Tensor) -> Scored:
        videos.append(video)
        return Scored(True, 1.0, {})

    for k in (1, 2):
        (tmp_path / str(k)).mkdir()
        with Meter(models.reasoner) as meter:
            context = Context(models, mini, meter, Scripted(), scorer, queries=QUERIES)
            found = Chain(2, k).solve(tiny_sample(), tmp_path / str(k), context)
        assert found.cost.generated_seconds == k * 18 / 8 and len(set(found.seeds.values())) == 2 * k + 1
        assert found.accepted is None and len(videos[-1]) == 17
    first = context.generate(tiny_sample(), seed_of(3, "a", "noise"))
    assert torch.equal(videos[0][:9], first)


def test_a_chain_whose_judge_fails_keeps_a_video(
    models: Models, mini: FitSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def write(sample: Sample) -> Queries:
        raise UserError("the teacher wrote no usable questions")

    monkeypatch.setattr(models.teacher, "write_queries", write)
    with Meter(models.reasoner) as meter:
        found = Chain(1, 2).solve(tiny_sample(), tmp_path, Context(models, mini, meter, Scripted()))
    assert "no usable questions" in found.error and (tmp_path / "video.mp4").exists()


# W&B


def test_wandb_gets_calls_and_clips(
    models: Models, mini: FitSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Through the engine, offline: a table of all calls, and every clip as an mp4 file."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(engine, "find_samples", lambda settings: ([tiny_sample()], None))
    monkeypatch.setattr(engine, "load_models", lambda settings: models)
    chat = Scripted(plan=[plan(), DONE], verify=[NO, YES])
    monkeypatch.setattr(engine, "make_chat", lambda settings, teacher: chat)
    s = dataclasses.replace(
        mini,
        run_dir=str(tmp_path / "run"),
        method=MethodSettings("loop.StepLoop", {"frames_per_second": 8}),
        logging=LoggingSettings(wandb="offline"),
    )
    assert not engine.fit_all(s, Console(), callbacks.standard).problems
    (files,) = (tmp_path / "run/wandb").glob("offline-run-*/files/media")
    assert len(list(files.rglob("videos/**/*.mp4"))) == 2 + 1, "two clips and the video"
    tables = [json.loads(path.read_text()) for path in files.rglob("*.table.json")]
    calls, clips_made = sorted(tables, key=lambda table: "role" not in table["columns"])
    assert [row[0] for row in calls["data"]] == ["planner", "verifier", "verifier", "planner"]
    assert [row[clips_made["columns"].index("verdict")] for row in clips_made["data"]] == ["reject", "accept"]


def test_a_perfect_judge_accepts_right_videos_and_no_others() -> None:
    """The world's own rules as planner and verifier, on true and on wrong clips of tasks of several steps."""
    for sample in miniworld.samples("id", ["tour", "relay"], 3, 4):
        chat, wording = WorldChat(sample.answer), Wording.load("mini")
        done: list[str] = []
        for number, leg in enumerate(legs(sample.answer)):
            right = render(leg.film())
            planned = parse_reply(_say(chat, wording.plan, "current_image", [right[0]], prompt=sample.prompt,
                                       done=done_text(done), step=number + 1, steps=9), Plan)  # fmt: skip
            assert planned.instruction == leg.prompt
            for frames, verdict_ in ((right, "accept"), (right[:1].expand_as(right), "reject")):
                shown = list(frames[::PER_MOVE])
                said = _say(chat, wording.verify, "clip_images", shown, action=leg.prompt, prompt=sample.prompt)
                assert parse_reply(said, Verdict).verdict == verdict_
            done.append(leg.prompt)
        end = _say(
            chat,
            wording.plan,
            "current_image",
            [right[-1]],
            prompt=sample.prompt,
            done=done_text(done),
            step=3,
            steps=9,
        )
        assert parse_reply(end, Plan).task_complete


def _say(chat: WorldChat, template: str, shown_as: str, images: list[Tensor], **values: Any) -> str:
    return chat.reply([message(template, None, images, shown_as, **values)]).text
