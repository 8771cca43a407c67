"""VBVR-InferKit's interface, on a stand-in for its base class."""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from ttopt.data.video import read_video
from ttopt.errors import UserError
from ttopt.models.load import Models

FIELDS = {
    *("success", "video_path", "error", "duration_seconds", "generation_id", "model", "status", "metadata"),
}


class ModelWrapper(ABC):
    def __init__(self, model: str, output_dir: str = "./outputs", **kwargs: Any) -> None:
        self.model, self.output_dir, self.kwargs = model, Path(output_dir), kwargs
        self.output_dir.mkdir(exist_ok=True, parents=True)

    @abstractmethod
    def generate(self, image_path: Any, text_prompt: str, duration: float = 8.0, **kwargs: Any) -> dict[str, Any]: ...


@pytest.fixture
def wrapper(monkeypatch: pytest.MonkeyPatch, models: Models, tmp_path: Path) -> Any:
    for name in ("vbvrinferkit", "vbvrinferkit.models", "vbvrinferkit.models.base"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["vbvrinferkit.models.base"].ModelWrapper = ModelWrapper  # type: ignore[attr-defined]
    sys.modules.pop("ttopt.run.inferkit", None)
    module = importlib.import_module("ttopt.run.inferkit")
    monkeypatch.setattr(module, "load_models", lambda settings: models)
    return module.TtoptWrapper("mini", str(tmp_path / "out"), method="ttopt.methods.Single")


def test_a_video_and_eight_fields(wrapper: Any, tmp_path: Path) -> None:
    Image.new("RGB", (96, 96), "red").save(tmp_path / "first.png")
    secret = {"ground_truth": str(tmp_path / "no.mp4"), "final_image": "no.png"}
    prompt = "move the red square to the pad"
    answer = wrapper.generate(
        tmp_path / "first.png", prompt, duration=1.1, output_filename="a/x.mp4", question_data=secret
    )
    assert set(answer) == FIELDS and answer["success"] and answer["error"] is None and answer["status"] == "success"
    assert Path(answer["video_path"]) == tmp_path / "out/a/x.mp4"
    again = wrapper.generate(tmp_path / "first.png", prompt, duration=1.1)
    assert (
        again["metadata"]["seeds"] == answer["metadata"]["seeds"] and again["generation_id"] != answer["generation_id"]
    )
    assert read_video(Path(answer["video_path"])).shape == (9, 3, 96, 96), "square, of the model's size, 4k+1 frames"


@pytest.mark.parametrize(
    "frames, height, width, made",
    [(25, 192, 192, (25, 96, 96)), (27, 96, 96, (25, 96, 96)), (5, 32, 48, (5, 32, 48))],
    ids=["larger", "longer", "smaller"],
)
def test_length_and_size_are_those_that_the_runner_asks_for(
    frames: int, height: int, width: int, made: tuple[int, int, int], wrapper: Any, tmp_path: Path
) -> None:
    """InferKit's runner passes num_frames, height and width, and no duration; the configuration bounds both."""
    Image.new("RGB", (width, height), "red").save(tmp_path / "first.png")
    sample = wrapper._sample(tmp_path / "first.png", "go", 8.0, frames, height, width)
    assert (sample.frames, sample.height, sample.width) == made


def test_the_runner_gets_what_it_asks_for(wrapper: Any, tmp_path: Path) -> None:
    Image.new("RGB", (48, 32), "red").save(tmp_path / "first.png")
    answer = wrapper.generate(tmp_path / "first.png", "go", num_frames=5, height=32, width=48, question_data={"id": 1})
    assert answer["success"], answer["error"]
    assert read_video(Path(answer["video_path"])).shape == (5, 3, 32, 48) and answer["metadata"]["frames"] == 5
    tiny = wrapper.generate(tmp_path / "first.png", "go", num_frames=5, height=2, width=3)
    assert "3x2 pixels are wanted" in tiny["error"]


def test_messages_name_what_inferkit_users_can_change(wrapper: Any) -> None:
    from ttopt.run.inferkit import in_catalog  # only where InferKit is there

    said = in_catalog("the memory is too small; give --reasoner.offload true")
    assert said.startswith('the memory is too small; give reasoner.offload true (in the "settings"')
    assert in_catalog("nothing -- to change") == "nothing -- to change"


def test_what_fails_is_said_and_not_raised(wrapper: Any, tmp_path: Path) -> None:
    answer = wrapper.generate(tmp_path / "missing.png", "move", duration=1)
    assert set(answer) == FIELDS and not answer["success"] and answer["video_path"] is None
    assert "there is no such file" in answer["error"] and answer["status"] == "failed"


def test_too_little_memory_is_tried_once_more_and_not_raised(
    wrapper: Any, models: Models, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tries: list[bool] = []

    def solve(*_: Any) -> Any:
        tries.append(bool(models.reasoner.activation_checkpointing))
        raise torch.OutOfMemoryError

    monkeypatch.setattr(wrapper.method, "solve", solve)
    Image.new("RGB", (96, 96), "red").save(tmp_path / "first.png")
    try:
        answer = wrapper.generate(tmp_path / "first.png", "move", duration=1.1)
    finally:
        models.reasoner.activation_checkpointing = ()
        models.teacher.set_activation_checkpointing(False)
    assert tries == [False, True] and set(answer) == FIELDS and not answer["success"]
    assert "memory is too small" in answer["error"] and "--" not in answer["error"]


def test_without_inferkit(monkeypatch: pytest.MonkeyPatch) -> None:
    sys.modules.pop("ttopt.run.inferkit", None)
    monkeypatch.setitem(sys.modules, "vbvrinferkit", None)
    with pytest.raises(UserError, match="VBVR-InferKit cannot be imported"):
        importlib.import_module("ttopt.run.inferkit")
