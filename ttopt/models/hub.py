"""Names of models and files: on this machine, or on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from ttopt.errors import UserError, brief

LOCAL = {".", "..", "weights"}  # weights: where the configurations expect what has to be put there by hand


def on_hub(name: str) -> bool:
    """Whether a name that is no folder here may be a model on the hub: owner/name, the owner being no folder here."""
    owner, _, _ = name.partition("/")
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and owner not in LOCAL and not Path(owner).is_dir()


def hub_file(name: str, kinds: tuple[str, ...] = (".safetensors",)) -> tuple[str, str] | None:
    """Repository and path in it of a single file of the hub, owner/name/path/file.safetensors; None for other names."""
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)/(.+)", name)
    if match is None or not match[2].endswith(kinds) or not on_hub(match[1]):
        return None
    return match[1], match[2]


def fetched(repository: str, file: str, what: str) -> Path:
    """A file of the hub, downloaded or from the cache. Raises UserError."""
    from huggingface_hub import hf_hub_download  # here: most runs need none

    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # the hub raises many kinds, all of which mean: cannot get it
        said = not_given(repository, error)
        raise UserError(f"{what}: there is no file {repository}/{file} here, and {said}") from error


def not_given(repository: str, error: Exception) -> str:
    """Why the hub does not give a repository, and what to do about it."""
    page = f"https://huggingface.co/{repository}"
    if type(error).__name__ == "GatedRepoError":
        return f"{repository} needs a token: accept its terms on {page} and set HF_TOKEN"
    return f"the hub does not give {repository}, nor is all of it in its cache ({brief(error, 120)}); see {page}"
