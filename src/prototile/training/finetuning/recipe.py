"""Published recipes of fine-tuning, as data.

    recipe              epochs  batch  lr (head)       what else                                    paper
    semi-vicreg-1           20    256  0.03 (0.08)     SGD, cosine by epoch, 1% of the labels       VICReg, table 3
    semi-vicreg-10          20    256  0.01 (0.1)      the same, 10%
    semi-swav-1             20    256  0.02 (5)        SGD, x 0.2 at 12 and 16, 1%                  SwAV, table 2
    semi-swav-10            20    256  0.01 (0.2)      the same, 10%
    semi-ibot-1, -10      1000   1024  5e-6 per 512    DeiT's, from the projector's first layer     iBOT, table 4
    imagenet-vits          200   1024  8e-4 ... 2e-3   BEiT's, layer decay 0.75, drop path 0.1      iBOT, table 3
    imagenet-vitb          100   1024  8e-4 ... 2e-3   BEiT's, layer decay 0.65, drop path 0.2
    inat18-vits            360   1024  5e-5 per 512    DeiT's, random erasing 0.1                   iBOT, table 6
    inat18-vitb            360   1024  7.5e-6 per 512  the same
    plain                   20    256  0.01 (0.1)      SGD, cosine, all labels; for anything small

All show a random crop of 224 pixels, flipped half of the time. DeiT's and BEiT's have RandAugment, mixup 0.8, cutmix 1,
smoothing 0.1, random erasing (0.25), weight decay 0.05 of matrices alone.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from prototile.schedules import Constant, Cosine, Product, Progress, Schedule, Steps
from prototile.training.finetuning.classifier import Pooling
from prototile.training.finetuning.mixing import Mixing, RandAugment
from prototile.training.optimization import Optimization, Special
from prototile.views import IMAGENET, Augmentation, Group, Normalization, View
from prototile.views.spec import Interpolation

Decay = Literal["cosine", "cosine by epoch", "steps", "deit"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a checkpoint is fine-tuned.

    `lrs` are the backbone's rates to choose from, for `per_batch` images, in proportion to the batch; `head_lr` is the
    head's beside the first of them, and keeps its proportion; without one the head learns like the backbone.

    `decay` says how they fall: in half a cosine to `final_lr` ("cosine", after a warm-up of `warmup_epochs` from
    `start_lr`), with one value an epoch ("cosine by epoch"; "deit": see `DeiTCosine`), or by `factor` at each of
    `milestones`. `layer_decay` multiplies the rate of each layer once for every layer above it, so that block i of L
    has decay^(L - i) (i from 0), patches and positions decay^(L + 1), final norm and head 1. Biases, norms, tokens and
    positions have no weight decay.

    `share` is the part of the labels that is learnt from, `projection` takes a projector's first layer along.
    """

    epochs: int
    lrs: tuple[float, ...]
    head_lr: float | None = None
    batch: int = 256
    per_batch: int = 256
    optimizer: Literal["adamw", "sgd"] = "sgd"
    decay: Decay = "cosine"
    warmup_epochs: float = 0
    start_lr: float = 0.0
    final_lr: float = 0.0
    milestones: tuple[float, ...] = ()
    factor: float = 0.2
    weight_decay: float = 0.0
    layer_decay: float = 1.0
    drop_path: float = 0.0
    clip: float | None = None
    head_std: float | None = 0.01
    pooling: Pooling = "pooled"
    projection: bool = False
    share: float | None = None
    size: int = 224
    smallest_crop: float = 0.08
    flip: float = 0.5
    interpolation: Interpolation = "bilinear"
    rand_augment: str | None = None
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0
    repeats: int = 1
    sync_batch_norm: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or self.per_batch < 1 or self.repeats < 1:
            raise ValueError(f"epochs, batch, per_batch and repeats must be at least 1, got {self}")
        if not self.lrs or not all(0 < lr < math.inf for lr in self.lrs):
            raise ValueError(f"lrs are positive learning rates, one at least, got {self.lrs}")
        if self.decay not in get_args(Decay):
            raise ValueError(f"decay must be one of {', '.join(get_args(Decay))}, got {self.decay!r}")
        if self.decay != "steps" and self.final_lr > min(self.lrs) * self.batch / self.per_batch:
            raise ValueError(
                f"final_lr={self.final_lr:g} is above the learning rate of {min(self.lrs):g} per {self.per_batch} "
                f"images, for batches of {self.batch}: lower final_lr"
            )
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"share is the part of the labels that is learnt from, in (0, 1], got {self.share}")

    def lasting(self, epochs: int) -> "Recipe":
        """The recipe for so many epochs; warm-up and milestones keep their places."""
        part = epochs / self.epochs
        milestones = tuple(part * epoch for epoch in self.milestones)
        return replace(self, epochs=epochs, warmup_epochs=part * self.warmup_epochs, milestones=milestones)

    def head_lr_of(self, lr: float) -> float:
        """The head's learning rate beside this one of the backbone."""
        return lr if self.head_lr is None else self.head_lr * lr / self.lrs[0]

    def optimization(self, lr: float) -> Optimization:
        """With this one of the learning rates."""
        backbone = self.schedule(lr)
        roles = {"tokens": Special(weight_decay=Constant(0.0))}
        if self.head_lr is not None:
            roles["head"] = Special(lr=self.schedule(self.head_lr_of(lr)))
        if self.layer_decay != 1:  # the final norm counts as the last block's, which is one layer too deep here
            roles["norm"] = Special(lr=Product(backbone, Constant(1 / self.layer_decay)))
        return Optimization(
            lr=backbone,
            optimizer=self.optimizer,
            weight_decay=Constant(self.weight_decay),
            lr_scaling="none",
            clip=self.clip,
            layer_decay=self.layer_decay,
            roles=roles,
        )

    def schedule(self, lr: float) -> Schedule:
        """Of a learning rate for `per_batch` images."""
        peak = lr * self.batch / self.per_batch
        if self.decay == "steps":
            return Steps(peak, self.factor, self.milestones)
        if self.decay == "deit":
            return DeiTCosine(peak, self.final_lr, self.warmup_epochs, self.start_lr)
        by_epoch = self.decay == "cosine by epoch"
        return Cosine(peak, self.final_lr, self.warmup_epochs, self.start_lr, not by_epoch, per_epoch=by_epoch)

    def augmentation(self, normalization: Normalization = IMAGENET) -> Augmentation:
        policy = None if self.rand_augment is None else RandAugment(self.rand_augment, normalization)
        scale = (self.smallest_crop, 1.0)
        view = View(self.size, scale, flip=self.flip, interpolation=self.interpolation, policy=policy)
        return Augmentation((Group((view,)),), normalization)

    def mixing(self) -> Mixing | None:
        """What batches go through; None where they stay as they are."""
        mixing = Mixing(self.mixup, self.cutmix, self.smoothing, self.erasing)
        return None if mixing == Mixing() else mixing


@dataclass(frozen=True)
class DeiTCosine(Schedule):
    r"""One value an epoch, $f + \frac{b - f}{2}(1 + \cos \pi e / E)$, before which a line from `start` meets its base.

    As timm's scheduler is called by DeiT: epoch e has the value of e - 1, the first two the same; the warm-up's epochs
    count for the cosine, too.
    """

    base: float
    final: float
    warmup_epochs: float
    start: float

    def __call__(self, progress: Progress) -> float:
        epoch = max(progress.epoch - 1, 0)
        if epoch < self.warmup_epochs:
            return self.start + (self.base - self.start) * epoch / self.warmup_epochs
        return self.final + 0.5 * (self.base - self.final) * (1 + math.cos(math.pi * epoch / progress.epochs))


_AUGMENTED: dict[str, Any] = {
    "batch": 1024,
    "optimizer": "adamw",
    "weight_decay": 0.05,
    "interpolation": "bicubic",
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "erasing": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "smoothing": 0.1,
    "start_lr": 1e-6,
    "final_lr": 1e-6,
}
_DEIT: dict[str, Any] = _AUGMENTED | {
    "per_batch": 512,
    "decay": "deit",
    "warmup_epochs": 5,
    "drop_path": 0.1,
    "head_std": 0.02,
    "repeats": 3,
}
_BEIT: dict[str, Any] = _AUGMENTED | {
    "lrs": (8e-4, 9e-4, 1e-3, 2e-3),
    "per_batch": 1024,
    "warmup_epochs": 20,
    "head_std": 2e-5,  # 0.02 times BEiT's init_scale of 0.001
}


def semi_vicreg(share: float, lr: float, head_lr: float) -> Recipe:
    """Bardes et al. 2022, https://arxiv.org/abs/2105.04906."""
    return Recipe(epochs=20, lrs=(lr,), head_lr=head_lr, decay="cosine by epoch", share=share)


def semi_swav(share: float, lr: float, head_lr: float) -> Recipe:
    """Caron et al. 2020, https://arxiv.org/abs/2006.09882; batch norm is over all ranks."""
    options: dict[str, Any] = {"decay": "steps", "milestones": (12, 16), "head_std": None, "sync_batch_norm": True}
    return Recipe(epochs=20, lrs=(lr,), head_lr=head_lr, share=share, **options)


def semi_ibot(share: float) -> Recipe:
    """Zhou et al. 2022, https://arxiv.org/abs/2111.07832: 1000 epochs of DeiT's recipe."""
    return Recipe(epochs=1000, lrs=(5e-6,), projection=True, share=share, **_DEIT)


def imagenet_vits() -> Recipe:
    """Zhou et al. 2022, with BEiT's recipe (https://arxiv.org/abs/2106.08254)."""
    return Recipe(epochs=200, layer_decay=0.75, drop_path=0.1, **_BEIT)


def imagenet_vitb() -> Recipe:
    """As `imagenet_vits`."""
    return Recipe(epochs=100, layer_decay=0.65, drop_path=0.2, **_BEIT)


def inat18(lr: float) -> Recipe:
    """Zhou et al. 2022, with DeiT's recipe (https://arxiv.org/abs/2012.12877)."""
    options: dict[str, Any] = {**_DEIT, "erasing": 0.1}
    return Recipe(epochs=360, lrs=(lr,), **options)


def plain() -> Recipe:
    """VICReg's for 10% with all labels and a cosine by step."""
    return Recipe(epochs=20, lrs=(0.01,), head_lr=0.1)


RECIPES: dict[str, Callable[[], Recipe]] = {
    "semi-vicreg-1": lambda: semi_vicreg(0.01, 0.03, 0.08),
    "semi-vicreg-10": lambda: semi_vicreg(0.1, 0.01, 0.1),
    "semi-swav-1": lambda: semi_swav(0.01, 0.02, 5.0),
    "semi-swav-10": lambda: semi_swav(0.1, 0.01, 0.2),
    "semi-ibot-1": lambda: semi_ibot(0.01),
    "semi-ibot-10": lambda: semi_ibot(0.1),
    "imagenet-vits": imagenet_vits,
    "imagenet-vitb": imagenet_vitb,
    "inat18-vits": lambda: inat18(5e-5),
    "inat18-vitb": lambda: inat18(7.5e-6),
    "plain": plain,
}


def recipe(name: str) -> Recipe:
    """The recipe of this name, as published."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"there is no recipe of fine-tuning {name!r}: {hint}There are {', '.join(RECIPES)}")
    return RECIPES[name]()
