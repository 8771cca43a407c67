"""A chat model behind a server with OpenAI's interface."""

from __future__ import annotations

import base64
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import openai
from pydantic import BaseModel

from ttopt.config.settings import ChatSettings
from ttopt.data.replies import storable
from ttopt.models.chat.address import check_chat
from ttopt.models.chat.errors import ChatError
from ttopt.models.chat.messages import Message, Reply
from ttopt.models.distributed import from_rank_zero

SHOWN = 300  # characters of a reply or an error page that an error message quotes
SHORTEST_KEY = 8  # letters; a shorter one, such as "none", is no secret but a word
CONTROL = re.compile(r"<\|\w+\|>")  # marks a turn or an image in the chat templates of open models


class OpenAIChat:
    """Any server with OpenAI's chat interface, through the official client.

    The client itself repeats calls that fail for now (busy, down, too slow): growing pauses with jitter, or what
    Retry-After says.
    """

    def __init__(self, settings: ChatSettings) -> None:
        check_chat(settings)
        self.settings = settings
        self.name = f"{settings.model} at {settings.base_url or 'OpenAI'}"
        self._client = openai.OpenAI(
            # The client insists on a key; a server without keys ignores it.
            api_key=os.environ[settings.key_env] if settings.key_env else "none",
            base_url=settings.base_url or "https://api.openai.com/v1",
            timeout=settings.timeout,
            max_retries=settings.max_retries,
        )
        self._refused: set[str] = set()  # fields that this server does not take
        self._next_call = 0.0

    def reply(self, messages: Sequence[Message], schema: type[BaseModel] | None = None) -> Reply:
        """Held to the schema where the server knows how; where it refuses, asked again without, then and later."""
        return from_rank_zero(lambda: self._reply(messages, schema))

    def _reply(self, messages: Sequence[Message], schema: type[BaseModel] | None) -> Reply:
        for message in messages:
            if token := CONTROL.search(message.text):  # most servers would obey it
                raise ChatError(f"{message.text[:SHOWN]!r} holds the control token {token[0]}; leave it out")
        begin = time.perf_counter()
        try:
            try:
                completion = self._call(messages, schema)
            except (openai.BadRequestError, openai.UnprocessableEntityError, openai.InternalServerError) as error:
                if schema is None or "response_format" in self._refused:
                    raise
                completion = self._call(messages, None)
                if not isinstance(error, openai.InternalServerError):  # which may have had other reasons
                    self._refused.add("response_format")
        except openai.OpenAIError as error:
            raise ChatError(self._explained(error)) from error
        except ValueError as error:  # JSON that is none
            raise ChatError(
                f"{self.name} sent something that is no reply ({self._quoted(str(error))}); is chat.base_url right?"
            ) from error
        return self._read(completion, time.perf_counter() - begin)

    def _call(self, messages: Sequence[Message], schema: type[BaseModel] | None) -> Any:
        """One request. OpenAI's newer models want another name for max_tokens, and some take no temperature."""
        while True:
            new = "max_tokens" in self._refused
            options: dict[str, Any] = {"max_completion_tokens" if new else "max_tokens": self.settings.max_tokens}
            if "temperature" not in self._refused:
                options["temperature"] = self.settings.temperature
            if schema is not None and "response_format" not in self._refused:
                options["response_format"] = _response_format(schema)
            said: Any = [{"role": message.role, "content": _content(message)} for message in messages]
            self._wait()
            try:
                return self._client.chat.completions.create(model=self.settings.model, messages=said, **options)
            except openai.BadRequestError as error:
                hints = {"max_tokens": "max_completion_tokens", "temperature": "support"}
                named = {name for name, hint in hints.items() if name in str(error) and hint in str(error)}
                if not named - self._refused:
                    raise
                self._refused |= named

    def _wait(self) -> None:
        """Keeps to requests_per_minute."""
        if self.settings.requests_per_minute is not None:
            time.sleep(max(0.0, self._next_call - time.monotonic()))
            self._next_call = time.monotonic() + 60 / self.settings.requests_per_minute

    def _read(self, completion: Any, latency: float) -> Reply:
        s = self.settings
        try:  # the client does not check what it was sent: a page of HTML comes back as a plain text
            choice, usage = completion.choices[0], completion.usage
            text, cut = choice.message.content, choice.finish_reason == "length"
            read = int((usage and usage.prompt_tokens) or 0)
            written = int((usage and usage.completion_tokens) or 0)
        except (AttributeError, LookupError, TypeError, ValueError):
            text, cut, read, written = None, False, 0, 0
        if text is None and cut:  # all tokens went into the thoughts, which servers keep apart
            text = ""
        if not isinstance(text, str):
            shown = completion if isinstance(completion, str) else repr(completion)
            raise ChatError(
                f"{self.name} sent something that is no reply: {self._quoted(shown)!r}; "
                "chat.base_url must be the address of an OpenAI-compatible interface, usually ending in /v1"
            )
        cost = (read * s.price_in + written * s.price_out) / 1e6
        return Reply(storable(self._without_key(text)), latency, read, written, cost, s.model, cut)

    def _without_key(self, text: str) -> str:
        """Servers like to repeat the key, and everything they say is written down."""
        key = os.environ.get(self.settings.key_env, "")
        return text.replace(key, "***") if len(key) >= SHORTEST_KEY else text

    def _quoted(self, text: str) -> str:
        """The beginning of what a server said, on one line and without the key."""
        return storable(" ".join(self._without_key(text).split())[:SHOWN])

    def _explained(self, error: Exception) -> str:
        """One sentence with a cure."""
        text = self._quoted(str(error))
        match error:
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                return f"{self.name} refuses the key in {self.settings.key_env or 'chat.key_env'} ({text})"
            case openai.NotFoundError():
                return f"{self.name} is not there ({text}); check chat.model and chat.base_url"
            case openai.APITimeoutError():
                return f"{self.name} did not answer within {self.settings.timeout:g} s; raise chat.timeout"
            case openai.APIConnectionError():
                return f"{self.name} cannot be reached ({text}); check chat.base_url and whether the server runs"
            case openai.RateLimitError():
                return f"{self.name} is too busy ({text}); raise chat.max_retries, or set chat.requests_per_minute"
        return f"{self.name} failed ({type(error).__name__}: {text})"


def _content(message: Message) -> Any:
    if not message.images:
        return message.text
    return [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {
            "type": "image_url",
            "image_url": {"url": f"data:image/{_kind(part)};base64,{base64.b64encode(part).decode()}"},
        }
        for part in message.encoded
    ]


def _kind(file: bytes) -> str:
    return "png" if file.startswith(b"\x89PNG") else "jpeg"


def _response_format(schema: type[BaseModel]) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": schema.__name__.lower(), "schema": schema.model_json_schema()},
    }
