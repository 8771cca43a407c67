"""A step loop that was interrupted goes on where it was: nothing is asked or made twice, and the end is the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from tiny import tiny_sample
from tiny_loop import NO, UNREACHABLE, YES, Scripted, plan, solve
from torch import Tensor

from ttopt.config.settings import FitSettings, MethodSettings
from ttopt.models.chat import Message, Reply
from ttopt.models.load import Models
from ttopt.models.teacher import Queries
from ttopt.record.run_folder import RunFolder

Make = Callable[..., FitSettings]
QUERIES = Queries("is the red cross on the green pad ?", ("is the blue square whole ?",))


@pytest.fixture
def mini(settings: Make) -> FitSettings:
    return settings(chat={"prompts": "mini"}, seed=3)


class Interrupted(Scripted):
    """Is interrupted in its ``after``-th call."""

    def __init__(self, after: int, **answers: Any) -> None:
        super().__init__(**answers)
        self.after = after

    def reply(self, messages: Sequence[Message], schema: type[BaseModel] | None = None) -> Reply:
        if self.after == 0:
            self.after = -1
            raise KeyboardInterrupt
        self.after -= 1
        return super().reply(messages, schema)


def script() -> dict[str, Any]:
    return {
        "plan": [plan("move the red square"), plan("move the blue cross"), plan(complete=True)],
        "verify": [NO, "no JSON", YES, YES],  # rejected, then unreadable and asked once more
    }


def without_seconds(result: Any, trace: dict[str, Any]) -> tuple[Any, Any]:
    cost = dataclasses.replace(result.cost, wall_seconds=0)
    return dataclasses.replace(result, cost=cost, seconds={}, peak_mb={}, finished=""), trace


@pytest.mark.parametrize("arguments", [{}, {"inner": "teacher_lora", "keep_adapter": "steps"}], ids=str)
def test_interrupted_at_every_call(
    models: Models, mini: FitSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    monkeypatch.setattr(models.teacher, "write_queries", lambda sample, seed=0: QUERIES)
    whole: list[Tensor] = []
    (tmp_path / "whole").mkdir()
    chat = Scripted(**script())
    wanted = without_seconds(*solve(chat, models, mini, tmp_path / "whole", videos=whole, **arguments))
    assert wanted[1]["totals"]["vlm_calls"] == len(chat.asked) == 7
    assert not (tmp_path / "whole" / "journal").exists()
    for call in range(len(chat.asked)):
        folder, videos = tmp_path / f"{call}", list[Tensor]()
        folder.mkdir()
        broken = Interrupted(call, **script())
        with pytest.raises(KeyboardInterrupt):
            solve(broken, models, mini, folder, **arguments)
        made: list[Tensor] = []
        models.reasoner.observers.append(made.append)
        found = without_seconds(*solve(broken, models, mini, folder, videos=videos, **arguments))
        models.reasoner.observers.remove(made.append)
        assert found == wanted, f"interrupted in call {call}"
        assert torch.equal(videos[0], whole[0])
        assert [role for role, _ in broken.asked] == [role for role, _ in chat.asked], "nothing is asked twice"
        if call == 6:
            assert not made, "nothing is made twice"
        assert not (folder / "journal").exists()


def test_another_task_or_a_broken_file_starts_over(models: Models, mini: FitSettings, tmp_path: Path) -> None:
    other = dataclasses.replace(tiny_sample(), prompt="move the blue cross")
    for number, (sample, harm) in enumerate(((other, False), (tiny_sample(), True))):
        folder, notes = tmp_path / str(number), list[str]()
        folder.mkdir()
        with pytest.raises(KeyboardInterrupt):
            solve(Interrupted(3, **script()), models, mini, folder)
        if harm:
            (folder / "journal" / "001.safetensors").write_bytes(b"half")
        answers = script()
        chat = Scripted(plan=answers["plan"][harm:], verify=answers["verify"])
        (tmp_path / f"whole{number}").mkdir()
        wanted, _ = solve(Scripted(**script()), models, mini, tmp_path / f"whole{number}", sample)
        found, _ = solve(chat, models, mini, folder, sample, notes=notes)
        assert (found.seeds, found.cost.vlm_calls) == (wanted.seeds, wanted.cost.vlm_calls)
        assert any("it is removed, with all that follows" in note for note in notes)
        assert len(chat.asked) == 7 - harm, "the first plan could still be used"


@pytest.mark.parametrize("arguments", [{}, {"inner": "teacher_lora"}], ids=str)
def test_a_failed_sample_keeps_what_was_paid_for(
    models: Models, mini: FitSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    """The server is gone in the second step; the next call asks from there on."""
    monkeypatch.setattr(models.teacher, "write_queries", lambda sample, seed=0: QUERIES)
    answers = script()
    settings = dataclasses.replace(mini, method=MethodSettings("loop.StepLoop", {"frames_per_second": 8, **arguments}))
    run = RunFolder(tmp_path / "run", settings)
    chat = Scripted(plan=[*answers["plan"][:1], UNREACHABLE], verify=[NO, YES])
    with run.locked(), run.sample("a") as folder:
        failed, _ = solve(chat, models, mini, folder, **arguments)
        (folder / "clips/09_step9_attempt9.mp4").touch()  # of a clip that the next call does without
    assert failed.error and run.finished("a") is None
    later = Scripted(plan=answers["plan"][1:], verify=[YES])
    with run.locked(), run.sample("a") as folder:
        found, trace = solve(later, models, mini, folder, **arguments)
    clips = {path.relative_to(run.samples / "a") for path in (run.samples / "a/clips").iterdir()}
    wanted = {Path(clip["file"]) for clip in trace["clips"]}
    wanted |= {Path(clip["file"]).with_suffix("") for clip in trace["clips"] if arguments}
    assert {path for path in clips if path.suffix != ".png"} == wanted
    assert found.accepted and run.finished("a") == found
    assert [role for role, _ in later.asked] == ["plan", "verify", "plan"]
    assert trace["totals"]["vlm_calls"] == 6 and trace["totals"]["clips"] == 3
    assert arguments or found.cost.vlm_calls == 6, "without the teacher's, only the chat model's"
    assert {path.name for path in run.samples.iterdir()} == {"a"}
    assert not (run.samples / "a" / "journal").exists()
