"""``ttopt.optimize``: what goes in is used or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import GOAL, PROCESS
from PIL import Image

import ttopt
from ttopt.evaluate import api as comparing
from ttopt.models.load import Models
from ttopt.record.run_folder import STATE

PROMPT = "move the red square to the pad"
SMALL = {
    "sample.frames": 9, "sample.fps": 8, "sample.height": 48, "sample.width": 48, "teacher.frames": 5,
    "optimization.steps": 1, "optimization.tau": 0, "optimization.keep": "last", "logging.wandb": "disabled",
}  # fmt: skip
ASKED = ttopt.Queries(GOAL, tuple(PROCESS))
GIVEN = {"sample.queries.goal": GOAL, "sample.queries.process": PROCESS}
Optimize = Callable[..., ttopt.Optimized]


@pytest.fixture
def optimize(models: Models, tmp_path: Path) -> Optimize:
    def run(image: Any = None, prompt: str = PROMPT, settings: Any = None, **more: Any) -> ttopt.Optimized:
        given = {"folder": tmp_path / "run", "queries": ASKED, "note": lambda text: None} | more
        return ttopt.optimize(prompt, image, models=models, settings=SMALL | (settings or {}), **given)

    return run


def test_a_second_call_gives_the_same_result_and_refuses_another(optimize: Optimize) -> None:
    image = Image.new("L", (96, 48), 128)
    first = optimize(image)
    assert first.video.shape == first.base.shape == (9, 3, 48, 48) and (first.folder / "result.json").exists()
    assert optimize(image).result == first.result
    assert optimize(image, queries=None).result == first.result
    other = ttopt.Queries("is the blue square there ?", tuple(PROCESS))
    refused: dict[str, dict[str, Any]] = {
        "another prompt or image": {"prompt": "move the blue square"},
        "made with another prompt": {"image": Image.new("L", (96, 48), 129)},
        "seed was 0, now it is 1": {"settings": {"seed": 1}},
        "other questions": {"queries": other},
        "a reward or teacher that is passed in": {"reward": lambda frames, latents: frames.mean().reshape(1, 1)},
    }
    for why, changes in refused.items():
        with pytest.raises(ttopt.UserError, match=why):
            optimize(**{"image": image} | changes)


def test_what_the_settings_name_is_used(optimize: Optimize, tmp_path: Path) -> None:
    Image.new("RGB", (48, 48), "red").save(tmp_path / "first.png")
    wanted = {"callbacks": [{"path": "callbacks.Previews", "arguments": {"every": 1}}], "logging.previews_every": 0}
    wanted |= {
        "bank.folder": str(tmp_path / "bank"),
        "optimization.tau": 99,
        "sample.image": str(tmp_path / "first.png"),
    }
    wanted |= GIVEN | {"sample.prompt": "Move nothing.", "sample.queries.process": ["is the blue square there ?"]}
    found = optimize(settings=wanted, queries=None)
    assert found.accepted and found.result.optimization is not None
    assert found.result.optimization.queries["goal"] == GOAL
    assert (found.folder / "previews/step_0000.png").exists() and (tmp_path / "run/bank.txt").exists()
    assert found.result.prompt == PROMPT and found.result.first_frame_ssim is not None


@pytest.mark.parametrize(
    "image, more, why",
    [
        (torch.zeros(3, 32, 48), {}, "the image is .3, 32, 48., but the video is 48x48"),
        (torch.full((3, 48, 48), 255.0), {}, "divide 8-bit levels by 255"),
        (torch.zeros(3, 48, 48, dtype=torch.uint8), {}, "divide 8-bit levels by 255"),
        (3, {}, "the image is of type int"),
        (None, {"prompt": " "}, "the prompt is empty"),
        (None, {"config": "collabvr"}, "the method loop.StepLoop; use ttopt fit"),
        (None, {"settings": {"callbacks": [{"path": "callbacks.Missing"}]}}, "callback callbacks.Missing"),
    ],
)
def test_what_cannot_be_used_is_refused(optimize: Optimize, image: Any, more: dict[str, Any], why: str) -> None:
    with pytest.raises(ttopt.UserError, match=why):
        optimize(image, **more)


def test_another_teacher_does_not_go_on_from_an_interrupted_call(
    optimize: Optimize, models: Models, tmp_path: Path
) -> None:
    class Kill(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            if pl_module.steps == 2:
                raise KeyboardInterrupt

    many = {"optimization.steps": 3, "logging.state_every": 1}
    state, notes = tmp_path / "run/samples/.sample" / STATE, list[str]()
    for teacher, kept in ((None, True), (models.teacher, False)):
        with pytest.raises(KeyboardInterrupt):
            optimize(settings=many, teacher=teacher, callbacks=[Kill()], note=notes.append)
        assert state.exists() == kept and not notes


def test_a_comparison_takes_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(comparing, "compare_methods", lambda settings, *_: seen.append(settings))
    ttopt.compare("compare", settings={"limit": 1, "only": ["single"], "run_dir": tmp_path / "run"}, quiet=True)
    assert (seen[0].run_dir, seen[0].limit, seen[0].only) == (str(tmp_path / "run"), 1, ["single"])
