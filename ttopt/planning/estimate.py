"""What a configuration needs, before any weight is loaded (``ttopt plan``).

The real networks are built without data (device "meta") and one sample is run through them with an op-by-op roofline
model of the chosen GPU (roofline.py). Not covered: moving data between devices, reading weights from disk, the
time that compiling takes.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, UMT5Config, UMT5EncoderModel

from ttopt.config.settings import EMBEDDED, WEIGHTS, DecoderSettings, FitSettings
from ttopt.data.sample import Sample
from ttopt.data.video import sample_frames
from ttopt.errors import UserError
from ttopt.models.reasoner import (
    Adapter,
    Condition,
    LightDecoder,
    LightDecoderConfig,
    Reasoner,
    StandardDecoder,
)
from ttopt.models.reasoner.condition import encode_channels, encode_first_frame, latent_shape
from ttopt.models.reasoner.decoder import Decoder
from ttopt.models.reasoner.float8 import is_frozen_linear
from ttopt.models.reasoner.light_decoder import read_config, shrunk
from ttopt.models.reasoner.loading import BOUNDARY, DTYPES
from ttopt.models.reasoner.recipe import schedule_of
from ttopt.models.reasoner.speed import block_range
from ttopt.models.teacher.attention import PACKED
from ttopt.models.teacher.vision import Vision, speed_up
from ttopt.planning.gpus import Gpu
from ttopt.planning.model_sizes import reasoner_config, teacher_config, text_tokens
from ttopt.planning.roofline import KEPT, Roofline, Work, storage_key

GIB = 2**30
QUESTIONS = 4  # a goal and three process queries
QUESTION_TOKENS = 40  # with the chat format around it
PREFIX_TOKENS = 10  # the chat's opening; each temporal patch adds its timestamp
TIMESTAMP_TOKENS = 10
REPLY_TOKENS = 200  # the teacher's questions, as JSON
STEP = ("predict", "decode", "grade", "backward")
USABLE = 0.94  # of a GPU's memory: the rest is CUDA's own and fragmentation


@dataclass(frozen=True)
class Requirements:
    """The estimate for one sample on one GPU; seconds and bytes by part."""

    gpu: Gpu
    tokens: dict[str, int]
    parts: dict[str, Work]
    weights: dict[str, int]  # bytes on the GPU
    grading: int  # most bytes that the teacher's activations take
    two_devices: bool  # the teacher has a GPU of its own
    steps: float  # optimization steps of a sample, on average
    processes: int  # that share the video model's blocks, each on a GPU
    starts: int = 1  # noises whose one-step predictions are graded before the first step, at most: all are counted
    best: bool = False  # the adapter's one-step prediction is decoded and graded too (optimization.keep best)
    forwards: int = 1  # of the video model for a video

    @property
    def step_seconds(self) -> float:
        return self._seconds(*STEP)

    @property
    def step_flop(self) -> float:
        return sum(self.parts[name].flop for name in STEP)

    @property
    def sample_seconds(self) -> float:
        """Starting noise, base video, questions, ``steps`` steps and the grading that stops them, the optimized video,
        and the grading of the videos."""
        once = self._seconds("condition", "queries", "prefix")
        if self.starts > 1:
            forward = self._seconds("generate") / self.forwards
            once += self.starts * (forward + self._seconds("decode", "grade"))
        videos = 2 * self._seconds("generate", "final decode", "grade")
        if self.best:
            videos += self._seconds("predict", "final decode", "grade")
        last = self.step_seconds - self._seconds("backward")
        return once + videos + self.steps * self.step_seconds + last

    def _seconds(self, *names: str) -> float:
        return sum(self.parts[name].seconds for name in names)

    @property
    def memory(self) -> dict[str, int]:
        """Most bytes at one moment on each GPU."""
        whole = sum(self.weights.values()) + max(part.peak for part in self.parts.values())
        if not self.two_devices:
            return {"the GPU" if self.processes == 1 else "each GPU": whole}
        own = [part.peak for name, part in self.parts.items() if name not in ("grade", "backward")]
        shared = max(self.parts[name].peak - self.grading for name in ("grade", "backward"))
        teacher = self.weights["teacher"]
        rest = sum(self.weights.values()) - teacher
        return {"the reasoner's GPU": rest + max(*own, shared), "the teacher's GPU": teacher + self.grading}

    @property
    def gpus(self) -> int:
        """How many a sample needs."""
        return len(self.memory) * self.processes

    @property
    def fits(self) -> bool:
        return max(self.memory.values()) <= USABLE * self.gpu.memory * GIB


@dataclass(frozen=True)
class MetaModels:
    """The networks of a configuration, without data."""

    reasoner: Reasoner
    adapter: Adapter
    decoder: Decoder
    teacher: Any
    vision: Vision

    def float8(self, settings: FitSettings) -> dict[str, list[nn.Linear]]:
        """The layers of each network whose weights are kept as float8."""
        r, t = settings.reasoner, settings.teacher
        networks: list[tuple[str, bool, nn.Module | None, str]] = [
            ("transformer", r.float8, self.reasoner.transformer, "blocks."),
            ("second expert", r.float8, self.reasoner.low_noise, "blocks."),
            ("teacher", t.float8, self.teacher, "model."),
        ]
        return {
            name: [layer for path, layer in network.named_modules() if is_frozen_linear(layer, path, layers)]
            for name, on, network, layers in networks
            if on and network is not None
        }

    def weights(self, settings: FitSettings, processes: int) -> dict[str, int]:
        """Bytes of each network's parameters and buffers, as they lie on each GPU in the optimization loop."""
        r = settings.reasoner
        parts: dict[str, nn.Module | None] = {
            "transformer": self.reasoner.transformer,
            "second expert": None if r.offload and processes == 1 else self.reasoner.low_noise,  # a part stays
            "text encoder": None if r.offload else self.reasoner.text_encoder,
            "vae": self.reasoner.vae,
            "light decoder": self.reasoner.light_decoder,
            "teacher": self.teacher,
        }
        found = {name: nbytes(network) for name, network in parts.items() if network is not None}
        for name, layers in self.float8(settings).items():
            if name in found:
                found[name] -= sum(layer.weight.numel() * (layer.weight.element_size() - 1) for layer in layers)
        for name in ("transformer", "second expert"):
            if processes > 1 and name in found:
                blocks, largest = block_bytes(parts[name])
                # Its part of all blocks, and two whole ones: one computes, the next is being gathered.
                found[name] += math.ceil(blocks / processes) + 2 * largest - blocks
        return found


def plan(settings: FitSettings, gpu: Gpu, steps: float = 16, processes: int = 1) -> Requirements:
    """Estimates one sample with a first frame; ``steps`` optimization steps (16: the paper's average), by
    ``processes`` that share the video model's weights (``reasoner.shard``).

    Raises UserError for models whose sizes are unknown and for sizes that the models cannot have.
    """
    models = meta_models(settings)
    reasoner, wanted, o = models.reasoner, settings.sample, settings.optimization
    blank = Sample("plan", "plan", None, wanted.frames, wanted.fps, wanted.height, wanted.width)
    shape = latent_shape(blank, reasoner.vae, reasoner.transformer.config["patch_size"])
    numbers = sample_frames(settings.teacher.frames, wanted.frames)
    fast, fast_teacher = settings.reasoner.compile, settings.teacher.compile
    both = fast and fast_teacher
    roofline, kept = Roofline(gpu), KEPT if both else 1.0
    rounded = models.float8(settings)
    roofline.float8 = {storage_key(layer.weight) for layers in rounded.values() for layer in layers}
    with roofline.part("condition"), torch.no_grad():
        text = _text(models, settings)
    if settings.reasoner.offload:  # it is there while it works, and leaves before the image is encoded
        roofline.parts["condition"].peak += nbytes(reasoner.text_encoder)
    with roofline.part("condition"), torch.no_grad():
        condition = _condition(models, text, shape, settings)
    z1 = torch.empty((1, *shape), device="meta")
    for name in ("prefix", "predict", "decode", "grade", "backward", "generate", "final decode", "queries"):
        roofline.parts.setdefault(name, Work())

    sigma, prefix = reasoner.schedule.sigmas[0], None
    if o.denoise_step == "first":
        with roofline.part("prefix", fast), torch.no_grad():
            prefix = reasoner.prefix(z1, sigma, condition, models.adapter.first_block)
    with roofline.part("predict", fast):
        if o.denoise_step == "all":
            latents = reasoner.denoise(z1, condition)
        else:  # "last" also samples the steps before it, without gradients
            latents = reasoner.predict_clean(z1, sigma, condition, prefix)
    with roofline.part("decode"):
        frames = models.decoder(latents, numbers)
    held = roofline.alive
    with roofline.part("grade", fast_teacher):
        loss, video_tokens = _grade(models, frames)
    with roofline.part("backward", both):
        loss.backward()
    del latents, frames, loss, prefix
    for parameter in models.adapter.parameters():
        parameter.grad = None
    with roofline.part("generate", fast), torch.no_grad():
        video = reasoner.predict_clean(z1, sigma, condition)
    one, count = roofline.parts["generate"], len(reasoner.schedule)
    one.flop, one.seconds = one.flop * count, one.seconds * count
    with roofline.part("final decode"):
        reasoner.decode(video)
    if o.denoise_step == "last":
        roofline.parts["predict"].seconds += one.seconds * (1 - 1 / count)
        roofline.parts["predict"].flop += one.flop * (1 - 1 / count)
    if processes > 1:
        # Every pass, forward or backward, gathers the blocks' weights, each block's while another one computes.
        gather = block_bytes(reasoner.transformer)[0] * (1 - 1 / processes) / gpu.link
        first, every = o.denoise_step == "first", o.denoise_step == "all"
        passes = {"predict": 1 if first else count, "backward": count if every else 1, "generate": count}
        for name, times in passes.items():
            roofline.parts[name].seconds = max(roofline.parts[name].seconds, times * gather)
    weights = models.weights(settings, processes)
    # Writing text reads every weight of the teacher once a token, and multiplies and adds once with each.
    roofline.parts["queries"].flop = 2.0 * REPLY_TOKENS * sum(p.numel() for p in models.teacher.parameters())
    token = weights["teacher"] / (0.6 * gpu.bandwidth)
    token += roofline.unrounding(sum(layer.weight.numel() for layer in rounded.get("teacher", [])))
    roofline.parts["queries"].seconds = REPLY_TOKENS * token
    patch = reasoner.transformer.config["patch_size"]
    tokens = {
        "video model": shape[1] // patch[0] * (shape[2] // patch[1]) * (shape[3] // patch[2]),
        "teacher, video": video_tokens,
        "teacher, text": PREFIX_TOKENS + QUESTIONS * QUESTION_TOKENS,
    }
    grading = roofline.parts["grade"].peak - held
    for name in ("prefix", *STEP):  # samples side by side; seconds stay those of one
        roofline.parts[name].peak = int(roofline.parts[name].peak * settings.batch_samples * kept)
    spelled = {"auto": "cuda:0", "cuda": "cuda:0"}  # names of the same GPU
    reasoner_on, teacher_on = (spelled.get(s.device, s.device) for s in (settings.reasoner, settings.teacher))
    two_devices = teacher_on != reasoner_on
    return Requirements(
        gpu,
        tokens,
        roofline.parts,
        weights,
        int(grading * settings.batch_samples * kept),
        two_devices,
        steps,
        processes,
        o.starts,
        o.keep == "best",
        count,
    )


def meta_models(settings: FitSettings) -> MetaModels:
    """The networks that ``ttopt.models.load.load_models`` would load, without data."""
    r, d, a, t = settings.reasoner, settings.decoder, settings.adapter, settings.teacher
    dtype = DTYPES[r.dtype]
    transformer_config = None
    if r.transformer is not None:  # a folder that is not there yet is taken to be like the model's own
        with suppress(UserError):
            transformer_config = reasoner_config(r.transformer, "transformer")
    config = {part: reasoner_config(r.model, part) or {} for part in ("transformer", "vae", "text_encoder")}
    with torch.device("meta"):
        transformer = WanTransformer3DModel.from_config(transformer_config or config["transformer"])
        second = reasoner_config(r.model, "transformer_2")  # another one for it is taken to be like it
        low_noise = None if second is None else WanTransformer3DModel.from_config(second)
        vae = AutoencoderKLWan.from_config(config["vae"])
        text_encoder = UMT5EncoderModel(UMT5Config(**config["text_encoder"]))
        light = LightDecoder(_light_config(d, vae.config["z_dim"])) if d.kind == "light" else None
        if t.others:
            raise UserError("teacher.others: only one teacher can be planned for; leave the others out")
        teacher_sizes = teacher_config(t.model)
        if teacher_sizes.get("model_type") != "qwen3_vl":
            raise UserError(f"teacher.model {t.model}: only Qwen3-VL teachers can be planned for")
        teacher = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**teacher_sizes))
    cast_as_loaded(transformer, dtype)
    if low_noise is not None:
        cast_as_loaded(low_noise, dtype)
    cast_as_loaded(vae, DTYPES[r.vae_dtype])
    if light is not None:
        light.to(dtype)
    text_encoder.to(dtype)
    teacher.to(DTYPES[t.dtype])
    for network in (transformer, low_noise, vae, text_encoder, light, teacher):
        if network is not None:
            network.eval().requires_grad_(False)
    teacher.set_attn_implementation(PACKED)
    speed_up(teacher.model.visual)
    if t.activation_checkpointing:
        teacher.train().activation_checkpointing_enable({"use_reentrant": False})
    index = reasoner_config(r.model, "model_index") or {}
    reasoner = Reasoner(
        transformer,
        vae,
        text_encoder,
        None,
        replace(schedule_of(r), solver="euler"),  # whose steps need as many forwards as UniPC's
        light,
        low_noise,
        index.get("boundary_ratio") or BOUNDARY,
        guidance=r.guidance,
        activation_checkpointing=block_range(
            r.activation_checkpointing, len(transformer.blocks), "reasoner.activation_checkpointing"
        ),
    )
    decoder = light or StandardDecoder(vae, activation_checkpointing=d.activation_checkpointing)
    adapter = Adapter(transformer, a.rank, a.alpha, a.targets, a.blocks)
    return MetaModels(reasoner, adapter, decoder, teacher, Vision.of(teacher.config))


def cast_as_loaded(network: Any, dtype: torch.dtype) -> None:
    """``dtype`` as ``from_pretrained(torch_dtype=...)`` gives it: what diffusers keeps in float32 stays so."""
    kept = network._keep_in_fp32_modules or []
    for name, parameter in network.named_parameters():
        if not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.to(dtype)


def nbytes(network: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(x.numel() * x.element_size() for x in (*network.parameters(), *network.buffers()))


def block_bytes(transformer: Any) -> tuple[int, int]:
    """Bytes of all blocks' frozen weights, and of the largest block's: what processes share out."""
    sizes = [
        sum(x.numel() * x.element_size() for name, x in block.named_parameters() if "lora_" not in name)
        for block in transformer.blocks
    ]
    return sum(sizes), max(sizes)


def _light_config(decoder: DecoderSettings, channels: int) -> LightDecoderConfig:
    folder = WEIGHTS / "light_decoder" if decoder.model == EMBEDDED else Path(decoder.model)
    if (folder / "config.json").is_file():
        config = read_config(folder / "config.json")
    else:  # a file, or a folder that is not there yet, is taken to be the public one
        config = LightDecoderConfig.public(channels, decoder.model)
    return replace(config, space_upscale=shrunk(config.space_upscale, decoder.shrink))


def _text(models: MetaModels, settings: FitSettings) -> Tensor:
    """Text embeddings (1, L, D) from tokens without data."""
    encoder = models.reasoner.text_encoder
    tokens = torch.empty(1, text_tokens(settings.reasoner.model), dtype=torch.int64, device="meta")
    text: Tensor = encoder(inputs_embeds=encoder.shared(tokens)).last_hidden_state
    return text.to(models.reasoner.dtype)


def _condition(models: MetaModels, text: Tensor, shape: tuple[int, int, int, int], settings: FitSettings) -> Condition:
    """The text with a first frame, from an image without data."""
    reasoner, sample = models.reasoner, settings.sample
    image = torch.empty(1, 3, sample.height, sample.width, device="meta")
    first = channels = None
    if reasoner.takes_channels:
        channels = encode_channels(image, reasoner.vae, sample.frames)
    elif not settings.reasoner.ignore_image:
        first = encode_first_frame(image, reasoner.vae)
    return Condition(text, first, shape, channels, text if reasoner.guidance > 1 else None)


def _grade(models: MetaModels, frames: Tensor) -> tuple[Tensor, int]:
    """A stand-in for ``Teacher.yes_losses``: the same work without a tokenizer. Returns a loss, the vision tokens."""
    net, language = models.teacher.model, models.teacher.model.language_model
    rows, grid = models.vision.video_patches(frames)
    count = rows.shape[1]
    seen = net.visual(
        rows.flatten(0, 1).to(net.visual.dtype),
        grid_thw=torch.tensor([grid]),
        frame_patches=grid[1] * grid[2],
        return_dict=True,
        # Given here because they are computed from the grid's values, which must not be without data.
        interp_indices=torch.empty(count, 4, dtype=torch.int64, device="meta"),
        interp_weights=torch.empty(count, 4, device="meta"),
        position_ids=torch.empty(count, 2, dtype=torch.int64, device="meta"),
    )
    # The features that Qwen3-VL adds in its first layers are added here at once: as much work, without a mask's values.
    features = sum(seen.deepstack_features, start=seen.pooler_output)
    video = len(features)
    prefix, questions = video + grid[0] * TIMESTAMP_TOKENS + PREFIX_TOKENS, QUESTIONS * QUESTION_TOKENS
    length = prefix + questions
    text = torch.empty(1, length, features.shape[-1], dtype=features.dtype, device="meta")
    hidden = language(
        inputs_embeds=text.index_copy(1, torch.empty(video, dtype=torch.int64, device="meta"), features[None]),
        position_ids=torch.empty(3, 1, length, dtype=torch.int64, device="meta"),
        attention_mask=torch.empty(1, 1, questions, length, dtype=torch.bool, device="meta"),
        prefix_tokens=prefix,
        use_cache=False,
    ).last_hidden_state
    return models.teacher.lm_head(hidden[:, :QUESTIONS]).float().log_softmax(-1).sum(), video
