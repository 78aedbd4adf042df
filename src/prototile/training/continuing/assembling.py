"""A method around imported networks: its function makes the objectives, the file's parts take their places.

n rows, d dims, k prototypes.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prototile.backbones import Backbone, ResNet, Swin
from prototile.backbones.transformer import new_token
from prototile.balancing import Centering, ExplicitBalancing
from prototile.checkpoints import Imported, ImportedHead
from prototile.checkpoints.foreign.heads import width_of
from prototile.ema import teacher_of
from prototile.heads import ExCBHead, Head, Prototypes, simsiam_predictor
from prototile.methods import METHODS, JointEmbedding, Method, Prototypical
from prototile.training.continuing.described import describe

QUEUE = 3584  # embeddings that SwAV is continued with, at batches of 512
_SMALL = 8  # sizes of what is made to be replaced
JOINT = ("simclr", "vicreg", "barlow_twins", "simsiam", "mmcr")
_MASKED = ("ibot", "ibot_vmf", "dinov2")


@dataclass(frozen=True, eq=False)
class Assembled:
    """The method, the parts that the file lacks, and what is to be known."""

    method: Method
    rebuilt: tuple[str, ...]
    said: tuple[str, ...]
    described: Mapping[str, Any]


def assembled(
    name: str,
    student: Imported,
    teacher: Imported | None,
    options: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    seed: int = 0,
) -> Assembled:
    """The method of this name with the networks of a file; `state` is that of a run, for what is no network."""
    backbone = copy.deepcopy(student.backbone)
    assert backbone is not None
    torch.manual_seed(seed)
    said: list[str] = []
    if name in _MASKED and backbone.patch is not None and vars_of(backbone).get("mask_token", 0) is None:
        width = backbone.swin.embed_dim if isinstance(backbone, Swin) else backbone.dims
        backbone.mask_token = new_token(width)  # type: ignore[assignment]
        said.append("the file has no mask token: a new one begins at zero")
    made = _joint if name in JOINT else _clustering
    try:
        method, rebuilt, given = made(name, backbone, student, dict(options), said, state)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ValueError(f"{name} does not take all of the options {', '.join(options)}: {error}") from error
    if isinstance(method, Prototypical):
        _teach_(method, teacher, said)
        _put_back_(method, student if teacher is None else teacher, state)
    if rebuilt:
        said.append(f"the file has no {', no '.join(rebuilt)}: rebuilt, the backbone rests meanwhile")
    method.train()
    plain = {option: x for option, x in given.items() if isinstance(x, bool | int | float | str) and option != "hidden"}
    described = {"class_path": f"prototile.methods.{name}", "init_args": {"backbone": describe(backbone), **plain}}
    return Assembled(method, tuple(rebuilt), tuple(said), described)


def as_made_(imported: Imported, name: str) -> None:
    """Activations of heads that a file does not tell become those that this package's method has."""
    if name not in (*JOINT, "swav"):
        return
    heads = (head.projector for head in imported.heads.values())
    for module in (imported.projector, imported.predictor, *heads):
        if isinstance(module, nn.Sequential):
            for i, layer in enumerate(module):
                module[i] = nn.ReLU() if isinstance(layer, nn.GELU) else layer


def vars_of(module: nn.Module) -> dict[str, Any]:
    """Attributes and parameters by name; parameters that are None too."""
    return {**vars(module), **module._parameters}


def _joint(
    name: str, backbone: Backbone, student: Imported, options: dict[str, Any], said: list[str], state: Any
) -> tuple[Method, list[str], dict[str, Any]]:
    projector = student.projector
    if projector is None and "cls" in student.heads:
        projector = student.heads["cls"].projector
        said.append("its prototypes are left out: the method has none")
    rebuilt = []
    if projector is None:
        rebuilt.append("projector")
    else:
        options = {**_placeholders(name), **options}
    method = METHODS[name](backbone, **options)
    assert isinstance(method, JointEmbedding)
    network = method.student
    if projector is not None:
        network.projector = copy.deepcopy(projector)
    if network.predictor is None:
        if student.predictor is not None:
            said.append("its predictor is left out: the method has none")
    elif projector is not None and student.predictor is not None:
        network.predictor = copy.deepcopy(student.predictor)
    else:
        rebuilt.append("predictor")
        if projector is not None:
            width = width_of(projector, backbone.dims)
            assert width is not None
            network.predictor = simsiam_predictor(width, hidden=max(width // 4, 1))
    return method, rebuilt, options


def _placeholders(name: str) -> dict[str, Any]:
    sizes = {"hidden": _SMALL}
    return sizes if name in ("vicreg", "barlow_twins") else sizes | {"bottleneck": _SMALL}


def _clustering(
    name: str, backbone: Backbone, student: Imported, options: dict[str, Any], said: list[str], state: Any
) -> tuple[Method, list[str], dict[str, Any]]:
    head = _usable(student.heads.get("cls"), said)
    patch_head = _usable(student.heads.get("patches"), said) if name in (*_MASKED, "esvit") else None
    others = [kind for kind in student.heads if kind != "cls" and not (kind == "patches" and patch_head is not None)]
    if others and head is not None:
        said.append(f"left out, as {name} has one set of prototypes of a kind: those of {', '.join(others)}")
    projector = student.projector if head is None else head.projector
    given = {**_usual(name, backbone), **_sizes(name, head, patch_head, state), **options}
    if head is None and projector is not None:
        given["bottleneck"] = width_of(projector, backbone.dims)
    method = METHODS[name](backbone, **given)
    assert isinstance(method, Prototypical)
    network, rebuilt = method.student, list[str]()
    if projector is None:
        rebuilt.append("projector")
    else:
        network.head.projector = copy.deepcopy(projector)  # type: ignore[assignment]
    if head is None:
        rebuilt.append("prototypes")
    else:
        network.head.prototypes = _taken(head.prototypes, network.head.prototypes)
    if isinstance(network.head, ExCBHead):
        if projector is not None and student.predictor is not None:
            network.head.predictor = copy.deepcopy(student.predictor)  # type: ignore[assignment]
        else:
            rebuilt.append("predictor")
    elif student.predictor is not None:
        said.append("its predictor is left out: the method has none")
    if network.patch_head is not None and head is not None:
        assert isinstance(network.head, Head)
        network.patch_head = _patch_head(network.head, network.patch_head, head, patch_head, rebuilt)
    return method, rebuilt, given


def _usable(head: ImportedHead | None, said: list[str]) -> ImportedHead | None:
    """A head with the projector that leads to its prototypes; without one they are of no use."""
    if head is None:
        return None
    if head.projector is None:
        said.append("the file holds prototypes without the projector that leads to them: both are made anew")
        return None
    return head


def _usual(name: str, backbone: Backbone) -> dict[str, Any]:
    """Options that depend on the kind of network."""
    if name == "excb" and not isinstance(backbone, ResNet):
        return {"activation": "gelu", "head_batch_norm": False, "kmeans_images": 0}
    if name == "excb":
        return {"kmeans_images": 0}
    if name in ("dino", "dino_vmf") and isinstance(backbone, ResNet):
        return {"head_batch_norm": True}
    return {}


def _sizes(
    name: str, head: ImportedHead | None, patch_head: ImportedHead | None, state: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Options that the shapes tell."""
    found: dict[str, Any] = {}
    if name == "swav":
        stored = state.get("objectives.0.queue.embeddings")
        found["queue"] = (0 if state else QUEUE) if stored is None else stored.shape[1]
    if head is None:
        return found
    count, dims = head.prototypes.vectors.shape
    found |= {"num_prototypes": count, "bottleneck": dims, "hidden": _SMALL}
    if name == "esvit" and patch_head is not None:
        found["num_region_prototypes"] = len(patch_head.prototypes.vectors)
    if name in _MASKED and patch_head is not None:
        if _same(head.prototypes, patch_head.prototypes) and _same(head.projector, patch_head.projector):
            found["shared"] = "prototypes"
        else:
            found["shared"] = "projector" if _same(head.projector, patch_head.projector) else "nothing"
            found["num_patch_prototypes"] = len(patch_head.prototypes.vectors)
    return found


def _same(a: nn.Module | None, b: nn.Module | None) -> bool:
    """Whether two modules are one, or hold the same numbers."""
    if a is None or b is None:
        return a is b
    x, y = a.state_dict(), b.state_dict()
    return a is b or (
        x.keys() == y.keys() and all(x[name].shape == y[name].shape and bool((x[name] == y[name]).all()) for name in x)
    )


def _taken(kept: Prototypes, made: Prototypes) -> Prototypes:
    """The file's prototypes, read as the method reads them."""
    taken = copy.deepcopy(kept)
    taken.vmf = made.vmf
    if made.vmf and taken.normalized and taken.gain is None:
        taken.gain = nn.Parameter(torch.ones(len(taken.vectors), 1))
    return taken


def _patch_head(head: Head, made: Head, kept: ImportedHead, patches: ImportedHead | None, rebuilt: list[str]) -> Head:
    """The head of patches: the same, of the same projector, or one of its own."""
    if patches is None:
        if made is not head:
            rebuilt.append("head of patches")
        return made
    shared = _same(kept.projector, patches.projector)
    if shared and _same(kept.prototypes, patches.prototypes):
        return head
    assert patches.projector is not None
    projector = head.projector if shared else copy.deepcopy(patches.projector)
    return Head(projector, _taken(patches.prototypes, made.prototypes))


def _teach_(method: Prototypical, teacher: Imported | None, said: list[str]) -> None:
    """The method's teacher: a copy of its student, with the file's own weights where it has any."""
    if method.teacher is None:
        if teacher is not None:
            said.append("the file's teacher is left out: the method has none")
        return
    shared = _shares(method)
    method.teacher = teacher_of(method.student, shared=method.student.head.prototypes if shared else None)
    method.teacher.backbone.keep_all_paths_()
    if teacher is None:
        return
    network, missing = method.teacher, list[str]()
    assert teacher.backbone is not None
    missing += _copied(network.backbone, teacher.backbone)
    head = teacher.heads.get("cls")
    if head is not None and head.projector is not None:
        missing += _copied(network.head.projector, head.projector)
        if not shared:
            missing += _copied(network.head.prototypes, head.prototypes)
    if isinstance(network.head, ExCBHead) and teacher.predictor is not None:
        missing += _copied(network.head.predictor, teacher.predictor)
    patches = teacher.heads.get("patches")
    if network.patch_head is not None and network.patch_head is not network.head and patches is not None:
        assert patches.projector is not None
        missing += _copied(network.patch_head.projector, patches.projector)
        missing += _copied(network.patch_head.prototypes, patches.prototypes)
    unlike = [name for name in missing if not name.endswith("mask_token")]
    if unlike:
        said.append(f"of the teacher's weights {', '.join(unlike[:3])} do not fit the student's: its own are taken")


def _shares(method: Prototypical) -> bool:
    """Whether student and teacher had the same prototypes, as the method's function made them."""
    assert method.teacher is not None
    return any(p.requires_grad for p in method.teacher.head.prototypes.parameters())


@torch.no_grad()
def _copied(into: nn.Module, source: nn.Module) -> list[str]:
    """Copies tensors of the same names and shapes; the names of the others."""
    theirs, missing = source.state_dict(), []
    for name, x in into.state_dict().items():
        if name in theirs and theirs[name].shape == x.shape:
            x.copy_(theirs[name])
        else:
            missing.append(name)
    return missing


@torch.no_grad()
def _put_back_(method: Prototypical, imported: Imported, state: Mapping[str, Tensor]) -> None:
    """What balancers remember: a run's own state, DINO's and iBOT's centres, ExCB's sizes."""
    mine = method.state_dict()
    for name, x in state.items():
        if name.startswith("objectives.") and name in mine and mine[name].shape == x.shape:
            mine[name].copy_(x)
    if state:
        return
    centers = [x.flatten() for name, x in imported.buffers.items() if ".center" in name]
    for objective, center in zip(method.objectives, centers, strict=False):
        balancer: Any = objective.balancer
        if isinstance(balancer, Centering) and len(center) == len(balancer.center):
            balancer.center.copy_(center)
        elif isinstance(balancer, ExplicitBalancing) and len(center) == len(balancer.sizes) and center.sum() > 0:
            balancer.sizes.copy_(center.double() / center.double().sum())
