"""Typed answers of a chat model: one more chance for a reply that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from pydantic import BaseModel

from ttopt.data.replies import parse_reply, spoken, without_control
from ttopt.models.chat.errors import ChatError
from ttopt.models.chat.messages import Chat, Message, Reply

T = TypeVar("T", bound=BaseModel)

REPAIR = "That reply cannot be used: {error}. Reply again with the JSON object only."
SHOWN = 300  # characters of a reply that an error message quotes
SHOWN_AGAIN = 8000  # characters of it that the model itself is shown


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
        # Thoughts are not shown again: models are not trained on that.
        said = spoken(first.text).strip()[:SHOWN_AGAIN] or "..."
        again = [Message("assistant", (said,)), Message("user", (REPAIR.format(error=without_control(str(error))),))]
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
