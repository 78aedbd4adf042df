"""A layout is data: where the networks of a project's files lie, what their keys mean, and what is left out, and why.

    Network   where a state dict lies in the file, and which prefix of its keys is which part
    Layout    the networks of a project, by what they are recognised, which one it evaluates, and how

Parts are "backbone", "projector", "prototypes", "patch_projector", "patch_prototypes", "predictor", "decoder". A prefix
that is empty takes what no other part does.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from prototile.backbones import Backbone, Readout
from prototile.backbones.positions import Resize
from prototile.backbones.resnet import Stem
from prototile.checkpoints.foreign.filling import State, without
from prototile.checkpoints.foreign.heads import Bias, Score

Rules = tuple[tuple[str, str], ...]
Path = tuple[str, ...]

TOP: Path = ()  # the file itself is a state dict


@dataclass(frozen=True)
class Network:
    """A network in a file: at one of `paths`, its keys renamed by `rules`, and parts by their prefixes.

    `aside` are patterns of keys that are left out, with why; `beside` are names of tensors at the top of the file that
    belong to it. `joined` are state dicts that lie beside each other there, and whose names go before their keys.

    A file has a network where it has keys of its backbone.
    """

    paths: tuple[Path, ...]
    parts: Mapping[str, str]
    rules: Rules = ()
    aside: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[str, ...] = ()
    joined: tuple[str, ...] = ()

    def at(self, contents: Mapping[str, Any]) -> Path | None:
        """Where the file has it."""
        return next((path for path in self.paths if self._has_backbone(contents, path)), None)

    def _has_backbone(self, contents: Mapping[str, Any], path: Path) -> bool:
        found, start = _inside(contents, path), self.parts["backbone"]
        if self.joined:
            found = found.get(self.joined[0]) if isinstance(found, dict) else None
            return _is_state(found)
        if not _is_state(found):
            return False
        names = [name for name in self.state(contents, path) if isinstance(name, str)]
        return not start or any(self.name_of(name).startswith(start) for name in names)

    def name_of(self, name: str) -> str:
        """A key under the name that the rules give it."""
        for pattern, replacement in self.rules:
            name = re.sub(pattern, replacement, name)
        return name

    def state(self, contents: Mapping[str, Any], path: Path) -> dict[Any, Any]:
        """Its state dict as the file has it, without the prefixes of wrappers."""
        found = dict(_inside(contents, path))
        if self.joined:
            groups = [(group, found[group]) for group in self.joined if isinstance(found.get(group), dict)]
            found = {f"{group}.{name}": x for group, inside in groups for name, x in inside.items()}
        for prefix in ("_orig_mod.", "module.", "_orig_mod.", "module."):  # compiled, on several GPUs, in any order
            if all(isinstance(name, str) for name in found):
                found = without(found, prefix)
        return found | {name: contents[name] for name in self.beside if name in contents}


@dataclass(frozen=True)
class Layout:
    """How a project keeps its networks.

    It is recognised by `marks`, patterns that are all found among the keys of a network, and `lacks`, of which none is.
    `evaluated` is the network that the project evaluates, and why. `heads` name projector and prototypes by kind of
    token; `score` says whether prototypes enter scores as they are stored, or normalised; `bias` which layers of heads
    have one. `entries` are what else stands at the top of the file and why it is left out; `buffers` those whose
    tensors are kept.
    """

    name: str
    networks: Mapping[str, Network]
    marks: tuple[str, ...]
    evaluated: tuple[str, str] = ("only", "the file holds one")
    lacks: tuple[str, ...] = ()
    heads: Mapping[str, tuple[str, str]] = field(default_factory=lambda: {"cls": ("projector", "prototypes")})
    score: Score = "stored"
    bias: Bias = "all"
    activation: Mapping[str, Callable[[], nn.Module]] = field(default_factory=lambda: {"": nn.GELU})  # by backbone
    resize: Resize = "dino"
    stem: Stem = "cifar"
    temperature: float | None = None
    readouts: Mapping[str, Mapping[str, Readout]] = field(default_factory=dict)  # by backbone; "large" ViTs apart
    entries: Mapping[str, str] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    decoder_heads: int | None = None  # where they are not as many as MAE's
    build: Callable[[], Backbone] | None = None  # where a file says how its backbone is built
    said: str = ""  # what is to be known about it

    def found(self, contents: Mapping[str, Any]) -> dict[str, Path]:
        """The networks that the file has, and where; none where it is another layout's."""
        there = {name: path for name, network in self.networks.items() if (path := network.at(contents)) is not None}
        return (
            there if any(self.fits(self.networks[name].state(contents, path)) for name, path in there.items()) else {}
        )

    def fits(self, state: Mapping[Any, Any]) -> bool:
        """Whether a network's keys are such as the layout's."""
        names = "\n".join(name for name in state if isinstance(name, str))
        marked = all(re.search(mark, names, re.M) for mark in self.marks)
        return marked and not any(re.search(mark, names, re.M) for mark in self.lacks)

    def readouts_of(self, kind: str | None, dims: int) -> Mapping[str, Readout]:
        """What its evaluations take of a backbone; ViTs of 768 dims and more are "large"."""
        if kind == "vit" and dims >= 768 and "large" in self.readouts:
            kind = "large"
        return {"knn": Readout()} | dict(self.readouts.get(kind or "", {}))


@dataclass(frozen=True)
class Sorted:
    """A state dict by parts, under the names within each; keys that are left out with why, and those nobody knows."""

    parts: Mapping[str, dict[str, Tensor]]
    aside: tuple[str, ...]
    unknown: tuple[str, ...]


def sort(state: State, network: Network, also: Mapping[str, str]) -> Sorted:
    """Each key to the part with its longest prefix; `also` are patterns left out whatever the network."""
    parts: dict[str, dict[str, Tensor]] = {}
    reasons: dict[str, list[str]] = {}
    unknown = []
    aside = {**network.aside, **also}
    for name, tensor in state.items():
        reason = next((why for pattern, why in aside.items() if re.search(pattern, name)), None)
        if reason is not None:
            reasons.setdefault(reason, []).append(name)
            continue
        fitting = [(len(prefix), part) for part, prefix in network.parts.items() if name.startswith(prefix)]
        if not fitting:
            unknown.append(name)
            continue
        length, part = max(fitting)
        parts.setdefault(part, {})[name[length:]] = tensor
    said = tuple(f"{names[0]}{_others(names)}: {why}" for why, names in reasons.items())
    return Sorted(parts, said, tuple(unknown))


def tensors_in(value: Any, limit: int = 10_000) -> Iterator[tuple[str, Tensor]]:
    """Tensors in nested dictionaries and sequences, by their names; each container once, and not too many."""
    seen = set[int]()
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting and len(seen) < limit:
        name, x = waiting.pop()
        if isinstance(x, Tensor):
            yield name, x
        elif isinstance(x, dict | list | tuple) and id(x) not in seen:
            seen.add(id(x))
            inside = x.items() if isinstance(x, dict) else enumerate(x)
            waiting += [(f"{name}.{str(key)[:100]}" if name else str(key)[:100], inner) for key, inner in inside]


def _others(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _inside(contents: Mapping[str, Any], path: Path) -> Any:
    found: Any = contents
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _is_state(value: Any) -> bool:
    """Names and at least one tensor."""
    return isinstance(value, dict) and any(isinstance(x, Tensor) for x in value.values())
