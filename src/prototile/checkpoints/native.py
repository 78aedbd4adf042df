"""The package's own weights: what a run exports, small and without code.

    model.safetensors        the evaluated backbone: the teacher's, where there is one
    prototypes.safetensors   directions and gains, of the student, by kind of token: "cls.directions", "patches.gains"
    config.json              how to build the backbone again, where that is known, and which images it has seen: their
                             size, and what was done to pixels

A backbone is described as the command line's configuration describes it: a `class_path` inside `prototile.backbones`
and its `init_args`, plain values that may hold such descriptions themselves.
"""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor, nn

from prototile import distributed
from prototile.backbones import Backbone
from prototile.checkpoints.atomic import write_atomically
from prototile.checkpoints.imported import Seen
from prototile.heads import Prototypes
from prototile.methods import Method
from prototile.views import Augmentation

FORMAT = 1
WEIGHTS, PROTOTYPES, CONFIG = "model.safetensors", "prototypes.safetensors", "config.json"
KINDS = ("cls", "patches")  # of tokens, in the order in which methods name their prototypes
_ROOM = "prototile.backbones"


def export(
    method: Method, folder: str | Path, config: Mapping[str, Any] | None = None, seen: Augmentation | None = None
) -> None:
    """Writes the evaluated backbone and the prototypes into a folder; all ranks must call it, the first one writes.

    `config` describes the backbone (see `build`); without one `load_backbone` needs to be given a backbone to fill.
    `seen` is what made the views that it was trained on: evaluations show images of that size, normalised as they were.
    """
    folder = Path(folder)
    weights = {name: _plain(x) for name, x in method.backbone.state_dict().items()}
    prototypes = _prototypes(method)
    if distributed.rank() != 0:
        return
    described = {"format": FORMAT, "backbone": config and dict(config), "dims": method.backbone.dims}
    described |= {"patch": method.backbone.patch, "images": None if seen is None else Seen.of(seen).as_dict()}
    text = json.dumps(described, indent=2, default=_refuse) + "\n"
    write_atomically(folder / PROTOTYPES, lambda file: file.write(save(prototypes)))
    write_atomically(folder / CONFIG, lambda file: file.write(text.encode()))
    write_atomically(folder / WEIGHTS, lambda file: file.write(save(weights)))


def load_backbone(folder: str | Path, into: Backbone | None = None) -> Backbone:
    """The exported backbone, in evaluation mode: built from its description, or filled into the one given."""
    folder = Path(folder)
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"there is no {name} in {folder}: give the folder `model` of a run that has ended")
    config = json.loads((folder / CONFIG).read_text())
    if config.get("format") != FORMAT:
        raise ValueError(f"{folder / CONFIG} has format {config.get('format')!r}, and this version reads {FORMAT}")
    if into is None and config["backbone"] is None:
        raise ValueError(
            f"{folder / CONFIG} does not say how to build the backbone, as it was made in Python: "
            "give load_backbone one to fill, `into=...`"
        )
    network = build(config["backbone"]) if into is None else into
    if not isinstance(network, Backbone):
        raise ValueError(f"{folder / CONFIG} describes a {type(network).__name__}, which is no backbone")
    _fill(network, load_file(folder / WEIGHTS), folder / WEIGHTS)
    return network.eval()


def load_prototypes(folder: str | Path) -> dict[str, Tensor]:
    """The exported prototypes: "cls.directions" (k x d unit vectors) and, where norms can differ, "cls.gains" (k)."""
    return load_file(Path(folder) / PROTOTYPES)


def build(description: Mapping[str, Any]) -> Any:
    """What a description says: `class_path`, a class or function of `prototile.backbones`, called with `init_args`."""
    path = description.get("class_path")
    if not isinstance(path, str) or not path.startswith(f"{_ROOM}."):
        raise ValueError(f"a backbone is described by a `class_path` inside {_ROOM}, got {path!r}")
    arguments = {name: _built(value) for name, value in dict(description.get("init_args") or {}).items()}
    return _found(path)(**arguments)


def _built(value: Any) -> Any:
    if isinstance(value, Mapping):
        return build(value) if "class_path" in value else {name: _built(x) for name, x in value.items()}
    return [_built(x) for x in value] if isinstance(value, list | tuple) else value


def _found(path: str) -> Any:
    """A class or function that a module inside the room defines itself: nothing that it has imported."""
    module, _, name = path.rpartition(".")
    try:
        found = vars(importlib.import_module(module))[name]
    except (ImportError, KeyError):
        raise ValueError(f"there is no {path}: the file was written by another version, or by hand") from None
    known = isinstance(found, type | FunctionType) and f"{found.__module__}.".startswith(f"{_ROOM}.")
    if not known or name.startswith("_"):
        raise ValueError(f"{path} is no backbone: only what {_ROOM} defines is built")
    return found


def _fill(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads weights whose names and shapes must all fit."""
    own = network.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in weights]
    wrong += [f"{name} is unknown" for name in weights if name not in own]
    for name in set(own) & set(weights):
        if own[name].shape != weights[name].shape:
            wrong.append(f"{name} is {tuple(weights[name].shape)} and should be {tuple(own[name].shape)}")
    if wrong:
        said = ", ".join(sorted(wrong)[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise ValueError(f"{path} does not fit this backbone: {said}; build it as it was trained")
    network.load_state_dict(dict(weights))


def prototypes_of(method: Method) -> dict[str, Prototypes]:
    """The student's prototypes by kind of token, shared ones once; none of a method that has none."""
    part = method.roles.get("prototypes")
    layers = [] if part is None else [module for module in part.modules() if isinstance(module, Prototypes)]
    if len(layers) > len(KINDS):
        raise ValueError(f"there are {len(layers)} sets of prototypes, and names for {', '.join(KINDS)} only")
    return dict(zip(KINDS, layers, strict=False))


def _prototypes(method: Method) -> dict[str, Tensor]:
    """Directions and gains by kind of token."""
    found: dict[str, Tensor] = {}
    for kind, prototypes in prototypes_of(method).items():
        found[f"{kind}.directions"] = _plain(prototypes.directions())
        if (gains := _gains(prototypes)) is not None:
            found[f"{kind}.gains"] = _plain(gains)
    return found


def _gains(prototypes: Prototypes) -> Float[Tensor, " k"] | None:
    """The norms of prototypes that can differ."""
    if not prototypes.normalized:
        return prototypes.vectors.norm(dim=1)
    return None if prototypes.gain is None else prototypes.gain[:, 0]


def _plain(x: Tensor) -> Tensor:
    return distributed.whole(x.detach()).cpu().contiguous().clone()


def _refuse(value: Any) -> Any:
    raise ValueError(f"the description of a backbone holds plain values only, not {value!r}")
