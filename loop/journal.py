"""What a sample's loop was told and has made, reply by reply and clip by clip, so that nobody pays for it twice.

    samples/.<id>/journal/000.safetensors    a reply of the chat model, in the file's header
    samples/.<id>/journal/001.safetensors    a clip to the last bit, and the adapter it leaves behind, if that is kept

The loop decides by replies and clips alone. One that was interrupted runs again from its beginning, is given what the
journal holds instead of asking and generating, and so comes to where it was; from there on it works. An entry is only
given for exactly the same request: from the first one that differs, the rest is forgotten. The journal of a loop that
a model's failure ended is left for the next call; of one that came to its end, nothing is left. Of several processes
that share one model, process 0 has the journal and the others are given what it holds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ttopt.models.chat import Chat, Message, Reply, fingerprint
from ttopt.models.distributed import from_rank_zero
from ttopt.models.tensorfile import save_tensors
from ttopt.record.meter import Meter
from ttopt.record.run_folder import JOURNAL, replacing, writing

CLIP, ADAPTER = "clip", "adapter/"


@dataclass(frozen=True)
class Made:
    """A clip (T,3,H,W), what the trace says of it, and the adapter's state where later clips go on from it."""

    clip: Tensor
    details: dict[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Tensor] = field(default_factory=dict)


class Journal:
    """The journal in a sample's unfinished ``folder``.

    ``digest`` is of all that changes the sample's result; entries of another one, and broken ones, are forgotten, which
    ``note`` is told.
    """

    def __init__(self, folder: Path, digest: str, meter: Meter, note: Callable[[str], None]) -> None:
        self.folder, self.digest, self.meter, self.note = folder / JOURNAL, digest, meter, note
        self.entries: list[dict[str, Any]] = []  # of an earlier call
        self.place = 0  # of the next event
        self._read()

    def reply(self, messages: Sequence[Message], ask: Callable[[], Reply]) -> Reply:
        """The reply to these messages, by ``ask`` if it is not known yet."""
        request = fingerprint(messages)
        if entry := from_rank_zero(lambda: self._next("reply", request)):
            return Reply(**entry["reply"])
        reply = ask()
        self._write({"reply": asdict(reply), "request": request}, {})
        return reply

    def clip(self, request: str, make: Callable[[], Made]) -> Made:
        """What belongs to this request, by ``make`` if it is not there yet."""
        if known := from_rank_zero(lambda: self._known(request)):
            return known
        made = make()
        tensors = {CLIP: made.clip} | {ADAPTER + name: value for name, value in made.adapter.items()}
        with self.meter.paused():
            self._write({"clip": made.details, "request": request}, tensors)
        return made

    def forget(self, first: int) -> None:
        """Removes the entries from number ``first`` on: what they led to is to be tried again."""
        del self.entries[first:]
        for path in sorted(self.folder.glob("*.safetensors"))[first:]:
            path.unlink()
        self.place = min(self.place, first)

    def remove(self) -> None:
        """Forgets everything: the loop has come to its end."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _known(self, request: str) -> Made | None:
        path = self._path(self.place)
        if (entry := self._next("clip", request)) is None:
            return None
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
        clip = tensors.pop(CLIP)
        adapter = {name.removeprefix(ADAPTER): value for name, value in tensors.items()}
        return Made(clip, entry["clip"], adapter)

    def _next(self, kind: str, request: str) -> dict[str, Any] | None:
        """The next entry, if it is the answer to this request; else what follows is forgotten."""
        if self.place >= len(self.entries):
            return None
        entry = self.entries[self.place]
        if kind not in entry or entry["request"] != request:
            self._forget(self.place, "answers what would not be asked now")
            return None
        self.place += 1
        if self.place == len(self.entries):
            self.meter.resume(entry["cost"])
        return entry

    def _read(self) -> None:
        while (path := self._path(len(self.entries))).exists():
            try:
                with safe_open(path, framework="pt") as file:
                    entry = json.loads(file.metadata()["entry"])
                if entry["digest"] != self.digest:
                    raise ValueError("was made with other settings, inputs or versions")
                self.entries.append(entry)
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                self._forget(len(self.entries), f"cannot be used ({error})")

    def _forget(self, first: int, why: str) -> None:
        """Removes the entries from number ``first`` on."""
        self.note(f"{self._path(first)} {why}: it is removed, with all that follows")
        if 0 < first < len(self.entries):
            self.meter.resume(self.entries[first - 1]["cost"])
        self.forget(first)

    def _write(self, event: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        entry = json.dumps({**event, "digest": self.digest, "cost": self.meter.state()})
        with writing(self.folder.parent):
            self.folder.mkdir(exist_ok=True)
            with replacing(self._path(self.place)) as path:
                save_tensors(path, tensors, {"entry": entry})
        self.place += 1

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:03d}.safetensors"


class RememberedChat:
    """A chat model that is not asked what the journal knows."""

    def __init__(self, chat: Chat, journal: Journal) -> None:
        self.name, self.chat, self.journal = chat.name, chat, journal

    def reply(self, messages: Sequence[Message], schema: type[BaseModel] | None = None) -> Reply:
        return self.journal.reply(messages, lambda: self.chat.reply(messages, schema))
