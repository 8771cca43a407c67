"""Find and load a reasoner's networks, and say early which file is missing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from transformers import AutoTokenizer, UMT5EncoderModel

from ttopt.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHTS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


def load_components(
    model: str | Path, transformer: str | Path | None, dtype: str, device: str
) -> tuple[WanTransformer3DModel, AutoencoderKLWan, UMT5EncoderModel, Any]:
    """Transformer, VAE, text encoder (frozen, in evaluation mode) and tokenizer of a diffusers folder."""
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    own_transformer = [] if transformer is not None else ["transformer"]
    folder = local_folder(model, [*own_transformer, "vae", "text_encoder", "tokenizer"])
    transformer_folder = folder if transformer is None else local_folder(transformer, ["transformer"])
    # A folder may also be the transformer itself.
    if transformer is not None and (transformer_folder / "config.json").is_file():
        _check_weights(transformer_folder, "transformer", "")
    else:
        transformer_folder = transformer_folder / "transformer"
        _check_weights(transformer_folder.parent, "transformer", "transformer")
    for part in ("vae", "text_encoder"):
        _check_weights(folder, part, part)
    if not any((folder / "tokenizer" / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        raise UserError(f"reasoner: {folder / 'tokenizer' / 'tokenizer.json'} is missing; is the download complete?")

    # torch_dtype at loading, never .to(bf16) later: diffusers then keeps time embedder, norms, RoPE in fp32.
    network = WanTransformer3DModel.from_pretrained(
        transformer_folder, torch_dtype=DTYPES[dtype], use_safetensors=True, local_files_only=True
    )
    vae = AutoencoderKLWan.from_pretrained(
        folder / "vae", torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    text_encoder = UMT5EncoderModel.from_pretrained(
        folder / "text_encoder", dtype=DTYPES[dtype], use_safetensors=True, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    if network.config["in_channels"] != vae.config["z_dim"]:
        raise UserError(
            f"reasoner: the transformer takes {network.config['in_channels']} channels but the VAE makes "
            f"{vae.config['z_dim']}; only models in the style of Wan2.2-TI2V are supported"
        )
    for module in (network, vae, text_encoder):
        module.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]
    return network, vae, text_encoder, tokenizer


def local_folder(model: str | Path, parts: list[str]) -> Path:
    """The folder of a local model, or of a hub id's download (only the named parts); else UserError."""
    path = Path(model)
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        raise UserError(f"reasoner: no folder {model}; give a folder in the diffusers layout or a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        patterns = [f"{part}/{kind}" for part in parts for kind in ("*.json", "*.safetensors", "*.model")]
        return Path(snapshot_download(str(model), allow_patterns=[*patterns, "model_index.json"]))
    except Exception as error:  # the hub raises many kinds, all of which mean: cannot get it
        raise UserError(f"reasoner: no folder {model}, and the hub does not give it either ({error})") from error


def _check_weights(folder: Path, part: str, subfolder: str) -> None:
    folder = folder / subfolder
    if not (folder / "config.json").is_file():
        raise UserError(f"reasoner: {folder / 'config.json'} is missing; give a folder in the diffusers layout")
    if not list(folder.glob(f"{WEIGHTS[part]}*.safetensors")):
        raise UserError(f"reasoner: {folder / (WEIGHTS[part] + '.safetensors')} is missing; is the download complete?")
