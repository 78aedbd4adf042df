"""Recipes: ready runs, one YAML file each. `prototile recipes` lists them, `prototile pretrain --recipe NAME` runs one.

A recipe is the settings of a run. Its comments say where it comes from (`# paper: ...`), what it costs and what is to
be expected. `base: NAME` takes another recipe (or a file beside this one) and changes what stands below it; keys may be
dotted, as on the command line: `method.num_prototypes: 8192`. Names that begin with an underscore are bases only.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

_ENDING = ".yaml"


@dataclass(frozen=True)
class Recipe:
    """A recipe as it is written: its text, what its comments say, and its settings, those of its bases first."""

    name: str
    text: str
    notes: Mapping[str, str]
    layers: tuple[Mapping[str, Any], ...]


def names() -> list[str]:
    """The recipes that come with the package."""
    found = (file.name for file in files(__name__).iterdir())
    return sorted(name.removesuffix(_ENDING) for name in found if name.endswith(_ENDING) and name[0] != "_")


def read(name: str | Path) -> Recipe:
    """The recipe of this name, or of this file."""
    return _read(str(name), None, ())


def _read(name: str, beside: Path | None, readers: tuple[str, ...]) -> Recipe:
    if name in readers:
        raise ValueError(f"recipes are each other's base: {' -> '.join([*readers, name])}")
    text, folder = _text(name, beside)
    settings = _parsed(text, name)
    base = settings.pop("base", None)
    below = () if base is None else _read(str(base), folder, (*readers, name)).layers
    return Recipe(Path(name).name.removesuffix(_ENDING), text, _notes(text), (*below, settings))


def _text(name: str, beside: Path | None) -> tuple[str, Path | None]:
    """The text of a recipe, and the folder of its file where it is not one of the package's."""
    if not name.endswith((_ENDING, ".yml")):
        shipped = files(__name__) / f"{name}{_ENDING}"
        if not re.fullmatch(r"[\w.-]+", name) or not shipped.is_file():
            known = names()
            near = difflib.get_close_matches(name, known, 3, 0.4)
            said = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(
                f"there is no recipe {name!r}: {said}`prototile recipes` lists all {len(known)}; "
                f"a file of your own ends in {_ENDING}"
            )
        return shipped.read_text(encoding="utf-8"), None
    path = Path(name).expanduser()
    if beside is not None and not path.is_absolute():
        path = beside / path
    if not path.is_file():
        raise ValueError(f"there is no recipe file {path}: give one that exists, or a name from `prototile recipes`")
    return path.read_text(encoding="utf-8"), path.parent


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the recipe {name} is not valid YAML: {' '.join(str(error).split())}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ValueError(f"the recipe {name} must hold settings, one `name: value` each")
    return settings


def _notes(text: str) -> dict[str, str]:
    """The `# word: ...` comments before the first setting; a line without a word goes on with the one before."""
    notes: dict[str, str] = {}
    word = ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        found = re.match(r"#\s*([a-z]+):\s+(.*)", line)
        if found:
            word = found[1]
            notes[word] = found[2].strip()
        elif word:
            notes[word] = f"{notes[word]} {line.lstrip('# ')}".strip()
    return notes
