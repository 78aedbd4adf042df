"""Layers of settings: a recipe's bases, the recipe, what the command line says. Each changes what is below it.

    layer(given)           from settings with dotted keys and short names to nested ones with paths
    merged(below, above)   what is above wins; another class or function drops the options of the one it replaces
    arguments(argv)        from a command line to settings, in the order given

Nested settings are what jsonargparse reads: {"class_path": PATH, "init_args": {...}} for an object.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from prototile.cli.kinds import Kind, kinds

_CLASS, _ARGS = "class_path", "init_args"

Settings = dict[str, Any]


def layer(given: Mapping[str, Any]) -> Settings:
    """The settings that `given` says, one by one, as one layer."""
    nested: Settings = {}
    for key, value in given.items():
        kind = kinds()["setting"]
        nested = merged(nested, _nested(kind, tuple(key.split(".")), value, key))
    return nested


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> Settings:
    """Both layers, `above` upon `below`."""
    return _merged(kinds()["setting"], below, above)


def arguments(argv: Sequence[str], flags: frozenset[str], texts: frozenset[str]) -> list[tuple[str, Any]]:
    """`--name value` and `--name=value`, in order; `--flag` alone is true, `--no_flag` false; values are YAML.

    The settings in `texts` are taken as they are written.
    """
    found: list[tuple[str, Any]] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            raise ValueError(f"{word!r} is no setting: write --name value, or --name=value; --help lists all names")
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_") if "." not in name else name
        if not equals and name in flags and (not rest or rest[0] not in ("true", "false")):
            found.append((name, True))
        elif not equals and name.startswith("no_") and name.removeprefix("no_") in flags:
            found.append((name.removeprefix("no_"), False))
        elif equals or (rest and not rest[0].startswith("--")):
            text = value if equals else rest.pop(0)
            found.append((name, text if name in texts else _value(text, name)))
        else:
            raise ValueError(f"--{name} needs a value: write --{name}=VALUE")
    return found


def _value(text: str, name: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(
            f"--{name}: {text!r} can not be read (values are YAML: put texts with : or # in quotes)"
        ) from None


def _nested(kind: Kind, path: tuple[str, ...], value: Any, where: str) -> Settings:
    """A setting of something of this kind, given by the rest of its path."""
    first, *rest = path
    if kind.choices:
        if first == _CLASS and not rest:
            return {_CLASS: kind.path(str(value), where)}
        if first == _ARGS:
            return {_ARGS: {}} if not rest and not value else _options(kind, tuple(rest), value, where)
        return _options(kind, path, value, where)
    if not first:
        raise ValueError(f"{where!r} is no name of a setting: one of its parts is empty")
    part = kind.part(first.removesuffix("+"))
    return {first: _complete(part, tuple(rest), value, where)}


def _options(kind: Kind, path: tuple[str, ...], value: Any, where: str) -> Settings:
    """Options of an object: one by its path, or all of a mapping."""
    if not path:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: options are a mapping from their names, got {value!r}")
        options: Settings = {}
        for name, each in value.items():
            more = _options(kind, tuple(str(name).split(".")), each, f"{where}.{name}")
            options = _merged_objects(kind, options, more)
        return {_ARGS: {}} | options
    first, *rest = path
    return {_ARGS: {first: _complete(kind.part(first.removesuffix("+")), tuple(rest), value, where)}}


def _complete(kind: Kind | None, rest: tuple[str, ...], value: Any, where: str) -> Any:
    """A value with its short names replaced; what is no object stays as it is."""
    if kind is None:
        for name in reversed(rest):
            value = {name: value}
        return value
    if rest:
        inner = _nested(kind, rest, value, where)
        return [inner] if kind.many else inner
    if kind.many:
        if isinstance(value, str | Mapping):
            value = [value]
        return [_object(kind, each, where) for each in value or []]
    return _object(kind, value, where)


def _object(kind: Kind, value: Any, where: str) -> Any:
    if isinstance(value, str) and kind.choices:
        number = _number(value) if kind.name == "schedule" else None
        if number is None:
            return {_CLASS: kind.path(value, where)}
        value = number
    if isinstance(value, int | float) and not isinstance(value, bool) and kind.name == "schedule":
        return {_CLASS: kind.choices["Constant"], _ARGS: {"value": value}}
    if not isinstance(value, Mapping):
        return value
    nested: Settings = {}
    for name, each in value.items():
        nested = _merged(kind, nested, _nested(kind, tuple(str(name).split(".")), each, f"{where}.{name}"))
    return nested


def _number(text: str) -> float | None:
    """YAML reads 1e-3 as a text."""
    try:
        return float(text)
    except ValueError:
        return None


def _merged(kind: Kind | None, below: Any, above: Any) -> Any:
    if not (isinstance(below, Mapping) and isinstance(above, Mapping)):
        return copy.deepcopy(above)
    if kind is not None and kind.choices:
        return _merged_objects(kind, below, above)
    result = dict(copy.deepcopy(below))
    for name, value in above.items():
        _merge_into(result, kind, name, value)
    return result


def _merged_objects(kind: Kind, below: Mapping[str, Any], above: Mapping[str, Any]) -> Settings:
    chosen, options = above.get(_CLASS, below.get(_CLASS)), dict(copy.deepcopy(below.get(_ARGS) or {}))
    if _CLASS in above and _CLASS in below and above[_CLASS] != below[_CLASS]:
        options = {name: options[name] for name in kind.keeps if name in options}
    for name, value in (above.get(_ARGS) or {}).items():
        _merge_into(options, kind, name, value)
    return ({} if chosen is None else {_CLASS: chosen}) | ({_ARGS: options} if options else {})


def _merge_into(result: Settings, kind: Kind | None, name: str, value: Any) -> None:
    """Lists are replaced; with `name+` appended to; an option of a list's object is one of its last."""
    plain = name.removesuffix("+")
    part = None if kind is None else kind.part(plain)
    there = result.get(plain)
    if name != plain:
        result[plain] = [*(there or []), *(value if isinstance(value, list) else [value])]
    elif part is not None and part.many and _only_options(value) and there:
        result[plain] = [*there[:-1], _merged(part, there[-1], value[0])]
    else:
        result[plain] = _merged(part, there, value)


def _only_options(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping) and _CLASS not in value[0]
