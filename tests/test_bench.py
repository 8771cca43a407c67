"""The benchmark: exact features are seen to be exact, changed results are seen to be changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_teacher import tiny_config, tiny_tokenizer

from ttopt.__main__ import main
from ttopt.models.reasoner import LightDecoderConfig, Reasoner
from ttopt.planning import bench
from ttopt.planning.bench_arguments import LARGE_WAYS, WAYS
from ttopt.planning.bench_models import Bench, StandInTokenizer, random_models

WAN = {
    "transformer": {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 8,
        "out_channels": 8,
        "text_dim": 8,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 4,
    },
    "vae": {
        "base_dim": 4,
        "z_dim": 8,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 8,
        "latents_mean": [0.0] * 8,
        "latents_std": [1.0] * 8,
    },
}


@pytest.fixture(scope="module")
def tiny() -> Bench:
    light = LightDecoderConfig((8, 8, 8, 8), 8, 2, space_upscale=(True, True, False))
    return random_models(WAN, tiny_config(tiny_tokenizer()).to_dict(), light, (48, 48, 9), "cpu", torch.float32)


def test_every_way_is_as_exact_as_it_says(tiny: Bench) -> None:
    ways = [*WAYS, *LARGE_WAYS[:2]]  # without compiling
    rows = bench.run(tiny, ways, steps=2, say=lambda text: None)
    assert all(row.difference < bench.EXACT for row in rows)
    assert len({round(row.loss, 4) for row in rows}) >= 3, "the starred features change the loss"
    assert all(value > 0 for row in rows for value in row.seconds.values())
    assert "| + kept prefix |" in bench.table(rows)


def test_an_inexact_feature_is_noticed(tiny: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Reasoner.predict_clean
    monkeypatch.setattr(Reasoner, "predict_clean", lambda *args, **kwargs: right(*args, **kwargs) * 1.5)
    row = bench.run(tiny, [WAYS[2]], steps=1, say=lambda text: None)[0]
    assert row.difference > bench.EXACT


def test_a_way_without_room_leaves_the_next_one_alone(tiny: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(type(tiny.teacher), "yes_losses_separate", full)
        row = bench.run(tiny, [WAYS[0]], steps=1, say=lambda text: None)[0]
    assert row.name == "plain: out of memory"
    assert bench.run(tiny, [WAYS[0]], steps=1, say=lambda text: None)[0].loss > 0


def test_the_stand_in_tokenizer_keeps_vision_tokens_whole() -> None:
    ids = StandInTokenizer(90, 91)("<|im_start|>user\n<|video_pad|><|video_pad|>abcdefgh")["input_ids"]
    assert ids.count(91) == 2 and ids[0] == 1 and len(ids) == 1 + 2 + 2 + 2


def test_the_command_writes_its_rows(
    tiny: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ttopt.planning.bench_models.mini", lambda: tiny)
    out = tmp_path / "new" / "mini.json"
    assert main(["bench", "--steps", "1", "--ways", "packed|modulations", "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert [row["name"] for row in written["rows"]] == ["+ packed questions", "+ two time modulations"]
    assert "torch" in written["versions"] and written["machine"]
    assert main(["bench", "--ways", "nothing"]) == 2
    assert "matches no row" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main(["bench", "--size", "5b"]) == 2
        assert "needs a GPU" in capsys.readouterr().err
