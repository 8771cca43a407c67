"""The reasoner against diffusers' own pipelines, and its guarantees for batches, gradients and errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from pipelines import scheduler_of
from tiny import tiny_reasoner_folder, tiny_sample
from torch import Tensor

from ttopt.config.parsing import parse_fit
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.models.reasoner import Adapter, Reasoner, Schedule
from ttopt.models.reasoner.condition import clean_prompt
from ttopt.models.reasoner.recipe import schedule_of

EULER = Schedule((1.0, 0.757, 0.522))
RENOISE = Schedule((1.0, 0.757, 0.522), renoise=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_reasoner_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def reasoner(folder: Path) -> Reasoner:
    return Reasoner.load(folder, schedule=EULER)


def pipeline_video(reasoner: Reasoner, schedule: Schedule, sample: Sample, z1: Tensor) -> Tensor:
    """The video (T, 3, H, W) that diffusers makes from the same noise, without guidance."""
    parts = {
        "tokenizer": reasoner.tokenizer,
        "text_encoder": reasoner.text_encoder,
        "vae": reasoner.vae,
        "scheduler": scheduler_of(schedule),
        "transformer": reasoner.transformer,
        "expand_timesteps": True,
    }
    kind = WanPipeline if sample.image is None else WanImageToVideoPipeline
    pipeline = kind(**parts)
    pipeline.set_progress_bar_config(disable=True)
    arguments = {} if sample.image is None else {"image": sample.image[None]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # re-noising pipelines draw from the global generator
        video = pipeline(
            **arguments,
            prompt=sample.prompt,
            height=sample.height,
            width=sample.width,
            num_frames=sample.frames,
            num_inference_steps=len(schedule),
            guidance_scale=1.0,
            latents=z1,
            output_type="pt",
            max_sequence_length=reasoner.tokenizer.model_max_length,
        ).frames[0]
    assert isinstance(video, Tensor)
    return video


# --- equality with diffusers


@pytest.mark.parametrize("image", [True, False], ids=["image", "text"])
@pytest.mark.parametrize("schedule", [EULER, RENOISE], ids=["euler", "renoise"])
def test_video_equals_the_diffusers_pipeline(folder: Path, schedule: Schedule, image: bool) -> None:
    reasoner = Reasoner.load(folder, schedule=schedule)
    Adapter(reasoner.transformer, rank=4)  # a fresh adapter has no effect
    sample = tiny_sample("a", prompt="  move the &amp;amp; “red”\n square ", image=image)
    condition = reasoner.condition(sample)
    z1 = reasoner.noise(condition, [7])
    video = reasoner.decode(reasoner.generate(z1, condition))[0]
    expected = pipeline_video(reasoner, schedule, sample, z1)
    assert video.shape == (9, 3, 48, 48) and video.dtype == torch.float32
    torch.testing.assert_close(video, expected, atol=1e-5, rtol=0)
    assert video.min() >= 0 and video.max() <= 1 and video.std() > 0.01


def test_noise_is_that_of_a_seeded_pipeline(reasoner: Reasoner) -> None:
    from diffusers.utils.torch_utils import randn_tensor

    condition = reasoner.condition(tiny_sample())
    z1 = reasoner.noise(condition, [3, 4])
    assert z1.shape == (2, 16, 3, 6, 6) and z1.dtype == torch.float32
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    assert torch.equal(z1, randn_tensor((2, 16, 3, 6, 6), generator=generators))


def test_prompt_is_zero_padded(reasoner: Reasoner) -> None:
    text = reasoner.condition(tiny_sample(prompt="red square")).text
    assert text.shape == (1, 24, 8)
    assert text[:, :3].abs().sum() > 0 and not text[:, 3:].any()  # two words and </s>
    with pytest.warns(UserWarning, match='only 24 of the 51 tokens of "red red'):
        long = reasoner.condition(tiny_sample(prompt="red " * 50)).text
    assert long.shape == (1, 24, 8) and long.abs().sum(-1).min() > 0
    assert clean_prompt(" a &lt;b&amp;gt;\t “c” ") == 'a <b> "c"'


# --- velocity and one-step prediction


def test_first_frame_is_clean_and_has_timestep_zero(reasoner: Reasoner) -> None:
    condition = reasoner.condition(tiny_sample())
    assert condition.first_frame is not None and condition.shape == (16, 3, 6, 6)
    z1 = reasoner.noise(condition, [0])
    other = z1.clone()
    other[:, :, 0] += 1.0
    first = reasoner.velocity(z1, 1.0, condition)
    assert torch.equal(first, reasoner.velocity(other, 1.0, condition)), "the first latent frame is an input"
    clean = reasoner.predict_clean(z1, 1.0, condition)
    assert torch.equal(clean[:, :, :1], condition.first_frame)
    torch.testing.assert_close(clean[:, :, 1:], (z1 - first)[:, :, 1:])

    seen: list[Tensor] = []
    hook = reasoner.transformer.condition_embedder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    reasoner.velocity(z1, 0.7565, condition)
    hook.remove()
    assert seen[0].dtype == torch.float32 and seen[0].tolist() == [0.0, 756.5]


@pytest.mark.parametrize("image", [True, False], ids=["image", "text"])
def test_batch_equals_one_by_one(folder: Path, image: bool) -> None:
    reasoner = Reasoner.load(folder, schedule=RENOISE)
    samples = [tiny_sample("a", image=image), tiny_sample("b", prompt="a blue cross", image=image)]
    condition = reasoner.condition(samples)
    z1 = reasoner.noise(condition, [0, 1])
    together = reasoner.generate(z1, condition)
    assert len(condition) == 2
    for index, sample in enumerate(samples):
        alone = reasoner.condition(sample)
        torch.testing.assert_close(condition.select([index]).text, alone.text, atol=1e-6, rtol=0)
        latents = reasoner.generate(z1[index : index + 1], alone)
        torch.testing.assert_close(together[index], latents[0], atol=1e-5, rtol=0)
    # One condition serves many seeds; another number of conditions does not.
    many = reasoner.generate(z1[:1].expand(3, -1, -1, -1, -1), condition.select([0]))
    torch.testing.assert_close(many[2], together[0], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="2 videos cannot serve 3"):
        reasoner.velocity(z1[:1].expand(3, -1, -1, -1, -1), 1.0, condition)


def test_gradients_flow_through_one_step_and_through_the_whole_schedule(folder: Path) -> None:
    reasoner = Reasoner.load(folder, schedule=EULER)
    adapter = Adapter(reasoner.transformer, rank=4)
    condition = reasoner.condition([tiny_sample("a"), tiny_sample("b")])
    z1 = reasoner.noise(condition, [0, 1])
    reasoner.predict_clean(z1, 1.0, condition).square().mean().backward()
    first = [parameter.grad.clone() for parameter in adapter.parameters() if parameter.grad is not None]
    assert len(first) == len(adapter.parameters()) and all(gradient.any() for gradient in first[1::2])

    # Recomputing the transformer's blocks in the backward pass gives the same gradient.
    adapter.reset([0])
    reasoner.activation_checkpointing = range(1, 3)
    reasoner.predict_clean(z1, 1.0, condition).square().mean().backward()
    reasoner.activation_checkpointing = ()
    for parameter, gradient in zip(adapter.parameters(), first, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-7, rtol=1e-5)

    adapter.reset([0])
    latents = reasoner.denoise(z1, condition)
    assert torch.equal(latents, reasoner.generate(z1, condition))
    latents.square().mean().backward()
    whole = [parameter.grad for parameter in adapter.parameters()]
    assert not torch.equal(whole[1], first[1])  # type: ignore[arg-type]
    assert not reasoner.generate(z1, condition).requires_grad


def test_a_text_to_video_model_refuses_an_image(folder: Path, tmp_path: Path) -> None:
    """As its model_index.json says; a folder without one is taken at its word."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    for index, fine in (({"expand_timesteps": False}, False), ({}, True), ({"expand_timesteps": True}, True)):
        (copy / "model_index.json").write_text(json.dumps(index))
        reasoner = Reasoner.load(copy, schedule=EULER)
        assert reasoner.condition(tiny_sample(image=False)).first_frame is None
        if fine:
            assert reasoner.condition(tiny_sample()).first_frame is not None
        else:
            with pytest.raises(UserError, match="sample a has an image, but this model makes videos from text alone"):
                reasoner.condition(tiny_sample())


# --- samplers


def test_euler_and_renoise_steps(folder: Path) -> None:
    reasoner = Reasoner.load(folder, schedule=Schedule((1.0, 0.5)))
    condition = reasoner.condition(tiny_sample(image=False))
    z1 = reasoner.noise(condition, [0])
    with torch.no_grad():
        half = z1 - 0.5 * reasoner.velocity(z1, 1.0, condition)
        euler = half - 0.5 * reasoner.velocity(half, 0.5, condition)
        torch.testing.assert_close(reasoner.denoise(z1, condition, steps=1), half)
        torch.testing.assert_close(reasoner.denoise(z1, condition), euler)

        reasoner.schedule = Schedule((1.0, 0.5), renoise=True)
        noise = torch.randn(z1.shape, generator=torch.Generator().manual_seed(11))
        half = 0.5 * reasoner.predict_clean(z1, 1.0, condition) + 0.5 * noise
        expected = reasoner.predict_clean(half, 0.5, condition)
    result = reasoner.generate(z1, condition, generator=torch.Generator().manual_seed(11))
    torch.testing.assert_close(result, expected)
    assert torch.equal(result, reasoner.generate(z1, condition, generator=[torch.Generator().manual_seed(11)]))
    default = reasoner.generate(z1, condition)
    assert torch.equal(default, reasoner.generate(z1, condition)) and not torch.equal(default, result)


@pytest.mark.parametrize("sigmas", [(), (0.9, 0.5), (1.0, 1.0), (1.0, 0.5, 0.7), (1.0, 0.0), (1.0, float("nan"))])
def test_impossible_schedules_are_refused(sigmas: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match=r"must start at 1\.0"):
        Schedule(sigmas)


# --- loading and errors


def test_everything_is_frozen_and_bf16_keeps_its_fp32_parts(folder: Path) -> None:
    reasoner = Reasoner.load(folder, schedule=EULER, dtype="bfloat16")
    modules = (reasoner.transformer, reasoner.vae, reasoner.text_encoder)
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())
    assert not any(module.training for module in modules)
    transformer = reasoner.transformer
    assert reasoner.dtype == transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    for parameter in (
        transformer.condition_embedder.time_embedder.linear_1.weight,
        transformer.blocks[0].norm2.weight,
        transformer.blocks[0].scale_shift_table,
        next(reasoner.vae.parameters()),
    ):
        assert parameter.dtype == torch.float32
    rope = [buffer for name, buffer in transformer.named_buffers() if "rope" in name]
    assert rope and all(buffer.dtype.itemsize >= 4 for buffer in rope)
    condition = reasoner.condition(tiny_sample())
    z0 = reasoner.generate(reasoner.noise(condition, [0]), condition)
    assert condition.text.dtype == torch.bfloat16 and z0.dtype == torch.float32 and z0.isfinite().all()
    exact = Reasoner.load(folder, schedule=EULER)
    expected = exact.generate(exact.noise(condition, [0]), exact.condition(tiny_sample()))
    assert (z0 - expected).abs().max() < 0.05 * expected.abs().max()


def test_another_transformer_and_a_light_decoder(folder: Path, tmp_path: Path) -> None:
    from ttopt.models.reasoner import LightDecoder, LightDecoderConfig

    other = tiny_reasoner_folder(tmp_path / "other", seed=1)
    LightDecoder(LightDecoderConfig((8, 6, 4, 4), 16, 1)).save(tmp_path / "light")
    condition = Reasoner.load(folder, schedule=EULER).condition(tiny_sample())
    z1 = torch.zeros((1, *condition.shape))
    own = Reasoner.load(other, schedule=EULER).velocity(z1, 1.0, condition)
    for source in (other, other / "transformer"):
        reasoner = Reasoner.load(folder, schedule=EULER, transformer=source, light_decoder=tmp_path / "light")
        assert torch.equal(reasoner.velocity(z1, 1.0, condition), own)
        assert reasoner.light_decoder is not None
        assert reasoner.light_decoder(z1, [0, 8]).shape == (1, 2, 3, 48, 48)


@pytest.mark.parametrize(
    "missing",
    [
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
    ],
)
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, missing: str) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / missing).unlink()
    with pytest.raises(UserError, match=f"{missing} is missing"):
        Reasoner.load(copy, schedule=EULER)


def test_user_errors(folder: Path, reasoner: Reasoner, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        Reasoner.load(tmp_path / "nowhere", schedule=EULER)
    with pytest.raises(UserError, match="float33"):
        Reasoner.load(folder, schedule=EULER, dtype="float33")
    with pytest.raises(UserError, match="at least one"):
        reasoner.condition([])
    with pytest.raises(UserError, match="differ"):
        reasoner.condition([tiny_sample("a"), tiny_sample("b", image=False)])
    odd = Sample(id="odd", prompt="move", first_frame=None, frames=9, fps=8, height=40, width=48)
    with pytest.raises(UserError, match="multiples of 16"):
        reasoner.condition(odd)


# --- noise levels


def test_public_noise_levels_have_names() -> None:
    shifted = [5 * sigma / (1 + 4 * sigma) for sigma in (1.0, 0.75, 0.5, 0.25)]
    for config, levels, renoise in (
        ("wan22_5b", (1.0, 0.75, 0.5, 0.25), True),
        ("wan22_14b", tuple(round(sigma, 4) for sigma in shifted), False),
        ("fastwan22_5b", (1.0, 0.757, 0.522), True),
    ):
        assert schedule_of(parse_fit(["--config", config]).reasoner) == Schedule(levels, renoise)
    trained = parse_fit(["--config", "wan22_5b", "--reasoner.sigmas", "turbo_training"])
    assert schedule_of(trained.reasoner).sigmas == schedule_of(parse_fit(["--config", "wan22_14b"]).reasoner).sigmas
    own = parse_fit(["--config", "wan22_5b", "--reasoner.sigmas", "[1.0, 0.5]"])
    assert schedule_of(own.reasoner) == Schedule((1.0, 0.5), renoise=True)
