"""Where a reasoner's files are: here or on the hub, and what is missing, said before anything large is read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttopt.config.settings import LoraSettings
from ttopt.errors import UserError
from ttopt.models.checkpoint import shards
from ttopt.models.hub import fetched, hub_file, not_given, on_hub

Loras = tuple[Sequence[LoraSettings], Sequence[LoraSettings]]  # of the transformer and of the second expert

WEIGHTS = {
    "transformer": "diffusion_pytorch_model",
    "transformer_2": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


@dataclass(frozen=True)
class Places:
    """Folders of a reasoner's parts; ``low_noise``: of the second expert, if there is one. ``index``: model_index.json,
    empty where there is none. A transformer may be a single file, whose config.json is that of the ``model``'s."""

    model: Path
    transformer: Path
    low_noise: Path | None
    vae: Path
    text_encoder: Path
    tokenizer: Path
    index: dict[str, Any]


def check_local(
    model: str | Path, transformer: str | Path | None, low_noise_transformer: str | Path | None, loras: Loras
) -> None:
    """Raises UserError for what is missing here; to be called before anything is downloaded or read."""
    for name in (model, transformer, low_noise_transformer):
        if name is None or Path(name).is_dir() or (name != model and _is_file(name)):
            continue
        if not on_hub(str(name)):
            raise UserError(
                f"reasoner: no folder {name}; give a folder in the diffusers layout or a hub id (owner/name)"
            )
        if str(name).startswith("Wan-AI/") and not str(name).endswith("-Diffusers"):
            raise UserError(f"reasoner: {name} is not in the diffusers layout; give {name}-Diffusers")
    for name, part in ((transformer, "transformer"), (low_noise_transformer, "transformer_2")):
        if name is not None and Path(name).is_dir():
            _expert(Path(name), part, True)
    if Path(model).is_dir():
        _check_model(Path(model), transformer, low_noise_transformer, loras[1], True)
    for lora in (*loras[0], *loras[1]):
        if not math.isfinite(lora.strength):
            raise UserError(f"reasoner: the LoRA {lora.file} has the strength {lora.strength}; give a finite number")
        if not Path(lora.file).is_file():
            _hub_lora(lora.file)


def find(
    model: str | Path,
    transformer: str | Path | None,
    low_noise_transformer: str | Path | None,
    low_noise_loras: Sequence[LoraSettings],
    weights: bool,
) -> Places:
    """All folders of a reasoner; what is on the hub is downloaded, or taken from its cache, if need be without weights.

    Raises UserError.
    """
    own = [] if transformer is not None else ["transformer"]
    own += [] if low_noise_transformer is not None else ["transformer_2"]
    folder = local_folder(model, [*own, "vae", "text_encoder", "tokenizer"], weights)
    two_experts = _check_model(folder, transformer, low_noise_transformer, low_noise_loras, weights)
    experts = []
    for name, part in ((transformer, "transformer"), (low_noise_transformer, "transformer_2")):
        place = folder / part
        if name is not None and _is_file(name):
            on_hub_as = None if Path(name).is_file() or not weights else hub_file(str(name))
            place = fetched(*on_hub_as, "reasoner") if on_hub_as else Path(name)
        elif name is not None:
            place = _expert(local_folder(name, ["transformer", part], weights), part, weights)
        experts.append(place)
    return Places(
        folder,
        experts[0],
        experts[1] if two_experts else None,
        folder / "vae",
        folder / "text_encoder",
        folder / "tokenizer",
        _index(folder),
    )


def local_folder(model: str | Path, parts: list[str], weights: bool = True) -> Path:
    """The folder of a local model, or of a hub id's download (only the named parts); else UserError."""
    path = Path(model)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(model), allow_patterns=hub_patterns(parts, weights)))
    except Exception as error:  # the hub raises many kinds, all of which mean: cannot get it
        raise UserError(f"reasoner: there is no folder {model}, and {not_given(str(model), error)}") from error


def hub_patterns(parts: Sequence[str], weights: bool = True) -> list[str]:
    """Which files of a repository belong to the named parts of a model, if need be without their weights."""
    kinds = ("*.json", "*.safetensors", "*.model") if weights else ("*.json", "*.model")
    always = ("model_index.json", "config.json", "transformer/config.json", "transformer_2/config.json")
    return [*(f"{part}/{kind}" for part in parts for kind in kinds), *always]


def lora_file(lora: str) -> Path:
    """The safetensors file of a LoRA: one here, or owner/name/path/in/the/repository.safetensors of the hub, fetched.

    Raises UserError.
    """
    if Path(lora).is_file():
        return Path(lora)
    return fetched(*_hub_lora(lora), "reasoner")


def _hub_lora(lora: str) -> tuple[str, str]:
    """Repository and file; UserError for a name that cannot be on the hub."""
    found = hub_file(lora)
    if found is None:
        raise UserError(f"reasoner: no LoRA {lora}; give a safetensors file, or owner/name/file.safetensors")
    return found


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


def _check_model(
    folder: Path,
    transformer: str | Path | None,
    low_noise_transformer: str | Path | None,
    low_noise_loras: Sequence[LoraSettings],
    weights: bool,
) -> bool:
    """Whether there are two experts; UserError for what is missing in a model's folder or does not fit it."""
    named = _index(folder).get("transformer_2")  # [null, null] where there is none
    two_experts = (folder / "transformer_2").is_dir() or (isinstance(named, list) and named[:1] != [None])
    if _is_original(folder):
        raise UserError(
            f"reasoner: {folder} holds original Wan weights; give the same model in the diffusers layout, such as "
            "Wan-AI/Wan2.2-TI2V-5B-Diffusers (docs/models.md), and a single file of original weights as "
            "reasoner.transformer"
        )
    given = {"transformer": transformer, "transformer_2": low_noise_transformer}
    experts = ["transformer", "transformer_2"] if two_experts else ["transformer"]
    for part in experts:
        if given[part] is None or _is_file(given[part]):  # a file has no config.json of its own
            _check_weights(folder / part, part, weights and given[part] is None)
    for part in ("vae", "text_encoder"):
        _check_weights(folder / part, part, weights)
    if not any((folder / "tokenizer" / name).is_file() for name in ("tokenizer.json", "spiece.model")):
        raise UserError(f"reasoner: {folder / 'tokenizer' / 'tokenizer.json'} is missing; is the download complete?")
    if two_experts and (transformer is None) != (low_noise_transformer is None):
        missing = "low_noise_transformer" if low_noise_transformer is None else "transformer"
        raise UserError(
            f"reasoner: {folder} has two experts, of which only one would be replaced; give reasoner.{missing} too "
            "(this model's own folder or hub id to keep its own)"
        )
    for what in (*(f"the LoRA {lora.file}" for lora in low_noise_loras), low_noise_transformer):
        if what is not None and not two_experts:
            raise UserError(f"reasoner: {folder} has no second expert for {what}; leave it out")
    return two_experts


def _is_file(name: str | Path | None) -> bool:
    """Whether a transformer is named as a single file, here or on the hub."""
    is_weights = str(name).endswith(".safetensors")
    return is_weights and (Path(str(name)).is_file() or hub_file(str(name)) is not None)


def _is_original(folder: Path) -> bool:
    """Whether a folder is in the layout of Wan's own repositories."""
    if (folder / "high_noise_model").is_dir():
        return True
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("_class_name") == "WanModel"


def _expert(folder: Path, part: str, weights: bool) -> Path:
    """A folder that is a transformer itself, or the one in it; UserError for what is missing."""
    inside = [folder, folder / part, folder / "transformer"]
    found = next((place for place in inside if (place / "config.json").is_file()), folder / "transformer")
    _check_weights(found, "transformer", weights)
    return found


def _check_weights(folder: Path, part: str, weights: bool) -> None:
    if not (folder / "config.json").is_file():
        raise UserError(f"reasoner: {folder / 'config.json'} is missing; give a folder in the diffusers layout")
    if not weights:
        return
    stem = WEIGHTS[part]
    if not list(folder.glob(f"{stem}*.safetensors")):
        raise UserError(f"reasoner: {folder / (stem + '.safetensors')} is missing; is the download complete?")
    for name in sorted(set(shards(folder, stem).values())):
        if not (folder / name).is_file():
            raise UserError(f"reasoner: {folder / name} is missing; is the download complete?")
