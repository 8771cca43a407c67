"""Typed JSON out of what a language model writes: fences, chatter and word-level spacing around it are tolerated."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

T = TypeVar("T", bound=BaseModel)

STRING_OR_NUMBER_GAP = re.compile(r'"(?:[^"\\]|\\.)*"|(?<=[\d.])\s+(?=[\d.])|(?<=-)\s+(?=\d)', re.DOTALL)
THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)


def parse_reply(reply: str, schema: type[T]) -> T:
    """The JSON object in ``reply`` that fits ``schema``, its texts tidied.

    Raises ValueError saying what is wrong, in words a model can act on; also where two objects fit and differ, or a key
    has two values, because nobody knows which one is meant.
    """
    # Word-level tokenizers write 0 . 5; in JSON no two numbers stand side by side, so joining them loses nothing.
    text = STRING_OR_NUMBER_GAP.sub(lambda match: match[0].strip() and match[0], spoken(reply))
    # A line break inside a string is no reason to ask again.
    decoder = json.JSONDecoder(strict=False, object_pairs_hook=_keyed, parse_int=_integer)
    found: list[T] = []
    problems: list[str] = []
    place = text.find("{")
    while place >= 0:
        after = place + 1  # an object that does not fit may hold one that does
        try:
            item, end = decoder.raw_decode(text, place)
            found.append(schema.model_validate(_tidied(item)))
            after = end
        except json.JSONDecodeError as error:
            problems.append(f"its JSON is broken: {error.msg} at character {error.pos}")
        except RecursionError:
            problems.append("its JSON is nested too deeply")
            break  # what it holds is, too, and trying it all takes minutes
        except ValidationError as error:
            wrong = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
            problems.append("; ".join(wrong))
        except ValueError as error:  # a key with two values, an endless number
            problems.append(str(error))
        place = text.find("{", after)
    if not found:
        raise ValueError(problems[0] if problems else "there is no JSON object in it")
    if any(other != found[0] for other in found):
        raise ValueError("there is more than one JSON object in it, and they differ")
    return found[0]


def spoken(reply: str) -> str:
    """The reply without the model's thoughts, also those whose first tag the chat template wrote or whose last tag is
    missing: a draft among them is no answer."""
    said = THOUGHTS.sub("", reply).rpartition("</think>")[2]
    return said.partition("<think>")[0]


def tidy(text: str) -> str:
    """Single spaces, none before punctuation: undoes what word-level tokenizers do to a text."""
    return re.sub(r"\s+([?.,!;:])", r"\1", " ".join(storable(text).split()))


def storable(text: str) -> str:
    """Without halves of characters, which JSON can hold ("\\ud800") and files cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _keyed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys have lost the spaces that word-level tokenizers put there ("task _ complete")."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        key = re.sub(r"\s*_\s*", "_", key.strip())
        if key in found and found[key] != value:
            raise ValueError(f"{key} stands there twice, with different values")
        found[key] = value
    return found


def _integer(digits: str) -> int:
    if len(digits) > 300:
        raise ValueError(f"its JSON is broken: a number of {len(digits)} digits")
    return int(digits)


def _tidied(value: Any) -> Any:
    """Texts without the spaces that word-level tokenizers put there."""
    if isinstance(value, dict):
        return {key: _tidied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_tidied(item) for item in value]
    return tidy(value) if isinstance(value, str) else value
