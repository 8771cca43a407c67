"""Settings of the model that answers in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ttopt.config.fields import Group, setting
from ttopt.config.models import EMBEDDED


@dataclass(frozen=True)
class ChatSettings(Group):
    """The vision-language model that answers in words: plans, verdicts, rewrites."""

    backend: Literal["teacher", "local", "openai"] = "teacher"
    """teacher: the loaded teacher; local: another model in this process, in the teacher's precision and on its device,
    both greedily. openai: any server with OpenAI's interface."""
    model: str = ""
    """openai: the server's name of the model. local: a folder or hub id as for the teacher; "embedded": the shipped
    planner and verifier."""
    base_url: str | None = setting(None, free=True)
    """Address of the server, e.g. http://127.0.0.1:8000/v1; null: OpenAI's own."""
    key_env: str = setting("OPENAI_API_KEY", free=True)
    """Environment variable that holds the key; empty: the server wants none."""
    timeout: float = setting(120.0, above=0, cap=86_400, give="seconds, e.g. 120", free=True)
    """Most seconds that a call may take from its beginning to the last byte of the reply."""
    max_retries: int = setting(4, low=0, cap=1000, free=True)
    """How often a call is repeated when the server is busy or cannot be reached, with growing pauses."""
    requests_per_minute: float | None = setting(
        None, above=0, give="a positive number, or null for no limit", free=True
    )
    """Most calls a minute; null: no limit."""
    temperature: float = setting(0.2, low=0, give="0 or more, e.g. 0.2")
    """Of the server's replies; a model in this process answers greedily."""
    max_tokens: int = setting(1024, low=1, cap=1_000_000, give="e.g. 1024")
    """Longest reply; a benchmark's judge may write 8192 tokens at least."""
    constrained: bool = False
    """teacher, local: write only what fits the wanted JSON (pip install -e '.[grammar]'); servers are always asked."""
    prompts: str = "full"
    """Wording: full, mini (all that the embedded models know), or a folder of text files like loop/prompts."""
    price_in: float = setting(0.0, low=0, free=True)
    """Price of a million tokens that are read, for the cost in the trace."""
    price_out: float = setting(0.0, low=0, free=True)
    """Price of a million tokens that are written."""

    def problems(self) -> Iterator[str]:
        nameless = self.model == "" or (self.backend, self.model) == ("openai", EMBEDDED)
        if self.backend != "teacher" and nameless:
            yield (
                f"chat.model is {self.model!r}, but chat.backend is {self.backend}; "
                "give the server's name of the model, or for local a folder, a hub id or embedded, as --chat.model"
            )
