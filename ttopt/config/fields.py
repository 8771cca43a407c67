"""What stands beside a setting: its default, its bounds, and who may change it.

    frames: int = setting(24, low=1, cap=65_536)
    engine: str = setting("in_process", free=True, shared=True)

``low``, ``above`` and ``high`` bound what has a meaning, ``cap`` what any run could need: beyond it is a slip of the
keyboard or an attack, which is refused before memory is asked for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_type_hints

Mark = Literal["free", "shared"]


@dataclass(frozen=True)
class Rule:
    """Bounds of a number, or of a list's length (``cap``), and marks."""

    low: float | None = None
    above: float | None = None
    high: float | None = None
    cap: int | None = None
    give: str = ""
    why: str = ""
    free: bool = False
    shared: bool = False

    def problem(self, name: str, value: Any) -> str | None:
        """What is wrong with the value of the setting ``name``, and the cure; None: nothing."""
        if isinstance(value, list) and self.cap is not None and len(value) > self.cap:
            return f"{name} has {len(value):,} values; give {self.cap:,} or fewer"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        too_low = self.low is not None and value < self.low
        if too_low or (self.above is not None and value <= self.above):
            return f"{name} is {value}{self.why}; give {self.give or f'{self.low} or more'}"
        if self.high is not None and value > self.high:
            return f"{name} is {value}; give {self.give or f'{self.high} or less'}"
        if self.cap is not None and value > self.cap:
            return f"{name} is {_short(value)}; give {self.cap:,} or less"
        return None


def _short(value: float) -> str:
    """The number, or its beginning: it may have thousands of digits."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def setting(
    default: Any,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    cap: int | None = None,
    give: str = "",
    why: str = "",
    free: bool = False,
    shared: bool = False,
) -> Any:
    """A dataclass field with a rule.

    ``low`` and ``high``: smallest and largest value; ``above``: every value is larger. ``cap``: largest number, or
    longest list, that is taken seriously. ``give``: the cure in an error message, behind "give"; ``why``: what comes
    before it. ``free``: may change between two calls of the same run, see ``is_free``. ``shared``: must be the same for
    all methods of a comparison, see ``is_shared``.
    """
    made = Rule(low, above, high, cap, give, why, free, shared)
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"rule": made})
    return field(default=default, metadata={"rule": made})


def group(kind: type, *, free: bool = False, shared: bool = False) -> Any:
    """A dataclass field for a whole group of settings; the marks count for each of them."""
    return field(default_factory=kind, metadata={"rule": Rule(free=free, shared=shared)})


@dataclass(frozen=True)
class Group:
    """A dataclass of settings; one itself, since jsonargparse takes only pure ones for groups."""

    def problems(self) -> Iterator[str]:
        """What is wrong with several settings together, or with one in a way that bounds cannot say; the worst
        first."""
        yield from ()


def problems(settings: Any, prefix: str = "") -> Iterator[str]:
    """All that is wrong with a group of settings, first by their own rules, then by the groups'."""
    for spec in dataclasses.fields(settings):
        name, value = f"{prefix}{spec.name}", getattr(settings, spec.name)
        if isinstance(value, Group):
            yield from problems(value, f"{name}.")
        elif "rule" in spec.metadata and (said := spec.metadata["rule"].problem(name, value)):
            yield said
    yield from settings.problems()


@cache
def hints(kind: type) -> dict[str, Any]:
    """The types of every setting and group by dotted name, e.g. ``teacher.frames``, in their order."""
    found: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        found[name] = hint
        if dataclasses.is_dataclass(hint):
            found |= {f"{name}.{inner}": of_it for inner, of_it in hints(hint).items()}  # type: ignore[arg-type]
    return found


@cache
def rules(kind: type) -> dict[str, Rule]:
    """The rules of settings and groups by dotted name."""
    found: dict[str, Rule] = {}
    types = get_type_hints(kind)
    for spec in dataclasses.fields(kind):
        if "rule" in spec.metadata:
            found[spec.name] = spec.metadata["rule"]
        if dataclasses.is_dataclass(types[spec.name]):
            found |= {f"{spec.name}.{inner}": rule for inner, rule in rules(types[spec.name]).items()}
    return found


def bears(kind: type, mark: Mark, name: str) -> bool:
    """Whether a setting of ``kind``, by its dotted name, or a group that holds it, bears a mark."""
    known, parts = rules(kind), name.split(".")
    holders = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return any(getattr(known[holder], mark) for holder in holders if holder in known)
