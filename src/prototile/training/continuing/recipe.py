"""How methods are continued: their own optimisation at a hundredth of its base rate, constant.

                 lr at 512 images      optimiser     weight decay
    vicreg       0.003                 LARS          1e-6            published (Chakraborty et al. 2025, appendix A.1)
    swav         0.001                 LARC          1e-6            published
    simsiam      0.001                 SGD           1e-4            published; the predictor has its own, 0.1
    others       0.01 x the base rate of the method's paper, with its optimiser and its last weight decay

Printed rates are those at batches of 512 images, and in proportion at others. A run of this package goes on with its
own optimisation, likewise at a hundredth of its highest rate. While what was missing is rebuilt, the rate is the base
rate, and the backbone rests.
"""

import inspect
from dataclasses import replace
from typing import Any

from prototile.backbones import Backbone, ResNet
from prototile.schedules import Constant, Progress, Schedule, Steps
from prototile.training.continuing.described import build
from prototile.training.optimization import Optimization, Special
from prototile.views import PRESETS, Augmentation

FACTOR, EPOCHS, BATCH = 0.01, 10, 512
PAPER = 224  # pixels
_SMALL = 128  # pixels below which views are those for small images
_MOMENTS = 1000


def _vision(lr: float, **options) -> Optimization:
    decay = {"weight_decay": Constant(0.4), "clip": 3.0, "clip_by": "tensor"} | options
    return Optimization(lr=Constant(FACTOR * lr), **decay)


def _lars(lr: float, **options) -> Optimization:
    return Optimization(lr=Constant(FACTOR * lr), optimizer="lars", weight_decay=Constant(1e-6), **options)


def optimization_for(method: str, backbone: Backbone) -> Optimization:
    """The optimisation that a method is continued with, for files that do not tell theirs."""
    convolutional = isinstance(backbone, ResNet)
    match method:
        case "vicreg":
            return _lars(0.15)  # x 512 / 256, here as below
        case "barlow_twins" | "mmcr":
            return _lars(0.2)
        case "simclr":
            return _lars(0.3, decay_vectors=True)
        case "swav":
            return replace(_lars(0.05, decay_vectors=True), optimizer="larc")
        case "simsiam":
            predictor = Special(lr=Constant(0.05))
            rest = {"weight_decay": Constant(1e-4), "decay_vectors": True, "roles": {"predictor": predictor}}
            return Optimization(lr=Constant(FACTOR * 0.05), optimizer="sgd", **rest)
        case "msn" | "pmsn":
            prototypes = Special(weight_decay=Constant(0.0), clip=False)
            return _vision(1e-3, lr_scaling="none", clip_by="total", roles={"prototypes": prototypes})
        case "excb" if convolutional:
            rest = {"weight_decay": Constant(1e-4), "decay_vectors": True, "lr_scaling": "none"}
            return Optimization(lr=Constant(FACTOR * 0.6), optimizer="sgd", **rest)
        case "excb":
            return _vision(2e-3, lr_scaling="none", clip=None)
        case "dinov2":
            return _vision(4e-3, lr_scaling="sqrt", clip_by="total", layer_decay=0.9, patch_embed_factor=0.2)
    return _lars(0.3) if convolutional else _vision(5e-4)


def continued(own: Optimization, epochs: float, *, again: bool = False) -> Optimization:
    """A run's own optimisation at a hundredth of its highest rate; that of a continued run as it stands (`again`).

    Weight decay stays where it ended, nothing is frozen; a predictor's own constant rate stays as it is (SimSiam).
    """
    factor = 1.0 if again else FACTOR

    def special(role: Special) -> Special:
        lr = role.lr
        if lr is not None and not isinstance(lr, Constant):
            lr = Constant(factor * _highest(lr, epochs))
        return Special(
            lr=lr,
            weight_decay=_ended(role.weight_decay, epochs),
            decay_factor=_ended(role.decay_factor, epochs),
            clip=role.clip,
        )

    return replace(
        own,
        lr=Constant(factor * _highest(own.lr, epochs)) if not again else Constant(own.lr(_end(epochs))),
        weight_decay=Constant(own.weight_decay(_end(epochs))),
        roles={name: special(role) for name, role in own.roles.items()},
    )


def warmed(optimization: Optimization, epochs: int) -> Optimization:
    """The base rate for so many epochs, then the reduced one."""
    reduced = optimization.lr(_end(1.0))
    return replace(optimization, lr=Steps(reduced / FACTOR, FACTOR, (float(epochs),)))


def views_for(method: str, size: int, patch: int | None) -> tuple[Augmentation, dict[str, Any]]:
    """The views of the method's paper in this size, or their form for small images; and their description."""
    name = {"dino_vmf": "dino", "esvit": "dino", "ibot_vmf": "ibot"}.get(method, method)
    path = f"prototile.views.presets.{name}"
    takes = "patch" in inspect.signature(PRESETS[name]).parameters and patch is not None
    published: dict[str, Any] = {"class_path": path, "init_args": {"patch": patch} if takes else {}}
    if size == PAPER:
        return build(published), published
    local = _tiled(size // 2 if size < _SMALL else round(size * 96 / PAPER), patch)
    sizes = {"size": size, "local_size": local, "patch": patch or 4}
    if size < _SMALL:
        described = {"class_path": "prototile.views.small", "init_args": {"augmentation": published, **sizes}}
        return build(described), described
    raise ValueError(f"views are made for {PAPER} pixels, or for less than {_SMALL}, not for {size}: give views")


def _tiled(size: int, patch: int | None) -> int:
    """A size that patches tile."""
    return max(size, 1) if patch is None else max(size // patch, 1) * patch


def _end(epochs: float) -> Progress:
    return Progress(_MOMENTS, _MOMENTS, epochs)


def _ended(schedule: Schedule | None, epochs: float) -> Schedule | None:
    return None if schedule is None else Constant(schedule(_end(epochs)))


def _highest(schedule: Schedule, epochs: float) -> float:
    return max(schedule(Progress(i, _MOMENTS, epochs)) for i in range(_MOMENTS + 1))
