"""Every method in a size for tests: tiny networks, few prototypes, views of 16 and 8 pixels, and its batches."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prototile import backbones, methods, views
from prototile.backbones import Backbone
from prototile.methods import Method
from prototile.types import Batch
from prototile.views import Augmentation, Draw, Engine, FixedBlocks, RandomDrop, SharedDrop

SMALL = {"hidden": 24, "bottleneck": 12}


def tiny_vit(**options) -> Backbone:
    return backbones.vit("tiny", patch=4, image_size=16, dims=24, depth=2, heads=2, **options)


def tiny_resnet() -> Backbone:
    return backbones.resnet("resnet18", stem="cifar")


def tiny_beit() -> Backbone:
    return backbones.beit("tiny", patch=4, image_size=16, dims=24, depth=2, heads=2, attention_drop=0.0)


@dataclass(frozen=True)
class Case:
    """How a method and its views are made; `prototypes` says whether it clusters."""

    make: Callable[..., Method]
    augmentation: Augmentation
    prototypes: bool = True


def _small(name: str, **changes) -> Augmentation:
    augmentation = views.small(views.preset(name), size=16, local_size=8)
    groups = [replace(group, **changes) if i == 0 else group for i, group in enumerate(augmentation.groups)]
    return replace(
        augmentation,
        groups=tuple(replace(group, views=group.views[:3] if group.size == 8 else group.views) for group in groups),
    )


def _anchors(drop: float) -> Augmentation:
    augmentation = _small("msn")
    first, second, third = augmentation.groups
    return replace(augmentation, groups=(first, replace(second, masks=SharedDrop(drop)), third))


def _clusters(name: str, **fixed) -> Callable[..., Method]:
    make = methods.METHODS[name]

    def made(backbone: Backbone | None = None, **options) -> Method:
        return make(backbone or tiny_vit(mask_token="ibot" in name or name == "dinov2"), **(SMALL | fixed | options))

    return made


def _embeds(name: str, **fixed) -> Callable[..., Method]:
    def made(backbone: Backbone | None = None, **options) -> Method:
        return methods.METHODS[name](backbone or tiny_vit(), **(fixed | options))

    return made


def _mae(**options) -> Method:
    backbone = tiny_vit(positions="sincos", init="xavier")
    return methods.mae(backbone, image_size=16, decoder_dims=16, decoder_depth=1, decoder_heads=2, **options)


def _data2vec(**options) -> Method:
    return methods.data2vec(tiny_beit(), blocks=2, **options)


K = {"num_prototypes": 20}
CASES = {
    "dino": Case(_clusters("dino", **K), _small("dino")),
    "dino_vmf": Case(_clusters("dino_vmf", **K), _small("dino")),
    "esvit": Case(_clusters("esvit", **K), _small("dino")),
    "ibot": Case(_clusters("ibot", **K), _small("ibot")),
    "ibot_vmf": Case(_clusters("ibot_vmf", **K), _small("ibot")),
    "dinov2": Case(_clusters("dinov2", **K), _small("dinov2")),
    "msn": Case(_clusters("msn", **K), _anchors(0.25)),
    "pmsn": Case(_clusters("pmsn", **K), _anchors(0.25)),
    "excb": Case(_clusters("excb", kmeans_images=0, **K), _small("excb")),
    "swav": Case(_clusters("swav", queue=16, queue_from=0, **K), _small("swav")),
    "simclr": Case(_embeds("simclr", **SMALL), _small("simclr"), prototypes=False),
    "vicreg": Case(_embeds("vicreg", hidden=24), _small("vicreg"), prototypes=False),
    "barlow_twins": Case(_embeds("barlow_twins", hidden=24), _small("barlow_twins"), prototypes=False),
    "simsiam": Case(_embeds("simsiam", hidden=24, bottleneck=12), _small("simsiam"), prototypes=False),
    "mmcr": Case(_embeds("mmcr", compression=0.1, **SMALL), _small("mmcr"), prototypes=False),
    "mae": Case(_mae, _small("mae", masks=RandomDrop(0.5)), prototypes=False),
    "data2vec": Case(_data2vec, _small("data2vec", masks=FixedBlocks(0.5)), prototypes=False),
}
CLUSTERING = [name for name, case in CASES.items() if case.prototypes]


def images(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, 256, (3, 20, 20), generator=generator, dtype=torch.uint8) for _ in range(count)]


def batch(name: str, count: int = 8, *, step: int = 0, rank: int = 0, world: int = 1) -> Batch:
    """The views that this rank gets of a batch of `count` images."""
    from prototile.schedules import Progress

    whole = Draw.alone(count, step=step)
    rows = slice(rank, None, world)
    draw = Draw(0, step, whole.numbers[rows], whole.rows[rows], count)
    made = Engine(CASES[name].augmentation)(images(count)[rows], draw, Progress(step, 10, 2))
    return Batch(made, torch.arange(count)[rows])
