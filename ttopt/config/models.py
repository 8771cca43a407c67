"""Settings of the models: the reasoner with its decoder and adapter, and the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ttopt.config.fields import Group, setting
from ttopt.config.sample import MOST_FRAMES

Dtype = Literal["float32", "bfloat16", "float16"]

NoiseLevels = Literal["turbo", "turbo_training", "lightning", "fastwan", "shifted"]

EMBEDDED = "embedded"
EMBEDDED_BASE = "embedded-base"
WEIGHTS = Path(__file__).parent.parent / "miniworld/weights"


@dataclass(frozen=True)
class LoraSettings:
    """A LoRA that is merged into the frozen transformer when it is loaded, e.g. one that distils it to few steps."""

    file: str
    """A safetensors file, or owner/name/file.safetensors on the hub."""
    strength: float = 1.0
    """What its update is multiplied by."""


@dataclass(frozen=True)
class ReasonerSettings(Group):
    """The video model that is optimized."""

    model: str = EMBEDDED
    """Diffusers folder or hub id with transformer, vae, text_encoder and tokenizer; "embedded": the shipped one."""
    transformer: str | None = None
    """Another folder or hub id for the transformer alone, e.g. a step-distilled one, or a single file as ComfyUI's
    users have it (file.safetensors, or owner/name/file.safetensors on the hub); "embedded-base": the embedded one
    before its distillation."""
    low_noise_transformer: str | None = None
    """The same for the second expert of Wan2.2-A14B; to be given together with transformer."""
    dtype: Dtype = "float32"
    """Precision of the frozen weights; the adapter is always float32."""
    device: str = setting("auto", free=True)
    """auto, cpu, cuda, cuda:1, ..."""
    sigmas: list[float] | NoiseLevels = setting([1.0, 0.75, 0.5, 0.25], cap=1000)
    """Noise levels of the schedule, starting at 1, without the final 0; or those of a public model by its name:
    turbo and turbo_training (Wan2.2-TI2V-5B-Turbo makes its videos with the first, and was trained with the second),
    lightning (LightX2V's LoRAs for Wan2.2-A14B), fastwan. shifted: as many as steps says, shifted by shift."""
    steps: int | None = setting(None, low=1, high=200, give="1 to 200")
    """With sigmas shifted: how many steps; undistilled models need 20 to 50."""
    shift: float | None = setting(None, low=1, high=100, give="1 to 100, e.g. 5")
    """With sigmas shifted: by how much towards more noise; Wan2.2's own is 5."""
    solver: Literal["euler", "unipc"] = "euler"
    """How a step is taken: Euler's, or UniPC's of second order (as diffusers' UniPCMultistepScheduler)."""
    guidance: float = 0.0
    """Classifier-free guidance, for models that were not distilled, e.g. 5: a second forward a step without the prompt.
    0 or 1: none."""
    negative_prompt: str = ""
    """With guidance: what the video should not look like, in place of no prompt."""
    renoise: bool = False
    """Add fresh noise after each step (DMD sampling) instead of an Euler step."""
    loras: list[LoraSettings] = setting([], cap=100)
    """LoRAs merged into the transformer in this order, e.g. '[{file: owner/name/file.safetensors, strength: 0.8}]'."""
    low_noise_loras: list[LoraSettings] = setting([], cap=100)
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
        if (levels == "shifted") != (self.steps is not None) or (self.steps is None) != (self.shift is None):
            yield (
                f"reasoner.sigmas is {levels}, steps {self.steps} and shift {self.shift}; "
                "give sigmas shifted with both, e.g. 20 and 5, or none of them"
            )
        if self.renoise and self.solver != "euler":
            yield (
                f"reasoner.renoise is given with solver {self.solver}; "
                "give --reasoner.solver euler or --reasoner.renoise false"
            )
        if self.guidance != 0 and not 1 <= self.guidance <= 100:
            yield f"reasoner.guidance is {self.guidance}; give 0, or 1 to 100"
        if self.negative_prompt and self.guidance <= 1:
            yield "reasoner.negative_prompt is given without guidance; give --reasoner.guidance too, e.g. 5"
        if not isinstance(levels, str) and (
            not levels or levels[0] != 1 or levels[-1] <= 0 or levels != sorted(set(levels), reverse=True)
        ):
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
    """Folder or hub id of a Qwen3-VL or Qwen3.5 (also with mixtures of experts), Qwen2.5-VL, GLM-4.6V, InternVL3 or
    InternVL3.5 (-hf); "embedded": the shipped one."""
    others: list[str] = setting([], cap=8)
    """Further teachers that grade with it, on the same device: what one overlooks another may see. The questions are
    written by the first."""
    combine: Literal["mean", "worst"] = "mean"
    """With others: a question's loss is the mean of all teachers', or that of the one who is least convinced."""
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
