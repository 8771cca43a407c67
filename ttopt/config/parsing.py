"""Settings from YAML files and command-line overrides. Every mistake is a UserError that names the cure.

All that is said becomes one nested mapping: the base of the configuration, the configurations in their order, then the
command line, which wins wherever it stands. It is checked and made into settings once.
"""

from __future__ import annotations

import dataclasses
import re
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NoReturn, TypeVar, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from ttopt.config.checks import check, check_files, check_positions
from ttopt.config.fields import hints, rules
from ttopt.config.files import BASE, CONFIG_FOLDERS, Resolved, config_path, merged, put, resolve
from ttopt.config.help import Option, page, usual
from ttopt.config.names import check_name
from ttopt.config.settings import FitSettings, flat, to_dict, to_yaml
from ttopt.config.yaml_text import is_text, without_none
from ttopt.config.yaml_text import parse as parse_text
from ttopt.errors import UserError

__all__ = ["CONFIG_FOLDERS", "changed", "config_path", "parse", "parse_fit", "setting_names"]

S = TypeVar("S")

SHOWN = 500  # characters of a parser's message
CONFIG, HELP, HELP_ALL, PRINT = "config", "help", "help_all", "print_config"
SHORT = {"prompt": "sample.prompt", "image": "sample.image", "steps": "optimization.steps"}  # on a command line only
FILE_OPTIONS = {
    CONFIG: "A YAML file, or the name of one under configs/. Of several, later ones win; flags win over all.",
    BASE: "The configuration whose values come first, instead of the one that the file names as its base.",
    PRINT: "Takes no value: print the settings as a configuration, and exit.",
}
CODE = (
    "A configuration can name code, which is then imported: method.path and callbacks. Read a stranger's before you "
    "use it (docs/security.md)."
)


class _Parser(ArgumentParser):
    """Mistakes become a UserError instead of a usage page."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(_readable(message)) from ex


@cache
def _parser(group: type, command: str = "", what: str = "") -> _Parser:
    """The parser of a group of settings; kept, because making one takes a while."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    configured = issubclass(group, FitSettings)
    parser = _Parser(prog=f"ttopt {command}", description=f"{what} {CODE}" if configured else what)
    if configured:
        for name, said in FILE_OPTIONS.items():
            parser.add_argument(f"--{name}", default=SUPPRESS, help=said)
    parser.add_class_arguments(group)
    return parser


def parse_fit(args: Sequence[str]) -> FitSettings:
    """Settings of ``ttopt fit`` from command-line arguments; see ``parse``. Without --config: configs/mini.yaml."""
    what = "Optimize videos at test time: one adapter per sample, trained until the teacher is satisfied."
    settings = parse(FitSettings, "fit", what, args)
    check(settings)
    check_files(settings)
    check_positions(settings)
    return settings


def parse_demo(args: Sequence[str]) -> FitSettings:
    """Settings of ``ttopt demo``: those of configs/demo.yaml, changed by command-line arguments; see ``parse``."""
    return parse_fit(["--config", "demo", *args])


def parse(group: type[S], command: str, what: str, args: Sequence[str], config: str | None = None) -> S:
    """Settings of a command from its arguments. Without --config, ``config`` is read, or else the embedded default.

    Raises UserError for an unknown setting (naming the nearest), a wrong type or a missing file. ``--help`` and
    ``--print_config`` print and exit. A file that starts from the embedded default without saying so, and code that a
    file names, are told on one line each.
    """
    typed = _typed(args, group)
    found = Resolved()
    if issubclass(group, FitSettings):
        found = resolve(group, typed.configs or ([config] if config else []), typed.base)
    if typed.help:
        print(_help(group, command, what, found.values, typed.help == HELP_ALL))
        raise SystemExit(0)
    settings = _made(group, merged(found.values, typed.values))
    if typed.print:
        print(to_yaml(settings), end="")
        raise SystemExit(0)
    for note in found.notes:
        print(f"note: {note}")
    return settings


def options_of(group: type, command: str = "", what: str = "", values: Mapping[str, Any] | None = None) -> list[Option]:
    """All settings of a group, under the titles of its parts, with the defaults of a configuration's ``values``."""
    types, given, parser = hints(group), flat(values or {}), _parser(group, command, what)  # type: ignore[arg-type]
    found: list[Option] = []
    for part in parser._action_groups:
        actions = [action for action in part._group_actions if action.dest in types or action.dest in FILE_OPTIONS]
        if actions and actions[0].dest in types:
            found.append(Option("", part.title or ""))
        for action in actions:
            name, said = action.dest, action.help or ""
            if name in FILE_OPTIONS:
                found.append(Option(name, said, None if name == PRINT else str))
            elif not dataclasses.is_dataclass(types[name]):
                found.append(Option(name, said, types[name], given.get(name, action.default)))
    return found


def _help(group: type, command: str, what: str, values: Mapping[str, Any], whole: bool) -> str:
    """The text of --help, or of --help-all."""
    options = options_of(group, command, what, values)
    if not issubclass(group, FitSettings):
        return page(command, what, [option for option in options if option.name], {})
    if whole:
        return page(command, f"{what} {CODE}", options, SHORT)
    count = sum(bool(option.name) for option in options)
    more = f"{count} settings in all: ttopt {command} --help-all. --print-config prints them as a configuration."
    own = hints(group).keys() - hints(FitSettings).keys()  # type: ignore[arg-type]
    return page(command, f"{what} {CODE}", usual(options, own), SHORT, more)


@dataclass
class _Typed:
    """What a command line says."""

    values: dict[str, Any] = field(default_factory=dict)
    configs: list[str] = field(default_factory=list)
    base: str | None = None
    help: str = ""  # which one is asked for
    print: bool = False


def _typed(args: Sequence[str], group: type) -> _Typed:
    """The arguments by name. Raises UserError for unknown names and missing values."""
    types, configured = hints(group), issubclass(group, FitSettings)
    options = {**types, **(FILE_OPTIONS | SHORT if configured else {})}
    found = _Typed()
    words = iter(args)
    for word in words:
        name, equals, text = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if word == "-h" or (word.startswith("--") and name in (HELP, HELP_ALL)):
            found.help = name if name == HELP_ALL else HELP
            continue
        name = SHORT.get(name, name) if configured else name
        if not word.startswith("--") or word == "--":
            raise UserError(f"unrecognized arguments: {word}")
        check_name(name, f"--{name}", options, flag="--")
        if name == PRINT and name in options:
            found.print = True
            continue
        if not equals:
            text = next(words, "--")
            if text.startswith("--"):
                raise UserError(f"--{name}: expected one argument")
        if name == CONFIG:
            found.configs.append(text)
        elif name == BASE:
            found.base = text
        else:
            put(found.values, name, _value(name, text, types))
    return found


def _value(name: str, text: str, types: Mapping[str, Any]) -> Any:
    """What a text on the command line means for a setting; what is no such value stays text, for the parser to refuse.
    Raises UserError for something other than settings where a group is wanted."""
    hint = types.get(name)
    wanted = without_none(hint)
    optional = wanted is not hint
    if is_text(wanted):
        return None if optional and text == "null" else text
    if get_origin(wanted) is list and get_args(wanted) == (str,) and not text.lstrip().startswith("["):
        return None if optional and text == "null" else [text]  # one bare name
    try:
        value = parse_text(text, wanted)
    except UserError as error:
        raise UserError(f"--{name}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError):
        value = text
    if dataclasses.is_dataclass(wanted):
        if not isinstance(value, Mapping):
            raise UserError(f"--{name} is {text}; it must hold settings, which --help lists")
        for key in value:
            check_name(f"{name}.{key}", f"--{name}.{key}", types, flag="--")
    return text if value is None and hint is not None and not optional else value


def _made(group: type[S], values: Mapping[str, Any]) -> S:
    """Settings of nested values, whose types are checked here. Raises UserError."""
    lengths = rules(group)  # type: ignore[arg-type]
    for name, value in flat(values).items():  # before the parser, whose time grows with a list's length squared
        if isinstance(value, list) and name in lengths and (said := lengths[name].problem(name, value)):
            raise UserError(said)
    parser = _parser(group)  # type: ignore[arg-type]
    found = vars(parser.instantiate(parser.parse_object(dict(values))))
    settings = group(**{spec.name: found[spec.name] for spec in dataclasses.fields(group)})  # type: ignore[arg-type]
    _check_filled(settings)
    return settings


def changed(settings: FitSettings, values: Mapping[str, Any], where: str) -> FitSettings:
    """``settings`` with some values replaced by dotted name, e.g. {"teacher.frames": 5}; a text is read as on the
    command line. Raises UserError, naming ``where``."""
    types = hints(FitSettings)
    new: dict[str, Any] = {}
    try:
        for name, value in values.items():
            check_name(name, name, types)
            put(new, name, _value(name, value, types) if isinstance(value, str) else value)
        found = _made(FitSettings, merged(to_dict(settings), new))
        check(found)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return found


def setting_names(group: type = FitSettings) -> list[str]:
    """Every setting and group by its dotted name, e.g. ``teacher.frames``."""
    return list(hints(group))


def _check_filled(group: Any, prefix: str = "") -> None:
    """UserError for a null where a value is needed; the parser lets it pass in files."""
    for spec in dataclasses.fields(group):
        value = getattr(group, spec.name)
        if dataclasses.is_dataclass(value):
            _check_filled(value, f"{prefix}{spec.name}.")
        elif value is None and "None" not in str(spec.type):
            raise UserError(f"{prefix}{spec.name} is null; give a value, or leave it out")


def _readable(message: str) -> str:
    """A parser's message on one line, without the parser's own words for types."""
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
    message = re.sub(r"Expected a Literal\[([^]]*)\]", lambda found: f"Expected {_choices(found[1])}", message)
    return message if len(message) <= SHOWN else f"{message[:SHOWN]} ..."


def _choices(quoted: str) -> str:
    """'id', 'ood', 'all' -> id, ood or all."""
    *rest, last = quoted.replace("'", "").split(", ")
    return f"{', '.join(rest)} or {last}" if rest else last
