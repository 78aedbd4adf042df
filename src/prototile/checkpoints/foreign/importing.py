"""From the contents of a file to a network: recognise, sort the keys, build."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prototile.backbones import Backbone
from prototile.backbones.decoder import Decoder
from prototile.checkpoints.foreign.decoders import decoder_of
from prototile.checkpoints.foreign.filling import Misfit, finite, listed, made, numbers, renamed
from prototile.checkpoints.foreign.heads import mlp_of, prototypes_of, width_of
from prototile.checkpoints.foreign.layout import TOP, Layout, Path, Sorted, sort, tensors_in
from prototile.checkpoints.foreign.networks import COMPUTED, Found, backbone_of, unbuilt
from prototile.checkpoints.imported import Choice, Imported, ImportedHead
from prototile.checkpoints.reading import fields_of

_COMMON = {  # what any file may have beside its networks
    "amp": "state of mixed precision",
    "args": "settings, see `settings`",
    "epoch": "see `epoch`",
    "fp16_scaler": "state of mixed precision",
    "grad_scaler": "state of mixed precision",
    "iteration": "where training stood",
    "optimizer": "state of the optimiser",
    "scaler": "state of mixed precision",
    "scheduler": "state of the schedule",
}


class Files:
    """A recognised file, network by network."""

    def __init__(self, contents: Mapping[str, Any], layout: Layout, room: int):
        self.contents, self.layout, self.room = contents, layout, room
        self.there = layout.found(contents)
        self.ignored: list[str] = []
        self.buffers: dict[str, Tensor] = {}

    def imported(self, choice: Choice) -> Imported:
        network, why = self._chosen(choice)
        self._entries()
        parts = {name: self._sorted(name, path) for name, path in self.there.items()}
        built = {name: self._built(name, each) for name, each in parts.items()}  # slow: after all is known to fit
        chosen = built[network]
        layout, backbone = self.layout, chosen.found
        kind, dims = (None, 0) if backbone is None else (backbone.kind, backbone.network.dims)
        others = [name for name in self.there if name != network]
        left = (f"{name}: the other network, load it with network={name!r}" for name in others)
        epoch = self.contents.get("epoch")
        evidence = [self._evidence(network), *([backbone.said] if backbone else []), *chosen.said]
        return Imported(
            layout=layout.name,
            evidence=(*evidence, *([layout.said] if layout.said else [])),
            network=f"{network}: {why}",
            backbone=None if backbone is None else backbone.network,
            heads=chosen.heads,
            projector=None if chosen.heads else chosen.projector,
            predictor=chosen.predictor,
            decoder=chosen.decoder,
            ignored=(*self.ignored, *chosen.aside, *left),
            temperature=layout.temperature,
            readouts={} if backbone is None else layout.readouts_of(kind, dims),
            buffers=self.buffers,
            settings=fields_of(self.contents.get("args", self.contents.get("hyper_parameters"))),
            epoch=epoch if isinstance(epoch, int) and not isinstance(epoch, bool) else None,
        )

    def _chosen(self, choice: Choice) -> tuple[str, str]:
        """The network that is wanted, and why it is that one."""
        evaluated, why = self.layout.evaluated
        if choice == "evaluated":
            if evaluated in self.there:
                return evaluated, why
            return next(iter(self.there)), f"the file has no {evaluated}"
        if choice in self.there:
            return choice, "as asked for"
        has = " and ".join(name for name in self.there)
        raise Misfit(f"there is no {choice} in this file of {self.layout.name}, it holds: {has}")

    def _evidence(self, network: str) -> str:
        path = self.there[network]
        where = "at the top of the file" if path == TOP else f"under {'.'.join(path)}"
        state = self.layout.networks[network].state(self.contents, path)
        found = (next((name for name in state if re.search(mark, name)), None) for mark in self.layout.marks)
        return f"{self.layout.name}: keys such as {listed(name for name in found if name is not None)} {where}"

    def _entries(self) -> None:
        """What stands at the top of the file beside the networks must be known, or be without tensors."""
        if any(path == TOP for path in self.there.values()):
            return
        owned = {path[0] for path in self.there.values()}
        owned |= {name for network in self.there for name in self.layout.networks[network].beside}
        unknown = []
        for name, value in self.contents.items():
            if name in owned:
                continue
            if name in self.layout.buffers:
                self.buffers |= {f"{name}.{inner}".rstrip("."): x.detach() for inner, x in tensors_in(value)}
            elif (reason := {**_COMMON, **self.layout.entries}.get(name)) is not None:
                self.ignored.append(f"{name}: {reason}")
            elif next(tensors_in(value), None) is None:
                self.ignored.append(f"{str(name)[:100]}: no weights")
            else:
                unknown.append(str(name)[:100])
        if unknown:
            raise Misfit(
                f"looks like a file of {self.layout.name}, but it is not known what these are: {listed(unknown)}"
            )

    def _sorted(self, name: str, path: Path) -> Sorted:
        network, where = self.layout.networks[name], _where(name)
        state = numbers(network.state(self.contents, path), self.room, where)
        if not self.layout.fits(state):
            raise Misfit(
                f"looks like a file of {self.layout.name}, but keys of {where} are missing or of another layout"
            )
        parts = sort(renamed(state, network.rules), network, COMPUTED)
        if parts.unknown:
            raise Misfit(
                f"looks like a file of {self.layout.name}, but {len(parts.unknown)} keys of {where} are not known: "
                f"{listed(parts.unknown)}"
            )
        for tensors in parts.parts.values():
            finite(tensors)
        return parts

    def _built(self, name: str, parts: Sorted) -> "Built":
        try:
            return Built(self.layout, parts)
        except Misfit as error:
            raise Misfit(f"looks like a file of {self.layout.name}, but of {_where(name)} {error}") from error


def _where(network: str) -> str:
    return f"its {network}" if network != "only" else "its network"


class Built:
    """The modules of one network."""

    def __init__(self, layout: Layout, sorted_: Sorted):
        self._layout, self._parts = layout, dict(sorted_.parts)
        self.aside, self.said = list(sorted_.aside), list[str]()
        self.found = self._backbone()
        dims = None if self.found is None else self.found.network.dims
        self._inputs = dims
        self._projectors: dict[str, nn.Module] = {}
        self.heads = self._heads()
        self.projector = self._projector("projector") if "projector" in self._parts else None
        self.predictor = self._predictor()
        self.decoder: Decoder | None = None
        if set(self._parts.get("decoder", {})) == {"mask_token"}:
            self.aside.append("mask_token: the decoder's, which is not there")
        elif "decoder" in self._parts:
            backbone: Backbone | None = None if self.found is None else self.found.network
            self.decoder = decoder_of(self._parts["decoder"], backbone, layout.decoder_heads)
        if self.found is None and not self.heads:
            raise Misfit("there are neither a backbone nor prototypes that can be built")

    def _backbone(self) -> Found | None:
        state = self._parts.get("backbone")
        if not state:
            raise Misfit("the backbone is missing")
        if (known := unbuilt(state)) is not None:
            self.aside.append(f"{next(iter(state))} and {len(state) - 1} more: a {known}, which cannot be built here")
            return None
        if self._layout.build is not None:
            return Found(made(self._layout.build, state, "the backbone"), "", "built as the run says")
        return backbone_of(state, resize=self._layout.resize, stem=self._layout.stem)

    def _activation(self) -> Any:
        kinds = self._layout.activation
        return kinds.get("" if self.found is None else self.found.kind, kinds.get("", nn.GELU))

    def _projector(self, part: str) -> nn.Module:
        if part not in self._projectors:
            state = self._parts.get(part)
            self._projectors[part] = (
                mlp_of(state, self._activation(), f"the {part}", self._inputs, self._layout.bias)
                if state
                else nn.Identity()
            )
        return self._projectors[part]

    def _heads(self) -> dict[str, ImportedHead]:
        heads: dict[str, ImportedHead] = {}
        for kind, (projector, prototypes) in self._layout.heads.items():
            state = self._parts.get(prototypes)
            if not state:
                if projector in self._parts and projector not in ("projector",):
                    raise Misfit(f"there is a {projector} without its {prototypes}")
                continue
            module = self._projector(projector)
            dims = width_of(module, self._inputs)
            for i, found in enumerate(prototypes_of(state, self._layout.score, f"the {prototypes}", dims), start=1):
                heads[kind if i == 1 else f"{kind}{i}"] = ImportedHead(module, found).eval()
        return heads

    def _predictor(self) -> nn.Module | None:
        state = self._parts.get("predictor")
        if not state:
            return None
        projector = self._projectors.get("projector")
        inputs = self._inputs if projector is None else width_of(projector, self._inputs)
        return mlp_of(state, self._activation(), "the predictor", inputs, self._layout.bias)


def _hint(contents: Mapping[str, Any]) -> str:
    """What a file without a network is, where that can be told."""
    inside = contents.get("state_dict", contents)
    names = {name.removeprefix("module.") for name in (inside if isinstance(inside, dict) else {}) if type(name) is str}
    if names and names <= {"weight", "bias", "linear.weight", "linear.bias"}:
        return "; it is a classifier of an evaluation: give the file of the network that it was trained on"
    if set(contents) == {"queue"}:
        return "; it is a queue of embeddings: give the file of the network"
    if (known := unbuilt(dict.fromkeys(names, torch.empty(0)))) is not None:
        return f"; it is a backbone alone ({known}), which cannot be built here"
    return ""


def imported(contents: Mapping[str, Any], layouts: Sequence[Layout], choice: Choice, room: int) -> Imported:
    """The network of the first layout that recognises the file; `room` is how many bytes its weights may have."""
    layout = next((layout for layout in layouts if layout.found(contents)), None)
    if layout is None:
        known = ", ".join(dict.fromkeys(layout.name for layout in layouts))
        holds = listed(str(x)[:100] for x in contents)
        raise Misfit(f"is of no layout that is known ({known}); it holds: {holds}{_hint(contents)}")
    return Files(contents, layout, room).imported(choice)
