"""What views are made of, as data: an augmentation is groups of equally large views.

Jitter, Blur     how strongly, and how often
Policy           random operations on an image's uint8 pixels of any other kind: RandAugment
View             one random view: where it is cropped, and what happens to its pixels, in this order: crop and
                 resize, flip, policy, jitter, grey, blur, solarise
Group            equally large views, which pass a network together, and what hides their patches
Augmentation     groups, the normalisation of pixels, and how colours are computed
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from prototile.schedules import Progress, Schedule
from prototile.views.masks import Masks

Interpolation = Literal["bicubic", "bilinear"]
Colour = Literal["exact", "linear"]


@dataclass(frozen=True)
class Jitter:
    """Factors from [max(0, 1 - x), 1 + x], a turn of hue from [-hue, hue], in a random order, with `probability`."""

    brightness: float
    contrast: float
    saturation: float
    hue: float
    probability: float = 0.8

    def __post_init__(self) -> None:
        _check_probability("a jitter's probability", self.probability)
        if min(self.brightness, self.contrast, self.saturation, self.hue) < 0 or self.hue > 0.5:
            raise ValueError(f"jitter must not be negative, and hue at most 0.5 (half a turn), got {self}")


@dataclass(frozen=True)
class Blur:
    """A Gaussian whose deviation, in pixels of the view, is uniform in `sigma`, with `probability`."""

    probability: float
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        _check_probability("a blur's probability", self.probability)
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"a blur's sigma must be (low, high) with 0 < low <= high, got {self.sigma}")


class Policy(ABC):
    """Random operations on the pixels of a view that was cropped and flipped; the same generator, the same pixels."""

    @abstractmethod
    def __call__(self, image: UInt8[Tensor, "3 s s"], random: np.random.Generator) -> UInt8[Tensor, "3 s s"]: ...


@dataclass(frozen=True)
class View:
    """A random view of `size` x `size` pixels: a crop of `scale` of the area, with aspect `ratio`; the rest by chance.

    A bound of the scale may be a schedule, which follows the run.
    """

    size: int
    scale: tuple[float | Schedule, float | Schedule]
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: Jitter | None = None
    gray: float = 0.0
    blur: Blur | None = None
    solarize: float = 0.0
    interpolation: Interpolation = "bicubic"
    policy: Policy | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a view must have at least one pixel, got size {self.size}")
        for name in ("flip", "gray", "solarize"):
            _check_probability(f"a view's {name}", vars(self)[name])
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"a view's interpolation must be 'bicubic' or 'bilinear', got {self.interpolation!r}")
        low, high = self.scale
        if not (isinstance(low, Schedule) or isinstance(high, Schedule) or 0 < low <= high <= 1):
            raise ValueError(f"a view's scale must be (low, high) with 0 < low <= high <= 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"a view's ratio must be (low, high) with 0 < low <= high, got {self.ratio}")

    @property
    def follows_the_run(self) -> bool:
        return any(isinstance(bound, Schedule) for bound in self.scale)

    def at(self, progress: Progress) -> "View":
        """The view as it is at this moment of the run."""
        low, high = (bound(progress) if isinstance(bound, Schedule) else bound for bound in self.scale)
        return replace(self, scale=(low, high))


@dataclass(frozen=True)
class Group:
    """Equally large views; `masks` hide some of their patches of `patch` x `patch` pixels."""

    views: tuple[View, ...]
    masks: Masks | None = None
    patch: int = 16

    def __post_init__(self) -> None:
        if not self.views:
            raise ValueError("a group needs at least one view; leave out a group that has none")
        if self.patch < 1:
            raise ValueError(f"a patch must have at least one pixel, got {self.patch}")
        if len({view.size for view in self.views}) != 1:
            raise ValueError(f"a group must hold views of one size, got sizes {[view.size for view in self.views]}")
        if self.masks is not None and self.size % self.patch:
            raise ValueError(f"patches of {self.patch} do not tile views of {self.size} pixels: choose a divisor")

    @property
    def size(self) -> int:
        return self.views[0].size


@dataclass(frozen=True)
class Normalization:
    """Pixels in [0, 1] minus `mean`, divided by `std`, for red, green, blue."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise ValueError(f"a normalisation's std must be positive, got {self.std}")


IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR10 = Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@dataclass(frozen=True)
class Augmentation:
    """Groups of views, in the order that a method expects them.

    `colour` "linear" is faster and another operator: see `prototile.views.colour`.
    """

    groups: tuple[Group, ...]
    normalization: Normalization = IMAGENET
    colour: Colour = "exact"

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("an augmentation needs at least one group of views")
        if self.colour not in ("exact", "linear"):
            raise ValueError(f"colour must be 'exact' or 'linear', got {self.colour!r}")

    @property
    def views(self) -> tuple[View, ...]:
        return tuple(view for group in self.groups for view in group.views)

    @property
    def follows_the_run(self) -> bool:
        return any(view.follows_the_run for view in self.views)

    def at(self, progress: Progress) -> "Augmentation":
        """The augmentation as it is at this moment of the run."""
        groups = (replace(group, views=tuple(view.at(progress) for view in group.views)) for group in self.groups)
        return replace(self, groups=tuple(groups))


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
