"""Chat servers as they really answer: what is read, what is left out, and what is an error."""

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from bad_input import one_sentence
from fake_server import GZIP, JSON_TYPE, KEY, Sent, Server, fails, ok, says
from PIL import Image
from test_chat import ASKED, FOUND, GOOD, IMAGE, Opinion

from ttopt.data.video import to_uint8
from ttopt.models.chat import ChatError, OpenAIChat, Reply, ask, connection

Make = Callable[..., OpenAIChat]
HTML = {"Content-Type": "text/html"}


def test_what_a_server_is_sent(server: Server, chat: Make) -> None:
    server.answers = [ok(GOOD)]
    replies: list[Reply] = []
    assert ask(chat(price_in=2.0, price_out=10.0), ASKED, Opinion, replies.append) == FOUND
    (sent,) = server.requests
    assert sent["_path"] == "/v1/chat/completions" and sent["_key"] == f"Bearer {KEY}"
    assert (sent["temperature"], sent["model"], sent["max_tokens"]) == (0.2, "m", 1024)
    assert set(sent["response_format"]["json_schema"]["schema"]["properties"]) == {"good_part", "verdict", "why"}
    picture, text = sent["messages"][0]["content"]
    assert text == {"type": "text", "text": "Is it good?"}
    kind, _, data = picture["image_url"]["url"].partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        assert shown.tobytes() == to_uint8(IMAGE[None])[0].tobytes()
    (reply,) = replies
    assert (reply.tokens_in, reply.tokens_out, reply.cost) == (2000, 100, pytest.approx(0.005))
    assert not reply.without


def test_without_a_key_and_with_a_query(server: Server, chat: Make) -> None:
    server.answers = [ok(GOOD)]
    ask(chat(key_env="", base_url=f"{server.url}/?api-version=2"), ASKED, Opinion)
    (sent,) = server.requests
    assert sent["_key"] is None and sent["_path"] == "/v1/chat/completions?api-version=2"


# Replies

BAD = GOOD.replace("reject", "accept")
HARMONY = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>"
PARTS = [{"type": "thinking", "thinking": [{"type": "text", "text": BAD}]}, {"type": "text", "text": GOOD}]
REPLIES: dict[str, Sent] = {
    "plain": ok(GOOD),
    "no finish reason": ok(GOOD, finish=None),  # type: ignore[arg-type]
    "another name for the end": ok(GOOD, finish="STOP"),
    "parts": ok(PARTS),
    "parts without a type": ok([{"text": GOOD[:9]}, GOOD[9:]]),
    "only thoughts, and they are the reply": says({"content": None, "reasoning_content": GOOD}),
    "the same by another name": says({"content": "", "reasoning": f"```json\n{GOOD}\n```"}),
    "thoughts apart": says({"content": GOOD, "reasoning_content": BAD, "refusal": None}),
    "channels": ok(HARMONY.format(BAD, GOOD)),
    "think": ok(f"<think>{BAD}</think>{GOOD}"),
    "thinking": ok(f"<thinking>{BAD}</thinking>{GOOD}"),
    "[THINK]": ok(f"[THINK]{BAD}[/THINK]{GOOD}"),
    "upper case": ok(f"<THINK>{BAD}</Think>{GOOD}"),
    "leaked control tokens": ok(f"{GOOD}<|im_end|>\n<|endoftext|>"),
    "fence": ok(f"```json\n{GOOD}\n```"),
    "trailing comma": ok(GOOD.replace("}", ", }")),
    "no usage": ok(GOOD, usage=None, error=None),
    "byte order mark": (200, JSON_TYPE, b"\xef\xbb\xbf" + json.dumps(ok(GOOD)[2]).encode()),
    "no content type": (200, {}, json.dumps(ok(GOOD)[2])),
    "packed": (200, GZIP, gzip.compress(json.dumps(ok(GOOD)[2]).encode())),
}


@pytest.mark.parametrize("answer", REPLIES.values(), ids=REPLIES)
def test_replies(answer: Sent, server: Server, chat: Make) -> None:
    server.answers = [answer]
    assert ask(chat(), ASKED, Opinion) == FOUND and len(server.requests) == 1


COUNTS = ["Infinity", "-Infinity", "NaN", "-5", "1e300", "9" * 400, "true", "null", '"12"', "[]", "{}"]


@pytest.mark.parametrize("count", COUNTS)
def test_counts_that_are_none(count: str, server: Server, chat: Make) -> None:
    text = json.dumps(ok(GOOD)[2]).replace("2000", count).replace("100,", f"{count},")
    server.answers = [(200, JSON_TYPE, text)]
    replies: list[Reply] = []
    assert ask(chat(price_in=1.0), ASKED, Opinion, replies.append) == FOUND
    assert (replies[0].tokens_in, replies[0].tokens_out, replies[0].cost) == (0, 0, 0.0)


def test_leaked_control_tokens_are_not_sent_back(server: Server, chat: Make) -> None:
    server.answers = [ok("Fine.<|im_end|><|im_start|>user"), ok(GOOD)]
    assert ask(chat(), ASKED, Opinion) == FOUND
    assert "<|" not in json.dumps(server.requests[1]["messages"])


# Fields that a server does not take

OPENROUTER = "No endpoints found that can handle the requested parameters."
DROPPED: list[tuple[int, Any, str]] = [
    (400, {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}}, "max"),
    (400, {"error": {"message": "Unsupported", "param": "max_tokens", "code": "unsupported_parameter"}}, "max"),
    (422, {"detail": [{"loc": ["body", "max_tokens"], "msg": "Extra inputs are not permitted"}]}, "max"),
    (400, {"error": {"message": "'temperature' does not support 0.2 with this model."}}, "temperature"),
    (400, {"error": "invalid temperature: only 0.6 is allowed for this model"}, "temperature"),
    (403, {"error": {"message": "Temperature may not be set"}}, "temperature"),
    (422, {"detail": "temperature: must be 1"}, "temperature"),
    (200, {"error": {"code": 400, "message": "temperature is fixed"}}, "temperature"),
    (200, {"choices": [{"error": {"code": 400, "message": "temperature is fixed"}}]}, "temperature"),
    (400, {"error": {"message": "unknown field"}}, "response_format"),
    (422, "", "response_format"),
    (400, "This model does not support json_schema", "response_format"),
    (400, [{"error": {"code": 400, "message": "Structured output is not there"}}], "response_format"),
    (404, {"error": {"message": OPENROUTER, "code": 404}}, "response_format"),
    (403, {"message": "response_format is not allowed"}, "response_format"),
    (404, {"error": {"metadata": {"raw": '{"detail": "guided decoding is off"}'}}}, "response_format"),
    (400, {"errors": [{"msg": "`response format` needs a newer model"}]}, "response_format"),
    (501, {"error": {"message": "grammar is not implemented"}}, "once"),
]


@pytest.mark.parametrize("status, body, field", DROPPED)
def test_a_refused_field_is_left_out_from_then_on(
    status: int, body: Any, field: str, server: Server, chat: Make
) -> None:
    sent_as = {"max": "max_tokens", "once": "response_format"}.get(field, field)
    server.answers = [lambda request: (status, JSON_TYPE, body) if sent_as in request else ok(GOOD)]
    made, replies = chat(max_tokens=77), list[Reply]()
    assert ask(made, ASKED, Opinion, replies.append) == ask(made, ASKED, Opinion, replies.append) == FOUND
    again = [True, False, True, False] if field == "once" else [True, False, False]  # a broken server may be mended
    assert [sent_as in sent for sent in server.requests] == again
    others = {"max_tokens", "temperature", "response_format"} - {sent_as}
    assert all(others <= set(sent) for sent in server.requests), "nothing else is left out"
    assert [reply.without for reply in replies] == [sent_as] * 2
    if field == "max":
        assert server.requests[-1]["max_completion_tokens"] == 77


def test_several_refused_fields(server: Server, chat: Make) -> None:
    def picky(request: dict[str, Any]) -> Sent:
        for name in ("max_tokens", "temperature", "response_format"):
            if name in request:
                return fails(400, f"{name} is not supported")
        return ok(GOOD)

    server.answers = [picky]
    made = chat()
    assert ask(made, ASKED, Opinion) == ask(made, ASKED, Opinion) == FOUND and len(server.requests) == 5


@pytest.mark.parametrize("empty", [ok(""), ok(None), ok(" \n"), ok([]), says({"content": None, "reasoning": "Hm."})])
def test_a_schema_that_gives_an_empty_reply_is_left_out(empty: Sent, server: Server, chat: Make) -> None:
    server.answers = [lambda request: empty if "response_format" in request else ok(GOOD)]
    made = chat()
    assert ask(made, ASKED, Opinion) == ask(made, ASKED, Opinion) == FOUND
    assert ["response_format" in sent for sent in server.requests] == [True, False, False]


def test_what_is_left_out_in_vain_is_tried_again(server: Server, chat: Make) -> None:
    server.answers = [fails(400, "temperature and max_tokens and all the rest are wrong")]
    made = chat()
    for _ in range(2):
        with pytest.raises(ChatError, match="all the rest"):
            ask(made, ASKED, Opinion)
    assert len(server.requests) == 8 and all(name in server.requests[4] for name in ("temperature", "max_tokens"))


# Errors

MISSING = "no reply .*base_url"
DEEP = '{"a":' * 50_000
ERRORS: dict[str, tuple[Sent, str]] = {
    "a page": ((200, HTML, "<html>Welcome to the router</html>"), "no reply.*Welcome.*base_url"),
    "a page with a title": ((200, HTML, "<html><title>Log &amp; in</title>much more"), "no reply.*'Log & in'; chat"),
    "an error page": (
        (502, HTML, "<html><head><title>502 Bad Gateway</title></head>nginx"),
        r"\(status 502: 502 Bad Gateway\)",
    ),
    "half a page": ((200, JSON_TYPE, "<html>"), "no reply"),
    "an empty object": ((200, JSON_TYPE, "{}"), "no reply"),
    "nothing": ((200, JSON_TYPE, ""), "no reply"),
    "a text": ((200, JSON_TYPE, '"accept"'), "no reply.*accept"),
    "choices that are none": ((200, JSON_TYPE, '{"choices": {"a": 1}}'), "no reply.*there is no choice"),
    "a choice that is none": ((200, JSON_TYPE, '{"choices": ["accept"]}'), "no reply.*there is no choice"),
    "no choices": ((200, JSON_TYPE, {"choices": []}), "no reply.*there is no choice"),
    "no message": ((200, JSON_TYPE, {"choices": [{"message": None, "finish_reason": "stop"}]}), "no reply"),
    "nested": ((200, JSON_TYPE, DEEP), "no reply .its JSON is nested too deeply"),
    "nested lists": ((200, JSON_TYPE, "[" * 50_000), "no reply .its JSON is nested too deeply"),
    "nested error": ((500, JSON_TYPE, DEEP), "failed"),
    "a refusal": (says({"content": None, "refusal": "I cannot help."}), r"refuses to answer \(I cannot help\.\)"),
    "a refusal beside a reply": (says({"content": GOOD, "refusal": "I cannot help."}), "refuses to answer"),
    "a filter": (ok(GOOD, "content_filter"), "stopped before the end of its reply .*content_filter"),
    "Gemini's filter": (ok(GOOD, "SAFETY"), "stopped before the end of its reply .*safety"),
    "an error as the end": (ok(GOOD, "error"), "stopped before the end of its reply"),
    "an end that is none": (ok(GOOD, finish=["stop"]), "stopped before the end of its reply"),  # type: ignore[arg-type]
    "cut off while thinking": (ok(None, "length"), "cut off after 100 tokens.*raise chat.max_tokens"),
    "cut off": (ok(GOOD, "length"), "cut off after 100 tokens.*raise chat.max_tokens"),
    "cut off, in Gemini's words": (ok(GOOD, "MAX_TOKENS"), "cut off after 100 tokens.*raise chat.max_tokens"),
    "a draft in thoughts apart": (says({"content": None, "reasoning_content": f"Perhaps {GOOD}"}), "no JSON object"),
    "the key in a page": ((200, HTML, KEY * 40), r"no reply.*\*\*\*"),
    "the key in an error": (fails(401, f"Incorrect key {KEY}"), r"refuses the key in MY_KEY \(Incorrect key \*\*\*\)"),
    "the key in a broken server": (fails(500, KEY * 40), r"failed.*\*\*\*"),
    "the key in a redirect": (
        (302, {"Location": f"http://evil.example/{KEY}"}, ""),
        r"redirects to http://evil.example/\*\*\*,",
    ),
    "the key as the name of the end": (ok(GOOD, KEY), r"finish_reason '\*\*\*'"),
    "no model": (fails(404, "model m does not exist"), r"is not there \(model m does not exist\); check chat.model"),
    "an error with status 200": (
        (200, JSON_TYPE, {"error": {"code": 401, "message": "gone"}}),
        r"refuses the key.*\(gone\)",
    ),
    "the same as a text": (
        (200, JSON_TYPE, {"error": "Unexpected endpoint"}),
        r"failed \(status 400: Unexpected endpoint\)",
    ),
    "the same by name": (
        (200, JSON_TYPE, {"error": {"type": "rate_limit_error", "message": "slow"}}),
        r"too busy \(slow\)",
    ),
    "error as a text": ((418, JSON_TYPE, {"error": "a teapot"}), r"\(status 418: a teapot\)"),
    "error as an object": ((418, JSON_TYPE, {"error": {"message": "a teapot"}}), r"\(status 418: a teapot\)"),
    "detail as a text": ((418, JSON_TYPE, {"detail": "a teapot"}), r"\(status 418: a teapot\)"),
    "detail as a list": ((418, JSON_TYPE, {"detail": [{"msg": "a teapot", "loc": ["body", 0]}]}), r"a teapot; body\)"),
    "a list": ((418, JSON_TYPE, [{"error": {"message": "a teapot", "status": "TEA"}}]), r"\(status 418: a teapot\)"),
    "message": ((418, JSON_TYPE, {"object": "error", "message": "a teapot"}), r"\(status 418: a teapot\)"),
    "plain text": ((418, {"Content-Type": "text/plain"}, "a\nteapot"), r"\(status 418: a teapot\)"),
    "a JSON text": ((418, JSON_TYPE, '"a teapot"'), r"\(status 418: a teapot\)"),
    "unknown names": ((418, JSON_TYPE, {"teapot": 7}), r'\(status 418: .*"teapot": 7'),
    "no text": ((418, JSON_TYPE, ""), r"\(status 418: \)"),
    "no UTF-8": ((418, {}, b"\xff\xfe tea"), r"\(status 418: .*tea\)"),
    "too large": (fails(413, "too large"), "takes no request as large as this.*fewer or smaller frames"),
    "no money": (fails(402, "pay"), r"wants to be paid first \(pay\)"),
    "busy": (fails(429, "slow down"), r"is too busy \(slow down\); raise chat.max_retries"),
    "CUDA": (fails(500, "CUDA error"), r"failed \(status 500: CUDA error\)"),
    "endless": ((200, JSON_TYPE, b" " * (connection.LARGEST + 1)), "sent more than 16 MB"),
    "a bomb": ((200, GZIP, gzip.compress(b" " * (connection.LARGEST + 1))), "sent more than 16 MB"),
    "broken gzip": ((200, GZIP, b"{}"), "cannot be unpacked"),
    "unknown packing": ((200, JSON_TYPE | {"Content-Encoding": "br"}, b"{}"), "was not asked for .*'br'"),
    "status 204": ((204, {}, ""), "no reply"),
}


@pytest.mark.parametrize("answer, problem", ERRORS.values(), ids=ERRORS)
def test_no_failure_is_an_answer(answer: Sent, problem: str, server: Server, chat: Make) -> None:
    server.answers = [answer]
    with pytest.raises(ChatError, match=problem) as error:
        ask(chat(), ASKED, Opinion)
    one_sentence(str(error.value), f"m at {server.url} ")
    assert KEY[:5] not in str(error.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("link_local", [False, True])
def test_redirects_are_not_followed(status: int, link_local: bool, server: Server, chat: Make) -> None:
    """Neither prompts and images nor the key reach another host, and its answer is none."""
    other = Server()
    other.answers = [ok(GOOD)]
    there = "http://169.254.169.254/latest" if link_local else f"{other.url}/chat/completions"
    server.answers = [(status, {"Location": there}, json.dumps(ok(GOOD)[2]))]
    try:
        with pytest.raises(ChatError, match=f"redirects to {there}, which is not followed"):
            ask(chat(), ASKED, Opinion)
    finally:
        other.stop()
    assert not other.requests and len(server.requests) == 1
