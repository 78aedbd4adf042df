"""Settings of a run: from layers to objects, by the signatures of what they build. jsonargparse is used here only.

resolve(layers)     merged, checked and complete: `Resolved`, plain values with every default
Resolved.build()    the same as objects
options(call)       what a class or function takes, and its defaults
"""

import importlib
import inspect
import json
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from prototile.cli.kinds import Kind, kinds, near
from prototile.cli.layers import Settings, merged
from prototile.cli.running import train
from prototile.training.optimization import Optimization, Special
from prototile.views import Augmentation

# What is about a command, not about the run: not part of its config.yaml.
COMMAND = ("resume", "overwrite")
# What `train` is told of the settings themselves: no setting.
_TOLD = {"config", "files"}


@dataclass(frozen=True)
class Option:
    """An option of a class or function, as help shows it."""

    name: str
    required: bool
    default: Any  # plain values
    choices: str  # "{a,b}", or nothing


@dataclass(frozen=True)
class Resolved:
    """All settings of a run as plain values."""

    plain: Settings
    _parsed: Namespace

    def yaml(self) -> str:
        """As a recipe: what gives the same run again."""
        kept = {name: value for name, value in self.plain.items() if name not in COMMAND}
        return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=120)

    def build(self) -> dict[str, Any]:
        """The arguments of `train`; whatever takes random numbers takes torch's."""
        return vars(_parser().instantiate(self._parsed))


def resolve(layers: Iterable[Mapping[str, Any]]) -> Resolved:
    """The settings of a run, the last layer uppermost; an error names the setting and what is valid."""
    settings: Settings = {}
    for each in layers:
        settings = merged(settings, each)
    settings = _filled(kinds()["setting"], settings, train, "")
    missing = [name for name, option in options(train).items() if option.required and settings.get(name) is None]
    if missing:
        raise ValueError(
            f"{'this setting is' if len(missing) == 1 else 'these settings are'} missing: {', '.join(missing)}; give "
            f"{'it' if len(missing) == 1 else 'them'}, or a recipe that has {'it' if len(missing) == 1 else 'them'}"
        )
    try:
        parsed = _parser().parse_object(settings)
    except ArgumentError as error:
        raise ValueError(_short(str(error))) from None
    return Resolved(json.loads(_parser().dump(parsed, format="json", skip_unset=False)), parsed)


def options(call: Callable[..., Any]) -> dict[str, Option]:
    """What a class or function takes, forwarded options too, by name."""
    return dict(_options(call))


@cache
def _options(call: Callable[..., Any]) -> dict[str, Option]:
    parser = _new_parser()
    if isinstance(call, type):
        names = set(parser.add_class_arguments(call))
    else:
        names = set(parser.add_function_arguments(call, skip=set(_TOLD) if call is train else None))
    found = {}
    for action in parser._actions:
        if action.dest in names:
            choices = str(action.metavar) if str(action.metavar).startswith("{") else ""
            found[action.dest] = Option(action.dest, action.required, _plain(action.default), choices)
    for name in names - set(found):  # a group of its own, as a dataclass is
        found[name] = Option(name, True, None, "")
    return found


def found(path: str, where: str) -> Callable[..., Any]:
    """The class or function of this path."""
    module, _, name = path.rpartition(".")
    try:
        call = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where}: {path} can not be imported ({error}): is the name right?") from None
    if not callable(call):
        raise ValueError(f"{where}: {path} is neither a class nor a function")
    return call


def _filled(kind: Kind | None, settings: Mapping[str, Any], call: Callable[..., Any], where: str) -> Settings:
    """Settings with checked names; objects of which only options are given are those of the defaults."""
    known = options(call)
    result: Settings = {}
    for name, value in settings.items():
        here = f"{where}{name}"
        if name not in known:
            of = f" of {call.__name__}" if where else ""
            raise ValueError(f"there is no setting {here}{of}; there are: {', '.join(near(name, known))}")
        part = None if kind is None else kind.part(name)
        result[name] = _checked(part, value, known[name].default, here)
    return result


def _checked(kind: Kind | None, value: Any, default: Any, where: str) -> Any:
    if kind is not None and kind.many and isinstance(value, list):
        return [_checked_one(kind, each, None, where) for each in value]
    return _checked_one(kind, value, default, where)


def _checked_one(kind: Kind | None, value: Any, default: Any, where: str) -> Any:
    if kind is None or not isinstance(value, Mapping):
        return value
    if kind.name == "roles":
        return {
            role: _checked_one(kind.part(role), special, None, f"{where}.{role}") for role, special in value.items()
        }
    if kind.name in ("optimization", "role"):
        return _filled(kind, value, Optimization if kind.name == "optimization" else Special, f"{where}.")
    if "class_path" not in value:
        if not isinstance(default, Mapping) or "class_path" not in default:
            raise ValueError(
                f"{where}: which {kind.name}? Say {where}=NAME first; there are: {', '.join(kind.choices)}"
            )
        args = dict(default.get("init_args") or {}) | dict(value.get("init_args") or {})
        value = {"class_path": default["class_path"], "init_args": args}
    args = _filled(kind, value.get("init_args") or {}, found(value["class_path"], where), f"{where}.")
    return {"class_path": value["class_path"], "init_args": args}


@cache
def _parser() -> ArgumentParser:
    parser = _new_parser()
    parser.add_function_arguments(train, skip=set(_TOLD))
    return parser


def _new_parser() -> ArgumentParser:
    # presets are functions that give a dataclass, which alone are not taken for choices
    set_parsing_settings(subclasses_enabled=[Augmentation])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ArgumentParser(exit_on_error=False)


def _plain(value: Any) -> Any:
    """A default as plain values."""
    if isinstance(value, Namespace):
        return value.as_dict()
    return value


def _short(message: str) -> str:
    """jsonargparse's account of nested errors in one line: the setting, what it should be and what it is."""
    keys = re.findall(r'Parser key "([^"]+)"', message)
    where = ".".join(keys)
    expected = list(dict.fromkeys(re.findall(r"Expected an? (.+?)(?:\. Got value|$)", message, re.MULTILINE)))
    got = re.findall(r"(?:Got|Given) value: (.*?)(?:\. Got value.*)?$", message, re.MULTILINE)
    if expected:
        names = [re.sub(r"<class '([\w.]+)'>|typing\.", lambda x: x[1] or "", each) for each in expected]
        return f"{where}: expected {' or '.join(names).replace('NoneType', 'null')}" + (
            f", got {got[0]}" if got else ""
        )
    said = " ".join(message.splitlines()[-1].split())
    return f"{where}: {said}" if where else said


def _named(*annotations: Any) -> frozenset[str]:
    hints = get_type_hints(train)
    return frozenset(name for name in inspect.signature(train).parameters if hints[name] in annotations)


FLAGS = _named(bool) | {"print_config"}  # true where no value is given
TEXTS = _named(str, str | None) | {"recipe"}  # taken as written
