"""Find and load a reasoner's networks, and say early which file is missing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors import SafetensorError
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoTokenizer, UMT5EncoderModel

from ttopt.errors import UserError, brief, naming
from ttopt.models.hub import on_hub
from ttopt.models.reasoner.sharding import shard

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHTS = {
    "transformer": "diffusion_pytorch_model",
    "transformer_2": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
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


def load_networks(
    model: str | Path,
    transformer: str | Path | None,
    dtype: str,
    vae_dtype: str,
    device: str,
    loras: tuple[str | None, str | None] = (None, None),
    offload: bool = False,
    mesh: DeviceMesh | None = None,
) -> Networks:
    """The networks of a diffusers folder or hub id; ``loras`` are merged into the transformer and the second expert.

    With ``offload`` the text encoder and the second expert stay in the CPU's memory. The processes of ``mesh`` share
    out the transformers' blocks, which then stay on the device. Raises UserError naming what is missing or does not
    fit.
    """
    for name in (dtype, vae_dtype):
        if name not in DTYPES:
            raise UserError(f"dtype {name!r} is not known; choose one of {', '.join(DTYPES)}")
    check_local(model, transformer, loras)
    own_transformer = [] if transformer is not None else ["transformer", "transformer_2"]
    folder = local_folder(model, [*own_transformer, "vae", "text_encoder", "tokenizer"])
    two_experts = _check_folder(folder, transformer is None, loras[1])
    transformer_folder = folder / "transformer"
    if transformer is not None:
        transformer_folder = _transformer_folder(local_folder(transformer, ["transformer"]))
    index = _index(folder)
    lora, low_noise_lora = (None if name is None else lora_file(name) for name in loras)

    network = _load_transformer(transformer_folder, dtype, lora, mesh)
    low_noise = _load_transformer(folder / "transformer_2", dtype, low_noise_lora, mesh) if two_experts else None
    vae = _load(AutoencoderKLWan, folder / "vae", torch_dtype=DTYPES[vae_dtype])
    for name in ("latents_mean", "latents_std"):
        if len(vae.config[name]) != vae.config["z_dim"]:
            raise UserError(
                f"reasoner: {folder / 'vae' / 'config.json'}: {name} has {len(vae.config[name])} numbers, not "
                f"{vae.config['z_dim']}; fetch it again"
            )
    text_encoder = _load(UMT5EncoderModel, folder / "text_encoder", dtype=DTYPES[dtype])
    with naming(f"reasoner: {folder / 'tokenizer'}"):
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True, trust_remote_code=False)
    made = vae.config["z_dim"]
    for one in (network, low_noise or network):
        taken, given = one.config["in_channels"], one.config["out_channels"]
        if taken not in (made, 2 * made + vae.config["scale_factor_temporal"]) or given != made:
            raise UserError(
                f"reasoner: a transformer takes {taken} channels and gives {given} but the VAE makes {made}; only "
                "models in the style of Wan2.2-TI2V (as many) or Wan2.2-I2V-A14B (a mask and the image's latents "
                "besides) are supported"
            )
    waiting = offload and mesh is None
    for module, waits in ((network, False), (vae, False), (text_encoder, offload), (low_noise, waiting)):
        if module is not None:
            module.to("cpu" if waits else device).eval().requires_grad_(False)  # type: ignore[arg-type]
    boundary = index.get("boundary_ratio")
    # A folder without an index says nothing; where there is one, diffusers notes the models that can.
    clean_frame = not index or bool(index.get("expand_timesteps"))
    return Networks(
        network, vae, text_encoder, tokenizer, low_noise, BOUNDARY if boundary is None else float(boundary), clean_frame
    )


def _load_transformer(folder: Path, dtype: str, lora: Path | None, mesh: DeviceMesh | None) -> WanTransformer3DModel:
    # torch_dtype at loading, never .to(bf16) later: diffusers then keeps time embedder, norms, RoPE in fp32.
    network = _load(WanTransformer3DModel, folder, torch_dtype=DTYPES[dtype])
    if lora is not None:
        merge_lora(network, lora)
    if mesh is not None:  # before the next network is read, and before this one would have to fit on a device
        shard(network.requires_grad_(False), mesh)
    return network


def _load(kind: Any, folder: Path, **precision: torch.dtype) -> Any:
    """A network of the class ``kind`` with all its weights. Raises UserError."""
    with naming(f"reasoner: {folder}"):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        made = config.get("_class_name") or config.get("model_type") or kind.__name__
        if made not in (kind.__name__, "umt5"):
            raise UserError(
                f"reasoner: {folder} is a {made}, not a {kind.__name__}; give a model in the style of Wan2.2"
            )
        if config.get("image_dim") is not None:
            raise UserError(
                f"reasoner: {folder} sees the image through CLIP too, as Wan2.1-I2V does, which is not supported; give "
                "a model in the style of Wan2.2"
            )
        network, report = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **precision
        )
    if report["missing_keys"]:  # the libraries would fill them with random numbers
        first = min(report["missing_keys"])
        raise UserError(f"reasoner: {folder}: {first} is missing from the weights; fetch them again")
    return network


def lora_file(lora: str) -> Path:
    """The safetensors file of a LoRA: one here, or owner/name/path/in/the/repository.safetensors of the hub, fetched.

    Raises UserError.
    """
    if Path(lora).is_file():
        return Path(lora)
    repository, file = _hub_lora(lora)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the hub raises many kinds, all of which mean: cannot get it
        raise UserError(f"reasoner: no LoRA file {lora}, and the hub does not give it either ({error})") from error


def _hub_lora(lora: str) -> tuple[str, str]:
    """Repository and file; UserError for a name that cannot be on the hub."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)/(.+\.safetensors)", lora)
    if match is None or not on_hub(match[1]):
        raise UserError(f"reasoner: no LoRA {lora}; give a safetensors file, or owner/name/file.safetensors")
    return match[1], match[2]


def merge_lora(transformer: WanTransformer3DModel, file: Path) -> None:
    """Adds a LoRA to the weights for good, e.g. one that distils to few steps; diffusers' or original Wan names.

    Raises UserError for what does not fit.
    """
    try:
        state, metadata = WanLoraLoaderMixin.lora_state_dict(
            str(file.parent),
            weight_name=file.name,
            use_safetensors=True,
            local_files_only=True,
            return_lora_metadata=True,
        )
        layers = {f"transformer.{name}" for name, _ in transformer.named_modules()}
        for key in state:  # diffusers would leave out what it finds no place for
            if re.split(r"\.lora|\.lokr", key)[0] not in layers:
                raise ValueError(f"the model has no layer for {key}")
        transformer.load_lora_adapter(state, prefix="transformer", metadata=metadata)
        if not getattr(transformer, "peft_config", None):  # of which diffusers would only warn
            raise ValueError("it holds nothing for this transformer")
        transformer.fuse_lora()
        transformer.unload_lora()
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, LookupError, OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"reasoner: the LoRA {file} does not fit the model ({brief(error)}); give another") from error


def check_local(
    model: str | Path, transformer: str | Path | None, loras: tuple[str | None, str | None] = (None, None)
) -> None:
    """Raises UserError for what is missing here; to be called before anything is downloaded or read."""
    for name in (model, transformer):
        if name is not None and not Path(name).is_dir() and not on_hub(str(name)):
            raise UserError(
                f"reasoner: no folder {name}; give a folder in the diffusers layout or a hub id (owner/name)"
            )
    if transformer is not None and Path(transformer).is_dir():
        _transformer_folder(Path(transformer))
    if Path(model).is_dir():
        _check_folder(Path(model), transformer is None, loras[1])
    for lora in loras:
        if lora is not None and not Path(lora).is_file():
            _hub_lora(lora)


def local_folder(model: str | Path, parts: list[str]) -> Path:
    """The folder of a local model, or of a hub id's download (only the named parts); else UserError."""
    path = Path(model)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        patterns = [f"{part}/{kind}" for part in parts for kind in ("*.json", "*.safetensors", "*.model")]
        return Path(snapshot_download(str(model), allow_patterns=[*patterns, "model_index.json"]))
    except Exception as error:  # the hub raises many kinds, all of which mean: cannot get it
        raise UserError(f"reasoner: no folder {model}, and the hub does not give it either ({error})") from error


def _index(folder: Path) -> dict[str, Any]:
    """What model_index.json says of the model; empty where there is none. Raises UserError."""
    file = folder / "model_index.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"reasoner: {file} cannot be read ({error}); restore it") from error
    return found


def _check_folder(folder: Path, own_transformer: bool, low_noise_lora: str | None) -> bool:
    """Whether there are two experts; UserError for what is missing in a model's folder."""
    two_experts = own_transformer and (folder / "transformer_2").is_dir()
    parts = [*(["transformer"] if own_transformer else []), "vae", "text_encoder"]
    for part in [*parts, *(["transformer_2"] if two_experts else [])]:
        _check_weights(folder / part, part)
    if not any((folder / "tokenizer" / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        raise UserError(f"reasoner: {folder / 'tokenizer' / 'tokenizer.json'} is missing; is the download complete?")
    if low_noise_lora is not None and not two_experts:
        raise UserError(f"reasoner: {folder} has no second expert for the LoRA {low_noise_lora}; leave it out")
    return two_experts


def _transformer_folder(folder: Path) -> Path:
    """A folder that is a transformer itself, or the one in it; UserError for what is missing."""
    found = folder if (folder / "config.json").is_file() else folder / "transformer"
    _check_weights(found, "transformer")
    return found


def _check_weights(folder: Path, part: str) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(f"reasoner: {folder / 'config.json'} is missing; give a folder in the diffusers layout")
    if not list(folder.glob(f"{WEIGHTS[part]}*.safetensors")):
        raise UserError(f"reasoner: {folder / (WEIGHTS[part] + '.safetensors')} is missing; is the download complete?")
