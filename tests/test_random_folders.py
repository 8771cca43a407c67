"""Random models in folders: loaded and run by the same command as the real ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from test_bench import WAN
from tiny_teacher import tiny_config, tiny_tokenizer

from ttopt.__main__ import main
from ttopt.planning.random_models import byte_tokenizer, save_reasoner, save_teacher
from ttopt.record.result import Result

UMT5 = {"vocab_size": 300, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}


def test_they_are_optimized_like_real_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_reasoner(tmp_path / "reasoner", {**WAN, "text_encoder": UMT5}, "cpu", torch.bfloat16)
    config = tiny_config(tiny_tokenizer()).to_dict()
    config["text_config"]["vocab_size"] = 300
    save_teacher(tmp_path / "teacher", config, "cpu", torch.bfloat16)
    Image.new("RGB", (48, 48), "navy").save(tmp_path / "first.png")
    arguments = {
        "reasoner.model": tmp_path / "reasoner", "reasoner.dtype": "bfloat16", "decoder.kind": "standard",
        "teacher.model": tmp_path / "teacher", "teacher.dtype": "bfloat16", "teacher.frames": 5,
        "sample.prompt": "Où va l'étoile?", "sample.image": tmp_path / "first.png", "sample.frames": 9,
        "sample.height": 48, "sample.width": 48, "sample.queries.goal": "Is it there?",
        "sample.queries.process": '["Is it whole?"]', "optimization.steps": 1, "optimization.tau": 0,
        "logging.wandb": "disabled", "run-dir": tmp_path / "run",
    }  # fmt: skip
    code = main(["fit", *(word for name, value in arguments.items() for word in (f"--{name}", str(value)))])
    assert code == 0, capsys.readouterr().err
    result = Result.load(next((tmp_path / "run").rglob("result.json")).parent)
    assert result.optimization is not None and result.optimization.steps == 1


def test_every_text_has_tokens_of_its_own() -> None:
    tokenizer = byte_tokenizer()
    text = "<|im_start|>Ünd 3.7 s\n→<|video_pad|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text and len(ids) == 2 + len("Ünd 3.7 s\n→".encode())
