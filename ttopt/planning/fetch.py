"""``ttopt fetch``: the files that a configuration needs, their sizes and licenses, and their download.

Everything comes through huggingface_hub, into its cache, where the runs look for it. Whether the files fit together is
said by their configurations and headers, before anything large is downloaded. Without the hub the cache is enough.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from torch import nn

from ttopt.config.settings import EMBEDDED, FitSettings, LoraSettings
from ttopt.errors import UserError
from ttopt.models.checkpoint import shards
from ttopt.models.hub import hub_file, not_given
from ttopt.models.load import reasoner_names, weights_path
from ttopt.models.quiet import quiet_loading
from ttopt.models.reasoner import LightDecoder
from ttopt.models.reasoner.folders import WEIGHTS
from ttopt.models.reasoner.loading import check_networks
from ttopt.models.teacher.teacher import check_teacher
from ttopt.planning.headers import header, stand_in
from ttopt.planning.needed import KINDS, Needed, cached, needed

GB = 1e9


@dataclass(frozen=True)
class Found:
    """What is needed, as the hub has it, or its cache where the hub cannot be asked."""

    needed: Needed
    files: tuple[str, ...]
    size: int  # bytes
    missing: int  # bytes that are not in the cache
    license: str


def show(chosen: tuple[argparse.Namespace, FitSettings]) -> int:
    """Lists and checks what ``parse_fetch`` has read, and downloads it."""
    own, settings = chosen
    with quiet_loading():
        found = look_and_check(settings)
    if own.list:
        return 0
    total, cache = sum(one.missing for one in found), constants.HF_HUB_CACHE
    free = shutil.disk_usage(_existing(Path(cache))).free
    if free < total:
        raise UserError(f"{free / GB:.1f} GB are free on the disk of {cache}; set HF_HOME to a folder on a larger one")
    for each in found:
        if each.missing:
            print(f"{each.needed.setting}: {_download(each.needed)}", flush=True)
    return 0


def look_and_check(settings: FitSettings) -> list[Found]:
    """All that is needed, printed line by line. Raises UserError that names all that is missing, or does not fit."""
    found, problems = [], []
    for one in needed(settings):
        try:
            if one.repository is None:
                _check_here(one)
                print(f"{one.setting:32s} {one.name}: here")
            else:
                found.append(_look(one))
                print(_line(found[-1]), flush=True)
        except UserError as error:
            problems.append(str(error))
    total, downloads = sum(one.missing for one in found), sum(one.missing > 0 for one in found)
    print(f"{downloads} downloads, {total / GB:.1f} GB, to {constants.HF_HUB_CACHE}", flush=True)
    if not problems and found:
        print("checking by configurations and headers whether they fit together", flush=True)
        problems = list(dict.fromkeys(misfits(settings, found)))
    if problems:
        raise UserError("; ".join(problems))
    return found


def misfits(settings: FitSettings, found: Sequence[Found]) -> Iterator[str]:
    """What is of an unsupported kind or does not fit together, said without reading any weights of the hub."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checks: list[Callable[[], object]] = [
            *(partial(_check_teacher, name) for name in (settings.teacher.model, *settings.teacher.others)),
            lambda: _check_reasoner(settings, found, folder),
        ]
        if settings.chat.backend == "local" and settings.chat.model != EMBEDDED:
            checks.append(partial(check_teacher, settings.chat.model))
        checks += [partial(_check_shards, each) for each in found]
        for check in checks:
            try:
                check()
            except UserError as error:
                yield str(error).replace(f"{temporary}/", "")


def _check_teacher(name: str) -> None:
    check_teacher(weights_path(name, "teacher", "teacher.model"))


def _check_shards(found: Found) -> None:
    """Raises UserError for a file that an index of the repository names and the repository lacks."""
    repository = str(found.needed.repository)
    for file in found.files:
        if file.endswith(".safetensors.index.json"):
            folder = Path(snapshot_download(repository, allow_patterns=[file]))
            named = shards((folder / file).parent, Path(file).name.removesuffix(".safetensors.index.json"))
            lacks = {(Path(file).parent / name).as_posix() for name in named.values()} - set(found.files)
            if lacks:
                raise UserError(f"{found.needed.setting}: {repository} lacks {min(lacks)}, which {file} names")


def _check_reasoner(settings: FitSettings, found: Sequence[Found], folder: Path) -> None:
    """Configurations, LoRAs, single files and the light decoder; then the headers of what lies in folders."""

    def stand_ins(loras: Sequence[LoraSettings]) -> list[LoraSettings]:
        return [replace(lora, file=_stand_in(lora.file, folder)) for lora in loras]

    model, transformer, low_noise = (None if name is None else _stand_in(name, folder)
                                     for name in reasoner_names(settings.reasoner))  # fmt: skip
    loras = stand_ins(settings.reasoner.loras), stand_ins(settings.reasoner.low_noise_loras)
    checked = check_networks(str(model), transformer, low_noise, loras)
    decoder = settings.decoder
    if decoder.kind == "light" and not decoder.model.endswith(".pth"):
        LightDecoder.load(
            _stand_in(weights_path(decoder.model, "light_decoder", "decoder.model"), folder),
            shrink=decoder.shrink,
            statistics=(checked.vae.config["latents_mean"], checked.vae.config["latents_std"]),
        )
    places = checked.places
    networks: list[tuple[nn.Module, Path | None]] = [(checked.vae, places.vae)]
    networks += zip(checked.transformers, (places.transformer, places.low_noise), strict=False)
    for network, place in networks:
        for each in found:
            if each.missing and place is not None and place.is_dir():
                _check_headers(each, network, place.name)


def _check_headers(found: Found, network: nn.Module, part: str) -> None:
    """Raises UserError for weights in the folder ``part`` whose names or shapes are not those of the network, which its
    config.json describes."""
    stem = Path(part) / WEIGHTS["transformer"]  # the VAE's, too
    files = [file for file in found.files if file.startswith(stem.as_posix()) and file.endswith(".safetensors")]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        tensors = header(str(found.needed.repository), file).tensors
        shapes |= {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name, parameter in network.named_parameters():
        if files and shapes.get(name) != tuple(parameter.shape):
            there = f"is {shapes[name]}" if name in shapes else "is missing"
            raise UserError(
                f"{found.needed.setting}: {found.needed.repository}: {name} {there} in the weights, but "
                f"{tuple(parameter.shape)} by config.json; give another (docs/models.md)"
            )


def _stand_in(name: str, folder: Path) -> str:
    """A single file of the hub by its stand-in; other names as they are."""
    file = None if Path(name).exists() else hub_file(name)
    return name if file is None else str(stand_in(*file, folder))


def _check_here(one: Needed) -> None:
    if not Path(one.name).exists():
        raise UserError(f"{one.setting}: {one.name} is not here, and is no name on the hub")


def _look(one: Needed) -> Found:
    """What the hub has of it, or the cache where the hub does not answer. Raises UserError."""
    assert one.repository is not None
    try:
        card = HfApi().model_info(one.repository).card_data
        files = snapshot_download(one.repository, allow_patterns=list(one.patterns), dry_run=True)
    except Exception as error:  # the hub raises many kinds
        folder = cached(one)
        if folder is None:
            raise UserError(f"{one.setting}: {not_given(one.repository, error)}") from error
        here = [file for file in folder.rglob("*") if file.is_file()]
        names = tuple(file.relative_to(folder).as_posix() for file in here)
        return Found(one, names, sum(file.stat().st_size for file in here), 0, "not asked")
    weights = [Path(file.filename).parent.as_posix() for file in files if file.filename.endswith(KINDS)]
    for part in one.parts or (Path(one.patterns[0]).parent.as_posix(),):
        if (part or ".") not in weights and not (one.setting.endswith("transformer") and weights):
            raise UserError(f"{one.setting}: {one.repository} has no {_wanted(one, part)}; give another")
    return Found(
        one,
        tuple(file.filename for file in files),
        sum(file.file_size or 0 for file in files),
        sum(file.file_size or 0 for file in files if file.will_download),
        (card.get("license") if card else None) or "see its page",
    )


def _wanted(one: Needed, part: str) -> str:
    return f"{part}/*.safetensors".lstrip("/") if one.parts else one.patterns[0]


def _download(one: Needed) -> str:
    try:
        return str(snapshot_download(str(one.repository), allow_patterns=list(one.patterns)))
    except Exception as error:  # the hub raises many kinds
        raise UserError(f"{one.setting}: {not_given(str(one.repository), error)}") from error


def _line(found: Found) -> str:
    one = found.needed
    what = f"{len(found.files)} files" if one.parts else one.patterns[0]
    where = "in the cache" if not found.missing else f"license {found.license}"
    return f"{one.setting:32s} {one.repository} ({what}): {found.size / GB:.1f} GB, {where}"


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)
