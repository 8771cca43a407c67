"""LoRA memory: a bank of adapters that satisfied the teacher, from which later samples may start.

After TTOM (arXiv 2510.07940), in neither of the two papers, and off by default: see docs/bank.md.

runs/memory/<sample id>-<digest>.safetensors   an entry, written once and never changed: the adapter as in a result's
                                               adapter/, and in its header the model it belongs to and its key
runs/x/bank.txt                                what a run may start from: the entries that it found when it began

A run never starts from what it has added itself, so that its results depend neither on the order of its samples nor on
how often it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ttopt.config.settings import FitSettings
from ttopt.data.sample import Sample
from ttopt.errors import UserError
from ttopt.models.reasoner import Adapter, Condition
from ttopt.models.reasoner.adapter_files import read_adapter, save_diffusers
from ttopt.record.identity import model_digest
from ttopt.record.run_folder import replacing, write_text, writing

FORMAT = 2  # of an entry; another one is not read
SUFFIX = ".safetensors"
FOUND = "bank.txt"  # in the run's folder
CURE = "give a --bank.folder that can be written"


@dataclass(frozen=True)
class Neighbor:
    """The entry that is most like a sample."""

    name: str
    similarity: float
    state: dict[str, Tensor]  # of Adapter.state_dict


@dataclass(frozen=True)
class Bank:
    """The entries that a run may start from: their keys by file name. ``model`` is that of ttopt.record.identity."""

    folder: Path
    model: str
    keys: dict[str, Tensor]
    least_similarity: float
    adds: bool

    @classmethod
    def open(cls, settings: FitSettings, run: Path, note: Callable[[str], None]) -> Bank | None:
        """The bank that ``settings`` name, None if they name none, as it was when the ``run`` (its folder) began.

        What is broken or belongs to another model is left out, which ``note`` is told. Raises UserError for a folder
        that cannot be used, and for entries that the run had and that are gone.
        """
        wanted = settings.bank
        if wanted.folder is None:
            return None
        folder, model = Path(wanted.folder).absolute(), model_digest(settings)  # workers may be elsewhere
        if wanted.add:
            with writing(folder, CURE):
                folder.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=folder).close()
        keys, odd = _read(folder, model)
        listed = run / FOUND
        if listed.exists():
            names = [name for name in listed.read_text(encoding="utf-8", errors="replace").splitlines() if name]
            gone = [name for name in names if name not in keys]
            if gone:
                raise UserError(
                    f"{folder / gone[0]}, which the run in {run} could start from, is gone or cannot be used any more "
                    f"({len(gone)} of {len(names)} entries); put it back, or give another --run-dir"
                )
            keys = {name: keys[name] for name in names}
        else:
            if odd:
                note(f"bank {folder}: left out {'; '.join(odd[:5])}{f'; and {len(odd) - 5} more' * (len(odd) > 5)}")
            with writing(run):
                write_text(listed, "\n".join(keys))
        return cls(folder, model, keys, wanted.least_similarity, wanted.add)

    def nearest(self, key: Tensor) -> Neighbor | None:
        """The entry most similar to ``key`` (D,), unless even that is less similar than asked for.

        Raises UserError if it cannot be read any more.
        """
        near = [(float(other @ key), name) for name, other in self.keys.items() if len(other) == len(key)]
        similarity, name = max(near, default=(-math.inf, ""))
        if similarity < self.least_similarity:
            return None
        return Neighbor(name, similarity, read_adapter(self.folder / name)[0])

    def add(self, sample: Sample, key: Tensor, adapter: Adapter, row: int = 0) -> None:
        """Keeps a row of ``adapter`` for later runs. Raises UserError if it cannot be written."""
        state = adapter.state_dict(row)
        entry = {"format": FORMAT, "model": self.model, "sample": sample.id, "prompt": sample.prompt}
        entry |= {"key": key.tolist()}
        digest = hashlib.sha256(json.dumps(entry).encode())
        for value in state.values():
            digest.update(value.numpy().tobytes())
        with (
            writing(self.folder, CURE),
            replacing(self.folder / f"{sample.id}-{digest.hexdigest()[:16]}{SUFFIX}") as path,
        ):
            save_diffusers(path, state, adapter.rank, adapter.alpha, {"entry": entry})


def keys_of(condition: Condition) -> Tensor:
    """What samples are found by: (B, D) float32 vectors of length 1 on the CPU, whose products are their similarities.

    Half of it is the mean text embedding, half the mean latent of the first frame, if there is one: where in the frame
    things lie says little about how to make a video obey, and keeps apart what is alike.
    """
    words = (condition.text != 0).any(-1, keepdim=True)  # not the padding
    parts = [(condition.text.float() * words).sum(1) / words.sum(1)]
    first = condition.first_frame
    if condition.channels is not None:
        first = condition.channels[:, -condition.shape[0] :, :1]
    if first is not None:
        parts.append(first[:, :, 0].flatten(2).mean(2))
    return F.normalize(torch.cat([F.normalize(part, dim=1) for part in parts], dim=1), dim=1).cpu()


def _read(folder: Path, model: str) -> tuple[dict[str, Tensor], list[str]]:
    """The keys of the entries that belong to ``model``, in order of their names; and what was left out, and why."""
    keys, odd = {}, []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            with safe_open(path, framework="pt") as file:
                entry = json.loads(file.metadata()["entry"])
            if (entry["format"], entry["model"]) != (FORMAT, model):
                odd.append(f"{path.name} (of another model or adapter shape)")
                continue
            key = torch.tensor(entry["key"], dtype=torch.float32)
            if key.dim() != 1 or not key.isfinite().all():
                raise ValueError("no vector")
            keys[path.name] = key
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError):
            odd.append(f"{path.name} (cannot be read)")
    return keys, odd
