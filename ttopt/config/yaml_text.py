"""Reading and writing the YAML of configurations.

What a stranger wrote is read: no tags that make objects, no file or document that is larger than settings can be, no
alias that multiplies it. Where a setting wants text, YAML's other scalars stay the words that were written (yes, no,
1e3, 2026-11-20).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from ttopt.errors import UserError, brief

MOST_BYTES = 2**17
MOST_VALUES = 10_000  # of a document, each alias counted with all that it stands for
TEXT = "tag:yaml.org,2002:str"
NULL = "tag:yaml.org,2002:null"
MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# YAML 1.1 takes 5e-4 for text, YAML 1.2 and everybody else for a number.
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(  # type: ignore[no-untyped-call]
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def dump(content: Mapping[str, Any]) -> str:
    """YAML that ``read`` reads back as the same."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read(path: Path, types: Mapping[str, Any] | None = None) -> dict[Any, Any]:
    """The mapping that a YAML file holds. ``types``: those of its keys, which decide what stays text.

    Raises UserError for a file that is no plain one, too large or no YAML, and for anything but a mapping.
    """
    if not path.is_file():  # a device or a pipe would be read without end
        raise UserError(f"{path} is no file; give a YAML file")
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path} is larger than {MOST_BYTES // 1024} KiB, which no configuration is; give another file")
    try:
        content = parse(path.read_text(encoding="utf-8"), types or {})
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: no UTF-8, or no such date
        raise UserError(f"{path} is not valid YAML: {brief(error, 500)}") from error
    except RecursionError as error:
        raise UserError(f"{path} is not valid YAML: it is nested too deeply; write it flat") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold settings such as 'seed: 1'; see configs/mini.yaml")
    return content


def parse(text: str, wanted: Any) -> Any:
    """What a YAML text says, as far as it is ``wanted``: a type, or the types of a mapping's keys.

    Raises UserError for one that is too large, else yaml.YAMLError, ValueError or RecursionError.
    """
    if len(text) > MOST_BYTES:
        raise UserError(f"it is longer than {MOST_BYTES // 1024} KiB; give less")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        _keep_words(node, wanted)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """How many values a node holds, aliases written out. UserError if they are too many, or have no end."""
    known = counts.get(id(node))
    if known is not None:
        if known == 0:
            raise UserError("an alias is nested in what it stands for; write it out")
        return known
    counts[id(node)] = 0  # not finished
    total = 1
    if isinstance(node, yaml.CollectionNode):
        for child in node.value:
            total += sum(_count(part, counts) for part in (child if isinstance(child, tuple) else (child,)))
            if total > MOST_VALUES:
                raise UserError(f"it holds more than {MOST_VALUES:,} values, aliases written out; give fewer")
    counts[id(node)] = total
    return total


def _keep_words(node: yaml.Node, wanted: Any) -> None:
    """Makes scalars text where text is wanted."""
    wanted = without_none(wanted)
    if isinstance(node, yaml.ScalarNode):
        if is_text(wanted) and node.tag != NULL:
            node.tag = TEXT
    elif isinstance(node, yaml.SequenceNode):
        inner = get_args(wanted)[0] if get_origin(wanted) is list else None
        for item in node.value:
            _keep_words(item, inner)
    else:
        types = key_types(wanted)
        for key, value in node.value:
            _keep_words(value, wanted if key.tag == MERGE else types.get(str(key.value)))


def key_types(wanted: Any) -> Mapping[str, Any]:
    """The types of the keys of a group of settings, or of a mapping of types itself."""
    if isinstance(wanted, Mapping):
        return wanted
    if not dataclasses.is_dataclass(wanted):
        return {}
    keys = {spec.name: spec.metadata["keys"] for spec in dataclasses.fields(wanted) if "keys" in spec.metadata}
    return get_type_hints(wanted) | keys  # type: ignore[operator]


def without_none(hint: Any) -> Any:
    """``str`` of ``str | None``."""
    if get_origin(hint) in (Union, UnionType):
        others = [inner for inner in get_args(hint) if inner is not NoneType]
        return others[0] if len(others) == 1 else hint
    return hint


def is_text(hint: Any) -> bool:
    """Whether a type is str, or one of several words."""
    return hint is str or (get_origin(hint) is Literal and all(isinstance(word, str) for word in get_args(hint)))
