"""Configuration files: where they are, and what they say with the ones that they are based on.

``base: mini`` in a file, a shipped name or a path beside it, puts that file's values first; ``base: null`` starts from
the dataclasses' defaults, which are the paper's. A file that says neither starts from the embedded default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ttopt.config.fields import hints
from ttopt.config.names import check_name
from ttopt.config.settings import METHOD_ARGUMENTS, MethodSettings
from ttopt.config.yaml_text import read
from ttopt.errors import UserError

DEFAULT_CONFIG = "mini"
BASE = "base"
UNSAID = object()  # null says something
# In a checkout configs/ lies beside the package; a wheel carries it inside the package.
CONFIG_FOLDERS = (Path(__file__).parents[2] / "configs", Path(__file__).parents[1] / "configs")
OURS = ("ttopt.", "loop.", "callbacks.")  # packages whose code no configuration can bring in


@dataclass
class Resolved:
    """Values of configurations, nested as the settings are, and what a person should be told about them."""

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def config_path(name: str, where: str = "--config", folder: Path = Path()) -> Path:
    """The YAML file called ``name``: a path from ``folder``, or the name of a shipped configuration. Raises UserError,
    which names ``where`` that is said."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.parent != Path():
        path = folder / path
        if not path.is_file():
            raise UserError(f"{where} {name}: there is no such file")
        return path
    shipped = {file.stem: file for place in reversed(CONFIG_FOLDERS) for file in sorted(place.glob("*.yaml"))}
    if name not in shipped:
        raise UserError(f"{where} {name}: no such configuration; there are {', '.join(shipped)}, or give a YAML file")
    return shipped[name]


def resolve(group: type, configs: Sequence[str], base: str | None) -> Resolved:
    """The values of ``configs``, each on top of the earlier ones. ``base``, from the command line, replaces the first
    one's; if that has none, the embedded default is it. Raises UserError."""
    found, where = Resolved(), "--config"
    if not configs:
        configs, base, where = [base or DEFAULT_CONFIG], None, "--base"
    for place, name in enumerate(configs):
        for path, values in _chain(config_path(name, where), group, found, base, first=place == 0):
            found.values = merged(found.values, values)
            code = sorted(set(_foreign(values)))
            if code and path.resolve().parent not in [folder.resolve() for folder in CONFIG_FOLDERS]:
                found.notes.append(f"{path} names code that will be imported: {', '.join(code)} (docs/security.md)")
    return found


def _chain(
    path: Path, group: type, found: Resolved, base: str | None, first: bool
) -> list[tuple[Path, dict[str, Any]]]:
    """A file and all that it is based on, the last base first. Of several files only the first needs a base."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    while True:
        if path.resolve() in [earlier.resolve() for earlier, _ in chain]:
            circle = " -> ".join(str(earlier) for earlier in (*(earlier for earlier, _ in reversed(chain)), path))
            raise UserError(f"{path}: base leads in a circle ({circle}); leave out one base, or say base: null")
        values = _content(path, group)
        where, folder = f"{path}: base", path.parent
        wanted: Any = values.pop(BASE, UNSAID)
        chain.insert(0, (path, values))
        if base is not None and len(chain) == 1 and first:
            wanted, where, folder = base, "--base", Path()
        if wanted is UNSAID and first and not all(_given(values, name) for name in _leaves(group)):
            wanted = DEFAULT_CONFIG
            found.notes.append(
                f"{path} says no base, so what it leaves out is {DEFAULT_CONFIG}'s (base: {DEFAULT_CONFIG} in it says "
                "the same, base: null means the paper's defaults)"
            )
        if wanted is None or wanted is UNSAID:
            return chain
        if not isinstance(wanted, str) or not wanted:
            raise UserError(f"{path}: base is {wanted!r}; give the name of a configuration or a YAML file")
        path = config_path(wanted, where, folder)


def _content(path: Path, group: type) -> dict[str, Any]:
    """What a file says, nested; all its keys are known. Raises UserError."""
    known = hints(group)
    content = read(path, known)
    base = {BASE: content.pop(BASE)} if BASE in content else {}
    found: dict[str, Any] = {}
    for key, value in _items(content):
        check_name(key, f"{path}: {key}", known)
        holds = any(other.startswith(f"{key}.") for other in known)
        if isinstance(value, Mapping) and holds and key != METHOD_ARGUMENTS:
            continue  # a group, whose settings follow
        if holds and not isinstance(value, Mapping):
            raise UserError(f"{path}: {key} is {value!r}; it must hold settings, which --help lists")
        if _given(found, key):
            raise UserError(f"{path}: {key} is given twice; leave out one of them")
        put(found, key, value)
    return base | found


def _items(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Groups and settings by dotted name."""
    for key, value in content.items():
        yield f"{prefix}{key}", value
        # The arguments of callbacks lie in a list; all other mappings but a method's arguments are groups of settings.
        if isinstance(value, Mapping) and f"{prefix}{key}" != METHOD_ARGUMENTS:
            yield from _items(value, f"{prefix}{key}.")


def _leaves(group: type) -> list[str]:
    names = list(hints(group))
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def _given(values: Mapping[str, Any], name: str) -> bool:
    """Whether nested values hold a setting, by its dotted name."""
    holder: Any = values
    for part in name.split("."):
        if not isinstance(holder, Mapping) or part not in holder:
            return False
        holder = holder[part]
    return True


def put(values: dict[str, Any], name: str, value: Any) -> None:
    """Sets one of nested values by its dotted name, in place."""
    *groups, last = name.split(".")
    for part in groups:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    old = values.get(last)
    values[last] = merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with others on top. Another method does not get the arguments of the one before."""
    result = dict(old)
    method, before = new.get("method"), old.get("method")
    if isinstance(method, Mapping) and isinstance(before, Mapping):
        path = before.get("path", MethodSettings.path)
        if method.get("path", path) != path:
            result["method"] = {key: value for key, value in before.items() if key != "arguments"}
    for key, value in new.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def _foreign(values: Mapping[str, Any]) -> Iterator[str]:
    """Class paths outside our own packages."""
    method = values.get("method")
    entries = [method, *(values.get("callbacks") or ()), *(values.get("methods") or ())]
    for entry in entries:
        path = entry.get("path") if isinstance(entry, Mapping) else None
        if isinstance(path, str) and not path.startswith(OURS):
            yield path
