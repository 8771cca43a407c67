"""Every baseline makes the videos it says, at the cost it says, and takes no reply that it cannot read for a choice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOAL, PROCESS
from pydantic import BaseModel
from tiny import tiny_sample
from tiny_loop import plan, verdict
from torch import Tensor

import loop
from ttopt.config.settings import FitSettings
from ttopt.data.video import read_video
from ttopt.errors import UserError
from ttopt.methods import Context, PassAtK, PromptRewrite, SeedEnsemble, Single, Static, VideoTPO
from ttopt.models.chat import ChatError, Message, Reply
from ttopt.models.load import Models
from ttopt.models.reasoner import Schedule
from ttopt.models.teacher import Queries
from ttopt.optimization.algorithm import TeacherReward
from ttopt.optimization.reward import multi_vqa_loss
from ttopt.optimization.seeds import seed_of
from ttopt.record.meter import Meter
from ttopt.record.result import Result

Solve = Callable[..., tuple[Result, Tensor]]
SAMPLE = tiny_sample()
VIDEO = SAMPLE.frames / SAMPLE.fps  # seconds


class Scripted:
    """A chat model that says what it was given, and remembers what it was asked."""

    name = "scripted"

    def __init__(self, *replies: Any) -> None:
        self.replies = list(replies)
        self.asked: list[Message] = []

    def reply(self, messages: Sequence[Message], schema: type[BaseModel] | None = None) -> Reply:
        self.asked.append(messages[0])
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return Reply(reply if isinstance(reply, str) else json.dumps(reply), 0.0, 0, 0, 0.0, self.name)


@pytest.fixture
def solve(models: Models, settings: Callable[..., FitSettings], tmp_path: Path) -> Iterator[Solve]:
    """``solve(method, chat)``: the result, and the video as a tensor before it was written."""
    schedule = models.reasoner.schedule
    kept: list[Tensor] = []

    def scorer(sample: Any, video: Tensor) -> Any:
        kept.append(video)
        return type("Score", (), {"success": True, "partial": 1.0, "rules": {}})()

    def run(method: Any, chat: Any = None, sample: Any = SAMPLE, seed: int = 0) -> tuple[Result, Tensor]:
        with Meter(models.reasoner) as meter:
            s = settings(seed=seed)
            context = Context(models, s, meter, chat or Scripted(), scorer, Queries(GOAL, tuple(PROCESS)))
            result = method.solve(sample, tmp_path, context)
        assert Result.load(tmp_path) == result
        return result, kept[-1]

    models.reasoner.schedule = Schedule((1.0, 0.5))
    yield run
    models.reasoner.schedule = schedule


def video_of(models: Models, number: int = 0, prompt: str = SAMPLE.prompt) -> Tensor:
    sample = tiny_sample(prompt=prompt)
    condition = models.reasoner.condition(sample)
    seed = seed_of(0, sample.id, f"noise {number}" if number else "noise")
    with models.adapter.disabled():
        return models.reasoner.decode(models.reasoner.generate(models.reasoner.noise(condition, [seed]), condition))[0]


def test_static(solve: Solve) -> None:
    result, video = solve(Static())
    assert SAMPLE.image is not None
    assert torch.equal(video, SAMPLE.image.expand(9, -1, -1, -1)) and result.cost.generated_seconds == 0
    assert (result.cost.reasoner_forwards, result.method) == (0, "static")
    with pytest.raises(UserError, match="no first frame to repeat"):
        solve(Static(), sample=tiny_sample(image=False))


def test_a_video_of_another_size_is_not_compared_with_the_image(
    models: Models, settings: Callable[..., FitSettings], tmp_path: Path
) -> None:
    with Meter(models.reasoner) as meter:
        context = Context(models, settings(), meter, Scripted())
        found = context.finish(SAMPLE, torch.rand(5, 3, 32, 64), tmp_path, method="existing", seeds={})
    assert found.first_frame_ssim is None and (tmp_path / "video.mp4").exists()


def test_single(solve: Solve, models: Models) -> None:
    models.adapter.reset([0])
    for parameter in models.adapter.parameters():
        torch.nn.init.normal_(parameter)  # left over from an earlier sample: must not matter
    result, video = solve(Single())
    assert torch.equal(video, video_of(models))
    assert (result.cost.reasoner_forwards, result.cost.vlm_calls) == (2, 0)
    assert result.cost.generated_seconds == pytest.approx(VIDEO, abs=1e-4)


def test_pass_at_k_takes_the_lowest_loss(solve: Solve, models: Models) -> None:
    videos = [video_of(models, number) for number in range(3)]
    numbers = list(range(9))
    reward = TeacherReward(models.teacher, [Queries(GOAL, tuple(PROCESS))], SAMPLE.fps, numbers)
    with torch.no_grad():
        losses = [multi_vqa_loss(reward(video[None])).item() for video in videos]
    best = losses.index(min(losses))
    result, video = solve(PassAtK(k=3))
    assert torch.equal(video, videos[best]) and result.details["best"] == best + 1
    assert result.details["losses"] == pytest.approx(losses, rel=1e-4)
    assert result.cost.generated_seconds == pytest.approx(3 * VIDEO, abs=1e-3)
    assert (result.cost.reasoner_forwards, result.cost.vlm_calls) == (6, 3)


def test_a_loss_that_is_no_number_is_not_the_lowest(solve: Solve, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([1.0, torch.nan, 0.5, torch.nan, torch.nan])
    monkeypatch.setattr("ttopt.methods.pass_at_k.TeacherReward", lambda *_: lambda _: torch.full((1, 2), next(losses)))
    assert solve(PassAtK(k=3))[0].details["best"] == 3
    assert "no video has a finite loss" in str(solve(PassAtK(k=2))[0].error)


def test_pass_at_k_asks_once_about_all_videos(solve: Solve, models: Models) -> None:
    chat = Scripted({"reason": "it moves", "best": 2})
    result, video = solve(PassAtK(k=3, judge="chat", shown=4), chat)
    assert torch.equal(video, video_of(models, 1)) and result.details == {"best": 2, "reason": "it moves"}
    (asked,) = chat.asked
    assert len(asked.images) == 12 and "Video 3:" in asked.text and SAMPLE.prompt in asked.text
    assert torch.equal(asked.images[4], video_of(models, 1)[0]), "second video's frames after the first's"
    assert result.cost.vlm_calls == 1


@pytest.mark.parametrize("replies", [({"best": 4}, {"best": 0}), ("the second", "yes"), (ChatError("down"),)])
def test_a_choice_that_cannot_be_read_is_no_choice(solve: Solve, replies: tuple[Any, ...]) -> None:
    result, _ = solve(PassAtK(k=3, judge="chat"), Scripted(*replies))
    assert result.error and "best" not in result.details


def test_prompt_rewrite(solve: Solve, models: Models) -> None:
    chat = Scripted({"prompt": "move the blue cross to the pad"})
    result, video = solve(PromptRewrite(), chat)
    assert torch.equal(video, video_of(models, prompt="move the blue cross to the pad"))
    assert result.prompt == SAMPLE.prompt and result.details["prompt"] == "move the blue cross to the pad"
    assert len(chat.asked[0].images) == 1 and result.cost.reasoner_forwards == 2


def test_prompt_rewrite_that_fails_makes_no_video(solve: Solve, models: Models, tmp_path: Path, settings: Any) -> None:
    with Meter(models.reasoner) as meter:
        context = Context(models, settings(), meter, Scripted(ChatError("the server is down")))
        result = PromptRewrite().solve(SAMPLE, tmp_path, context)
    assert result.error == "the server is down" and not (tmp_path / "video.mp4").exists()


def test_videotpo(solve: Solve, models: Models, tmp_path: Path) -> None:
    first, second = "move the blue cross to the pad", "move the green triangle to the pad"
    chat = Scripted(
        {"better": 2, "critique": "the colour"}, {"prompt": first}, {"better": 1, "critique": "the shape"},
        {"prompt": second},
    )  # fmt: skip
    result, video = solve(VideoTPO(), chat)
    assert torch.equal(video, video_of(models, prompt=second)), "single's noise, the last prompt"
    assert result.cost.generated_seconds == pytest.approx(5 * VIDEO, abs=1e-3)
    assert (result.cost.reasoner_forwards, result.cost.vlm_calls) == (10, 4)
    assert torch.equal(chat.asked[2].images[0], video_of(models, prompt=first)[0])
    assert "the colour" in chat.asked[1].text and SAMPLE.prompt in chat.asked[3].text
    assert [step["better"] for step in result.details["rounds"]] == [2, 1]
    assert read_video(tmp_path / "video.mp4").shape == (9, 3, 48, 48)
    broken, _ = solve(VideoTPO(), Scripted({"better": 2, "critique": "x"}, ChatError("down")))
    assert broken.error == "down"


def test_prompt_rewrite_by_the_planner(solve: Solve, models: Models) -> None:
    chat = Scripted(plan("move the blue cross to the pad"))
    result, video = solve(loop.PromptRewrite(), chat)
    assert torch.equal(video, video_of(models, prompt="move the blue cross to the pad"))
    assert result.method == "pe" and SAMPLE.prompt in chat.asked[0].text
    done, video = solve(loop.PromptRewrite(), Scripted(plan(complete=True)))
    assert torch.equal(video, video_of(models)) and done.details["prompt"] == SAMPLE.prompt
    failed, _ = solve(loop.PromptRewrite(), Scripted("move it", "there"))
    assert failed.error and "plan" in failed.error


def test_videotpo_by_the_verifier(solve: Solve, models: Models) -> None:
    farther = verdict(False, 0.5, 0.9, "The cross goes to the pad.")
    chat = Scripted(verdict(False, 0.9, 0.2), farther, verdict(True, 1.0, 1.0), farther)
    result, video = solve(loop.VideoTPO(frames_per_second=4), chat)
    prompt = f"{SAMPLE.prompt}. The cross goes to the pad."
    assert torch.equal(video, video_of(models, prompt=prompt)), "an accepted video leaves the prompt as it is"
    assert [(r["better"], r["prompt"]) for r in result.details["rounds"]] == [(2, prompt), (1, prompt)]
    assert torch.equal(chat.asked[1].images[-1], video_of(models, 1)[-1]) and len(chat.asked[1].images) == 6
    assert SAMPLE.prompt in chat.asked[3].text and "The cross goes to the pad." in chat.asked[3].text
    assert result.cost.vlm_calls == 4 and result.cost.generated_seconds == pytest.approx(5 * VIDEO, abs=1e-3)
    with pytest.raises(UserError, match="frames_per_second 0"):
        loop.VideoTPO(frames_per_second=0)


def test_seed_ensemble(solve: Solve, models: Models) -> None:
    result, video = solve(SeedEnsemble(seeds=3, steps=1))
    reasoner = models.reasoner
    condition = reasoner.condition(SAMPLE)
    seeds = [seed_of(0, SAMPLE.id, name) for name in ("noise", "noise 1", "noise 2")]
    with models.adapter.disabled(), torch.no_grad():
        middle = reasoner.denoise(reasoner.noise(condition, seeds), condition, steps=1).mean(0, keepdim=True)
        expected = reasoner.decode(reasoner.predict_clean(middle, 0.5, condition))[0]
    assert torch.allclose(video, expected, atol=1e-5)
    assert result.cost.reasoner_forwards == 4 and result.cost.generated_seconds == pytest.approx(2 * VIDEO, abs=1e-3)
    with pytest.raises(UserError, match="ensemble fewer"):
        solve(SeedEnsemble(steps=2))
