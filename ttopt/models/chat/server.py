"""A chat model behind a server with OpenAI's interface.

Servers differ in what they take and in how they say so. A field that one refuses is left out, once and from then on
(``Reply.without`` says which); calls that fail for now (busy, down, too slow) are repeated, after growing pauses or
when the server says.
"""

from __future__ import annotations

import base64
import random
import re
import time
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from torch import Tensor

from ttopt.config.settings import ChatSettings
from ttopt.data.replies import storable
from ttopt.errors import one_line
from ttopt.models.chat.address import address_of, key_of, proxy_to, shown_proxy
from ttopt.models.chat.answers import (
    Completion,
    asked_pause,
    content_of,
    error_text,
    has_no_quota,
    read_completion,
    unwrapped,
)
from ttopt.models.chat.connection import Answer, Connection, NoAnswerError
from ttopt.models.chat.errors import ChatError
from ttopt.models.chat.messages import Jpeg, Message, Mp4, Reply
from ttopt.models.distributed import from_rank_zero

SHOWN = 300  # characters of a reply or an error page that an error message quotes
SHORTEST_KEY = 8  # letters; a shorter one, such as "none", is no secret but a word
CONTROL = re.compile(r"<\|\w+\|>")  # marks a turn or an image in the chat templates of open models
LONGEST_PAUSE = 120.0  # seconds that a server may ask for
FIRST_PAUSE, MOST_OWN_PAUSE = 0.5, 8.0  # seconds between repetitions where it does not ask
REFUSING = (400, 403, 404, 422)
PASSING = (408, 409, 425, 429)  # and those from 500 on
# What a server may call a field that it refuses. OpenAI's newer models want another name for max_tokens.
FIELDS = {
    "response_format": re.compile(r"response_?\s?format|json_?\s?(schema|mode)|structured|guided|grammar|schema"),
    "temperature": re.compile(r"temperature"),
    "max_tokens": re.compile(r"max_(completion_|output_)?tokens"),
}
UNSUPPORTED = re.compile(r"no endpoints|support|parameter")


class OpenAIChat:
    """Any server with OpenAI's chat interface."""

    def __init__(self, settings: ChatSettings) -> None:
        """Raises UserError as check_chat does."""
        self.settings = settings
        self.name = f"{settings.model} at {settings.base_url or 'OpenAI'}"
        url = address_of(settings)
        self._key, self._proxy = key_of(settings), proxy_to(url)
        url = url.copy_with(path=url.path.rstrip("/") + "/chat/completions", fragment=None)
        self._connection = Connection(url, self._key, self._proxy, settings.timeout)
        self._without: list[str] = []  # fields that this server does not take
        self._next_call = 0.0

    def reply(self, messages: Sequence[Message], schema: type[BaseModel] | None = None) -> Reply:
        """Held to the schema where the server knows how. Raises ChatError."""
        return from_rank_zero(lambda: self._reply(messages, schema))

    def _reply(self, messages: Sequence[Message], schema: type[BaseModel] | None) -> Reply:
        for message in messages:
            if token := CONTROL.search(message.text):  # most servers would obey it
                raise ChatError(f"{message.text[:SHOWN]!r} holds the control token {token[0]}; leave it out")
        begin = time.perf_counter()
        without, lasting = list(self._without), list(self._without)
        while True:
            request = self._request(messages, schema, without)
            answer = self._call(request)
            if answer.fine:
                said = self._read(answer)
                if said.text.strip() or said.cut or "response_format" not in request:
                    break
                field: str | None = "response_format"  # was taken, and nothing came of it
            else:
                field = refused_field(answer, request)
            if field is None:
                raise ChatError(f"{self.name} {self._explained(answer)}")
            without.append(field)
            if answer.status < 500:  # which may have had other reasons
                lasting.append(field)
        if said.text.strip():
            self._without = lasting
        s, latency = self.settings, time.perf_counter() - begin
        cost = (said.tokens_in * s.price_in + said.tokens_out * s.price_out) / 1e6
        text = storable(self._without_key(said.text))
        return Reply(text, latency, said.tokens_in, said.tokens_out, cost, s.model, said.cut, ", ".join(without))

    def _request(
        self, messages: Sequence[Message], schema: type[BaseModel] | None, without: Sequence[str]
    ) -> dict[str, Any]:
        most = "max_completion_tokens" if "max_tokens" in without else "max_tokens"
        request: dict[str, Any] = {"model": self.settings.model, most: self.settings.max_tokens}
        if "temperature" not in without:
            request["temperature"] = self.settings.temperature
        if schema is not None and "response_format" not in without:
            named = {"name": schema.__name__.lower().strip("_"), "schema": schema.model_json_schema()}
            request["response_format"] = {"type": "json_schema", "json_schema": named}
        return request | {"messages": [{"role": message.role, "content": _content(message)} for message in messages]}

    def _call(self, request: dict[str, Any]) -> Answer:
        """One answer, asked for again where the failure may pass. Raises ChatError where none comes."""
        for number in range(self.settings.max_retries + 1):
            last = number == self.settings.max_retries
            self._keep_rate()
            pause = None
            try:
                answer = unwrapped(self._connection.post(request))
                passing = (answer.status in PASSING or answer.status >= 500) and not has_no_quota(answer)
                pause = asked_pause(answer)
                if last or not passing or (pause or 0.0) > LONGEST_PAUSE:
                    return answer
            except NoAnswerError as error:
                if last or not error.passing:
                    raise ChatError(f"{self.name} {self._quoted(str(error), 2 * SHOWN)}") from error
            own = min(FIRST_PAUSE * 2**number, MOST_OWN_PAUSE) * random.uniform(0.75, 1.0)
            time.sleep(own if pause is None else pause)
        raise AssertionError  # the last call returns or raises

    def _keep_rate(self) -> None:
        """Waits as requests_per_minute says."""
        if self.settings.requests_per_minute is not None:
            time.sleep(max(0.0, self._next_call - time.monotonic()))
            self._next_call = time.monotonic() + 60 / self.settings.requests_per_minute

    def _read(self, answer: Answer) -> Completion:
        try:
            said = read_completion(content_of(answer))
        except ValueError as error:
            shown = self._quoted(error_text(answer) or answer.text)
            raise ChatError(
                f"{self.name} sent something that is no reply ({self._quoted(str(error))}): {shown!r}; "
                "chat.base_url must be the address of an OpenAI-compatible interface, usually ending in /v1"
            ) from error
        if said.refusal:
            raise ChatError(f"{self.name} {self._quoted(said.refusal)}; use another model, or other prompts")
        return said

    def _explained(self, answer: Answer) -> str:
        """What went wrong, with a cure."""
        text, key = self._quoted(error_text(answer)), self.settings.key_env
        match answer.status:
            case 401 | 403:
                return f"refuses the key in {key} ({text})" if key else f"wants a key ({text}); name it in chat.key_env"
            case 402:
                return f"wants to be paid first ({text})"
            case 404:
                return f"is not there ({text}); check chat.model and chat.base_url"
            case 407 if self._proxy:
                return f"cannot be reached: the proxy {shown_proxy(self._proxy)} wants a password ({text})"
            case 413:
                return f"takes no request as large as this ({text}); show it fewer or smaller frames"
            case 429 if has_no_quota(answer):
                return f"has no quota left for the key in {key} ({text}); waiting is no use"
            case 429 if (pause := asked_pause(answer) or 0.0) > LONGEST_PAUSE:
                return f"is too busy and asks for a pause of {pause:.0f} s ({text}); try again later"
            case 429:
                return f"is too busy ({text}); raise chat.max_retries, or set chat.requests_per_minute"
        if 300 <= answer.status < 400:
            there = self._quoted(answer.headers.get("location", "nowhere"))
            return f"redirects to {there}, which is not followed; give that as chat.base_url if you trust it"
        return f"failed (status {answer.status}: {text})"

    def _without_key(self, text: str) -> str:
        """Servers like to repeat the key, and everything they say is written down."""
        return text.replace(self._key, "***") if len(self._key) >= SHORTEST_KEY else text

    def _quoted(self, text: str, most: int = SHOWN) -> str:
        """The beginning of what a server said, on one line and without the key."""
        return one_line(storable(self._without_key(text)[: 100 * most]))[:most]


def refused_field(answer: Answer, request: dict[str, Any]) -> str | None:
    """The field of ``request`` that the server does not take; None if it failed for another reason."""
    schema = "response_format" if "response_format" in request else None
    if answer.status >= 500:
        return schema
    if answer.status not in REFUSING:
        return None
    text = error_text(answer).lower()
    named = {name: match.start() for name, sign in FIELDS.items() if name in request and (match := sign.search(text))}
    if named:
        return min(named, key=named.__getitem__)
    return schema if answer.status in (400, 422) or UNSUPPORTED.search(text) else None


def _content(message: Message) -> Any:
    if all(isinstance(part, str) for part in message.parts):
        return message.text
    return [
        {"type": "text", "text": given} if isinstance(given, str) else _media(part, given)
        for part, given in zip(message.parts, message.encoded, strict=True)
    ]


def _media(part: str | Tensor | Jpeg | Mp4, file: bytes) -> dict[str, Any]:
    content = base64.b64encode(file).decode()
    if isinstance(part, Mp4):
        return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{content}"}}
    return {"type": "image_url", "image_url": {"url": f"data:image/{_kind(file)};base64,{content}"}}


def _kind(file: bytes) -> str:
    return "png" if file.startswith(b"\x89PNG") else "jpeg"
