"""`prototile pretrain`, from Python and from a command line: a recipe, and what is changed of it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from prototile import recipes
from prototile.cli.layers import layer
from prototile.cli.running import train
from prototile.cli.settings import Resolved, resolve
from prototile.training.run import Run

# Settings that decide a run's numbers and are no part of its loader's state or of `fit`'s own arguments.
_COMPARED = ("method", "views", "split", "long_tail", "tail_seed")


def pretrain(recipe: str | Path | None = None, *, data: str | None = None, out: str | Path, **settings: Any) -> Run:
    """Trains a method and leaves a run in the folder `out`; the same as `prototile pretrain`.

    `recipe` is a name from `prototile recipes` or a YAML file. Settings are those of the command line (`prototile
    pretrain --help`): nested as mappings, or with dots, `**{"method.num_prototypes": 4096}`; they change the recipe's.

        prototile.pretrain("digits-dino", out="runs/a", epochs=5, method={"num_prototypes": 512})
    """
    given = {"out": str(out), **({} if data is None else {"data": data}), **settings}
    return run(settings_of(recipe, given.items()))


def settings_of(recipe: str | Path | None, given: Iterable[tuple[str, Any]]) -> Resolved:
    """The settings of a recipe, changed by those that are given, in their order."""
    written = () if recipe is None else recipes.read(recipe).layers
    return resolve([*map(layer, written), *(layer({name: value}) for name, value in given)])


def run(settings: Resolved) -> Run:
    """The run that these settings describe; its weights follow from the seed."""
    torch.manual_seed(settings.plain["seed"])
    config: Mapping[str, Any] = {name: settings.plain[name] for name in _COMPARED}
    return train(**settings.build(), config=config, files={"config.yaml": settings.yaml()})
