"""What went into a result besides its settings, as digests: so that no run continues with something else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ttopt.config.settings import EMBEDDED, EMBEDDED_BASE, WEIGHTS, FitSettings
from ttopt.data.sample import Sample

KINDS = {".safetensors", ".json", ".txt", ".jinja", ".model"}
ENDS = 2**16  # bytes; weights are told apart by their sizes, beginnings and ends, as reading 30 GB takes too long


def inputs(sample: Sample, settings: FitSettings) -> dict[str, str]:
    """Digests of the sample (prompt, image, format) and of the files (weights, wordings) that the settings name."""
    return {"sample": sample_digest(sample), "files": files_digest(settings)}


def sample_digest(sample: Sample) -> str:
    """Of what a model sees of a sample."""
    found = hashlib.sha256(repr((sample.prompt, sample.frames, sample.fps, sample.height, sample.width)).encode())
    if sample.image is not None:
        found.update(sample.image.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def files_digest(settings: FitSettings) -> str:
    """Of local weights and wordings; what a hub holds is known by its name."""
    found = hashlib.sha256()
    for place in _places(settings):
        _add_files(found, place)
    return found.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Of all of a file; "missing" if it is not there."""
    if not path.is_file():
        return "missing"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def model_digest(settings: FitSettings) -> str:
    """Of what an adapter fits: the frozen video model and the adapter's shape."""
    r = settings.reasoner
    found = hashlib.sha256(repr((settings.adapter, r.ignore_image, r.guidance, r.negative_prompt)).encode())
    for name in (r.model, r.transformer, r.low_noise_transformer):
        _add_named(found, name, "reasoner")
    for loras in (r.loras, r.low_noise_loras):
        found.update(repr([lora.strength for lora in loras]).encode())
        for lora in loras:
            _add_named(found, lora.file, "reasoner")
    return found.hexdigest()[:16]


def teacher_digest(settings: FitSettings) -> str:
    """Of what writes the questions."""
    found = hashlib.sha256()
    _add_named(found, settings.teacher.model, "teacher")
    return found.hexdigest()[:16]


def _add_named(found: hashlib._Hash, name: str | None, part: str) -> None:
    place = _place(name or "", part)
    local = bool(name) and place.exists()
    found.update(f"{local or name}\n".encode())
    if local:
        _add_files(found, place)


def _add_files(found: hashlib._Hash, place: Path) -> None:
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.suffix in KINDS)
    for path in files:
        size = path.stat().st_size
        found.update(f"{path.relative_to(place)} {size}\n".encode())
        with path.open("rb") as file:
            found.update(file.read(ENDS))
            file.seek(max(0, size - ENDS))
            found.update(file.read())


def _places(settings: FitSettings) -> Iterator[Path]:
    r, decoder, chat = settings.reasoner, settings.decoder, settings.chat
    named = {
        "reasoner": r.model,
        "light_decoder": decoder.model if decoder.kind == "light" else "",
        "teacher": settings.teacher.model,
        "chat": chat.model if chat.backend == "local" else "",
    }
    for part, name in named.items():
        if name:
            yield _place(name, part)
    for name in settings.teacher.others:
        yield _place(name, "teacher")
    loras = (lora.file for lora in (*r.loras, *r.low_noise_loras))
    for other in (r.transformer, r.low_noise_transformer, *loras, chat.prompts):
        if other:
            yield _place(other)


def _place(name: str, part: str = "") -> Path:
    shipped = {EMBEDDED: WEIGHTS / part, EMBEDDED_BASE: WEIGHTS / "base"}
    return shipped.get(name, Path(name))
