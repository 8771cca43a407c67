"""A chat model in this process."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pydantic import BaseModel

from ttopt.errors import UserError
from ttopt.models.chat.errors import ChatError
from ttopt.models.chat.grammar import Grammar
from ttopt.models.chat.messages import Message, Reply
from ttopt.models.teacher import Teacher


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
