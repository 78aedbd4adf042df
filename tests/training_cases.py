"""Small runs of training: a method of a few parameters, and real ones, in this process or in others of their own."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prototile.backbones import Backbone
from prototile.data import Loader
from prototile.data.source import Arrays
from prototile.ema import follow_, teacher_of
from prototile.heads import Prototypes
from prototile.methods import Method, Terms
from prototile.schedules import Cosine, Progress
from prototile.training.optimization import Optimization, Special
from prototile.types import Batch, Features, Views
from prototile.views import Augmentation, preset, small

IMAGES, BATCH, SIDE = 40, 8, 16


class TinyBackbone(Backbone):
    """Two convolutions."""

    def __init__(self, dims: int = 4):
        super().__init__()
        self.dims, self.patch = dims, None
        self.stem = nn.Conv2d(3, dims, 4, stride=4)
        self.block = nn.Sequential(nn.Conv2d(dims, dims, 1), nn.BatchNorm2d(dims), nn.Dropout(0.1))

    def forward(self, images, keep=None, mask=None, *, blocks: int = 0, patches: bool = True) -> Features:
        return Features(self.block(self.stem(images)).mean((2, 3)))

    @property
    def layers(self) -> Sequence[nn.Module]:
        return [self.stem, self.block]

    def keep_all_paths_(self) -> None:
        self.block[2] = nn.Identity()


class TinyStudent(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.predictor = TinyBackbone(), nn.Linear(4, 4)
        self.prototypes = Prototypes(4, 6)
        self.token = nn.Parameter(torch.ones(1, 1, 4))


class TinyMethod(Method):
    """A teacher's features are predicted; it counts its calls."""

    def __init__(self):
        super().__init__()
        self.student = TinyStudent()
        self.teacher = teacher_of(self.student)
        self.seen: Tensor
        self.updates: list[Progress] = []
        self.prepared = 0
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, views: tuple[Views, ...], progress: Progress) -> Terms:
        first, second = views[0].images[:2]
        predicted = self.student.predictor(self.student.backbone(first).pooled + self.student.token[0])
        with torch.no_grad():
            wanted = self.teacher.backbone(second).pooled
        self.seen += len(first)
        match = (predicted - wanted).square().mean()
        spread = self.student.prototypes(predicted, 0.1).mean().square().sum()
        return Terms(match + 0.5 * spread, {"match": match.detach(), "spread": spread.detach()}, predicted.detach())

    def after_step(self, progress: Progress) -> None:
        self.updates.append(progress)
        follow_(self.teacher, self.student, 0.9)

    def prepare(self, batches: Iterator[Batch]) -> None:
        for _ in range(7):  # more than an epoch has
            self.prepared += len(next(batches).indices)

    def check(self, augmentation: Augmentation) -> None:
        pass

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        return self.student.backbone, self.teacher.backbone

    @property
    def roles(self) -> Mapping[str, nn.Module]:
        return {"prototypes": self.student.prototypes, "predictor": self.student.predictor}


def images(count: int = IMAGES) -> Arrays:
    return Arrays(np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8), name="noise")


def loader(method: str = "vicreg", workers: int = 0, batch: int = BATCH, count: int = IMAGES) -> Loader:
    """Five batches an epoch."""
    return Loader(images(count), small(preset(method), size=SIDE), batch, workers=workers, epochs=3)


def tiny() -> Method:
    torch.manual_seed(0)
    return TinyMethod()


def dino_vit(drop_path: float = 0.3, depth: int = 2) -> Method:
    """With drop path and a centre."""
    from prototile.backbones.vit import vit
    from prototile.methods import dino

    torch.manual_seed(0)
    backbone = vit("tiny", patch=4, image_size=SIDE, dims=16, depth=depth, heads=2, drop_path=drop_path)
    return dino(backbone, num_prototypes=24, hidden=16, bottleneck=8)


def swav_resnet() -> Method:
    """With batch norm and a queue."""
    from timm.models import resnet

    from prototile.backbones.resnet import ResNet
    from prototile.methods import swav

    torch.manual_seed(0)
    network = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=0, channels=(8, 8, 16, 16))
    backbone = ResNet(network)
    return swav(backbone, num_prototypes=12, hidden=16, bottleneck=8, queue=32, queue_from=1)


_DINO = Optimization(
    lr=Cosine(0.05, 1e-4, warmup_epochs=1),
    weight_decay=Cosine(0.04, 0.4),
    clip=0.3,
    clip_by="tensor",
    roles={"prototypes": Special(freeze_epochs=1)},
)

CASES: dict[str, tuple[Callable[[], Method], str, Optimization]] = {
    "tiny": (tiny, "vicreg", Optimization(lr=Cosine(0.1, 0.0, warmup_epochs=1), clip=1.0)),
    "vit": (dino_vit, "dino", _DINO),
    "vit without chance": (partial(dino_vit, 0.0), "dino", replace(_DINO, clip_by="total")),
    "vit of a block": (partial(dino_vit, 0.0, 1), "vicreg", replace(_DINO, clip_by="total")),  # and views of one size
    "resnet": (
        swav_resnet,
        "swav",
        Optimization(lr=Cosine(1.0, 0.01), optimizer="larc", roles={"prototypes": Special(freeze_steps=3)}),
    ),
}


def train(case: str, out: Path | str, **options: Any) -> Any:
    """`fit` on a case: three epochs of five batches where options do not say otherwise."""
    from prototile.training.run import fit

    make, views, optimization = CASES[case]
    workers = options.pop("workers", 0)
    settings = {"optimization": optimization, "epochs": 3, "accelerator": "cpu", "out": out} | options
    return fit(make(), lambda: loader(views, workers), **settings)


def train_alone(case: str, out: Path, options: Mapping[str, Any], nap: float = 0.0) -> None:
    """`train` for a process of its own, where warnings are errors.

    With a nap after each step, which it says, so that a test can hit a moment.
    """
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    if nap:
        kind = type(CASES[case][0]())
        usual = kind.after_step

        def slowly(self: Method, progress: Progress) -> None:
            usual(self, progress)
            print(progress.step, flush=True)
            time.sleep(nap)

        kind.after_step = slowly
    train(case, out, **options)
