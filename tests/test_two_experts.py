"""Image-to-video with two experts (Wan2.2-I2V-A14B) and few-step LoRAs, against diffusers' own pipeline and loaders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import WanImageToVideoPipeline
from pipelines import scheduler_of
from tiny import tiny_reasoner_folder, tiny_sample, tiny_two_experts_folder

from ttopt.config.settings import LoraSettings
from ttopt.errors import UserError
from ttopt.models.reasoner import Adapter, Reasoner, Schedule

LIGHTNING = Schedule((1.0, 0.9375, 0.8333, 0.625))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_two_experts_folder(tmp_path_factory.mktemp("experts"))


@pytest.fixture(scope="module")
def reasoner(folder: Path) -> Reasoner:
    return Reasoner.load(folder, schedule=LIGHTNING)


def test_video_equals_the_diffusers_pipeline(reasoner: Reasoner) -> None:
    assert reasoner.low_noise is not None and reasoner.boundary == 0.9 and reasoner.takes_channels
    sample = tiny_sample()
    condition = reasoner.condition(sample)
    z1 = reasoner.noise(condition, [7])
    assert condition.channels is not None and condition.channels.shape == (1, 20, *z1.shape[2:])
    adapter = Adapter(reasoner.transformer, rank=4)
    video = reasoner.decode(reasoner.generate(z1, condition))[0]
    adapter.remove()
    pipeline = WanImageToVideoPipeline(
        tokenizer=reasoner.tokenizer,
        text_encoder=reasoner.text_encoder,
        vae=reasoner.vae,
        scheduler=scheduler_of(LIGHTNING),
        transformer=reasoner.transformer,
        transformer_2=reasoner.low_noise,
        boundary_ratio=0.9,
    )
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        image=sample.image[None],  # type: ignore[index]
        prompt=sample.prompt,
        height=48,
        width=48,
        num_frames=9,
        num_inference_steps=4,
        guidance_scale=1.0,
        latents=z1,
        output_type="pt",
        max_sequence_length=reasoner.tokenizer.model_max_length,
    ).frames[0]
    torch.testing.assert_close(video, expected, atol=1e-5, rtol=0)
    assert video.std() > 0.01


def test_only_the_expert_of_the_noise_level_runs_and_only_the_first_is_adapted(reasoner: Reasoner) -> None:
    condition = reasoner.condition([tiny_sample("a"), tiny_sample("b")])
    z1 = reasoner.noise(condition, [0, 1])
    adapter = Adapter(reasoner.transformer, rank=4)
    low_before = reasoner.velocity(z1, 0.625, condition)
    for parameter in adapter.parameters():
        parameter.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    ran: list[str] = []
    hooks = [
        network.proj_out.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, network in (("high", reasoner.transformer), ("low", reasoner.low_noise))
    ]
    reasoner.predict_clean(z1, 1.0, condition).sum().backward()
    assert all(parameter.grad is not None for parameter in adapter.parameters()) and ran == ["high"]
    reasoner.generate(z1, condition)
    for hook in hooks:
        hook.remove()
    assert ran[1:] == ["high", "high", "low", "low"]
    assert torch.equal(reasoner.velocity(z1, 0.625, condition), low_before)
    with torch.no_grad():
        prefix = reasoner.prefix(z1, 1.0, condition, adapter.first_block)
        wanted = reasoner.velocity(z1, 1.0, condition)
        assert torch.equal(reasoner.velocity(z1, 1.0, condition, prefix), wanted)
    adapter.remove()


def test_an_image_is_needed(reasoner: Reasoner) -> None:
    with pytest.raises(UserError, match="no image to animate; give --sample.image"):
        reasoner.condition(tiny_sample(image=False))


@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "adapter_wan.safetensors"])
def test_a_lora_is_merged_into_the_right_expert(folder: Path, file: str, tmp_path: Path) -> None:
    reasoner = Reasoner.load(folder, schedule=LIGHTNING)
    adapter = Adapter(reasoner.transformer, rank=4, alpha=2.0, targets="attention+ffn")
    for parameter in adapter.parameters():
        parameter.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    adapter.save(tmp_path)
    condition = reasoner.condition(tiny_sample())
    z1 = reasoner.noise(condition, [0])
    loras = [LoraSettings(str(tmp_path / file))]
    merged = Reasoner.load(folder, schedule=LIGHTNING, loras=loras)
    with torch.no_grad():
        adapted = reasoner.velocity(z1, 1.0, condition)
        torch.testing.assert_close(merged.velocity(z1, 1.0, condition), adapted, atol=1e-5, rtol=0)
        assert torch.equal(merged.velocity(z1, 0.5, condition), reasoner.velocity(z1, 0.5, condition))
        second = Reasoner.load(folder, schedule=LIGHTNING, low_noise_loras=loras)
        assert not torch.equal(second.velocity(z1, 0.5, condition), reasoner.velocity(z1, 0.5, condition))
        with adapter.disabled():
            assert torch.equal(second.velocity(z1, 1.0, condition), reasoner.velocity(z1, 1.0, condition))
    Adapter(merged.transformer, rank=4)  # the merged LoRA leaves no trace


def test_unusable_loras_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no LoRA nowhere"):
        Reasoner.load(folder, schedule=LIGHTNING, loras=[LoraSettings("nowhere")])
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="does not fit the model"):
        Reasoner.load(folder, schedule=LIGHTNING, loras=[LoraSettings(str(tmp_path / "broken.safetensors"))])
    one = tiny_reasoner_folder(tmp_path / "one")
    with pytest.raises(UserError, match="no second expert"):
        Reasoner.load(one, schedule=LIGHTNING, low_noise_loras=[LoraSettings(str(tmp_path / "broken.safetensors"))])


def test_a_model_distilled_without_image_ignores_it_and_says_so(tmp_path: Path) -> None:
    reasoner = Reasoner.load(tiny_reasoner_folder(tmp_path), schedule=Schedule(), ignore_image=True)
    with pytest.warns(UserWarning, match="the image is ignored"):
        condition = reasoner.condition(tiny_sample())
    text_only = reasoner.condition(tiny_sample(image=False))
    z1 = reasoner.noise(condition, [0])
    assert condition.first_frame is None
    assert torch.equal(reasoner.generate(z1, condition), reasoner.generate(z1, text_only))


def test_each_expert_is_replaced_by_its_own_setting(folder: Path, tmp_path: Path) -> None:
    other = tiny_two_experts_folder(tmp_path / "other", seed=5)
    both = Reasoner.load(folder, schedule=LIGHTNING, transformer=other, low_noise_transformer=folder)
    own, others = (Reasoner.load(place, schedule=LIGHTNING) for place in (folder, other))
    assert torch.equal(both.transformer.proj_out.weight, others.transformer.proj_out.weight)
    assert torch.equal(both.low_noise.proj_out.weight, own.low_noise.proj_out.weight)  # type: ignore[union-attr]
    for given, missing in (("transformer", "low_noise_transformer"), ("low_noise_transformer", "transformer")):
        with pytest.raises(UserError, match=f"only one would be replaced; give reasoner.{missing} too"):
            Reasoner.load(folder, schedule=LIGHTNING, **{given: other})  # type: ignore[arg-type]
    one = tiny_reasoner_folder(tmp_path / "one")
    with pytest.raises(UserError, match="has no second expert for .*other; leave it out"):
        Reasoner.load(one, schedule=LIGHTNING, low_noise_transformer=other)


def test_half_a_download_does_not_pass_for_a_model_of_one_expert(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    classes = {"boundary_ratio": 0.9, "transformer_2": ["diffusers", "WanTransformer3DModel"]}
    (copy / "model_index.json").write_text(json.dumps(classes))
    shutil.rmtree(copy / "transformer_2")
    with pytest.raises(UserError, match="transformer_2/config.json is missing"):
        Reasoner.load(copy, schedule=LIGHTNING)
