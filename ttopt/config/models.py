"""Settings of the models: the reasoner with its decoder and adapter, and the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ttopt.config.fields import Group, setting
from ttopt.config.sample import MOST_FRAMES

Dtype = Literal["float32", "bfloat16", "float16"]

EMBEDDED = "embedded"
EMBEDDED_BASE = "embedded-base"
WEIGHTS = Path(__file__).parent.parent / "miniworld/weights"


@dataclass(frozen=True)
class ReasonerSettings(Group):
    """The video model that is optimized."""

    model: str = EMBEDDED
    """Diffusers folder or hub id with transformer, vae, text_encoder and tokenizer; "embedded": the shipped one."""
    transformer: str | None = None
    """Another folder or hub id for the transformer alone, e.g. a step-distilled one; "embedded-base": the embedded
    one before its distillation."""
    dtype: Dtype = "float32"
    """Precision of the frozen weights; the adapter is always float32."""
    device: str = setting("auto", free=True)
    """auto, cpu, cuda, cuda:1, ..."""
    sigmas: list[float] = setting([1.0, 0.75, 0.5, 0.25], cap=1000)
    """Noise levels of the few-step schedule, starting at 1, without the final 0."""
    renoise: bool = False
    """Add fresh noise after each step (DMD sampling) instead of an Euler step."""
    lora: str | None = None
    """A LoRA merged into the transformer when it is loaded, e.g. one that distils it to few steps: a safetensors file,
    or owner/name/file.safetensors on the hub."""
    low_noise_lora: str | None = None
    """The same for the second expert of Wan2.2-A14B."""
    ignore_image: bool = False
    """For models that were distilled without a first frame, as FastWan2.2 was: the image is left out."""
    vae_dtype: Dtype = "float32"
    """Precision of the VAE."""
    activation_checkpointing: str = setting("none", free=True)
    """Blocks whose activations are computed again in the backward pass instead of being kept, which saves memory: none,
    all, or a range such as 0-14."""
    compile: bool = False
    """Compile the transformer's blocks: quicker steps after some slow first ones."""
    attention: str = "native"
    """One of diffusers' attention backends: native, flash, _flash_3, _native_cudnn, xformers, ..."""
    float8: bool = False
    """Keep the frozen linear layers as float8: half the memory, slightly rounded."""
    offload: bool = setting(False, free=True)
    """The text encoder and the expert that is not needed wait in the CPU's memory."""
    shard: bool = setting(False, free=True)
    """Share out the blocks' weights among the processes that torchrun or SLURM has started, one a GPU (FSDP2), for a
    model that one GPU cannot hold."""

    def problems(self) -> Iterator[str]:
        levels = self.sigmas
        if not levels or levels[0] != 1 or levels[-1] <= 0 or levels != sorted(set(levels), reverse=True):
            yield (
                f"reasoner.sigmas is {levels}; "
                "give falling noise levels from 1 to above 0 such as '[1.0,0.75,0.5,0.25]'"
            )
        if self.shard and (self.compile or self.float8):
            yield "reasoner.shard is given with reasoner.compile or reasoner.float8; leave out one of them"


@dataclass(frozen=True)
class DecoderSettings(Group):
    """The decoder inside the optimization loop; the final video always uses the standard VAE."""

    kind: Literal["light", "standard"] = "light"
    """light: a tiny decoder. standard: the reasoner's own VAE."""
    model: str = EMBEDDED
    """Folder of the light decoder (config.json and model.safetensors), or a public TAEHV file (.safetensors, .pth)."""
    shrink: int = 0
    """Light decoder only: make frames this many times half as high and wide, for a teacher that needs no more."""
    activation_checkpointing: bool = setting(False, free=True)
    """Standard decoder only: recompute each latent frame in the backward pass, slower but in little memory."""

    def problems(self) -> Iterator[str]:
        if not 0 <= self.shrink <= 3 or (self.shrink and self.kind != "light"):
            yield (
                f"decoder.shrink is {self.shrink} for the {self.kind} decoder; "
                "give 0 to 3, and --decoder.kind light for any but 0"
            )


@dataclass(frozen=True)
class TeacherSettings(Group):
    """The vision-language model that writes the questions and grades the video."""

    model: str = EMBEDDED
    """Folder or hub id of a Qwen3-VL, Qwen2.5-VL, Qwen3.5 or InternVL3 (-hf); "embedded": the shipped one."""
    frames: int = setting(24, low=1, cap=MOST_FRAMES)
    """K: how many uniformly sampled frames the teacher sees."""
    dtype: Dtype = "float32"
    """Precision of the teacher's weights."""
    answers: list[str] = setting(["Yes"], cap=100)
    """The answer that means satisfied. Several of one token each add up, e.g. '[Yes,yes]'."""
    activation_checkpointing: bool = setting(False, free=True)
    """Compute the layers again in the backward pass instead of keeping their activations, to save memory."""
    compile: bool = False
    """Compile the layers for grading: faster steps after a slow first one (Qwen3-VL, InternVL3)."""
    float8: bool = False
    """Keep the linear layers as float8: half the memory, slightly rounded."""
    device: str = setting("auto", free=True)
    """auto, cpu, cuda, cuda:1, ..."""

    def problems(self) -> Iterator[str]:
        if not self.answers or not all(answer.strip() for answer in self.answers):
            yield f"teacher.answers is {self.answers}; give one answer or more, such as '[Yes]'"


@dataclass(frozen=True)
class AdapterSettings(Group):
    """The LoRA: the only weights that are trained, from scratch for each sample."""

    rank: int = setting(16, low=1, cap=4096)
    """Rank of the update."""
    alpha: float | None = setting(None, above=0, give="a positive number, or null for alpha = rank")
    """Scale of the update is alpha / rank; null: alpha = rank."""
    targets: Literal["attention", "attention+ffn", "cross_attention"] = "attention"
    """Which projections are adapted."""
    blocks: str = "all"
    """Which transformer blocks are adapted: all, or a range such as 2-5 (counted from 0, both ends included)."""
