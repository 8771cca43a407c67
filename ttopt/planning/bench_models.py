"""What ``ttopt bench`` measures: the embedded models, and random ones of the public models' sizes."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from ttopt.config.parsing import parse_fit
from ttopt.data import miniworld
from ttopt.data.video import sample_frames
from ttopt.errors import UserError
from ttopt.models.load import load_models
from ttopt.models.reasoner import (
    Adapter,
    Condition,
    LightDecoder,
    LightDecoderConfig,
    Reasoner,
    Schedule,
    StandardDecoder,
)
from ttopt.models.reasoner.decoder import Decoder
from ttopt.models.reasoner.light_decoder import shrunk
from ttopt.models.reasoner.sampler import TIMESTEPS, predict_clean
from ttopt.models.reasoner.speed import compiled_block
from ttopt.models.teacher import Teacher
from ttopt.models.teacher.prompts import END, IMAGE_PAD, START, VIDEO_PAD, VISION_END, VISION_START
from ttopt.planning.estimate import cast_as_loaded
from ttopt.planning.model_sizes import TEACHERS, WAN_5B


@dataclass(frozen=True)
class Bench:
    """One sample, ready to be optimized in any way."""

    title: str
    reasoner: Reasoner
    light: Decoder
    standard: Decoder
    teacher: Teacher
    condition: Condition
    z1: Tensor
    questions: Sequence[str]
    frame_numbers: Sequence[int]
    fps: int
    lr: float
    small: Decoder | None = None  # the light decoder with its last up-scaling switched off
    large: bool = False  # too large to keep all activations in the plain way

    def adapter(self, late: bool) -> Adapter:
        """A new adapter, always the same at the start; remove it before the next one."""
        count = len(self.reasoner.transformer.blocks)
        return Adapter(self.reasoner.transformer, 16, blocks=f"{count // 2}-{count - 1}" if late else "all")

    def prepare(self, keep: bool, compiled: bool) -> None:
        """Whether activations are kept for the backward pass (of small models always) and layers are compiled (the
        teacher's then stay so)."""
        transformer = self.reasoner.transformer
        self.reasoner.run_block = compiled_block() if compiled else None
        if compiled:
            self.teacher.compile()
        if keep or not self.large:
            transformer.disable_gradient_checkpointing()
            self.teacher.set_activation_checkpointing(False)
            self.reasoner.activation_checkpointing = ()
        else:
            transformer.enable_gradient_checkpointing()
            self.teacher.set_activation_checkpointing(True)
            self.reasoner.activation_checkpointing = range(len(transformer.blocks))

    def stock_prediction(self) -> Tensor:
        """z0 by diffusers' own forward, with one timestep a token (1, C, T, h, w)."""
        reasoner, z1 = self.reasoner, self.z1
        frames, height, width = reasoner.transformer.config["patch_size"]
        tokens = (z1.shape[3] // height) * (z1.shape[4] // width)
        timestep = torch.full((1, z1.shape[2] // frames * tokens), TIMESTEPS, device=z1.device)
        timestep[:, :tokens] = 0.0
        latents = reasoner.impose_first_frame(z1, self.condition)
        velocity = reasoner.transformer(latents.to(reasoner.dtype), timestep, self.condition.text, return_dict=False)[
            0
        ].float()
        return reasoner.impose_first_frame(predict_clean(z1, velocity, 1.0), self.condition)


def mini() -> Bench:
    """The embedded models and one sample of the embedded world."""
    settings = parse_fit(["--config", "mini"])
    models = load_models(settings)
    models.adapter.remove()
    sample = miniworld.samples("id", None, 0, 1)[0]
    condition = models.reasoner.condition(sample)
    light = models.reasoner.light_decoder
    assert light is not None
    return Bench(
        title=f"embedded models, {sample.frames} frames of {sample.height}x{sample.width}",
        reasoner=models.reasoner,
        light=light,
        standard=StandardDecoder(models.reasoner.vae),
        teacher=models.teacher,
        condition=condition,
        z1=models.reasoner.noise(condition, [0]),
        questions=miniworld.true_queries(sample).all,
        frame_numbers=sample_frames(settings.teacher.frames, sample.frames),
        fps=sample.fps,
        lr=settings.optimization.lr,
    )


def real_size(height: int, width: int, frames: int) -> Bench:
    """Wan2.2-TI2V-5B, its VAE, taew2_2 and Qwen3-VL-4B with random weights on the GPU. Raises UserError without one."""
    if not torch.cuda.is_available():
        raise UserError("--size 5b needs a GPU, and torch finds none; use --size mini")
    if height % 32 or width % 32 or frames % 4 != 1:
        raise UserError(f"{frames} frames of {height}x{width}: give multiples of 32 and 4k+1 frames")
    return random_models(
        WAN_5B, TEACHERS["Qwen/Qwen3-VL-4B-Instruct"], LightDecoderConfig(), (height, width, frames), "cuda"
    )


def random_models(
    wan: dict[str, Any],
    qwen: dict[str, Any],
    light: LightDecoderConfig,
    size: tuple[int, int, int],
    device: str,
    dtype: torch.dtype = torch.bfloat16,
) -> Bench:
    """Models of these configurations with random weights of this dtype, made on the device itself."""
    torch.manual_seed(0)
    height, width, frames = size
    with torch.device(device):
        transformer = WanTransformer3DModel.from_config(wan["transformer"])
        vae = AutoencoderKLWan.from_config(wan["vae"])
        decoder = LightDecoder(light).to(dtype)
        small = LightDecoder(replace(light, space_upscale=shrunk(light.space_upscale, 1))).to(dtype)
        with default_dtype(dtype):  # 4B float32 weights would take long to make
            vlm = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**qwen))
    cast_as_loaded(transformer, dtype)
    cast_as_loaded(vae, dtype)  # in float32 its caches do not fit beside the rest, not even into 141 GB
    small.load_state_dict(decoder.state_dict())
    for network in (transformer, vae, decoder, small, vlm):
        network.eval().requires_grad_(False)
    reasoner = Reasoner(transformer, vae, None, None, Schedule(), decoder)  # type: ignore[arg-type]
    space = vae.config["scale_factor_spatial"]
    shape = (vae.config["z_dim"], (frames - 1) // 4 + 1, height // space, width // space)
    text = torch.randn(1, 512, transformer.config["text_dim"], device=device, dtype=dtype)
    first = torch.randn(1, shape[0], 1, *shape[2:], device=device)
    return Bench(
        title=f"random weights of the public models' sizes, {frames} frames of {height}x{width}",
        reasoner=reasoner,
        light=decoder,
        standard=StandardDecoder(vae, activation_checkpointing=True),
        teacher=Teacher(vlm, StandInTokenizer(qwen["image_token_id"], qwen["video_token_id"])),
        condition=Condition(text, first, shape),
        z1=torch.randn(1, *shape, device=device),
        questions=["Is the object at its goal by the end of the video, where the task says that it must be?"] * 4,
        frame_numbers=sample_frames(min(24, frames), frames),
        fps=24,
        lr=5e-5,
        small=small,
        large=True,
    )


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New weights have this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class StandInTokenizer:
    """Where there is no vocabulary: one token for four characters, as English text has, and the vision tokens."""

    chat_template = None
    unk_token_id = None

    def __init__(self, image_id: int, video_id: int) -> None:
        self.special = {IMAGE_PAD: image_id, VIDEO_PAD: video_id, START: 1, END: 2, VISION_START: 3, VISION_END: 4}

    def get_added_vocab(self) -> dict[str, int]:
        return self.special

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        ids: list[int] = []
        for piece in re.split("(" + "|".join(map(re.escape, self.special)) + ")", text):
            plain = [piece[i : i + 4] for i in range(0, len(piece), 4)]
            ids += [self.special[piece]] if piece in self.special else [5 + sum(map(ord, part)) % 50 for part in plain]
        return {"input_ids": ids}


def machine(device: torch.device) -> str:
    """The machine in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads"
