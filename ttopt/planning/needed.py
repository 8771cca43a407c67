"""The files that a configuration needs: which repositories of the hub have them, and which are in its cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from ttopt.config.settings import EMBEDDED, EMBEDDED_BASE, FitSettings
from ttopt.models.hub import hub_file, on_hub
from ttopt.models.reasoner.folders import hub_patterns
from ttopt.models.teacher.teacher import FILES

KINDS = (".safetensors", ".pth")  # of weights


@dataclass(frozen=True)
class Needed:
    """What a setting names: the files of a repository that fit ``patterns``; no repository for what is to be here.

    ``parts``: folders of the repository that must hold weights.
    """

    setting: str
    name: str
    repository: str | None
    patterns: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


def needed(settings: FitSettings) -> Iterator[Needed]:
    """What a run with these settings reads; the embedded models need nothing."""
    r, decoder, chat = settings.reasoner, settings.decoder, settings.chat
    own = ["transformer"] if r.transformer is None else []
    second = ["transformer_2"] if r.low_noise_transformer is None else []  # most models have none
    whole = hub_patterns([*own, *second, "vae", "text_encoder", "tokenizer"])
    yield from _named("reasoner.model", r.model, whole, (*own, "vae", "text_encoder"))
    for setting, other in (("transformer", r.transformer), ("low_noise_transformer", r.low_noise_transformer)):
        parts = ["transformer", "transformer_2"] if setting.startswith("low") else ["transformer"]
        yield from _named(f"reasoner.{setting}", other, hub_patterns(parts), ("transformer",))
    for setting, loras in (("loras", r.loras), ("low_noise_loras", r.low_noise_loras)):
        for lora in loras:
            yield from _named(f"reasoner.{setting}", lora.file)
    if decoder.kind == "light":
        yield from _named("decoder.model", decoder.model)
    yield from _named("teacher.model", settings.teacher.model, FILES, ("",))
    for other in settings.teacher.others:
        yield from _named("teacher.others", other, FILES, ("",))
    if chat.backend == "local":
        yield from _named("chat.model", chat.model, FILES, ("",))


def missing(settings: FitSettings) -> list[Needed]:
    """What ``ttopt fetch`` would download, as far as the cache alone says."""
    return [one for one in needed(settings) if one.repository is not None and cached(one) is None]


def cached(one: Needed) -> Path | None:
    """The folder of a repository's files in the hub's cache; None if one of them is missing."""
    try:
        folder = Path(snapshot_download(str(one.repository), allow_patterns=list(one.patterns), local_files_only=True))
    except OSError:  # the hub's words for: not all of it is there
        return None
    if not one.parts:
        return folder if (folder / one.patterns[0]).is_file() else None
    return folder if all(list((folder / part).glob("*.safetensors")) for part in one.parts) else None


def _named(
    setting: str, name: str | None, patterns: tuple[str, ...] | list[str] = (), parts: tuple[str, ...] = ()
) -> Iterator[Needed]:
    if not name or name in (EMBEDDED, EMBEDDED_BASE):
        return
    file = None if Path(name).exists() else hub_file(name, KINDS)
    if file is not None:
        yield Needed(setting, name, file[0], (file[1],))
    elif patterns and not Path(name).exists() and on_hub(name):
        yield Needed(setting, name, name, tuple(patterns), parts)
    else:
        yield Needed(setting, name, None)
