"""All networks of a run, loaded once: the reasoner, its adapter, the decoder of the loop and the teacher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

import torch

from ttopt.config.settings import EMBEDDED, EMBEDDED_BASE, WEIGHTS, FitSettings, ReasonerSettings, TeacherSettings
from ttopt.errors import UserError, is_out_of_memory
from ttopt.models.devices import check_dtype, find_device
from ttopt.models.distributed import COMMAND, is_distributed
from ttopt.models.quiet import quiet_loading
from ttopt.models.reasoner import Adapter, Reasoner, StandardDecoder
from ttopt.models.reasoner.decoder import Decoder
from ttopt.models.reasoner.float8 import to_float8
from ttopt.models.reasoner.recipe import schedule_of
from ttopt.models.reasoner.sharding import all_processes
from ttopt.models.reasoner.speed import block_range, compiled_block, set_attention
from ttopt.models.teacher import Teacher
from ttopt.models.teacher.teacher import check_teacher

TOO_SMALL = "the GPU's memory is too small; 'ttopt plan' with the same settings says what is needed and what to change"
CPU_TOO_SMALL = "the CPU's memory is too small; give smaller models or a smaller adapter.rank, or close other programs"


@dataclass(frozen=True)
class Models:
    """All networks, loaded once for all samples of a run."""

    reasoner: Reasoner
    adapter: Adapter
    decoder: Decoder
    teacher: Teacher


def load_models(settings: FitSettings) -> Models:
    """Loads the reasoner, its adapter, the decoder and the teacher, all frozen but the adapter.

    Raises UserError for what is missing, does not fit together, or does not fit the device.
    """
    with _naming_shortage(), quiet_loading():
        return _load(settings)


@contextmanager
def _naming_shortage() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # too little memory comes as several kinds
        if is_out_of_memory(error):
            raise UserError(f"loading the models: {too_small(error)}") from error
        raise


def too_small(error: BaseException) -> str:
    """What to say of an error that ``is_out_of_memory``: whose memory was too small, and what to do."""
    return TOO_SMALL if isinstance(error, torch.OutOfMemoryError) else CPU_TOO_SMALL


def no_models() -> Models:
    """For methods that need none: what the measuring of time and cost asks for, and nothing else."""
    return cast(
        Models, SimpleNamespace(reasoner=SimpleNamespace(device=torch.device("cpu"), observers=[]), teacher=None)
    )


def sources(settings: FitSettings) -> str:
    """What is loaded, from where, in which precision, onto which device; one line. Raises UserError for no device."""
    r, d, t = settings.reasoner, settings.decoder, settings.teacher
    transformer = f", its transformer from {r.transformer}" if r.transformer else ""
    light = f"; light decoder {d.model}" if d.kind == "light" else "; the VAE as decoder"
    if r.low_noise_transformer:
        transformer += f" and the second expert's from {r.low_noise_transformer}"
    loras = "".join(f", with the LoRA {lora.file} x {lora.strength:g}" for lora in r.loras)
    loras += "".join(f", its second expert with the LoRA {lora.file} x {lora.strength:g}" for lora in r.low_noise_loras)
    device, teacher_device = find_device(r.device, "reasoner.device"), find_device(t.device, "teacher.device")
    return (
        f"loading: reasoner {r.model}{transformer}{loras} ({r.dtype}{', float8' * r.float8}, VAE {r.vae_dtype}, "
        f"{device}{', shared out' * r.shard}){light}; "
        f"teacher {' and '.join([t.model, *t.others])} ({t.dtype}{', float8' * t.float8}, {teacher_device})"
    )


def _load(settings: FitSettings) -> Models:
    r, a, d, t = settings.reasoner, settings.adapter, settings.decoder, settings.teacher
    light = weights_path(d.model, "light_decoder", "decoder.model") if d.kind == "light" else None
    device = find_device(r.device, "reasoner.device")
    check_dtype(r.dtype, device, "reasoner.dtype")
    check_dtype(r.vae_dtype, device, "reasoner.vae_dtype")
    # What is wrong with the teacher should not wait for the reasoner.
    check_dtype(t.dtype, find_device(t.device, "teacher.device"), "teacher.dtype")
    for teacher in (t.model, *t.others):
        check_teacher(weights_path(teacher, "teacher", "teacher.model"))
    if r.shard and not is_distributed():
        raise UserError(f"reasoner.shard works with ttopt fit, in several processes; start {COMMAND}")
    model, transformer, low_noise_transformer = reasoner_names(r)
    reasoner = Reasoner.load(
        model,
        schedule=schedule_of(r),
        transformer=transformer,
        light_decoder=light,
        shrink=d.shrink,
        dtype=r.dtype,
        vae_dtype=r.vae_dtype,
        device=device,
        loras=r.loras,
        low_noise_loras=r.low_noise_loras,
        low_noise_transformer=low_noise_transformer,
        ignore_image=r.ignore_image,
        guidance=r.guidance,
        negative_prompt=r.negative_prompt,
        offload=r.offload,
        mesh=all_processes(device) if r.shard else None,
    )
    if reasoner.low_noise is not None and settings.optimization.denoise_step != "first":
        raise UserError(
            f"optimization.denoise_step is {settings.optimization.denoise_step}, but of two experts only that of the "
            "first step is adapted; give first"
        )
    experts = [reasoner.transformer, *([reasoner.low_noise] if reasoner.low_noise is not None else [])]
    blocks = len(reasoner.transformer.blocks)
    reasoner.activation_checkpointing = block_range(
        r.activation_checkpointing, blocks, "reasoner.activation_checkpointing"
    )
    for expert in experts:
        if r.attention != "native":
            set_attention(expert, r.attention)
        if r.float8:
            to_float8(expert, "blocks.")
    adapter = Adapter(reasoner.transformer, a.rank, a.alpha, a.targets, a.blocks, reasoner.device)
    if r.compile:
        reasoner.run_block = compiled_block()
    decoder = reasoner.light_decoder or StandardDecoder(reasoner.vae, d.activation_checkpointing)
    return Models(reasoner, adapter, decoder, load_teacher(settings))


def load_teacher(settings: FitSettings) -> Teacher:
    """Loads only the teacher, for callers that just grade. Raises UserError."""
    t = settings.teacher
    device = find_device(t.device, "teacher.device")
    check_dtype(t.dtype, device, "teacher.dtype")
    with _naming_shortage():
        teacher, *others = [_load_teacher(model, t, device) for model in (t.model, *t.others)]
    teacher.others, teacher.combine = others, t.combine
    return teacher


def _load_teacher(model: str, t: TeacherSettings, device: str) -> Teacher:
    teacher = Teacher.load(
        weights_path(model, "teacher", "teacher.model"),
        dtype=t.dtype,
        device=device,
        answer=t.answers,
        activation_checkpointing=t.activation_checkpointing,
    )
    if t.float8:
        to_float8(teacher.model, "model.")
    if t.compile:
        teacher.compile()
    return teacher


def reasoner_names(r: ReasonerSettings) -> tuple[str, str | None, str | None]:
    """Paths or hub ids of the model, of its other transformer and of that of its second expert. Raises UserError."""
    transformer = r.transformer
    if transformer == EMBEDDED_BASE:
        transformer = weights_path(EMBEDDED, "base/transformer", "reasoner.transformer")
    return weights_path(r.model, "reasoner", "reasoner.model"), transformer, r.low_noise_transformer


def weights_path(model: str, part: str, setting: str) -> str:
    """The path or hub id of a model; "embedded" is the shipped one, ``part`` its folder. Raises UserError."""
    if model != EMBEDDED:
        return model
    if not (WEIGHTS / part).is_dir():
        raise UserError(
            f"the embedded weights are missing ({WEIGHTS / part}); install ttopt again, or give --{setting}"
        )
    return str(WEIGHTS / part)
