"""Typed replies: what is tolerated, what is asked again, and that nothing unreachable or unreadable is an answer."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image
from pydantic import BaseModel, Field

from ttopt.config.settings import ChatSettings
from ttopt.data.replies import parse_reply
from ttopt.data.video import to_uint8
from ttopt.errors import UserError
from ttopt.models.chat import (
    ChatError,
    LocalChat,
    Message,
    OpenAIChat,
    Reply,
    ask,
    check_chat,
    fingerprint,
    make_chat,
)
from ttopt.models.teacher import Teacher
from ttopt.optimization.algorithm import Models


class Opinion(BaseModel):
    good_part: float = Field(ge=0, le=1)
    verdict: Literal["accept", "reject"]
    why: str = ""


GOOD = '{"good_part": 0.5, "verdict": "reject", "why": "it stays."}'
FOUND = Opinion(good_part=0.5, verdict="reject", why="it stays.")
IMAGE = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
ASKED = [Message("user", (IMAGE, "Is it good?"))]


# Reading


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"I think {{it}} is bad.\n{GOOD}\nThat is all.",
        f"<think>maybe {GOOD.replace('reject', 'accept')}</think>{GOOD}",
        f"maybe {GOOD.replace('reject', 'accept')}</think>{GOOD}",  # the chat template wrote <think>
        '{ " good _ part " : 0 . 5 , " verdict " : " reject " , " why " : " it stays . " }',
        GOOD.replace("it stays", "it\nstays"),
        f'{{"answer": {GOOD}}}',
        GOOD + GOOD,
    ],
)
def test_what_is_tolerated(text: str) -> None:
    assert parse_reply(text, Opinion) == FOUND


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no JSON object"),
        ("<html><body>502 Bad Gateway</body></html>", "no JSON object"),
        (GOOD[:-1], "broken"),
        (GOOD.replace("0.5", "80"), "good_part: Input should be less than or equal to 1"),
        (GOOD.replace("reject", "perhaps"), "'accept' or 'reject'"),
        ("[" * 10 + GOOD[1:], "no JSON object|broken"),
        (GOOD + GOOD.replace("reject", "accept"), "they differ"),
        (GOOD.replace('"why"', '"verdict": "accept", "why"'), "verdict stands there twice"),
        (f"<think>maybe {GOOD}", "no JSON object"),
        ('{"a":' * 3000, "deeply|broken"),
    ],
)
def test_what_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_reply(text, Opinion)


def test_numbers_in_texts_stay() -> None:
    assert parse_reply(GOOD.replace("it stays", "from 1 2 to 3 . 4"), Opinion).why == "from 1 2 to 3. 4."


def test_half_a_character_can_be_stored() -> None:
    assert parse_reply(GOOD.replace("it stays.", "\\ud83d"), Opinion).why.encode() == b"?"


class Says:
    name = "a parrot"

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.heard: list[list[Message]] = []

    def reply(self, messages: Any, schema: type[BaseModel] | None = None) -> Reply:
        self.heard.append(list(messages))
        return Reply(self.texts.pop(0), 0.0, 1, 1, 0.0, self.name)


def test_one_more_chance_with_the_error_shown() -> None:
    chat, replies = Says(GOOD.replace("0.5", "50"), GOOD), []
    assert ask(chat, ASKED, Opinion, replies.append) == FOUND
    assert len(replies) == 2
    (first, bad, repair) = chat.heard[1]
    assert first == ASKED[0] and bad.role == "assistant" and "50" in bad.text
    assert "less than or equal to 1" in repair.text


def test_two_unreadable_replies_are_an_error() -> None:
    chat = Says("accept", "I accept!")
    with pytest.raises(
        ChatError, match="a parrot gave no usable opinion, asked twice: there is no JSON .* 'I accept!'"
    ):
        ask(chat, ASKED, Opinion)


def test_thoughts_are_not_shown_again() -> None:
    chat = Says("<think>well</think>It is fine.", GOOD)
    assert ask(chat, ASKED, Opinion) == FOUND
    assert chat.heard[1][1].text == "It is fine."


def test_fingerprints() -> None:
    other = [Message("user", (IMAGE.flip(-1), "Is it good?"))]
    assert fingerprint(ASKED) == fingerprint([Message("user", (IMAGE.clone(), "Is it good?"))])
    assert len({fingerprint(ASKED), fingerprint(other), fingerprint([Message("user", ("Is it good?",))])}) == 3


# The teacher in this process


def test_teacher_sees_all_images_in_order(models: Models) -> None:
    """The prompt that reaches the model: each image's own place holders, then the text."""
    teacher, seen = models.teacher, {}

    class SpyError(Exception):
        pass

    def generate(**inputs: Any) -> Any:
        seen.update(inputs)
        raise SpyError

    original = teacher.model.generate
    teacher.model.generate = generate  # type: ignore[method-assign]
    small, large = torch.rand(3, 32, 48), torch.rand(3, 48, 48)
    try:
        with pytest.raises(SpyError):
            LocalChat(teacher).reply([Message("user", (small, large, "is the red cross whole ?"))])
    finally:
        teacher.model.generate = original  # type: ignore[method-assign]
    assert seen["image_grid_thw"].tolist() == [[1, 4, 6], [1, 6, 6]]
    assert torch.equal(
        seen["pixel_values"], torch.cat([teacher.vision.image_patches(image)[0] for image in (small, large)])
    )
    text = teacher.tokenizer.decode(seen["input_ids"][0]).replace(" ", "")
    pad = "<|image_pad|>"
    assert f"<|vision_start|>{pad * 6}<|vision_end|><|vision_start|>{pad * 9}<|vision_end|>isthe" in text
    assert int(seen["mm_token_type_ids"].sum()) == 15


def test_teacher_answers_and_counts(models: Models) -> None:
    said = LocalChat(models.teacher, max_tokens=5).reply([Message("user", (IMAGE.repeat(1, 6, 6), "is the red cross"))])
    assert said.tokens_out == 5 and said.tokens_in > 9 and said.latency > 0 and said.cut
    text = models.teacher.reply([("user", "is the red cross")], IMAGE.repeat(1, 6, 6), 5)
    assert text == said.text


def test_another_model_in_this_process(models: Models, folders: dict[str, Path]) -> None:
    asked = [Message("user", (IMAGE.repeat(1, 6, 6), "is the red cross"))]
    chat = make_chat(ChatSettings("local", str(folders["teacher"]), max_tokens=5), models.teacher)
    assert isinstance(chat, LocalChat) and chat.teacher is not models.teacher
    assert chat.reply(asked).text == LocalChat(models.teacher, max_tokens=5).reply(asked).text
    with pytest.raises(UserError, match="nowhere"):
        make_chat(ChatSettings("local", "/nowhere"), models.teacher)


def test_teacher_refuses_what_would_mislead_it(models: Models) -> None:
    chat = make_chat(ChatSettings(), models.teacher)
    assert isinstance(chat, LocalChat)
    for text in ("<|im_end|> is", "defenestrate the red cross"):
        with pytest.raises(ChatError, match="leave it out|lacks a word"):
            chat.reply([Message("user", (text,))])


# A server


class Server:
    """Sends the next of ``answers``: (status, headers, body); a function gets the request's JSON. Keeps requests."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.requests: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body | {"_path": self.path, "_key": self.headers["Authorization"]})
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                status, headers, text = answer(body) if callable(answer) else answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


def ok(text: str | None, finish: str = "stop") -> tuple[int, dict[str, str], str]:
    body = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 2000, "completion_tokens": 100, "total_tokens": 2100},
    }
    return 200, {"Content-Type": "application/json"}, json.dumps(body)


def fails(status: int, text: str = "no", **headers: str) -> tuple[int, dict[str, str], str]:
    body = json.dumps({"error": {"message": text}})
    return status, {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}, body


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


KEY = "sk-very-secret"


@pytest.fixture
def chat(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., OpenAIChat]:
    monkeypatch.setenv("MY_KEY", KEY)

    def make(**settings: Any) -> OpenAIChat:
        given = {"model": "m", "base_url": server.url, "key_env": "MY_KEY", "timeout": 5.0, "max_retries": 0}
        return OpenAIChat(ChatSettings("openai", **(given | settings)))

    return make


def test_what_a_server_is_sent(server: Server, chat: Callable[..., OpenAIChat]) -> None:
    server.answers = [ok(GOOD)]
    replies: list[Reply] = []
    assert ask(chat(price_in=2.0, price_out=10.0), ASKED, Opinion, replies.append) == FOUND
    (sent,) = server.requests
    assert sent["_path"] == "/v1/chat/completions" and sent["_key"] == f"Bearer {KEY}"
    assert sent["temperature"] == 0.2 and sent["model"] == "m"
    assert set(sent["response_format"]["json_schema"]["schema"]["properties"]) == {"good_part", "verdict", "why"}
    picture, text = sent["messages"][0]["content"]
    assert text == {"type": "text", "text": "Is it good?"}
    kind, _, data = picture["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        assert shown.tobytes() == to_uint8(IMAGE[None])[0].tobytes()
    (reply,) = replies
    assert (reply.tokens_in, reply.tokens_out, reply.cost) == (2000, 100, pytest.approx(0.005))


def test_a_server_that_takes_no_schema(server: Server, chat: Callable[..., OpenAIChat]) -> None:
    server.answers = [lambda body: fails(400, "unknown field") if "response_format" in body else ok(GOOD)]
    made = chat()
    assert ask(made, ASKED, Opinion) == ask(made, ASKED, Opinion) == FOUND
    assert ["response_format" in sent for sent in server.requests] == [True, False, False]


def test_a_server_with_newer_names(server: Server, chat: Callable[..., OpenAIChat]) -> None:
    def picky(body: dict[str, Any]) -> Any:
        if "max_tokens" in body:
            return fails(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        if "temperature" in body:
            return fails(400, "'temperature' does not support 0.2 with this model.")
        return ok(GOOD)

    server.answers = [picky]
    made = chat(max_tokens=77)
    assert ask(made, ASKED, Opinion) == ask(made, ASKED, Opinion) == FOUND
    assert len(server.requests) == 4 and server.requests[-1]["max_completion_tokens"] == 77
    assert all("response_format" in sent for sent in server.requests)


def test_a_busy_server_is_asked_again_when_it_says(server: Server, chat: Callable[..., OpenAIChat]) -> None:
    server.answers = [fails(429, retry_after="1"), fails(503, retry_after_ms="10"), ok(GOOD)]
    begin = time.monotonic()
    assert ask(chat(max_retries=2), ASKED, Opinion) == FOUND
    assert len(server.requests) == 3 and 1 <= time.monotonic() - begin < 3


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((200, {"Content-Type": "text/html"}, "<html>Welcome to the router</html>"), "no reply.*Welcome.*base_url"),
        ((200, {"Content-Type": "application/json"}, "<html>"), "no reply"),
        ((200, {"Content-Type": "application/json"}, "{}"), "no reply"),
        ((200, {"Content-Type": "application/json"}, '"accept"'), "no reply"),
        ((200, {"Content-Type": "application/json"}, '{"choices": {"a": 1}}'), "no reply"),
        ((200, {"Content-Type": "application/json"}, '{"choices": ["accept"]}'), "no reply"),
        ((200, {"Content-Type": "text/html"}, KEY * 40), r"no reply.*\*\*\*"),
        (ok(None), "no reply"),
        (fails(401, f"Incorrect key {KEY}"), r"refuses the key in MY_KEY .*\*\*\*"),
        (fails(404, "model m does not exist"), "is not there.*chat.model"),
        (fails(429, retry_after_ms="1"), "too busy"),
        (fails(500, "CUDA error"), "failed.*CUDA error"),
        (fails(500, KEY * 40), r"failed.*\*\*\*"),
        (ok(None, "length"), "cut off after 100 tokens.*raise chat.max_tokens"),  # by its thoughts
        (ok(GOOD, "length"), "cut off after 100 tokens.*raise chat.max_tokens"),
    ],
)
def test_no_failure_is_an_answer(answer: Any, problem: str, server: Server, chat: Callable[..., OpenAIChat]) -> None:
    server.answers = [answer]
    with pytest.raises(ChatError, match=problem) as error:
        ask(chat(), ASKED, Opinion)
    assert KEY[:5] not in str(error.value) and "\n" not in str(error.value)


def test_a_slow_server_and_none(server: Server, chat: Callable[..., OpenAIChat]) -> None:
    def slow(body: Any) -> Any:
        time.sleep(1)
        return ok(GOOD)

    server.answers = [slow]
    with pytest.raises(ChatError, match=r"did not answer within 0\.2 s"):
        ask(chat(timeout=0.2), ASKED, Opinion)
    with pytest.raises(ChatError, match="cannot be reached"):
        ask(chat(base_url="http://127.0.0.1:9/v1"), ASKED, Opinion)


def test_rate_limit(server: Server, chat: Callable[..., OpenAIChat]) -> None:
    server.answers = [ok(GOOD)]
    made, begin = chat(requests_per_minute=200), time.monotonic()
    for _ in range(3):
        ask(made, ASKED, Opinion)
    assert time.monotonic() - begin >= 0.6


def test_a_key_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match="MY_KEY is not set"):
        check_chat(ChatSettings("openai", model="m", key_env="MY_KEY"))
    check_chat(ChatSettings("openai", model="m", key_env=""))


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("127.0.0.1:8000/v1", "no address"),
        ("localhost:8000/v1", "no address"),
        ("http://host:port/v1", "no address"),
        ("http://me:hunter2@host/v1", "chat.key_env"),
    ],
)
def test_an_address_that_is_none_or_holds_a_password(address: str, problem: str) -> None:
    with pytest.raises(UserError, match=problem) as error:
        check_chat(ChatSettings("openai", model="m", base_url=address, key_env=""))
    assert "hunter2" not in str(error.value)


def test_a_server_gets_no_control_tokens(server: Server, chat: Callable[..., OpenAIChat]) -> None:
    server.answers = [ok(GOOD)]
    with pytest.raises(ChatError, match=r"control token <\|im_end\|>"):
        ask(chat(), [Message("user", (IMAGE, 'the "red<|im_end|>" cross'))], Opinion)
    assert not server.requests


def test_a_random_teacher_speaks_no_json(folders: dict[str, Path]) -> None:
    with pytest.raises(ChatError, match="asked twice"):
        ask(LocalChat(Teacher.load(folders["teacher"]), 20), [Message("user", ("is the red cross",))], Opinion)


def test_constrained_it_cannot_but_speak_json(folders: dict[str, Path]) -> None:
    pytest.importorskip("xgrammar")

    class Flags(BaseModel):
        goal: Literal["Yes", "No"]
        process: int = Field(ge=0, le=9)

    chat = LocalChat(Teacher.load(folders["teacher"]), 40, constrained=True)
    for question in ("is the red cross", "does the blue square move"):
        replies: list[Reply] = []
        found = ask(chat, [Message("user", (question,))], Flags, replies.append)
        assert found.goal in ("Yes", "No") and len(replies) == 1


def test_constrained_without_the_extra(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with pytest.raises(UserError, match="pip install -e .*grammar"):
        make_chat(ChatSettings(constrained=True), models.teacher)
