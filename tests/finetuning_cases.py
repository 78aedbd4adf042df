"""Small checkpoints and recipes for fine-tuning on handwriting: seconds on one core."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from prototile.backbones import Backbone
from prototile.checkpoints import build, export
from prototile.data import Groups, Source, Subset, handwriting
from prototile.evaluation import Crop
from prototile.training.finetuning import Classifier, Recipe, finetune, recipe, score
from prototile.types import Features

SIZE = 16
VIT = {
    "class_path": "prototile.backbones.vit",
    "init_args": {"size": "tiny", "patch": 4, "image_size": SIZE, "dims": 32, "depth": 2, "heads": 2}
    | {"init": "xavier", "mask_token": True, "drop_path": 0.5},
}
RESNET = {
    "class_path": "prototile.backbones.resnet",
    "init_args": {"name": "resnet18", "stem": "cifar", "width": 4},
}
_SMALL: dict[str, Any] = {"batch": 50, "per_batch": 50, "size": SIZE, "smallest_crop": 0.6, "flip": 0.0}


class Flat(Backbone):
    """Features are the pixels."""

    def __init__(self, dims: int):
        super().__init__()
        self.dims, self.patch = dims, None
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images, keep=None, mask=None, *, blocks: int = 0, patches: bool = True) -> Features:
        return Features(images.flatten(1) * self.scale)

    @property
    def layers(self) -> Sequence[nn.Module]:
        return [nn.ParameterList([self.scale])]

    def keep_all_paths_(self) -> None:
        pass


def checkpoint(folder: Path, described: dict[str, Any], images: Recipe) -> Path:
    """What a run of this backbone leaves, with the weights it begins with."""
    torch.manual_seed(0)
    export(Classifier(build(described), 10), folder / "model", described, images.augmentation())
    return folder


def vit_recipe(epochs: int = 5, **changes: Any) -> Recipe:
    """BEiT's optimisation without its augmentation, which takes hundreds of epochs."""
    options: dict[str, Any] = {"lrs": (4e-3,), "rand_augment": None, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
    options |= {"smoothing": 0.1, "layer_decay": 0.75, "head_std": 0.02, "drop_path": 0.1}
    return replace(recipe("imagenet-vits").lasting(epochs), **(_SMALL | options | changes))


def resnet_recipe(epochs: int = 4, **changes: Any) -> Recipe:
    options: dict[str, Any] = {"lrs": (0.1,), "head_lr": 0.3, "share": None}
    return replace(recipe("semi-vicreg-10").lasting(epochs), **(_SMALL | options | changes))


def finetune_alone(out: Path) -> None:
    """Two epochs of a ViT without chance, for a process of its own, where warnings are errors."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = vit_recipe(2, drop_path=0.0)
    finetune(build(VIT), few(150), few(60, "test"), recipe=images, out=out, accelerator="cpu", workers=0)


def few(count: int, split: str = "train") -> Source:
    """The first so many pieces of handwriting."""
    return Subset(handwriting(split), np.arange(count))


def scored(rank: int, world: int, images: int) -> str:
    """The scores of a random classifier, which every rank knows."""
    classifier = Classifier(Flat(3 * SIZE**2), 10, head_std=None)
    with torch.no_grad():
        classifier.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    groups = Groups(np.arange(4), np.arange(4, 9), np.arange(9, 10))
    return str(score(classifier, few(images, "test"), Crop(SIZE), groups, batch=7))
