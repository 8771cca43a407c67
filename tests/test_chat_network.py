"""The way to a chat server: waiting, limits, faults of the network, keys, addresses, proxies; and anything at all."""

from __future__ import annotations

import dataclasses
import email.utils
import itertools
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_input import FEW, JSON, one_sentence
from fake_server import GZIP, JSON_TYPE, KEY, Raw, Sent, Server, fails, ok
from hypothesis import given
from hypothesis import strategies as st
from test_chat import ASKED, FOUND, GOOD, IMAGE, Opinion

from ttopt.config.settings import ChatSettings
from ttopt.errors import UserError
from ttopt.models.chat import ChatError, Message, OpenAIChat, ask, check_chat
from ttopt.models.chat import server as server_module
from ttopt.models.chat.connection import Answer

Make = Callable[..., OpenAIChat]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits of the chat, which then take no time."""
    found: list[float] = []
    monkeypatch.setattr(server_module.time, "sleep", found.append)
    return found


# Waiting


def in_seconds(seconds: float) -> str:
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


GEMINI = [{"error": {"code": 429, "message": "quota", "details": [{"@type": "RetryInfo", "retryDelay": "22.5s"}]}}]
WAITS: dict[str, tuple[Callable[[], Sent], float, float]] = {
    "seconds": (lambda: fails(429, retry_after="7"), 7, 7),
    "part of a second": (lambda: fails(503, retry_after="0.25"), 0.25, 0.25),
    "milliseconds": (lambda: fails(429, retry_after_ms="1500", retry_after="7"), 1.5, 1.5),
    "a date": (lambda: fails(429, retry_after=in_seconds(40)), 35, 40),
    "a date in the past": (lambda: fails(429, retry_after=in_seconds(-40)), 0, 0),
    "Gemini": (lambda: (429, JSON_TYPE, GEMINI), 22.5, 22.5),
    "nothing": (lambda: fails(500), 0.3, 0.5),
    "nonsense": (lambda: fails(429, retry_after="soon"), 0.3, 0.5),
    "less than nothing": (lambda: fails(429, retry_after="-5"), 0.3, 0.5),
    "not a number": (lambda: fails(429, retry_after="nan"), 0.3, 0.5),
    "an error with status 200": (lambda: (200, JSON_TYPE, {"error": {"code": 503, "message": "later"}}), 0.3, 0.5),
    "a broken answer": (lambda: (200, GZIP, b"{}"), 0.3, 0.5),
}


@pytest.mark.parametrize("answer, least, most", WAITS.values(), ids=WAITS)
def test_waits(
    answer: Callable[[], Sent], least: float, most: float, server: Server, chat: Make, pauses: list[float]
) -> None:
    server.answers = [answer(), ok(GOOD)]
    assert ask(chat(max_retries=1), ASKED, Opinion) == FOUND
    (pause,) = pauses
    assert least <= pause <= most and all("response_format" in sent for sent in server.requests)


FINAL: dict[str, tuple[Sent, str]] = {
    "no quota": (
        (429, JSON_TYPE, {"error": {"message": "You exceeded", "code": "insufficient_quota"}}),
        "no quota left",
    ),
    "an hour": (fails(429, retry_after="3600"), "asks for a pause of 3600 s .*try again later"),
    "for ever": (fails(429, retry_after="1e999"), "asks for a pause of inf s"),
    "the key": (fails(401), "refuses the key"),
    "a redirect": ((308, {"Location": "/elsewhere"}, ""), "redirects to /elsewhere"),
}


@pytest.mark.parametrize("answer, problem", FINAL.values(), ids=FINAL)
def test_what_is_not_tried_again(answer: Sent, problem: str, server: Server, chat: Make, pauses: list[float]) -> None:
    server.answers = [answer]
    with pytest.raises(ChatError, match=problem):
        ask(chat(max_retries=4), ASKED, Opinion)
    assert not pauses and len(server.requests) == 1


def test_pauses_grow(server: Server, chat: Make, pauses: list[float]) -> None:
    server.answers = [fails(429)]
    with pytest.raises(ChatError, match="too busy"):
        ask(chat(max_retries=8), ASKED, Opinion)
    assert len(pauses) == 8 and pauses[0] <= 0.5 and 2 < pauses[3] <= 4 and pauses[7] <= 8


def test_requests_per_minute(server: Server, chat: Make) -> None:
    server.answers = [ok(GOOD)]
    made, begin = chat(requests_per_minute=400), time.monotonic()
    for _ in range(3):
        ask(made, ASKED, Opinion)
    assert time.monotonic() - begin >= 0.3


def endless(*parts: bytes) -> Iterator[bytes]:
    yield from parts[:-1]
    yield from itertools.repeat(parts[-1])


CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SLOW = {
    "nothing": lambda: Raw(endless(b""), 0.05),
    "slow headers": lambda: Raw(endless(b"HTTP/1.1 200 OK\r\nX: ", b"x"), 0.05),
    "endless 100": lambda: Raw(endless(b"HTTP/1.1 100 Continue\r\n\r\n")),
    "slow 100": lambda: Raw(endless(b"HTTP/1.1 100 Continue\r\n\r\n"), 0.05),
    "slow chunks": lambda: Raw(endless(CHUNKS, b"1\r\n \r\n"), 0.05),
    "slow body": lambda: Raw(endless(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b" "), 0.05),
}


@pytest.mark.parametrize("answer", SLOW.values(), ids=SLOW)
def test_every_call_has_an_end(answer: Callable[[], Raw], server: Server, chat: Make) -> None:
    server.answers = [answer()]
    begin = time.monotonic()
    with pytest.raises(ChatError, match=r"did not answer within 0\.4 s; raise chat\.timeout"):
        ask(chat(timeout=0.4), ASKED, Opinion)
    assert time.monotonic() - begin < 3


def test_endless_chunks_end(server: Server, chat: Make) -> None:
    server.answers = [Raw(endless(CHUNKS, b"100000\r\n" + b" " * 0x100000 + b"\r\n"))]
    with pytest.raises(ChatError, match="sent more than 16 MB"):
        ask(chat(), ASKED, Opinion)


# The network


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


NO_HTTP = {
    "closed": ([b""], "no HTTP"),
    "another protocol": ([b"SSH-2.0-OpenSSH_9.6\r\n"], "no HTTP"),
    "half headers": ([b"HTTP/1.1 200 OK\r\nA: b\r\n"], "no HTTP"),
    "half a body": ([b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}"], "no HTTP"),
    "endless headers": (endless(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 100), "no HTTP"),
    "a length that is none": ([b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}"], "no HTTP"),
    "two lengths": ([b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}"], "no HTTP"),
    "a redirect to nowhere": (
        [b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n"],
        "redirect|location",
    ),
}


@pytest.mark.parametrize("parts, problem", NO_HTTP.values(), ids=NO_HTTP)
def test_what_is_no_http(parts: Any, problem: str, server: Server, chat: Make) -> None:
    server.answers = [Raw(parts)]
    with pytest.raises(ChatError, match=problem) as error:
        ask(chat(), ASKED, Opinion)
    one_sentence(str(error.value), f"m at {server.url} ")


FAR, NOWHERE = "http://far.example/v1", "no-such-host.invalid"
FAULTS: list[tuple[str, dict[str, str], str]] = [  # address, environment, what is said; {closed} and {open} are ports
    ("http://127.0.0.1:{closed}/v1", {}, "cannot be reached: connection refused; check chat.base_url and whether"),
    (f"http://{NOWHERE}/v1", {}, f"the name {NOWHERE} is not known"),
    ("http://xn--/v1", {}, "cannot be reached"),
    ("https://127.0.0.1:{open}/v1", {}, "no TLS connection .*; http:// instead of https://?"),
    (FAR, {"http_proxy": "http://me:hunter2@127.0.0.1:{closed}"}, "through the proxy http://127.0.0.1:.* refused"),
    (FAR, {"http_proxy": f"http://{NOWHERE}:1"}, f"through the proxy .* the name {NOWHERE} is not known"),
    (FAR.replace("http", "https"), {"HTTPS_PROXY": "http://127.0.0.1:{open}"}, "through the proxy http://127.0.0.1"),
    (
        "http://127.0.0.1:{closed}/v1",
        {"http_proxy": "http://x.invalid", "no_proxy": "127.0.0.1"},
        "check chat.base_url",
    ),
]


@pytest.mark.parametrize("address, environment, problem", FAULTS)
def test_faults_of_the_network_are_named(
    address: str, environment: dict[str, str], problem: str, server: Server, chat: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers = [Raw([b"HTTP/1.1 200 OK\r\n\r\nhello"])]
    ports = {"closed": closed_port(), "open": server.http.server_port}
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(**ports))
    with pytest.raises(ChatError, match=problem) as error:
        ask(chat(base_url=address.format(**ports)), ASKED, Opinion)
    one_sentence(str(error.value), "m at ")
    assert "hunter2" not in str(error.value)


def test_a_proxy_is_used(server: Server, chat: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answers = [ok(GOOD), fails(407, "who are you?")]
    monkeypatch.setenv("ALL_PROXY", server.url.removesuffix("/v1"))
    made = chat(base_url="http://far.example/v1")
    assert ask(made, ASKED, Opinion) == FOUND
    assert server.requests[0]["_path"] == "http://far.example/v1/chat/completions"
    with pytest.raises(ChatError, match="the proxy http://127.0.0.1:.* wants a password"):
        ask(made, ASKED, Opinion)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_certificates(tmp_path: Path, chat: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that nobody has signed is refused by name, and believed where the user says so."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", "key", "-out", "cert", "-days", "2", "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    safe = Server(tls)
    safe.answers = [ok(GOOD)]
    try:
        with pytest.raises(
            ChatError, match=r"its certificate is not trusted \(self.signed certificate\).*SSL_CERT_FILE"
        ):
            ask(chat(base_url=safe.url), ASKED, Opinion)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
        assert ask(chat(base_url=safe.url), ASKED, Opinion) == FOUND
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
        with pytest.raises(UserError, match="SSL_CERT_FILE .* cannot be read"):
            chat(base_url=safe.url)
    finally:
        safe.stop()


def test_a_loop_that_runs_already(server: Server, chat: Make) -> None:
    """As in a notebook."""
    import asyncio

    async def cell() -> Opinion:
        return ask(chat(), ASKED, Opinion)

    server.answers = [ok(GOOD)]
    assert asyncio.run(cell()) == FOUND


def test_calls_leave_nothing_behind(server: Server, chat: Make) -> None:
    server.answers = [ok(GOOD)]
    made = chat()
    ask(made, ASKED, Opinion)
    before, files = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        ask(made, ASKED, Opinion)
    assert threading.active_count() <= before + 1 and len(list(Path("/proc/self/fd").iterdir())) <= files + 2


# Settings


@pytest.mark.parametrize(
    "key, problem",
    [
        (None, "MY_KEY is not set"),
        ("", "MY_KEY is not set"),
        (f"{KEY}\n", r"MY_KEY holds white space \(character 15 of 15\)"),
        (f" {KEY}", r"MY_KEY holds white space \(character 1 of 15\)"),
        ("sk-very\tsecret", "MY_KEY holds white space"),
        ("sk-very-sécret", "MY_KEY holds a letter that no key has"),
        ("sk-very\x01secret", "MY_KEY holds a letter that no key has"),
    ],
)
def test_keys_that_cannot_be_sent(key: str | None, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", key) if key is not None else monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match=problem) as error:
        check_chat(ChatSettings("openai", model="m", key_env="MY_KEY"))
    one_sentence(str(error.value), "chat.key_env")
    assert "secret" not in str(error.value)
    check_chat(ChatSettings("openai", model="m", key_env=""))


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("127.0.0.1:8000/v1", "no address"),
        ("localhost:8000/v1", "no address"),
        ("http://host:port/v1", "no address"),
        ("http://host:99999/v1", "no address"),
        ("http:///v1", "no address"),
        ("http://", "no address"),
        ("http://ho\nst/v1", "no address"),
        ("http://host/v1\n", "no address"),
        ("http://[/v1", "no address"),
        ("file:///etc/passwd", "no address"),
        ("http://me:hunter2@host/v1", "a user or password"),
        ("http://:hunter2@host/v1", "a user or password"),
        ("https://host/v1?api_key=hunter2", "holds a key"),
        ("https://host/v1?access-token=hunter2", "holds a key"),
        ("https://host?key=hunter2", "holds a key"),
        ("https://host/v1#token=hunter2", "holds a key"),
        ("https://host/sk-hunter2hunter2/v1", "holds a key"),
        ("https://host/%73k-hunter2hunter2/v1", "holds a key"),
        ("https://host/v1/AIzaSyhunter2hunter2", "holds a key"),
        ("https://host/Ahunter2Bhunter2Chunter2/v1", "holds a key"),
        ("https://host/my-hunter2-own/v1", "holds a key"),  # whatever it looks like
    ],
)
def test_addresses_that_are_none_or_hold_a_secret(address: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "my-hunter2-own")
    with pytest.raises(UserError, match=problem) as error:
        check_chat(ChatSettings("openai", model="m", base_url=address, key_env="MY_KEY"))
    one_sentence(str(error.value), "chat.base_url")
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "address",
    [
        "https://generativelanguage.googleapis.com/v1beta/openai/",
        "https://gateway.ai.cloudflare.com/v1/0123456789abcdef0123456789abcdef/my-gateway/openai",
        "https://name.openai.azure.com/openai/deployments/Qwen2.5-VL-72B-Instruct/?api-version=2024-10-21",
        "https://api.runpod.ai/v2/vllm-abc123def456gh/openai/v1",
        "https://host/key-management-service/v1",
        "http://[::1]:8000/v1",
        "http://modèle.example/v1",
    ],
)
def test_addresses_that_hold_none(address: str) -> None:
    check_chat(ChatSettings("openai", model="m", base_url=address, key_env=""))


@pytest.mark.parametrize(
    "proxy, problem",
    [
        ("socks5://me:hunter2@127.0.0.1:1080", "the SOCKS proxy socks5://127.0.0.1:1080 needs socksio; pip install"),
        ("gopher://127.0.0.1", "the proxy for http addresses is none that can be used; correct http_proxy"),
        ("http://[", "the proxy for http addresses is none that can be used"),
        ("http://ho st:80", "the proxy for http addresses is none that can be used"),
    ],
)
def test_proxies_that_cannot_be_used(proxy: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(UserError, match=problem) as error:
        check_chat(ChatSettings("openai", model="m", base_url="http://far.example/v1", key_env=""))
    assert "hunter2" not in str(error.value)


def test_a_server_gets_no_control_tokens(server: Server, chat: Make) -> None:
    server.answers = [ok(GOOD)]
    with pytest.raises(ChatError, match=r"control token <\|im_end\|>"):
        ask(chat(), [Message("user", (IMAGE, 'the "red<|im_end|>" cross'))], Opinion)
    assert not server.requests


# Anything

STATUS = st.sampled_from([200, 200, 200, 201, 302, 400, 401, 403, 404, 422, 429, 500])
HEADER = st.sampled_from(["application/json", "text/html", "", "retry-after"])
PIECES = st.sampled_from(
    ["choices", "message", "content", "error", "code", "usage", "finish_reason", "refusal", "text"]
)
SHAPES = st.recursive(
    JSON, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(PIECES, inner, max_size=4), max_leaves=4
)


def replied(made: OpenAIChat, answer: Answer) -> None:
    """A usable reply that can be written down, or a ChatError of one sentence."""
    made._connection.post = lambda content: answer  # type: ignore[method-assign]
    try:
        found = made.reply(ASKED, Opinion)
    except ChatError as error:
        one_sentence(str(error), "m at ")
        str(error).encode()
    else:
        json.dumps(dataclasses.asdict(found), allow_nan=False).encode()


@FEW
@given(status=STATUS, header=HEADER, body=st.binary(max_size=200))
def test_any_bytes(status: int, header: str, body: bytes, chat: Make) -> None:
    replied(chat(), Answer(status, {"content-type": header, "retry-after": header}, body))


@FEW
@given(status=STATUS, content=SHAPES, message=SHAPES, choice=SHAPES, finish=SHAPES, usage=SHAPES, error=SHAPES)
def test_any_json(status: int, chat: Make, **parts: Any) -> None:
    """The whole answer is anything, then its parts are."""
    made, body = chat(), ok(parts["content"])[2]
    choice = body["choices"][0]
    message = choice["message"]
    for shape in (
        parts["content"],
        body,
        body | {"usage": {"prompt_tokens": parts["usage"], "completion_tokens": parts["content"]}},
        body | {"usage": parts["usage"], "error": parts["error"]},
        body | {"choices": [choice | {"finish_reason": parts["finish"]}]},
        body | {"choices": [choice | {"message": parts["message"]}]},
        body | {"choices": [choice | {"message": message | {"refusal": parts["message"]}}]},
        body | {"choices": [choice | {"message": {"reasoning": parts["message"]}}]},
        body | {"choices": [parts["choice"]]},
        body | {"choices": parts["choice"]},
    ):
        replied(made, Answer(status, {}, json.dumps(shape).encode()))


@FEW
@given(data=st.binary(max_size=80), begun=st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", CHUNKS]))
def test_any_bytes_on_the_line(data: bytes, begun: bytes, server: Server, chat: Make) -> None:
    server.answers = [Raw([begun, data])]
    try:
        chat(timeout=2.0).reply(ASKED, Opinion)
    except ChatError as error:
        one_sentence(str(error), "m at ")
