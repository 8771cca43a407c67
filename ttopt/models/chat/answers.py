"""What servers with OpenAI's interface answer, in all the shapes that are about: replies and errors."""

from __future__ import annotations

import email.utils
import html
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ttopt.models.chat.connection import Answer

# Why a model stops when it has said all; anything else that is not in CUT means that it has not.
ENDED = {"", "none", "stop", "eos", "eos_token", "stop_sequence", "end_turn", "tool_calls", "function_call"}
CUT = {"length", "max_tokens", "max_output_tokens", "model_length"}
# Where errors keep their words, in the order in which these are read.
WORDS = (
    "message", "msg", "error", "errors", "detail", "details", "error_description", "description", "reason", "title",
    "param", "loc", "metadata", "raw",
)  # fmt: skip
DEEPEST = 8  # of an error's words
MOST_TOKENS = 10**9  # in a count that is believed
CODES = {  # of errors in answers with status 200 that have no number
    "rate_limit": 429, "insufficient_quota": 429, "invalid_api_key": 401, "authentication": 401, "not_found": 404,
    "resource_exhausted": 429, "overloaded": 503, "unavailable": 503, "server_error": 500, "internal": 500,
}  # fmt: skip
NO_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
RETRY_DELAY = re.compile(r'"retryDelay"\s*:\s*"(\d{1,9}(?:\.\d{1,9})?)s"')  # Gemini


@dataclass(frozen=True)
class Completion:
    """A reply. ``refusal``: why there is none, in words that follow the server's name."""

    text: str = ""
    cut: bool = False
    tokens_in: int = 0
    tokens_out: int = 0
    refusal: str = ""


def content_of(answer: Answer) -> Any:
    """The JSON of an answer. Raises ValueError for one that is none, or that is nested too deeply."""
    try:
        return json.loads(answer.text)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def read_completion(content: Any) -> Completion:
    """The first choice of a reply. Raises ValueError for what is none."""
    choices = content.get("choices") if isinstance(content, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise ValueError("there is no choice with a message in it")
    usage = content.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    reason = str(choice.get("finish_reason") or "").lower()
    cut, refusal = reason in CUT, ""
    if said := message.get("refusal"):
        refusal = f"refuses to answer ({words(said) or said})"
    elif reason not in ENDED | CUT:
        refusal = f"stopped before the end of its reply (finish_reason {reason!r})"
    text = _text(message.get("content"))
    if not text.strip() and not cut:
        text = _only_thought(message)
    read, written = _count(counts.get("prompt_tokens")), _count(counts.get("completion_tokens"))
    return Completion(text, cut, read, written, refusal)


def unwrapped(answer: Answer) -> Answer:
    """An error that came with status 200 gets its own; other answers stay."""
    try:
        content = content_of(answer) if answer.fine else None
    except ValueError:
        return answer
    choices = content.get("choices") if isinstance(content, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    for part in (content, first):
        if isinstance(part, dict) and part.get("error"):
            return replace(answer, status=_code(part["error"]))
    return answer


def error_text(answer: Answer) -> str:
    """What an answer says is wrong, in its own words: of JSON those for people, of a page its title."""
    try:
        content = content_of(answer)
    except ValueError:
        text = answer.text
        if "html" in answer.headers.get("content-type", "") or text.lstrip().startswith("<"):
            title = re.search(r"<title[^<>]*+>([^<]*+)</title", text, re.IGNORECASE)
            return html.unescape(title[1] if title and title[1].strip() else re.sub(r"<[^<>]*+>", " ", text)).strip()
        return text
    return words(content) or ("" if content in (None, {}, [], "") else answer.text)


def words(content: Any, depth: int = 0) -> str:
    """The texts of an error, each once."""
    found: list[str] = []
    if isinstance(content, str):
        found = [content]
    elif isinstance(content, list) and depth < DEEPEST:
        found = [words(item, depth + 1) for item in content[:20]]
    elif isinstance(content, dict) and depth < DEEPEST:
        found = [words(content.get(name), depth + 1) for name in WORDS]
    return "; ".join(dict.fromkeys(text for text in found if text.strip()))


def has_no_quota(answer: Answer) -> bool:
    """Whether waiting is no use."""
    return any(code in answer.text for code in NO_QUOTA)


def asked_pause(answer: Answer) -> float | None:
    """For how many seconds the server wants to be left alone, if it says so."""
    milliseconds, seconds = (answer.headers.get(name, "") for name in ("retry-after-ms", "retry-after"))
    delay = RETRY_DELAY.search(answer.text)
    for value, unit in ((milliseconds, 1000.0), (seconds, 1.0), (delay[1] if delay else "", 1.0)):
        try:
            pause = float(value) / unit
        except ValueError:
            pause = _until(value)
        if pause >= 0:  # not a number is not, either
            return pause
    return None


def _until(date: str) -> float:
    try:
        return max(0.0, email.utils.parsedate_to_datetime(date).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, OSError):
        return math.nan


def _text(content: Any) -> str:
    """The text of a message, which some servers send in parts, thoughts among them."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") if isinstance(part, dict) and _spoken(part) else part for part in parts)
    return "".join(text for text in texts if isinstance(text, str))


def _spoken(part: Mapping[str, Any]) -> bool:
    return part.get("type") in ("text", "output_text", None)


def _only_thought(message: Mapping[str, Any]) -> str:
    """Thoughts that are nothing but a JSON object: a server that keeps thoughts apart may take the reply for them."""
    for name in ("reasoning_content", "reasoning"):
        thought = _text(message.get(name)).strip().removeprefix("```json").strip("`").strip()
        if thought.startswith("{") and thought.endswith("}"):
            return thought
    return ""


def _count(value: Any) -> int:
    """Tokens; 0 for what cannot be a count."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return int(value) if number and 0 <= value <= MOST_TOKENS else 0


def _code(error: Any) -> int:
    """The status that an error in an answer stands for; without one, 400: the server did not like the request."""
    given = [error.get(name) for name in ("code", "status", "type")] if isinstance(error, dict) else [error]
    for value in given:
        text = str(value).lower()[:100]
        if re.fullmatch(r"[45]\d\d", text):
            return int(text)
        if named := next((code for name, code in CODES.items() if name in text), None):
            return named
    return 400
