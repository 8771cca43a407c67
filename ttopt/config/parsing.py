"""Settings from YAML files and command-line overrides. Every mistake is a UserError that names the cure."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

from ttopt.config.checks import check, check_files
from ttopt.config.settings import METHOD_ARGUMENTS, FitSettings, to_dict
from ttopt.errors import UserError

S = TypeVar("S")

DEFAULT_CONFIG = "mini"
SHOWN = 500  # characters of a parser's message
# In a checkout configs/ lies beside the package; a wheel carries it inside the package.
CONFIG_FOLDERS = (Path(__file__).parents[2] / "configs", Path(__file__).parents[1] / "configs")


class _Parser(ArgumentParser):
    """Mistakes become a UserError instead of a usage page."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(_readable(message)) from ex


@cache
def _parser(group: type, command: str = "", what: str = "") -> _Parser:
    """The parser of a group of settings, with --config for a command; kept, because making one takes a while."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(prog=f"ttopt {command}", description=what)
    if command:
        parser.add_argument("--config", action=ActionConfigFile, help="A YAML file, or the name of one under configs/.")
    parser.add_class_arguments(group)
    return parser


def parse_fit(args: Sequence[str]) -> FitSettings:
    """Settings of ``ttopt fit`` from command-line arguments; see ``parse``. Without --config: configs/mini.yaml."""
    what = "Optimize videos at test time: one adapter per sample, trained until the teacher is satisfied."
    settings = parse(FitSettings, "fit", what, args, [] if _names_config(args) else [DEFAULT_CONFIG])
    check(settings)
    check_files(settings)
    return settings


def parse(group: type[S], command: str, what: str, args: Sequence[str], defaults: Sequence[str]) -> S:
    """Settings of a command from its arguments, on top of the configurations ``defaults``; later ones win, also over
    an earlier --config.

    Raises UserError for an unknown setting (naming the nearest), a wrong type or a missing file. ``--help`` and
    ``--print_config`` print and exit.
    """
    known = setting_names(group)
    args = _checked_args(args, known)
    parser = _parser(group, command, what)  # type: ignore[arg-type]  # classes are hashable
    parser.default_config_files = [_checked_config(name, known) for name in defaults]
    values = vars(parser.instantiate(parser.parse_args(args)))
    found = group(**{name: value for name, value in values.items() if name != "config"})
    _check_filled(found)
    if isinstance(found, FitSettings):
        _read_arguments(found.method.arguments, args)
    return found


def _read_arguments(arguments: dict[str, Any], args: Sequence[str]) -> None:
    """Gives the method's arguments that come from the command line, where all is text, their types in place."""
    for place, arg in enumerate(args):
        name, equals, text = arg.partition("=")
        if not name.startswith(f"--{METHOD_ARGUMENTS}."):
            continue
        text = text if equals else args[place + 1]
        *groups, last = name.removeprefix(f"--{METHOD_ARGUMENTS}.").split(".")
        holder: Any = arguments
        for group in groups:
            holder = holder.get(group) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and holder.get(last) == text:  # else a later file has another value
            parser = ArgumentParser()
            parser.add_argument("--value", type=Any)
            holder[last] = parser.parse_args([f"--value={text}"]).value


def _names_config(args: Sequence[str]) -> bool:
    return any(arg.partition("=")[0] == "--config" for arg in args)


def changed(settings: FitSettings, values: Mapping[str, Any], where: str) -> FitSettings:
    """``settings`` with some values replaced by dotted name, e.g. {"teacher.frames": 5}; types are checked as on the
    command line. Raises UserError, naming ``where``."""
    names = setting_names()
    arguments = []
    for name, value in values.items():
        _check_name(name, f"{where}: {name}", names)
        arguments += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    parser = _parser(FitSettings)
    try:
        base = parser.parse_object(to_dict(settings))
        found = FitSettings(**vars(parser.instantiate(parser.parse_args(arguments, namespace=base))))
        check(found)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return found


def config_path(name: str) -> Path:
    """The YAML file called ``name``: a path, or the name of a shipped configuration. Raises UserError."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.parent != Path():
        if not path.is_file():
            raise UserError(f"--config {name}: there is no such file")
        return path
    shipped = {file.stem: file for folder in reversed(CONFIG_FOLDERS) for file in sorted(folder.glob("*.yaml"))}
    if name not in shipped:
        raise UserError(f"--config {name}: no such configuration; there are {', '.join(shipped)}, or give a YAML file")
    return shipped[name]


def _checked_args(args: Sequence[str], known: Sequence[str]) -> list[str]:
    """The arguments with names spelled as the parser does and --config as paths; UserError for unknown names."""
    result: list[str] = []
    after_config = False
    for arg in args:
        if after_config:
            arg, after_config = _checked_config(arg, known), False
        elif arg.startswith("--") and arg != "--":
            name, equals, value = arg[2:].partition("=")
            name = name.replace("-", "_")
            if name not in {"help", "print_config"}:
                _check_name(name.removesuffix("+"), f"--{name}", known, flag="--")
            if name == "config" and equals:
                result.append("--config")
                arg = _checked_config(value, known)
            else:
                after_config = name == "config"
                arg = f"--{name}{equals}{value}"
        result.append(arg)
    return result


def _checked_config(name: str, known: Sequence[str]) -> str:
    """Path of a configuration whose keys are all known. Raises UserError."""
    path = config_path(name)
    for key, value in _items(read_config(path)):
        _check_name(key, f"{path}: {key}", known)
        if not isinstance(value, Mapping) and any(other.startswith(f"{key}.") for other in known):
            raise UserError(f"{path}: {key} is {value!r}; it must hold settings, which --help lists")
    return str(path)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands there twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{key} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_config(path: Path) -> Mapping[str, Any]:
    """What a YAML file says, unchecked but for its syntax. Raises UserError."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if isinstance(content, Mapping):
            list(_items(content))
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: no UTF-8, or no such date
        raise UserError(f"{path} is not valid YAML: {_readable(str(error))}") from error
    except RecursionError as error:
        raise UserError(f"{path} is not valid YAML: it is nested too deeply; write it flat") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} must hold settings such as 'seed: 1'; see configs/{DEFAULT_CONFIG}.yaml")
    return content


def _items(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Groups and settings by dotted name."""
    for key, value in content.items():
        yield f"{prefix}{key}", value
        # The arguments of callbacks lie in a list; all other mappings but a method's arguments are groups of settings.
        if isinstance(value, Mapping) and f"{prefix}{key}" != METHOD_ARGUMENTS:
            yield from _items(value, f"{prefix}{key}.")


def setting_names(group: type = FitSettings, prefix: str = "") -> list[str]:
    """Every setting and group by its dotted name, e.g. ``teacher.frames``."""
    names = []
    for spec in dataclasses.fields(group):
        names.append(prefix + spec.name)
        if dataclasses.is_dataclass(spec.default_factory):
            names += setting_names(spec.default_factory, f"{prefix}{spec.name}.")  # type: ignore[arg-type]
    return names


def _check_name(name: str, shown: str, known: Sequence[str], flag: str = "") -> None:
    """UserError for an unknown setting, naming the known one that looks most like it."""
    if name in known or name.startswith(f"{METHOD_ARGUMENTS}.") or (flag and name == "config"):
        return

    def likeness(candidate: str) -> float:
        # "--tau" means optimization.tau, so the last part counts as much as the whole name.
        pairs = ((name, candidate), (name.rpartition(".")[2], candidate.rpartition(".")[2]))
        whole, last = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return max(whole, last) + 0.1 * whole

    nearest = max(known, key=likeness)
    raise UserError(f"{shown}: there is no such setting; the nearest is {flag}{nearest} (--help lists all)")


def _check_filled(group: Any, prefix: str = "") -> None:
    """UserError for a null where a value is needed; the parser lets it pass in files."""
    for spec in dataclasses.fields(group):
        value = getattr(group, spec.name)
        if dataclasses.is_dataclass(value):
            _check_filled(value, f"{prefix}{spec.name}.")
        elif value is None and "None" not in str(spec.type):
            raise UserError(f"{prefix}{spec.name} is null; give a value, or leave it out")


def _readable(message: str) -> str:
    """A parser's or YAML's message on one line, without the parser's own words for types."""
    message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.", "")
    message = " ".join(re.sub(r'Parser key "([^"]+)":', r"--\1:", message).split())
    message = re.sub(
        r"Does not validate .* Subtypes: \[list\[(\w+)\], Literal\[(.*?)\]\] Errors: .* Given value:",
        r"Expected a list of \1s or one of \2. Got value:",
        message,
    )
    message = re.sub(
        r"Does not validate .* Subtypes: \[(.*), NoneType\] Errors: .* Given value:",
        r"Expected a \1. Got value:",
        message,
    )
    message = re.sub(
        r"Not a valid subclass of (\w+)\. Got value: (.*?) Subclass types expect .*",
        r"Expected \1 (see --help). Got value: \2",
        message,
    )
    return message if len(message) <= SHOWN else f"{message[:SHOWN]} ..."
