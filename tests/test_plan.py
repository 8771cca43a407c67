"""The plan against real runs of the same work, and what it says to a person."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_fit import FRAMES, prepare
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ttopt.__main__ import main
from ttopt.config.parsing import parse_fit
from ttopt.config.settings import FitSettings, to_yaml
from ttopt.errors import UserError
from ttopt.models.load import load_models
from ttopt.planning import estimate as planning
from ttopt.planning.gpus import GPUS
from ttopt.planning.model_sizes import REASONERS, TEACHERS
from ttopt.planning.plan import helping
from ttopt.planning.roofline import Roofline


@pytest.fixture
def tiny(settings: Callable[..., FitSettings]) -> FitSettings:
    return settings(teacher={"frames": len(FRAMES)}, adapter={"blocks": "1-2"})


def test_work_and_memory_equal_those_of_a_real_run(tiny: FitSettings) -> None:
    """Forward FLOP counted by PyTorch itself on real tensors; memory by the same ledger on real tensors."""
    planned = planning.plan(tiny, GPUS["H100"])
    models = load_models(tiny)
    module = prepare(models)
    module.predict()  # the prefix is computed once
    counted = {}
    with sdpa_kernel(SDPBackend.MATH):
        for name, work in (("predict", module.predict), ("decode", lambda: models.decoder(module.z1, FRAMES))):
            with FlopCounterMode(display=False) as counter:
                work()
            counted[name] = counter.get_total_flops()
    assert {name: planned.parts[name].flop for name in counted} == counted
    roofline = Roofline(GPUS["H100"])
    # The plan also keeps the condition, the noise and the prefix alive.
    module._prefix = None
    with roofline.part("prefix"):
        latents = module.predict()
    del latents
    with roofline.part("predict"):
        module.predict()
    assert roofline.parts["predict"].peak == pytest.approx(planned.parts["predict"].peak, rel=0.1)
    assert planned.weights["transformer"] == planning.nbytes(models.reasoner.transformer)
    assert planned.weights["teacher"] == planning.nbytes(models.teacher.model)


def test_grading_is_the_teachers_work(tiny: FitSettings) -> None:
    """The stand-in for the teacher's forward against the teacher itself, per token."""
    models = load_models(tiny)
    frames = torch.rand(1, len(FRAMES), 3, 48, 48)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = models.teacher.forward_packed(frames, [["is the end whole ?"] * 4], 8, FRAMES)
    real, length = counter.get_total_flops(), output.packed.ids.shape[1]
    planned = planning.plan(tiny, GPUS["H100"])
    vision = models.teacher.model.config.vision_config
    assert planned.tokens["teacher, video"] == len(output.packed.video)
    # The same video, another number of text tokens: the work lies between that of the two lengths.
    text = length - len(output.packed.video)
    guessed = planning.PREFIX_TOKENS + 3 * planning.TIMESTAMP_TOKENS + 4 * planning.QUESTION_TOKENS
    assert vision.depth == 2 and text < guessed
    assert real < planned.parts["grade"].flop < real * (guessed + 27) / (text + 27) * 1.5


def test_the_known_sizes_are_those_of_the_public_models() -> None:
    """Billions of parameters as published: Wan2.2-TI2V-5B, Qwen3-VL-4B and 8B."""
    settings = parse_fit(["--config", "wan22_5b"])
    models = planning.meta_models(settings)
    count = sum(p.numel() for name, p in models.reasoner.transformer.named_parameters() if "lora_" not in name)
    assert round(count / 1e9, 1) == 5.0
    assert round(sum(p.numel() for p in models.teacher.parameters()) / 1e9, 1) == 4.4
    assert set(REASONERS) >= {settings.reasoner.model} and settings.teacher.model in TEACHERS
    kept = models.reasoner.transformer.blocks[0].scale_shift_table
    assert kept.dtype == torch.float32 and models.reasoner.dtype == torch.bfloat16


def test_a_kept_prefix_and_fewer_frames_need_less(tiny: FitSettings) -> None:
    gpu = GPUS["H100"]
    late = planning.plan(tiny, gpu)
    everything = planning.plan(dataclasses.replace(tiny, adapter=dataclasses.replace(tiny.adapter, blocks="all")), gpu)
    fewer = planning.plan(dataclasses.replace(tiny, teacher=dataclasses.replace(tiny.teacher, frames=2)), gpu)
    assert late.parts["predict"].flop < everything.parts["predict"].flop
    assert late.memory["the GPU"] < everything.memory["the GPU"]
    assert fewer.parts["grade"].flop < late.parts["grade"].flop


def test_starts_kept_videos_and_samples_side_by_side_are_counted(tiny: FitSettings) -> None:
    one = planning.plan(tiny, GPUS["H100"])
    o = dataclasses.replace(tiny.optimization, starts=3, keep="best")
    more = planning.plan(dataclasses.replace(tiny, optimization=o, batch_samples=2), GPUS["H100"])
    assert more.step_flop == one.step_flop == sum(one.parts[name].flop for name in planning.STEP)
    extra = sum(one.parts[name].seconds for name in ("predict", "final decode", "grade"))
    noises = 3 * (one.parts["generate"].seconds / 4 + one.parts["decode"].seconds + one.parts["grade"].seconds)
    assert more.sample_seconds == pytest.approx(one.sample_seconds + extra + noises)
    assert one.memory["the GPU"] < more.memory["the GPU"] < 2 * one.memory["the GPU"]
    assert one.parts["queries"].flop > 0
    last = dataclasses.replace(tiny, optimization=dataclasses.replace(tiny.optimization, denoise_step="last"))
    assert planning.plan(last, GPUS["H100"]).parts["predict"].flop > 3 * one.parts["generate"].flop / 4


def test_a_teacher_on_a_gpu_of_its_own_is_counted_there(tiny: FitSettings) -> None:
    one = planning.plan(tiny, GPUS["H100"])
    apart = dataclasses.replace(tiny, teacher=dataclasses.replace(tiny.teacher, device="cuda:1"))
    memory = planning.plan(apart, GPUS["H100"]).memory
    assert set(memory) == {"the reasoner's GPU", "the teacher's GPU"}
    assert max(memory.values()) < one.memory["the GPU"] <= sum(memory.values())
    assert memory["the teacher's GPU"] > one.weights["teacher"]
    for name in ("cuda", "cuda:0"):  # the same GPU in other words
        same = dataclasses.replace(tiny, reasoner=dataclasses.replace(tiny.reasoner, device=name))
        same = dataclasses.replace(same, teacher=dataclasses.replace(tiny.teacher, device="auto"))
        assert planning.plan(same, GPUS["H100"]).memory == one.memory


def test_an_offloaded_text_encoder_is_on_the_gpu_while_it_works(tiny: FitSettings, tmp_path: Path) -> None:
    model = shutil.copytree(tiny.reasoner.model, tmp_path / "model")
    config = json.loads((model / "text_encoder" / "config.json").read_text())
    (model / "text_encoder" / "config.json").write_text(json.dumps(config | {"vocab_size": 10**6}))
    stays = dataclasses.replace(tiny, reasoner=dataclasses.replace(tiny.reasoner, model=str(model)))
    leaves = dataclasses.replace(tiny, reasoner=dataclasses.replace(stays.reasoner, offload=True))
    one, other = (planning.plan(settings, GPUS["H100"]) for settings in (stays, leaves))
    encoder = one.weights["text encoder"]
    assert "text encoder" not in other.weights and encoder < other.parts["condition"].peak < 1.2 * encoder
    assert other.parts["predict"] == one.parts["predict"]
    assert sum(other.weights.values()) + encoder < other.memory["the GPU"] <= one.memory["the GPU"]


def test_shared_out_weights(tiny: FitSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of four processes, each has a quarter of the blocks and two whole ones; a slow link is waited for."""
    named = load_models(tiny).reasoner.transformer.named_parameters()
    sizes = {name: p.numel() * p.element_size() for name, p in named if "lora_" not in name}
    blocks = sum(size for name, size in sizes.items() if name.startswith("blocks."))
    one = sum(size for name, size in sizes.items() if name.startswith("blocks.0."))
    whole = planning.plan(tiny, GPUS["H100"])
    shared = planning.plan(tiny, GPUS["H100"], processes=4)
    assert shared.weights["transformer"] == whole.weights["transformer"] - blocks + math.ceil(blocks / 4) + 2 * one
    assert set(shared.memory) == {"each GPU"}
    slow = planning.plan(tiny, dataclasses.replace(GPUS["H100"], link=1.0), processes=4)
    assert slow.parts["predict"].seconds == 0.75 * blocks and slow.parts["decode"] == shared.parts["decode"]

    (tmp_path / "tiny.yaml").write_text(to_yaml(tiny))
    command = ["plan", "--config", str(tmp_path / "tiny.yaml"), "--gpus", "8", "--reasoner.shard", "true"]
    assert main([*command, "--processes", "4"]) == 0
    assert "One sample on 4 H100, which share the video model's weights" in (shown := capsys.readouterr().out)
    assert "100 samples, 4 H100 each" in shown
    assert main(command) == 2
    assert "give --reasoner.shard true and --processes 2 or more, or neither" in capsys.readouterr().err


def test_the_report_and_its_mistakes(tiny: FitSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(to_yaml(tiny))
    assert main(["plan", "--gpu", "4090", "--samples", "7", "--config", str(tmp_path / "tiny.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "One sample on one 4090" in shown and ": fits" in shown and "7 samples:" in shown
    assert main(["plan", "--gpu", "3DFX", "--config", "mini"]) == 2
    assert "give one of H100, H200, A100, L40S, 4090" in capsys.readouterr().err
    with pytest.raises(UserError, match="sizes are not known"):
        planning.plan(dataclasses.replace(tiny, teacher=dataclasses.replace(tiny.teacher, model="a/b")), GPUS["H100"])


def test_what_a_gpu_does_quicker_takes_fewer_seconds(tiny: FitSettings) -> None:
    """Compiled layers fuse memory-bound operations, float8 weights take time to unround, causal attention half."""

    def seconds(part: str, group: str, **settings: object) -> float:
        changed = dataclasses.replace(getattr(tiny, group), **settings)
        return planning.plan(dataclasses.replace(tiny, **{group: changed}), GPUS["H100"]).parts[part].seconds

    for group, part, other in (("reasoner", "predict", "grade"), ("teacher", "grade", "predict")):
        assert seconds(part, group, compile=True) < seconds(part, group)
        assert seconds(other, group, compile=True) == seconds(other, group)
        assert seconds(part, group, float8=True) > seconds(part, group)
    q, flop = torch.empty(1, 2, 64, 8, device="meta"), {}
    for causal in (False, True):
        roofline = Roofline(GPUS["H100"])
        with roofline.part("attend"):
            torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=causal)
        flop[causal] = roofline.parts["attend"].flop
    assert flop == {False: 4 * q.numel() * 64, True: 2 * q.numel() * 64}


def test_cures_that_do_not_help_are_skipped(tiny: FitSettings, tmp_path: Path) -> None:
    """Most memory is needed while a large text encoder reads the prompt: recomputing activations does not help."""
    model = shutil.copytree(tiny.reasoner.model, tmp_path / "model")
    config = json.loads((model / "text_encoder" / "config.json").read_text())
    (model / "text_encoder" / "config.json").write_text(json.dumps(config | {"vocab_size": 10**7}))
    large = dataclasses.replace(tiny, reasoner=dataclasses.replace(tiny.reasoner, model=str(model), offload=True))
    found = planning.plan(large, GPUS["4090"])
    name, now = next(helping(large, found))
    assert name == "--reasoner.float8 true" and now.memory["the GPU"] < found.memory["the GPU"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, gpu",
    [
        ("wan22_5b", "H100"),
        ("wan22_5b_fast", "H200"),
        ("wan22_5b_48gb", "L40S"),
        ("wan22_5b_24gb", "4090"),
        ("wan22_5b_turbo", "H100"),
        ("fastwan22_5b", "H100"),
        ("wan22_14b", "H100"),
    ],
)
def test_configurations_fit_the_gpus_they_are_written_for(config: str, gpu: str) -> None:
    found = planning.plan(parse_fit(["--config", config]), GPUS[gpu])
    print(f"{config} on {gpu}: {found.memory['the GPU'] / 2**30:.1f} GiB, {found.step_seconds:.2f} s a step")
    assert found.fits
