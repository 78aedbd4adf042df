"""Checkpoints of this package's own runs, by the same layouts as data that others' have."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prototile.backbones import Backbone
from prototile.checkpoints import native
from prototile.checkpoints.foreign.filling import Misfit
from prototile.checkpoints.foreign.heads import Bias
from prototile.checkpoints.foreign.importing import imported
from prototile.checkpoints.foreign.layout import Layout, Network, Rules
from prototile.checkpoints.foreign.solo_learn import LIGHTNING
from prototile.checkpoints.imported import Choice, Imported, ImportedHead, Seen
from prototile.checkpoints.reading import read
from prototile.heads import Prototypes

_LAST = Path("checkpoints") / "last.ckpt"  # in the folder of a run
_MODEL = "model"
_ENCODER = r"^method\.encoder\."  # the backbone of a classifier
_RELU = ("barlow_twins", "mmcr", "simclr", "simsiam", "swav", "vicreg")  # methods by the activation of their heads
_AS_STORED = ("swav",)
_BIASES: dict[str, Bias] = {"barlow_twins": "not last", "simsiam": "unless normed", "vicreg": "not last"}
_DEEPEST, _WIDEST, _LONGEST = 200, 20_000, 100

# From our names of a backbone to official ones, for runs that do not say how theirs was built.
_OFFICIAL: Rules = (
    *((rf"^backbone\.swin\.layers\.{i + 1}\.downsample\.", f"backbone.swin.layers.{i}.downsample.") for i in range(8)),
    (r"^backbone\.(vit|beit|swin|resnet)\.", "backbone."),
)


def is_own(contents: Mapping[str, Any]) -> bool:
    """Whether a run of this package has written it."""
    return isinstance(contents.get("prototile"), dict) and isinstance(contents.get("state_dict"), dict)


def is_finetuned(contents: Mapping[str, Any]) -> bool:
    """Whether a run of this package has written it that trained a classifier on labels."""
    return is_own(contents) and any(re.match(_ENCODER, str(name)) for name in contents["state_dict"])


def file_of(folder: Path) -> Path | None:
    """The file of weights in the folder of a run, or in its folder `model`; None where it is neither."""
    for found in (folder / _LAST, folder / native.WEIGHTS, folder / _MODEL / native.WEIGHTS):
        if found.is_file():
            return found
    return None


def of_checkpoint(contents: Mapping[str, Any], choice: Choice, room: int) -> Imported:
    """A network of a run's checkpoint."""
    seen = Seen.read(contents["prototile"].get("images"))
    settings = contents["prototile"].get("settings")
    config = settings.get("config") if isinstance(settings, dict) else None
    method = config.get("method") if isinstance(config, dict) else None
    method = method if isinstance(method, dict) else {}
    options = method.get("init_args")
    options = options if isinstance(options, dict) else {}
    if is_finetuned(contents):
        found = imported(contents, [_classifier(options.get("backbone"))], choice, room)
        return replace(found, settings=config if isinstance(config, dict) else {}, seen=seen)
    name = str(method.get("class_path", "")).rpartition(".")[2]
    layout = _layout(name, options, options.get("backbone"))
    continued = config.get("continued") if isinstance(config, dict) else None
    if isinstance(continued, dict):  # heads may be as another project makes them
        layout = replace(layout, bias="any", score="stored" if continued.get("score") == "stored" else "cosine")
    found = imported(contents, [layout], choice, room)
    if options.get("vmf") is True or name.endswith("_vmf"):  # what the weights do not tell
        for head in found.heads.values():
            head.prototypes.vmf = True
    return replace(found, settings=config if isinstance(config, dict) else {}, seen=seen)


def _layout(name: str, options: Mapping[str, Any], described: Any) -> Layout:
    """The layout of a run of this method, whose networks have the names that the method gives them."""
    relu = options.get("activation", "relu") == "relu" if name == "excb" else name in _RELU
    build = _builder(described)
    temperature = options.get("student_temperature", options.get("temperature"))
    said = f"a run of {name}" if name else "a run that was made in Python: activations between layers are taken as GELU"
    return Layout(
        name="prototile",
        networks={network: _network(network, other, build is None) for network, other in _PAIRS},
        marks=(r"^method\.student\.",),
        evaluated=("teacher", "where there is a teacher, it is evaluated and exported"),
        heads={"cls": ("projector", "prototypes"), "patches": ("patch_projector", "patch_prototypes")},
        score="stored" if name in _AS_STORED else "cosine",
        bias=_BIASES.get(name, "all" if name else "any"),
        activation={"": nn.ReLU if relu else nn.GELU},
        temperature=temperature if isinstance(temperature, float) else None,
        entries=LIGHTNING | {"prototile": "where training stood"},
        build=build,
        decoder_heads=options.get("decoder_heads", 16) if name == "mae" else None,
        said=said,
    )


def _classifier(described: Any) -> Layout:
    """The layout of a fine-tuned run: a backbone, and a classifier that is left out."""
    build = _builder(described)
    rules: Rules = ((_ENCODER, "backbone."), *(_OFFICIAL if build is None else ()))
    aside = {
        r"^method\.head\.": "the linear classifier of what was fine-tuned",
        r"^method\.projection\.": "what leads to that classifier",
    }
    return Layout(
        name="prototile",
        networks={"only": Network((("state_dict",),), {"backbone": "backbone."}, rules, aside)},
        marks=(_ENCODER, r"^method\.head\."),
        evaluated=("only", "it was fine-tuned on labels"),
        entries=LIGHTNING | {"prototile": "where training stood"},
        build=build,
        said="a backbone that was fine-tuned on labels",
    )


def _builder(described: Any) -> Callable[[], Backbone] | None:
    """What builds the backbone of a run that says how; none where it does not."""
    if not isinstance(described, dict):
        return None
    _check_size(described)
    return lambda: native.build(described)


def _check_size(described: Any, name: str = "") -> None:
    """An error where a description is of a network that nobody trains, and that it takes forever to build."""
    if isinstance(described, dict):
        for key, value in described.items():
            _check_size(value, str(key))
    elif isinstance(described, list | tuple):
        for value in described[:_LONGEST]:
            _check_size(value, name)
    elif isinstance(described, int) and not -1 <= described <= (_DEEPEST if name.startswith("depth") else _WIDEST):
        raise Misfit(f"the description of its backbone says {name} = {described}, which no network has")


_PAIRS = (("teacher", "student"), ("student", "teacher"))


def _network(name: str, other: str, official: bool) -> Network:
    strip: Rules = (
        (r"^method\.", ""),
        (rf"^{name}\.(?=(beit|vit|swin|resnet|network)\.|mask_token$)", "backbone."),  # a teacher without heads
        (rf"^{name}\.", ""),
        (r"^regression\.", "predictor."),
        (r"^head\.predictor\.", "predictor."),
    )
    return Network(
        paths=(("state_dict",),),
        parts={
            "backbone": "backbone.",
            "projector": "head.projector.",
            "prototypes": "head.prototypes.",
            "patch_projector": "patch_head.projector.",
            "patch_prototypes": "patch_head.prototypes.",
            "predictor": "predictor.",
            "decoder": "decoder.",
        },
        rules=(*strip, (r"^projector\.", "head.projector."), *(_OFFICIAL if official else ())),
        aside={
            rf"^{other}\.": f"the {other}'s, load it with network={other!r}",
            r"^(objectives|add_ons|masks)\.": "state of the objectives",
        },
    )


def of_export(folder: Path, choice: Choice) -> Imported:
    """What a run exports: the backbone, and prototypes without the projector that leads to them."""
    if choice == "student":
        raise ValueError(f"{folder} holds the evaluated backbone only: give the run's checkpoint for its student")
    try:
        config = json.loads((folder / native.CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / native.CONFIG} cannot be read: give the folder `model` of a run") from error
    described = config.get("backbone") if isinstance(config, dict) else 0
    if not isinstance(described, dict | None):
        raise ValueError(f"{folder / native.CONFIG} does not describe a backbone: export the run again")
    ignored: tuple[str, ...] = ()
    backbone: Backbone | None = None
    read(folder / native.WEIGHTS)  # which says what is wrong with it
    if described is None:
        ignored = (f"{native.WEIGHTS}: the run was made in Python and does not say how to build its backbone",)
    else:
        _check_size(described)
        backbone = native.load_backbone(folder)
    tensors = read(folder / native.PROTOTYPES) if (folder / native.PROTOTYPES).is_file() else {}
    heads = {}
    for kind in native.KINDS:
        if (directions := tensors.pop(f"{kind}.directions", None)) is not None:
            heads[kind] = _exported(directions, tensors.pop(f"{kind}.gains", None))
    if tensors:
        raise ValueError(f"{folder / native.PROTOTYPES} holds {', '.join(sorted(tensors)[:5])}, which is not known")
    return Imported(
        layout="prototile",
        evidence=(f"prototile: {native.CONFIG} beside {native.WEIGHTS}",),
        network="teacher: a run exports what is evaluated; prototypes are the student's, without a projector",
        backbone=backbone,
        heads=heads,
        ignored=ignored,
        settings={"backbone": described},
        seen=Seen.read(config.get("images")),
    )


def _exported(directions: torch.Tensor, gains: torch.Tensor | None) -> ImportedHead:
    if directions.ndim != 2 or (gains is not None and gains.shape != directions.shape[:1]):
        raise ValueError(f"{native.PROTOTYPES} holds directions and gains of different numbers: export the run again")
    count, dims = directions.shape
    prototypes = Prototypes(dims, count, gain="one" if gains is None else "learned")
    with torch.no_grad():
        prototypes.vectors.copy_(directions)
        if prototypes.gain is not None and gains is not None:
            prototypes.gain.copy_(gains[:, None])
    return ImportedHead(None, prototypes).eval()


def looks_exported(path: Path) -> bool:
    """Whether a file stands in a run's folder `model`."""
    return path.name == native.WEIGHTS and (path.parent / native.CONFIG).is_file()
