"""``ttopt fetch``: the files that a configuration needs, their sizes and licenses, and their download.

Everything comes through huggingface_hub, into its cache, where the runs look for it.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from ttopt.config.parsing import parse_fit
from ttopt.config.settings import EMBEDDED, EMBEDDED_BASE, FitSettings
from ttopt.errors import Arguments, UserError, brief
from ttopt.models.hub import hub_file, on_hub

if TYPE_CHECKING:
    from huggingface_hub import HfApi

GB = 1e9
TEACHER_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja")


@dataclass(frozen=True)
class Needed:
    """What a setting names: a repository's files that fit ``patterns``; no repository for what is to be here."""

    setting: str
    name: str
    repository: str | None
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """The same, as the hub has it."""

    needed: Needed
    files: int
    size: int  # bytes
    license: str


def show(chosen: tuple[argparse.Namespace, FitSettings]) -> int:
    """Lists what ``parse_fetch`` has read, and downloads it."""
    own, settings = chosen
    from huggingface_hub import HfApi, constants, snapshot_download  # heavy: not for --help and mistakes

    wanted = list(needed(settings))
    found, problems = [], []
    for one in wanted:
        try:
            if one.repository is None:
                _check_here(one)
                print(f"{one.setting:32s} {one.name}: here")
            else:
                found.append(_look(one, HfApi()))
                print(_line(found[-1]))
        except UserError as error:
            problems.append(str(error))
    total = sum(one.size for one in found)
    print(f"{len(found)} downloads, {total / GB:.1f} GB, less what is in the cache already ({constants.HF_HUB_CACHE})")
    if problems:  # all at once, before anything is downloaded
        raise UserError("; ".join(problems))
    if own.list:
        return 0
    free = shutil.disk_usage(_existing(Path(constants.HF_HUB_CACHE))).free
    if free < total:
        print(f"{free / GB:.1f} GB are free there; if not enough of it is in the cache, set HF_HOME to a larger disk")
    for each in found:
        repository, patterns = each.needed.repository, list(each.needed.patterns)
        assert repository is not None
        try:
            print(f"{each.needed.setting}: {snapshot_download(repository, allow_patterns=patterns)}")
        except Exception as error:  # the hub raises many kinds
            raise UserError(_unreachable(each.needed, error)) from error
    return 0


def fetch_parser() -> Arguments:
    """What fetch can be told besides settings."""
    parser = Arguments(
        prog="ttopt fetch",
        description="Downloads what a configuration needs from the hub, and says what is missing.",
        epilog="All settings of ttopt fit may follow, e.g. --config wan22_5b --teacher.model Qwen/Qwen3-VL-8B-Instruct",
        allow_abbrev=False,
    )
    parser.add_argument("--list", action="store_true", help="only say what is needed")
    return parser


def parse_fetch(args: Sequence[str]) -> tuple[argparse.Namespace, FitSettings]:
    """The command's own arguments, and the settings whose files are wanted. Raises UserError."""
    own, rest = fetch_parser().parse_known_args(list(args))
    return own, parse_fit(rest)


def needed(settings: FitSettings) -> Iterator[Needed]:
    """What a run with these settings reads; the embedded models need nothing."""
    r, decoder, chat = settings.reasoner, settings.decoder, settings.chat
    experts = [part for part, name in (("transformer", r.transformer), ("transformer_2", r.low_noise_transformer))
               if name is None]  # fmt: skip
    parts = (*experts, "vae", "text_encoder", "tokenizer")
    model = tuple(f"{part}/{kind}" for part in parts for kind in ("*.json", "*.safetensors", "*.model"))
    yield from _named("reasoner.model", r.model, (*model, "*/config.json", "model_index.json"))
    for setting, other in (("transformer", r.transformer), ("low_noise_transformer", r.low_noise_transformer)):
        part = "transformer_2" if setting.startswith("low") else "transformer"
        kinds = ("config.json", *(f"{part}/{kind}" for kind in ("*.json", "*.safetensors")))
        yield from _named(f"reasoner.{setting}", other, kinds)
    for setting, loras in (("loras", r.loras), ("low_noise_loras", r.low_noise_loras)):
        for lora in loras:
            yield from _named(f"reasoner.{setting}", lora.file, ())
    if decoder.kind == "light":
        yield from _named("decoder.model", decoder.model, ())
    yield from _named("teacher.model", settings.teacher.model, TEACHER_FILES)
    if chat.backend == "local":
        yield from _named("chat.model", chat.model, TEACHER_FILES)


def _named(setting: str, name: str | None, patterns: tuple[str, ...]) -> Iterator[Needed]:
    if not name or name in (EMBEDDED, EMBEDDED_BASE):
        return
    file = None if Path(name).exists() else hub_file(name, (".safetensors", ".pth"))
    if file is not None:
        yield Needed(setting, name, file[0], (file[1],))
    elif patterns and not Path(name).exists() and on_hub(name):
        yield Needed(setting, name, name, patterns)
    else:
        yield Needed(setting, name, None)


def _check_here(one: Needed) -> None:
    if not Path(one.name).exists():
        raise UserError(f"{one.setting}: {one.name} is not here, and is no name on the hub")


def _look(one: Needed, hub: HfApi) -> Found:
    """What the hub has of it. Raises UserError."""
    assert one.repository is not None
    try:
        info = hub.model_info(one.repository, files_metadata=True)
    except Exception as error:  # the hub raises many kinds
        raise UserError(_unreachable(one, error)) from error
    chosen = [file for file in info.siblings or () if any(fnmatch(file.rfilename, each) for each in one.patterns)]
    if not any(file.rfilename.endswith((".safetensors", ".pth")) for file in chosen):
        raise UserError(f"{one.setting}: {one.repository} has no {one.patterns[0]}; give another")
    terms = info.card_data.get("license") if info.card_data else None
    return Found(one, len(chosen), sum(file.size or 0 for file in chosen), terms or "see its page")


def _unreachable(one: Needed, error: Exception) -> str:
    page = f"https://huggingface.co/{one.repository}"
    if type(error).__name__ == "GatedRepoError":
        return f"{one.setting}: {one.repository} needs a token: accept its terms on {page} and set HF_TOKEN"
    return f"{one.setting}: the hub does not give {one.repository} ({brief(error)}); see {page}"


def _line(found: Found) -> str:
    one = found.needed
    what = f"{found.files} files" if len(one.patterns) > 1 else one.patterns[0]
    return f"{one.setting:32s} {one.repository} ({what}): {found.size / GB:.1f} GB, license {found.license}"


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)
