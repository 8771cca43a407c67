"""Vision-language models that answer in words, with a typed reply: a server, or a model in this process.

A reply that cannot be had or read is a ChatError, never an answer.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from PIL import Image
from pydantic import BaseModel
from torch import Tensor

from ttopt.config.settings import ChatSettings
from ttopt.data.replies import parse_reply, spoken, storable
from ttopt.data.video import to_uint8
from ttopt.errors import UserError
from ttopt.models.chat.grammar import Grammar
from ttopt.models.distributed import from_rank_zero

if TYPE_CHECKING:
    from ttopt.models.teacher import Teacher

T = TypeVar("T", bound=BaseModel)

REPAIR = "That reply cannot be used: {error}. Reply again with the JSON object only."
SHOWN = 300  # characters of a reply or an error page that an error message quotes
SECRET = re.compile(r"(key|token|secret|password|signature|sig)=", re.IGNORECASE)  # in an address
SHORTEST_KEY = 8  # letters; a shorter one, such as "none", is no secret but a word
CONTROL = re.compile(r"<\|\w+\|>")  # marks a turn or an image in the chat templates of open models


class ChatError(UserError):
    """The model cannot be reached, or what it says cannot be read."""


@dataclass(frozen=True)
class Jpeg:
    """An image (3,H,W) that is sent as a JPEG file instead of a PNG one."""

    image: Tensor


@dataclass(frozen=True)
class Mp4:
    """A video file, for servers whose models take one."""

    content: bytes


@dataclass(frozen=True)
class Message:
    """What one side says: texts, images (3,H,W) float in [0,1] and video files, in order."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Tensor | Jpeg | Mp4, ...]

    @property
    def text(self) -> str:
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> list[Tensor]:
        found = (part.image if isinstance(part, Jpeg) else part for part in self.parts)
        return [part for part in found if isinstance(part, Tensor)]

    @cached_property
    def encoded(self) -> list[str | bytes]:
        """The parts, images as files: what is sent and hashed, made once."""
        return [part if isinstance(part, str) else _file(part) for part in self.parts]


@dataclass(frozen=True)
class Reply:
    """What a model said, and what that took."""

    text: str
    latency: float  # seconds
    tokens_in: int
    tokens_out: int
    cost: float  # in the currency of the prices
    model: str
    cut: bool = False  # it has max_tokens, and perhaps no end: the conclusion may be missing


class Chat(Protocol):
    """A model that answers."""

    name: str

    def reply(self, messages: Sequence[Message], schema: type[BaseModel] | None = None) -> Reply:
        """The model's answer, if possible held to the ``schema``. Raises ChatError."""
        ...


def ask(
    chat: Chat, messages: Sequence[Message], schema: type[T], record: Callable[[Reply], None] = lambda reply: None
) -> T:
    """A typed answer. One that cannot be read is shown to the model once, with the error; then it is a ChatError.

    ``record`` gets every reply, also those that cannot be read.
    """
    first = chat.reply(messages, schema)
    record(first)
    try:
        return _parsed(first, schema)
    except ValueError as error:
        said = spoken(first.text) or "..."  # thoughts are not shown again: models are not trained on that
        again = [Message("assistant", (said,)), Message("user", (REPAIR.format(error=error),))]
    second = chat.reply([*messages, *again], schema)
    record(second)
    try:
        return _parsed(second, schema)
    except ValueError as error:
        cure = "raise chat.max_tokens" if second.cut else "use a larger model, or other prompts"
        raise ChatError(
            f"{chat.name} gave no usable {schema.__name__.lower()}, asked twice: {error}; "
            f"its reply: {second.text[:SHOWN]!r}; {cure}"
        ) from error


def _parsed(reply: Reply, schema: type[T]) -> T:
    """Raises ValueError, also for a reply that was cut off: what it holds may be a draft that it meant to reject."""
    if reply.cut:
        raise ValueError(f"it was cut off after {reply.tokens_out} tokens")
    return parse_reply(reply.text, schema)


def check_chat(settings: ChatSettings) -> None:
    """Raises UserError for an address that cannot be one or a key that is missing, before anything is loaded."""
    if settings.backend == "openai" and settings.base_url is not None:
        try:
            address = urlsplit(settings.base_url)
            fine = address.scheme in ("http", "https") and address.port != 0
        except ValueError:
            fine = False
        if not fine:
            shown = "" if "@" in settings.base_url else f" {settings.base_url!r}"  # no password in a message
            raise UserError(f"chat.base_url{shown} is no address; give e.g. http://127.0.0.1:8000/v1")
        if address.username or address.password:
            # Not quoted: addresses are written into configurations, traces and messages.
            raise UserError("chat.base_url holds a user or password; leave them out and name the key in chat.key_env")
        if SECRET.search(address.query):
            raise UserError("chat.base_url holds a key; leave it out and name it in chat.key_env")
    if settings.backend == "openai" and settings.key_env and not os.environ.get(settings.key_env):
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*", settings.key_env):  # not quoted: it may be the key itself
            raise UserError(
                "chat.key_env names no environment variable that is set; it must be a variable's name, never the key "
                "itself, e.g. OPENAI_API_KEY"
            )
        raise UserError(
            f"chat.key_env: the environment variable {settings.key_env} is not set; put the server's key there, "
            "or give --chat.key_env '' for a server without keys"
        )


def make_chat(settings: ChatSettings, teacher: Teacher | None) -> Chat:
    """The model that the settings name; "teacher" shares the teacher's weights. Raises UserError.

    Without a teacher, for methods that ask nothing, nothing is loaded in this process.
    """
    if settings.backend == "openai":
        return OpenAIChat(settings)
    if teacher is None:
        return Nobody()
    if settings.backend == "teacher":
        return LocalChat(teacher, settings.max_tokens, settings.constrained)
    from ttopt.models.load import weights_path
    from ttopt.models.teacher import Teacher

    path = weights_path(settings.model, "chat", "chat.model")
    model = Teacher.load(path, dtype=str(teacher.model.dtype).removeprefix("torch."), device=teacher.device)
    return LocalChat(model, settings.max_tokens, settings.constrained, f"the {settings.model} chat model")


class Nobody:
    """For methods that ask nothing."""

    name = "nobody"

    def reply(self, messages: Sequence[Message], schema: type[BaseModel] | None = None) -> Reply:
        raise ChatError("no model is loaded that could answer; a method that asks must not say asks = False")


class LocalChat:
    """A model in this process, answering greedily."""

    def __init__(
        self, teacher: Teacher, max_tokens: int = 1024, constrained: bool = False, name: str = "the teacher"
    ) -> None:
        self.teacher, self.name = teacher, name
        self.max_tokens = max_tokens
        self.grammar = None
        if constrained:
            self.grammar = Grammar(teacher.tokenizer, teacher.model.config.text_config.vocab_size)

    def reply(self, messages: Sequence[Message], schema: type[BaseModel] | None = None) -> Reply:
        """Images must stand in the first message; the model sees them before its text, as it was trained."""
        if any(message.images for message in messages[1:]):
            raise ValueError("only the first message may hold images")
        if not self.teacher.family.writes:
            raise ChatError(
                f"{self.name} only grades; give another model to answer in words, e.g. --chat.backend openai"
            )
        begin = time.perf_counter()
        try:
            for message in messages:
                self.teacher.refuse_special_tokens(message.text)
            self.teacher.check_words(messages[0].text)
            text, read, written = self.teacher.reply_counted(
                [(message.role, message.text) for message in messages],
                messages[0].images,
                self.max_tokens,
                None if self.grammar is None or schema is None else self.grammar.processor(schema),
            )
        except UserError as error:
            raise ChatError(str(error)) from error
        return Reply(text, time.perf_counter() - begin, read, written, 0.0, self.name, cut=written >= self.max_tokens)


class OpenAIChat:
    """Any server with OpenAI's chat interface, through the official client.

    The client itself repeats calls that fail for now (busy, down, too slow): growing pauses with jitter, or what
    Retry-After says.
    """

    def __init__(self, settings: ChatSettings) -> None:
        import openai

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
        import openai

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
        import openai

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
        import openai

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


def fingerprint(messages: Sequence[Message]) -> str:
    """A short hash of everything that was asked, pictures included."""
    digest = hashlib.sha256()
    for message in messages:
        for part in (message.role, *message.encoded):
            digest.update(part.encode() if isinstance(part, str) else part)
            digest.update(b"\0")
    return digest.hexdigest()[:16]


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


def _file(part: Tensor | Jpeg | Mp4) -> bytes:
    if isinstance(part, Mp4):
        return part.content
    file = io.BytesIO()
    image = part.image if isinstance(part, Jpeg) else part
    picture = Image.fromarray(to_uint8(image[None])[0])
    if isinstance(part, Jpeg):
        picture.save(file, format="JPEG", quality=95)  # as OpenCV's, which benchmarks use
    else:
        picture.save(file, format="PNG")
    return file.getvalue()


def _kind(file: bytes) -> str:
    return "png" if file.startswith(b"\x89PNG") else "jpeg"


def _response_format(schema: type[BaseModel]) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": schema.__name__.lower(), "schema": schema.model_json_schema()},
    }
