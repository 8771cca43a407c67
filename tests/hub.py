"""A model hub in small: folders served as huggingface.co serves its repositories, to the real client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0" * 40


class Hub:
    """``root``/owner/name are the repositories; ``asked`` every file's bytes that were sent, by owner/name/file."""

    def __init__(self, root: Path, gated: str = "", license: str = "apache-2.0") -> None:
        self.root, self.gated, self.license = root, gated, license
        self.sent: dict[str, int] = {}

    def info(self, name: str) -> bytes:
        siblings = [{"rfilename": file, "size": size} for file, size in self.files(name)]
        return json.dumps(
            {"id": name, "sha": COMMIT, "siblings": siblings, "cardData": {"license": self.license}, "tags": []}
        ).encode()

    def tree(self, name: str) -> bytes:
        return json.dumps(
            [{"type": "file", "path": file, "size": size, "oid": _oid(file)} for file, size in self.files(name)]
        ).encode()

    def files(self, name: str) -> list[tuple[str, int]]:
        folder = self.root / name
        found = sorted(file for file in folder.rglob("*") if file.is_file())
        return [(file.relative_to(folder).as_posix(), file.stat().st_size) for file in found]


def _oid(file: str) -> str:
    return sha1(file.encode(), usedforsecurity=False).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            owner_and_name = "/".join(path.removeprefix("api/models/").split("/")[:2])
            if owner_and_name == hub.gated:
                return self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            if not (hub.root / owner_and_name).is_dir():
                return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            if path.startswith("api/models/"):
                return self.answer(200, hub.tree(owner_and_name) if "/tree/" in path else hub.info(owner_and_name))
            file = hub.root / owner_and_name / path.split("/", 4)[4]
            if not file.is_file():
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            content, status = file.read_bytes(), 200
            wanted = self.headers.get("Range")
            if wanted:
                first, last = wanted.removeprefix("bytes=").split("-")
                content, status = content[int(first) : int(last) + 1 if last else None], 206
            if self.command == "GET":
                place = file.relative_to(hub.root).as_posix()
                hub.sent[place] = hub.sent.get(place, 0) + len(content)
            oid = _oid(file.relative_to(hub.root / owner_and_name).as_posix())
            self.answer(status, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{oid}"'})

        def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def serving(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The client asks ``hub`` and keeps what it gets in ``cache``; outside, it asks a hub that does not answer."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
