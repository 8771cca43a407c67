"""Load a reasoner's networks. What does not fit together is said before any weights are read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import UMT5EncoderModel

from ttopt.config.settings import LoraSettings
from ttopt.errors import UserError, naming
from ttopt.models.checkpoint import check_finite
from ttopt.models.reasoner.folders import WEIGHTS, Loras, Places, check_local, find, lora_file
from ttopt.models.reasoner.lora import LoraFile, merge
from ttopt.models.reasoner.sharding import shard
from ttopt.models.reasoner.single_file import find_weights, load_single
from ttopt.models.tokenizer import load_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BOUNDARY = 0.9  # Wan2.2-I2V-A14B's, where model_index.json does not say


@dataclass(frozen=True)
class Networks:
    """Frozen, in evaluation mode. ``low_noise``: the second expert, for noise levels below ``boundary``;
    ``clean_frame``: whether an image may be given as the clean first latent frame."""

    transformer: WanTransformer3DModel
    vae: AutoencoderKLWan
    text_encoder: UMT5EncoderModel
    tokenizer: Any
    low_noise: WanTransformer3DModel | None
    boundary: float
    clean_frame: bool


@dataclass(frozen=True)
class Checked:
    """A reasoner's networks without data: the VAE, and the transformers with the LoRAs for each."""

    places: Places
    vae: AutoencoderKLWan
    transformers: list[WanTransformer3DModel]
    loras: list[list[LoraFile]]


def load_networks(
    model: str | Path,
    transformer: str | Path | None,
    dtype: str,
    vae_dtype: str,
    device: str,
    loras: Loras = ((), ()),
    offload: bool = False,
    mesh: DeviceMesh | None = None,
    low_noise_transformer: str | Path | None = None,
) -> Networks:
    """The networks of a diffusers folder or hub id; ``loras`` are merged into the transformer and the second expert.

    With ``offload`` the text encoder and the second expert stay in the CPU's memory. The processes of ``mesh`` share
    out the transformers' blocks, which then stay on the device. Raises UserError naming what is missing, does not
    fit, or holds NaN.
    """
    for name in (dtype, vae_dtype):
        if name not in DTYPES:
            raise UserError(f"dtype {name!r} is not known; choose one of {', '.join(DTYPES)}")
    checked = check_networks(model, transformer, low_noise_transformer, loras)
    shapes, lora_files = checked.transformers, checked.loras
    places = find(model, transformer, low_noise_transformer, loras[1], weights=True)

    network = _load_transformer(places.transformer, shapes[0], dtype, lora_files[0], mesh)
    low_noise = None
    if places.low_noise is not None:
        low_noise = _load_transformer(places.low_noise, shapes[1], dtype, lora_files[1], mesh)
    vae = _load(AutoencoderKLWan, places.vae, torch_dtype=DTYPES[vae_dtype])
    text_encoder = _load(UMT5EncoderModel, places.text_encoder, dtype=DTYPES[dtype])
    with naming(f"reasoner: {places.tokenizer}"):
        tokenizer = load_tokenizer(places.tokenizer)
    waiting = offload and mesh is None
    for module, waits, place, part in (
        (network, False, places.transformer, "transformer"),
        (vae, False, places.vae, "vae"),
        (text_encoder, offload, places.text_encoder, "text_encoder"),
        (low_noise, waiting, places.low_noise, "transformer_2"),
    ):
        if module is not None and place is not None:
            module.to("cpu" if waits else device).eval().requires_grad_(False)  # type: ignore[arg-type]
            if mesh is None or "transformer" not in part:
                check_finite(module, "reasoner", place, WEIGHTS[part])
    boundary = places.index.get("boundary_ratio")
    # A folder without an index says nothing; where there is one, diffusers notes the models that can.
    clean_frame = not places.index or bool(places.index.get("expand_timesteps"))
    return Networks(
        network, vae, text_encoder, tokenizer, low_noise, BOUNDARY if boundary is None else float(boundary), clean_frame
    )


def check_networks(
    model: str | Path, transformer: str | Path | None, low_noise_transformer: str | Path | None, loras: Loras
) -> Checked:
    """The networks as their configurations describe them; of folders on the hub only the small files are fetched.

    Raises UserError for what is missing here, is of an unsupported kind, or does not fit together.
    """
    check_local(model, transformer, low_noise_transformer, loras)
    places = find(model, transformer, low_noise_transformer, loras[1], weights=False)
    vae = _shape(AutoencoderKLWan, places.vae)
    _check_statistics(vae, places.vae)
    _read_config(UMT5EncoderModel, places.text_encoder)
    transformers, lora_files = [], []
    for part, place, chosen in (
        ("transformer", places.transformer, loras[0]),
        ("transformer_2", places.low_noise, loras[1]),
    ):
        if place is not None:
            shape = _shape(WanTransformer3DModel, place if place.is_dir() else places.model / part)
            _check_channels(shape, vae)
            if place.is_file():
                find_weights(place, _sizes(shape))
            transformers.append(shape)
            lora_files.append(_lora_files(shape, chosen))
    return Checked(places, vae, transformers, lora_files)


def _load_transformer(
    place: Path, shape: WanTransformer3DModel, dtype: str, loras: Sequence[LoraFile], mesh: DeviceMesh | None
) -> WanTransformer3DModel:
    if place.is_dir():
        # torch_dtype at loading, never .to(bf16) later: diffusers then keeps time embedder, norms, RoPE in fp32.
        network: WanTransformer3DModel = _load(WanTransformer3DModel, place, torch_dtype=DTYPES[dtype])
    else:
        network = load_single(place, shape, DTYPES[dtype])
    merge(network, loras)
    if mesh is not None:  # before the next network is read, and before this one would have to fit on a device
        check_finite(network, "reasoner", place, WEIGHTS["transformer"])
        shard(network.requires_grad_(False), mesh)
    return network


def _load(kind: Any, folder: Path, **precision: torch.dtype) -> Any:
    """A network of the class ``kind`` with all its weights. Raises UserError."""
    with naming(f"reasoner: {folder}"):
        network, report = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **precision
        )
    if report["missing_keys"]:  # the libraries would fill them with random numbers
        first = min(report["missing_keys"])
        raise UserError(f"reasoner: {folder}: {first} is missing from the weights; fetch them again")
    return network


def _read_config(kind: Any, folder: Path) -> dict[str, Any]:
    """The config.json of a network that must be of the class ``kind`` and of a supported style. Raises UserError."""
    with naming(f"reasoner: {folder}"):
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        made = config.get("_class_name") or config.get("model_type") or kind.__name__
    if made not in (kind.__name__, "umt5"):
        raise UserError(
            f"reasoner: {folder} is a {made}, not a {kind.__name__}; give a model in the style of Wan2.2 "
            "(docs/models.md)"
        )
    if config.get("image_dim") is not None:
        raise UserError(
            f"reasoner: {folder} sees the image through CLIP too, as Wan2.1-I2V does, which is not supported; give "
            "a model in the style of Wan2.2 (docs/models.md)"
        )
    return config


def _shape(kind: Any, folder: Path) -> Any:
    """The network that a folder's config.json describes, without its weights. Raises UserError."""
    config = _read_config(kind, folder)
    with naming(f"reasoner: {folder}"), torch.device("meta"):
        return kind.from_config(config)


def _lora_files(transformer: nn.Module, loras: Sequence[LoraSettings]) -> list[LoraFile]:
    return [LoraFile(lora_file(lora.file), lora.strength, _sizes(transformer)) for lora in loras]


def _sizes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


def _check_statistics(vae: AutoencoderKLWan, folder: Path) -> None:
    for name in ("latents_mean", "latents_std"):
        if len(vae.config[name]) != vae.config["z_dim"]:
            raise UserError(
                f"reasoner: {folder / 'config.json'}: {name} has {len(vae.config[name])} numbers, not "
                f"{vae.config['z_dim']}; fetch it again"
            )


def _check_channels(transformer: WanTransformer3DModel, vae: AutoencoderKLWan) -> None:
    made, taken, given = vae.config["z_dim"], transformer.config["in_channels"], transformer.config["out_channels"]
    if taken not in (made, 2 * made + vae.config["scale_factor_temporal"]) or given != made:
        raise UserError(
            f"reasoner: a transformer takes {taken} channels and gives {given} but the VAE makes {made}; only "
            "models in the style of Wan2.2-TI2V (as many) or Wan2.2-I2V-A14B (a mask and the image's latents "
            "besides) are supported; see docs/models.md"
        )
