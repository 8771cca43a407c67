"""A chat server on loopback that answers as it is told."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-very-secret"
JSON_TYPE = {"Content-Type": "application/json"}
GZIP = JSON_TYPE | {"Content-Encoding": "gzip"}
Sent = tuple[int, dict[str, str], Any]  # status, headers, body: bytes, text, or what becomes JSON


@dataclass(frozen=True)
class Raw:
    """Bytes instead of an HTTP answer, ``every`` so many seconds a part; then the connection is closed."""

    parts: Iterable[bytes]
    every: float = 0.0


class Server:
    """Sends the next of ``answers``, the last one again and again; a function gets the request. Keeps requests."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answers: list[Sent | Raw | Callable[[dict[str, Any]], Sent | Raw]] = []
        self.requests: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body | {"_path": self.path, "_key": self.headers["Authorization"]})
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                answer = answer(body) if callable(answer) else answer
                with suppress(OSError):  # the client has gone
                    self.send_raw(answer) if isinstance(answer, Raw) else self.send(*answer)

            def send(self, status: int, headers: dict[str, str], body: Any) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                text = body if isinstance(body, (bytes, str)) else json.dumps(body)
                self.wfile.write(text.encode() if isinstance(text, str) else text)

            def send_raw(self, raw: Raw) -> None:
                for part in raw.parts:
                    self.wfile.write(part)
                    time.sleep(raw.every)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *args: None  # type: ignore[method-assign]
        if tls is not None:
            self.http.socket = tls.wrap_socket(self.http.socket, server_side=True)
        self.url = f"http{'s' * (tls is not None)}://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def says(message: Any, finish: Any = "stop", **more: Any) -> Sent:
    """A reply whose message is this."""
    choice = {"index": 0, "finish_reason": finish, "message": message}
    usage = {"prompt_tokens": 2000, "completion_tokens": 100, "total_tokens": 2100}
    return 200, JSON_TYPE, {"id": "1", "model": "m", "choices": [choice], "usage": usage} | more


def ok(text: Any, finish: str = "stop", **more: Any) -> Sent:
    """A reply whose content is this."""
    return says({"role": "assistant", "content": text}, finish, **more)


def fails(status: int, text: str = "no", **headers: str) -> Sent:
    return status, JSON_TYPE | {k.replace("_", "-"): v for k, v in headers.items()}, {"error": {"message": text}}
