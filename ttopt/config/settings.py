"""Settings: what a run can be told, as dataclasses.

The defaults are the paper's (VLM-as-Teacher, arXiv 2606.02564, section 4); the file under configs/ says what a run
really uses. The text under each field is its --help text. parsing.py reads files and command lines, checks.py refuses
values that no run could use. Nothing heavy is imported here, so that ``--help`` and every mistake in a setting answer
at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

Dtype = Literal["float32", "bfloat16", "float16"]

NoiseLevels = Literal["turbo", "turbo_training", "lightning", "fastwan", "shifted"]

EMBEDDED = "embedded"
EMBEDDED_BASE = "embedded-base"
WEIGHTS = Path(__file__).parent.parent / "miniworld/weights"
METHOD_ARGUMENTS = "method.arguments"  # checked by the method itself

KEEP = Literal["last", "accepted", "better", "best"]

# Bare, because the parser would read every text among dict[str, Any]'s values as YAML once more.
Arguments = dict


@dataclass(frozen=True)
class QuerySettings:
    """Your own yes/no questions instead of the teacher's, phrased so that "Yes" means satisfied."""

    goal: str = ""
    """The goal query ("By the end, is ...?"). Empty: the teacher writes all queries."""
    process: list[str] = field(default_factory=list)
    """One to three process queries, e.g. '["Does the red cross stay whole?"]'."""


@dataclass(frozen=True)
class SampleSettings:
    """A sample of your own, instead of the data set's."""

    prompt: str | None = None
    """What should happen in the video."""
    image: str | None = None
    """First frame (PNG, JPEG, ...), cropped and resized to width x height; what is transparent becomes white. Without
    it: text to video."""
    id: str = "sample"
    """Name of the sample's result folder."""
    frames: int = 89
    """Length of the video, 4k+1."""
    fps: int = 24
    """Frames per second."""
    height: int = 704
    """Height in pixels."""
    width: int = 1280
    """Width in pixels. Data sets from files keep their images' aspect and have at most this height x width."""
    multiple: int = 32
    """Data sets from files get sizes that are multiples of this; Wan2.2-5B needs 32."""
    queries: QuerySettings = field(default_factory=QuerySettings)
    """Your own yes/no questions instead of the teacher's (they also replace them on a data set)"""


@dataclass(frozen=True)
class LoraSettings:
    """A LoRA that is merged into the frozen transformer when it is loaded, e.g. one that distils it to few steps."""

    file: str
    """A safetensors file, or owner/name/file.safetensors on the hub."""
    strength: float = 1.0
    """What its update is multiplied by."""


@dataclass(frozen=True)
class ReasonerSettings:
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
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    sigmas: list[float] | NoiseLevels = field(default_factory=lambda: [1.0, 0.75, 0.5, 0.25])
    """Noise levels of the schedule, starting at 1, without the final 0; or those of a public model by its name:
    turbo and turbo_training (Wan2.2-TI2V-5B-Turbo makes its videos with the first, and was trained with the second),
    lightning (LightX2V's LoRAs for Wan2.2-A14B), fastwan. shifted: as many as steps says, shifted by shift."""
    steps: int | None = None
    """With sigmas shifted: how many steps; undistilled models need 20 to 50."""
    shift: float | None = None
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
    loras: list[LoraSettings] = field(default_factory=list)
    """LoRAs merged into the transformer in this order, e.g. '[{file: owner/name/file.safetensors, strength: 0.8}]'."""
    low_noise_loras: list[LoraSettings] = field(default_factory=list)
    """The same for the second expert of Wan2.2-A14B."""
    ignore_image: bool = False
    """For models that were distilled without a first frame, as FastWan2.2 was: the image is left out."""
    vae_dtype: Dtype = "float32"
    """Precision of the VAE."""
    activation_checkpointing: str = "none"
    """Blocks whose activations are computed again in the backward pass instead of being kept, which saves memory: none,
    all, or a range such as 0-14."""
    compile: bool = False
    """Compile the transformer's blocks: quicker steps after some slow first ones."""
    attention: str = "native"
    """One of diffusers' attention backends: native, flash, _flash_3, _native_cudnn, xformers, ..."""
    float8: bool = False
    """Keep the frozen linear layers as float8: half the memory, slightly rounded."""
    offload: bool = False
    """The text encoder and the expert that is not needed wait in the CPU's memory."""
    shard: bool = False
    """Share out the blocks' weights among the processes that torchrun or SLURM has started, one a GPU (FSDP2), for a
    model that one GPU cannot hold."""


@dataclass(frozen=True)
class DecoderSettings:
    """The decoder inside the optimization loop; the final video always uses the standard VAE."""

    kind: Literal["light", "standard"] = "light"
    """light: a tiny decoder. standard: the reasoner's own VAE."""
    model: str = EMBEDDED
    """Folder of the light decoder (config.json and model.safetensors), or a public TAEHV file (.safetensors, .pth)."""
    shrink: int = 0
    """Light decoder only: make frames this many times half as high and wide, for a teacher that needs no more."""
    activation_checkpointing: bool = False
    """Standard decoder only: recompute each latent frame in the backward pass, slower but in little memory."""


@dataclass(frozen=True)
class TeacherSettings:
    """The vision-language model that writes the questions and grades the video."""

    model: str = EMBEDDED
    """Folder or hub id of a Qwen3-VL, Qwen2.5-VL, Qwen3.5 or InternVL3 (-hf); "embedded": the shipped one."""
    frames: int = 24
    """K: how many uniformly sampled frames the teacher sees."""
    dtype: Dtype = "float32"
    """Precision of the teacher's weights."""
    answers: list[str] = field(default_factory=lambda: ["Yes"])
    """The answer that means satisfied. Several of one token each add up, e.g. '[Yes,yes]'."""
    activation_checkpointing: bool = False
    """Compute the layers again in the backward pass instead of keeping their activations, to save memory."""
    compile: bool = False
    """Compile the layers for grading: faster steps after a slow first one (Qwen3-VL, InternVL3)."""
    float8: bool = False
    """Keep the linear layers as float8: half the memory, slightly rounded."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True)
class AdapterSettings:
    """The LoRA: the only weights that are trained, anew for each sample."""

    rank: int = 16
    """Rank of the update."""
    alpha: float | None = None
    """Scale of the update is alpha / rank; null: alpha = rank."""
    targets: Literal["attention", "attention+ffn", "cross_attention"] = "attention"
    """Which projections are adapted."""
    blocks: str = "all"
    """Which transformer blocks are adapted: all, or a range such as 2-5 (counted from 0, both ends included)."""


@dataclass(frozen=True)
class OptimizationSettings:
    """Algorithm 1's numbers."""

    steps: int = 40
    """N: most optimization steps per sample."""
    lr: float = 5e-5
    """Learning rate of AdamW."""
    tau: float = 0.22
    """Stop as soon as the loss is at most tau (0.22: about 80 % sure of "Yes")."""
    goal_weight: float = 0.5
    """Weight of the goal query; the process queries share the rest."""
    denoise_step: Literal["first", "last", "all"] = "first"
    """Which denoising step is optimized."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    starts: int = 1
    """Start from the first noise, of this many, whose one-step prediction has a loss of at most tau, or else from the
    one with the lowest. 1: as it comes."""
    keep: KEEP = "last"
    """Which video is kept. last: the adapter's, accepted or not. accepted: the frozen model's if the loss stayed above
    tau. better: the one of the two with the lower loss. best: as better, or the adapter's one-step prediction."""


@dataclass(frozen=True)
class BankSettings:
    """A bank of adapters that satisfied the teacher, from which new samples may start (docs/bank.md)."""

    folder: str | None = None
    """Folder of the bank, which runs share; null: none, every adapter starts from zero. Only ttopt.methods.TeacherLora
    uses it."""
    least_similarity: float = 0.9
    """Start from the most similar entry if prompt and first image are at least this similar: cosine, -1 to 1."""
    add: bool = True
    """Adapters that satisfy the teacher enter the bank, for later runs."""


@dataclass(frozen=True)
class LoggingSettings:
    """Curves and previews. CSV files are always written."""

    wandb: Literal["auto", "offline", "online", "disabled"] = "auto"
    """auto: online with a W&B key, else offline into the run folder."""
    project: str = "ttopt"
    """W&B project."""
    previews_every: int = 10
    """Write the frames that the teacher sees every n steps; 0: never."""
    state_every: int = 5
    """Keep the state of the optimization every n steps (less often where that would take more than 2 % of the time), so
    that a killed run goes on in the middle of a sample; 0: never."""


@dataclass(frozen=True)
class CallbackSettings:
    """One more Lightning callback of your own."""

    path: str
    """Its class path, for example my_package.MyCallback."""
    arguments: Arguments = field(default_factory=dict)
    """Its keyword arguments."""


@dataclass(frozen=True)
class MethodSettings:
    """How a sample's video is made."""

    path: str = "ttopt.methods.TeacherLora"
    """The method's class path, e.g. ttopt.methods.TeacherLora or loop.StepLoop."""
    arguments: Arguments = field(default_factory=dict)
    """Its keyword arguments, e.g. --method.arguments.attempts 2."""


@dataclass(frozen=True)
class ChatSettings:
    """The vision-language model that answers in words: plans, verdicts, rewrites."""

    backend: Literal["teacher", "local", "openai"] = "teacher"
    """teacher: the loaded teacher; local: another model in this process, in the teacher's precision and on its device,
    both greedily. openai: any server with OpenAI's interface."""
    model: str = ""
    """openai: the server's name of the model. local: a folder or hub id as for the teacher; "embedded": the shipped
    planner and verifier."""
    base_url: str | None = None
    """Address of the server, e.g. http://127.0.0.1:8000/v1; null: OpenAI's own."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; empty: the server wants none."""
    timeout: float = 120.0
    """Most seconds that a call may take from its beginning to the last byte of the reply."""
    max_retries: int = 4
    """How often a call is repeated when the server is busy or cannot be reached, with growing pauses."""
    requests_per_minute: float | None = None
    """Most calls a minute; null: no limit."""
    temperature: float = 0.2
    """Of the server's replies; a model in this process answers greedily."""
    max_tokens: int = 1024
    """Longest reply; a benchmark's judge may write 8192 tokens at least."""
    constrained: bool = False
    """teacher, local: write only what fits the wanted JSON (pip install -e '.[grammar]'); servers are always asked."""
    prompts: str = "full"
    """Wording: full, mini (all that the embedded models know), or a folder of text files like loop/prompts."""
    price_in: float = 0.0
    """Price of a million tokens that are read, for the cost in the trace."""
    price_out: float = 0.0
    """Price of a million tokens that are written."""


@dataclass(frozen=True)
class WorkerSettings:
    """The workers of the engine ray: processes that load the models once and take one sample after the other."""

    count: int | None = None
    """How many; null: as many as there is room for."""
    gpus: float | None = None
    """GPUs of each: 0.5 for two workers a GPU, 2 for models on two devices; null: 1 where there are GPUs, else 0."""
    cpus: float = 1.0
    """CPU cores of each."""
    retries: int = 2
    """How often a sample whose worker died is given to another one."""


@dataclass(frozen=True)
class FitSettings:
    """Run"""

    run_dir: str | None = None
    """Folder of the run; give an old one to continue it. null: a new one under runs/."""
    seed: int = 0
    """Seed of the data set, the noise and the adapter."""
    dataset: Literal["miniworld", "vbvr", "ruler", "genvire", "folder"] = "miniworld"
    """Where samples come from when no sample.prompt is given."""
    root: str | None = None
    """Folder of the data set (folder: or a .jsonl file); the miniworld needs none."""
    split: Literal["id", "ood", "all", "dev_id", "dev_ood"] = "id"
    """miniworld and vbvr: in or out of the distribution of the training data. vbvr also: all. miniworld also: dev_id
    and dev_ood, their twins for choosing settings."""
    families: list[str] | None = None
    """Only these task families, e.g. '[move,maze]' (vbvr: tasks; ruler, genvire: categories or tasks); null: all
    (miniworld: the five that one clip can solve)."""
    limit: int = 5
    """How many samples."""
    batch_samples: int = 1
    """How many samples are optimized side by side on the device, each with its own adapter: the same results up to
    rounding, sooner on small models. Only for ttopt.methods.TeacherLora and engine in_process."""
    engine: Literal["in_process", "ray"] = "in_process"
    """in_process: one sample after the other, here. ray: several at once, on all GPUs of this machine or of a cluster
    (pip install -e '.[ray]'); the results are the same."""
    address: str | None = None
    """ray: the cluster's head as host:port, or auto for the cluster that this machine belongs to; null: a Ray of this
    run's own, on this machine."""
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    """Who solves the samples with the engine ray"""
    sample: SampleSettings = field(default_factory=SampleSettings)
    """A sample of your own, instead of the data set's"""
    reasoner: ReasonerSettings = field(default_factory=ReasonerSettings)
    """The video model that is optimized"""
    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    """The decoder inside the optimization loop"""
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    """The vision-language model that writes the questions and grades the video"""
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    """The LoRA, the only weights that are trained"""
    optimization: OptimizationSettings = field(default_factory=OptimizationSettings)
    """The optimization of one sample"""
    bank: BankSettings = field(default_factory=BankSettings)
    """A bank of adapters that satisfied the teacher, from which new samples may start"""
    method: MethodSettings = field(default_factory=MethodSettings)
    """How a sample's video is made"""
    chat: ChatSettings = field(default_factory=ChatSettings)
    """The vision-language model that answers in words: plans, verdicts, rewrites"""
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    """Curves and previews"""
    callbacks: list[CallbackSettings] = field(default_factory=list)
    """More Lightning callbacks, e.g. '[{path: my_package.MyCallback, arguments: {every: 2}}]'"""


def to_dict(settings: FitSettings) -> dict[str, Any]:
    """Plain nested dict of all settings."""
    return dataclasses.asdict(settings)


def to_yaml(settings: FitSettings) -> str:
    """YAML that ``--config`` reads back as the same settings."""
    return yaml.safe_dump(to_dict(settings), sort_keys=False, allow_unicode=True)


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name: {"teacher": {"frames": 9}} -> {"teacher.frames": 9}."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
