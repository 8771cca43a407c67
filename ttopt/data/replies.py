"""Typed JSON out of what a language model writes: fences, chatter and word-level spacing around it are tolerated."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError, ValidationInfo

T = TypeVar("T", bound=BaseModel)

MOST_OBJECTS = 20  # in one reply
MOST_DIGITS = 300  # of a whole number
LONGEST_PROBLEM = 500  # characters of what pydantic finds wrong
OBJECT = re.compile(r'\{(?=\s*+["}])')  # begins here; other braces are chatter
# Mended outside of strings, which the first alternative steps over: "0 . 5" and "- 1", which word-level tokenizers
# write (no two numbers stand side by side in JSON), and commas with nothing behind them.
STRING_OR_SLIP = re.compile(
    r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|,\s*+(?=[}\]])|(?<=[\d.])\s++(?=[\d.])|(?<=-)\s++(?=\d)', re.DOTALL
)
THOUGHTS = re.compile(r"<(/?)(?:think|thinking|thoughts?|reasoning)\s*>|\[(/?)THINK\]", re.IGNORECASE)
# gpt-oss writes in channels: "<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>..."
CHANNEL = re.compile(r"<\|channel\|>\s*+(\w+)[^<]*+(?:<\|constrain\|>[^<]*+)?<\|message\|>")
CHANNEL_END = re.compile(r"<\|(?:end|return|start|channel|call)\|>")
# Some servers send the head of the turn, too: "<|im_start|>assistant".
CONTROL = re.compile(
    r"<\|(?:im_start|start_header_id|start)\|>\s*+(?:assistant|model)\b"
    r"|<[|｜][^<>\s]{1,40}?[|｜]>|</?s>|<(?:start|end)_of_turn>|<[be]os>|\[/?INST\]"
)


def parse_reply(reply: str, schema: type[T]) -> T:
    """The JSON object in ``reply`` that fits ``schema``: its texts tidied, null taken as "not given".

    Only a whole object counts, never one inside another object. A schema that wants nothing around it, either, asks
    ``stands_alone``. Raises ValueError saying what is wrong, in words a model can act on; also where two objects fit
    and differ, or a key has two values, because nobody knows which one is meant. Takes time in proportion to the reply.
    """
    text = spoken(reply)
    found: list[tuple[T, Any, bool]] = []  # what fits, what it was read from, whether there is nothing around it
    problems: list[str] = []
    place = 0
    for _ in range(MOST_OBJECTS):
        begun = OBJECT.search(text, place)
        if begun is None:
            break
        try:
            item, text, place = _decoded(text, begun.start())
            item = _fitting(item, schema)
            alone = _nothing(text[: begun.start()]) and _nothing(text[place:])
            found.append((schema.model_validate(item), item, alone))
        except json.JSONDecodeError as error:
            problems.append(f"its JSON is broken: {error.msg} at character {error.pos}")
            break  # what follows may be its inside
        except RecursionError:
            problems.append("its JSON is nested too deeply")
            break
        except ValidationError as error:
            problems.append(_wrong(error))
        except ValueError as error:  # a key with two values, an endless number
            problems.append(str(error))
            break
    else:
        raise ValueError(f"there are {MOST_OBJECTS} JSON objects in it or more")
    if not found:
        raise ValueError(problems[0] if problems else _no_object(text))
    typed, item, alone = found[0]
    if any(other != typed for other, _, _ in found):
        raise ValueError("there is more than one JSON object in it, and they differ")
    try:
        return schema.model_validate(item, context={"alone": alone})
    except ValidationError as error:
        raise ValueError(_wrong(error)) from error


def stands_alone(info: ValidationInfo) -> bool:
    """For a schema's validators: whether the reply that is read is its JSON object and nothing else (thoughts, fences
    and control tokens apart). True for what was not read out of a reply."""
    return info.context is None or bool(info.context["alone"])


def spoken(reply: str) -> str:
    """What a model says after its last thoughts, without control tokens; nothing, if it thinks to the end.

    The first tag may be missing, as the chat template may have written it. What stands before further thoughts is a
    draft and no answer.
    """
    channels = list(CHANNEL.finditer(reply))
    if channels:
        final = next((channel.end() for channel in reversed(channels) if channel[1] == "final"), len(reply))
        reply = CHANNEL_END.split(reply[final:], maxsplit=1)[0]
    if tags := list(THOUGHTS.finditer(reply)):
        last = tags[-1]
        reply = reply[last.end() :] if last[1] or last[2] else ""
    return without_control(reply)


def without_control(text: str) -> str:
    """Without what marks turns in chat templates: a model that leaks such a token would be misled by its own words.

    A space takes its place, so that what is left cannot form another one.
    """
    return CONTROL.sub(" ", text)


def tidy(text: str) -> str:
    """Single spaces, none before punctuation: undoes what word-level tokenizers do to a text."""
    return re.sub(r"\s+([?.,!;:])", r"\1", " ".join(storable(text).split()))


def storable(text: str) -> str:
    """Without halves of characters, which JSON can hold ("\\ud800") and files cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _decoded(text: str, start: int) -> tuple[Any, str, int]:
    """The object that begins at ``start``; the text, mended from there on where it must be; where the object ends."""
    # A line break inside a string is no reason to ask again.
    decoder = json.JSONDecoder(strict=False, object_pairs_hook=_keyed, parse_int=_integer)
    try:
        item, end = decoder.raw_decode(text, start)
    except json.JSONDecodeError:
        text = text[:start] + STRING_OR_SLIP.sub(lambda match: match[0] if match[0][0] == '"' else "", text[start:])
        item, end = decoder.raw_decode(text, start)
    return item, text, end


def _nothing(text: str) -> bool:
    """Whether a text is empty but for a fence, as around ```json ... ```."""
    return re.fullmatch(r"```\w*|", text.strip()) is not None


def _wrong(error: ValidationError) -> str:
    wrong = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
    return "; ".join(wrong)[:LONGEST_PROBLEM]


def _no_object(text: str) -> str:
    try:
        json.JSONDecoder().raw_decode(text, text.index("{"))
    except json.JSONDecodeError as error:
        return f"its JSON is broken: {error.msg} at character {error.pos}"
    except ValueError:
        pass
    return "there is no JSON object in it"


def _keyed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys have lost the spaces that word-level tokenizers put there ("task _ complete")."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        key = re.sub(" ?_ ?", "_", " ".join(key.split()))
        if key in found and found[key] != value:
            raise ValueError(f"{without_control(key)[:40]} has two different values")
        found[key] = value
    return found


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"its JSON is broken: a number of {len(digits)} digits")
    return int(digits)


def _fitting(item: dict[str, Any], schema: type[BaseModel]) -> Any:
    """Texts tidied; null left out where the schema has a default."""
    optional = {name for name, field in schema.model_fields.items() if not field.is_required()}
    return {name: _tidied(value) for name, value in item.items() if value is not None or name not in optional}


def _tidied(value: Any) -> Any:
    """Texts without control tokens and the spaces that word-level tokenizers put there."""
    if isinstance(value, dict):
        return {key: _tidied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_tidied(item) for item in value]
    return tidy(without_control(value)) if isinstance(value, str) else value
