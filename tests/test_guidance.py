"""Guidance, UniPC and shifted schedules against diffusers' own pipelines and schedulers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline
from tiny import tiny_reasoner_folder, tiny_sample, tiny_two_experts_folder
from torch import Tensor

from ttopt.config.parsing import parse_fit
from ttopt.data.sample import Sample
from ttopt.models.reasoner import Adapter, Condition, Reasoner, Schedule
from ttopt.models.reasoner.recipe import schedule_of

STEPS, SHIFT, GUIDANCE, NEGATIVE = 20, 5.0, 5.0, "the blue circle"
ARGUMENTS = ["--reasoner.sigmas", "shifted", "--reasoner.steps", str(STEPS), "--reasoner.shift", str(SHIFT)]


def scheduler_of(solver: str) -> Any:
    if solver == "unipc":
        return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT)
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT)


def schedule(solver: str) -> Schedule:
    return schedule_of(parse_fit([*ARGUMENTS, "--reasoner.solver", solver]).reasoner)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    return {"one": tiny_reasoner_folder(place / "one"), "two": tiny_two_experts_folder(place / "two")}


def load(folder: Path, solver: str, guidance: float = GUIDANCE) -> Reasoner:
    negative = NEGATIVE if guidance > 1 else ""
    return Reasoner.load(folder, schedule=schedule(solver), guidance=guidance, negative_prompt=negative)


def pipeline_video(reasoner: Reasoner, solver: str, sample: Sample, z1: Tensor) -> Tensor:
    parts = {
        "tokenizer": reasoner.tokenizer,
        "text_encoder": reasoner.text_encoder,
        "vae": reasoner.vae,
        "scheduler": scheduler_of(solver),
        "transformer": reasoner.transformer,
    }
    if reasoner.low_noise is not None:
        parts |= {"transformer_2": reasoner.low_noise, "boundary_ratio": 0.9}
    else:
        parts |= {"expand_timesteps": True}
    pipeline = (WanPipeline if sample.image is None else WanImageToVideoPipeline)(**parts)
    pipeline.set_progress_bar_config(disable=True)
    image = {} if sample.image is None else {"image": sample.image[None]}
    found: Tensor = pipeline(
        **image,
        prompt=sample.prompt,
        negative_prompt=NEGATIVE,
        height=48,
        width=48,
        num_frames=9,
        num_inference_steps=STEPS,
        guidance_scale=max(1.0, reasoner.guidance),
        latents=z1,
        output_type="pt",
        max_sequence_length=reasoner.tokenizer.model_max_length,
    ).frames[0]
    return found


@pytest.mark.parametrize("solver", ["euler", "unipc"])
@pytest.mark.parametrize(
    "folder, image, guidance",
    [("one", True, GUIDANCE), ("one", False, GUIDANCE), ("two", True, GUIDANCE), ("one", True, 0.0)],
)
def test_video_equals_the_diffusers_pipeline(
    folder: str, image: bool, guidance: float, solver: str, folders: dict[str, Path]
) -> None:
    reasoner = load(folders[folder], solver, guidance)
    sample = tiny_sample(image=image)
    condition = reasoner.condition(sample)
    z1 = reasoner.noise(condition, [7])
    seen: list[Tensor] = []
    reasoner.observers.append(seen.append)
    video = reasoner.decode(reasoner.generate(z1, condition))[0]
    assert len(seen) == (2 * STEPS if guidance > 1 else STEPS)  # what a method's cost counts
    torch.testing.assert_close(video, pipeline_video(reasoner, solver, sample, z1), atol=1e-5, rtol=0)
    assert video.std() > 0.01


@pytest.mark.parametrize("solver", ["euler", "unipc"])
@pytest.mark.parametrize("steps, shift", [(1, 1.0), (4, 5.0), (20, 3.3), (50, 12.0)])
def test_noise_levels_are_those_of_diffusers_scheduler(solver: str, steps: int, shift: float) -> None:
    typed = ["--reasoner.sigmas", "shifted", f"--reasoner.steps={steps}", f"--reasoner.shift={shift}"]
    ours = schedule_of(parse_fit([*typed, "--reasoner.solver", solver]).reasoner)
    theirs = (
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
        if solver == "unipc"
        else FlowMatchEulerDiscreteScheduler(shift=shift)
    )
    theirs.set_timesteps(steps)
    torch.testing.assert_close(torch.tensor([*ours.sigmas, 0.0]), theirs.sigmas, atol=2e-6, rtol=0)


def test_guided_videos_of_a_batch_are_those_of_each_alone(folders: dict[str, Path]) -> None:
    reasoner = load(folders["one"], "unipc")
    samples = [tiny_sample("a"), tiny_sample("b", prompt="move the green cross")]
    each = [reasoner.condition(sample) for sample in samples]
    z1 = reasoner.noise(each[0], [1, 2])
    alone = torch.cat([reasoner.generate(z1[number : number + 1], one) for number, one in enumerate(each)])
    for both in (reasoner.condition(samples), Condition.stack(each)):
        torch.testing.assert_close(reasoner.generate(z1, both), alone, atol=1e-5, rtol=0)


def test_the_optimized_prediction_is_guided_too(folders: dict[str, Path]) -> None:
    """A kept prefix serves the forward with the prompt alone, and gradients come through both."""
    reasoner = load(folders["one"], "euler")
    condition = reasoner.condition(tiny_sample())
    z1 = reasoner.noise(condition, [0])
    adapter = Adapter(reasoner.transformer, rank=2, blocks="1-2")
    for parameter in adapter.parameters():
        parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        prefix = reasoner.prefix(z1, 1.0, condition, adapter.first_block)
    guided = reasoner.velocity(z1, 1.0, condition, prefix)
    plain, other = (reasoner._forward(z1, 1.0, one) for one in (condition, condition.unguided()))
    torch.testing.assert_close(guided, other + GUIDANCE * (plain - other), atol=1e-5, rtol=0)
    guided.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in adapter.parameters())
