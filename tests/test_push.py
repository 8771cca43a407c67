"""``ttopt push`` against a stand-in for the hub on loopback."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from bad_input import Capture, refused
from tiny import tiny_sample
from tiny_fit import fit_sample

from ttopt.__main__ import main
from ttopt.config.settings import FitSettings
from ttopt.data.find import given_queries
from ttopt.models.load import Models


class Hub:
    """Keeps what is uploaded."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.made: dict[str, Any] = {}
        self.tokens: set[str | None] = set()
        self.private = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                outer.tokens.add(self.headers["Authorization"])
                self.answer(outer.answer(self.path, body))

            def do_GET(self) -> None:
                known = self.path.startswith("/api/models/me/lora")
                self.answer({"id": "me/lora", "sha": "0" * 40, "private": outer.private} if known else None)

            def answer(self, content: Any) -> None:
                text = json.dumps(content or {"error": "not found"}).encode()
                self.send_response(200 if content else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, path: str, body: str) -> Any:
        if path == "/api/repos/create":
            self.made = json.loads(body)
            return {"url": f"{self.url}/me/lora"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return {"commitOid": "0" * 40, "commitUrl": f"{self.url}/me/lora/commit/{'0' * 40}", "success": True}
        return None


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", made.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def folder(models: Models, settings: Callable[..., FitSettings], tmp_path: Path) -> Path:
    """A sample that was optimized."""
    s = settings(optimization={"steps": 1})
    prompt = "move | the ``` red </square>"
    fit_sample(tiny_sample(prompt=prompt), models, s, tmp_path, queries=given_queries(s))
    return tmp_path


def test_adapter_and_card_are_uploaded_in_private(hub: Hub, folder: Path, capsys: Capture) -> None:
    assert main(["push", "--sample", str(folder), "--to", "me/lora", "--license", "apache-2.0"]) == 0
    out, err = capsys.readouterr()
    assert f"pushed: {hub.url}/me/lora/commit/" in out and "hf_secret" not in out + err
    assert hub.made["name"] == "lora" and hub.made["organization"] == "me" and hub.made["visibility"] == "private"
    assert hub.tokens == {"Bearer hf_secret"}
    text = hub.files.pop("README.md").decode()
    assert text.startswith("---\nlibrary_name: diffusers\nlicense: apache-2.0\n")
    assert "\n    move | the ``` red </square>\n" in text and "After 1 steps:" in text
    assert hub.files == {path.name: path.read_bytes() for path in (folder / "adapter").iterdir()}


def test_what_cannot_be_pushed_is_refused(hub: Hub, folder: Path, capsys: Capture, tmp_path: Path) -> None:
    to = ["--to", "me/lora"]
    refused(["push", "--sample", str(tmp_path / "no"), *to], "no/result.json", capsys)
    refused(["push", "--sample", str(folder), "--to", "lora"], "--to lora: give owner/name", capsys)
    hub.private = False
    refused(["push", "--sample", str(folder), *to], "me/lora can be read by everybody; give --public", capsys)
    assert hub.files == {}
    hub.answer = lambda path, body: None  # type: ignore[method-assign]
    refused(["push", "--sample", str(folder), *to], "me/lora cannot be written .. set HF_TOKEN to a token", capsys)
    for file in (folder / "adapter").iterdir():
        file.unlink()
    refused(["push", "--sample", str(folder), *to], "has no adapter; give the folder of a sample that was", capsys)
