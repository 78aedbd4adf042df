"""Masks: which patches of a view are hidden, on a grid of g x g patches.

    masks                hides                                            where
    SharedDrop(ratio)    all but floor(n (1 - ratio)) patches, the same   MSN, PMSN
                         for every image and view of the batch
    RandomDrop(ratio)    all but int(n (1 - ratio)), drawn per view       MAE
    Blocks(ratios)       blocks, of each view a ratio drawn from one of   iBOT
                         several ranges
    SpreadBlocks(...)    blocks, in some views of the batch, their        DINOv2
                         ratios spread evenly over a range
    FixedBlocks(ratio)   blocks, and single patches up to a fixed number  BEiT, data2vec

Drops say which patches are *kept*, blocks which are *masked*. One GPU draws what many do: every image has its own
random numbers, and what a batch shares comes from numbers that the batch over all ranks has in common.

Axes: v views, b images, n = g * g patches, m patches that are kept.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from prototile.views.randomness import Stream, generator

_ATTEMPTS = 10  # to place one block
_MIN_ASPECT = 0.3  # of a block; at most the inverse


@dataclass(frozen=True)
class Draw:
    """Which random numbers the images of a batch get.

    `numbers` are keys, one an image: an image with the same seed, epoch and number gets the same view. `rows` are the
    images' places in the batch over all ranks, which has `batch_size` images and is number `step` of its epoch.
    """

    epoch: int
    step: int
    numbers: Int[np.ndarray, " b"]
    rows: Int[np.ndarray, " b"]
    batch_size: int

    @staticmethod
    def alone(images: int, epoch: int = 0, step: int = 0) -> "Draw":
        """The draw of a batch that is all there is: one rank, keys by place."""
        rows = np.arange(images)
        return Draw(epoch, step, step * images + rows, rows, images)


class Hidden(NamedTuple):
    """Masked patches, or the numbers of those that are kept."""

    mask: Bool[np.ndarray, "v b n"] | None = None
    keep: Int[np.ndarray, "v b m"] | None = None


class Generators(NamedTuple):
    """The random numbers that the images of a batch have for themselves, and those that it has in common."""

    images: tuple[np.random.Generator, ...]
    batch: np.random.Generator

    @staticmethod
    def of(seed: int, draw: Draw) -> "Generators":
        images = (generator(seed, Stream.MASKS, draw.epoch, int(number)) for number in draw.numbers)
        return Generators(tuple(images), generator(seed, Stream.BATCH_MASKS, draw.epoch, draw.step))


class Masks(ABC):
    """Which patches of a group's views are hidden: left out where it `drops` them, else replaced by a mask token."""

    drops: ClassVar[bool]

    @abstractmethod
    def __call__(self, views: int, grid: int, draw: Draw, generators: Generators) -> Hidden: ...


@dataclass(frozen=True)
class SharedDrop(Masks):
    """One permutation of the patches for the whole batch (Assran et al. 2022, https://arxiv.org/abs/2204.07141)."""

    drops: ClassVar[bool] = True

    ratio: float

    def __post_init__(self) -> None:
        _check_drop(self.ratio)

    def __call__(self, views: int, grid: int, draw: Draw, generators: Generators) -> Hidden:
        kept = _kept(grid * grid, self.ratio)
        order = generators.batch.permutation(grid * grid)[:kept]
        return Hidden(keep=np.broadcast_to(order, (views, len(draw.numbers), kept)).copy())


@dataclass(frozen=True)
class RandomDrop(Masks):
    """A permutation for every view (He et al. 2022, https://arxiv.org/abs/2111.06377)."""

    drops: ClassVar[bool] = True

    ratio: float = 0.75

    def __post_init__(self) -> None:
        _check_drop(self.ratio)

    def __call__(self, views: int, grid: int, draw: Draw, generators: Generators) -> Hidden:
        kept = _kept(grid * grid, self.ratio)
        noise = np.empty((views, len(draw.numbers), grid * grid))
        for b, rng in enumerate(generators.images):
            noise[:, b] = rng.random((views, grid * grid))
        return Hidden(keep=noise.argsort(-1)[..., :kept])


@dataclass(frozen=True)
class Blocks(Masks):
    """Of each view at most the share r, r uniform in one of `ranges`, each equally likely (Zhou et al. 2022,
    https://arxiv.org/abs/2111.07832). A block has at least (g // 3)^2 patches, unless fewer are left to mask.
    """

    drops: ClassVar[bool] = False

    ranges: tuple[tuple[float, float], ...] = ((0.0, 0.0), (0.1, 0.5))

    def __post_init__(self) -> None:
        if not self.ranges or any(not 0 <= low <= high <= 1 for low, high in self.ranges):
            raise ValueError(f"ranges must be (low, high) with 0 <= low <= high <= 1, got {self.ranges}")

    def __call__(self, views: int, grid: int, draw: Draw, generators: Generators) -> Hidden:
        def fill(mask: np.ndarray, rng: np.random.Generator, view: int, image: int) -> None:
            ratio = rng.uniform(*self.ranges[rng.integers(len(self.ranges))])
            _mask_blocks(mask, ratio * grid * grid, (grid // 3) ** 2, rng)

        return _filled(views, grid, generators, fill)


@dataclass(frozen=True)
class SpreadBlocks(Masks):
    """Of the batch's views the share `probability` is masked; the i-th of these m by a ratio uniform in the i-th of m
    equal parts of `ratios`, in a random order (Oquab et al. 2023, https://arxiv.org/abs/2304.07193).
    """

    drops: ClassVar[bool] = False

    probability: float = 0.5
    ratios: tuple[float, float] = (0.1, 0.5)

    def __post_init__(self) -> None:
        low, high = self.ratios
        if not (0 <= self.probability <= 1 and 0 <= low <= high <= 1):
            raise ValueError(f"probability and ratios must lie in [0, 1], low before high, got {self}")

    def __call__(self, views: int, grid: int, draw: Draw, generators: Generators) -> Hidden:
        total = views * draw.batch_size
        masked = int(total * self.probability)
        edges = np.linspace(*self.ratios, masked + 1)
        places = generators.batch.permutation(total).reshape(views, -1)

        def fill(mask: np.ndarray, rng: np.random.Generator, view: int, image: int) -> None:
            if (place := places[view, draw.rows[image]]) < masked:
                ratio = rng.uniform(edges[place], edges[place + 1])
                _mask_blocks(mask, int(ratio * grid * grid), 4, rng, grid * grid // 2)

        return _filled(views, grid, generators, fill)


@dataclass(frozen=True)
class FixedBlocks(Masks):
    """round(n ratio) patches of each view: blocks of at least round(n smallest) patches; where no further one fits,
    single patches (Bao et al. 2022, https://arxiv.org/abs/2106.08254; data2vec masks 120 of 196).
    """

    drops: ClassVar[bool] = False

    ratio: float = 120 / 196
    smallest: float = 16 / 196

    def __post_init__(self) -> None:
        if not 0 <= self.smallest <= self.ratio <= 1:
            raise ValueError(f"0 <= smallest <= ratio <= 1 must hold, got {self}")

    def __call__(self, views: int, grid: int, draw: Draw, generators: Generators) -> Hidden:
        count, smallest = round(grid * grid * self.ratio), round(grid * grid * self.smallest)

        def fill(mask: np.ndarray, rng: np.random.Generator, view: int, image: int) -> None:
            _mask_blocks(mask, count, smallest, rng)
            patches = mask.reshape(-1)
            free = np.flatnonzero(~patches)
            patches[rng.choice(free, count - (len(patches) - len(free)), replace=False)] = True

        return _filled(views, grid, generators, fill)


def _filled(
    views: int, grid: int, generators: Generators, fill: Callable[[np.ndarray, np.random.Generator, int, int], None]
) -> Hidden:
    """Masks of all views, each filled in place by `fill(mask, the image's generator, view, image)`."""
    mask = np.zeros((views, len(generators.images), grid, grid), bool)
    for image, rng in enumerate(generators.images):
        for view in range(views):
            fill(mask[view, image], rng, view, image)
    return Hidden(mask=mask.reshape(*mask.shape[:2], grid * grid))


def _mask_blocks(
    mask: Bool[np.ndarray, "g g"], wanted: float, smallest: int, rng: np.random.Generator, largest: float = math.inf
) -> None:
    """Mask rectangles, which may overlap, until `wanted` patches are masked or no further rectangle is found.

    A rectangle's area is drawn between `smallest` and what is still wanted (at most `largest`), its aspect
    log-uniformly in [0.3, 1 / 0.3]; it must be smaller than the grid and mask something new, not too much.
    """
    masked = 0
    while masked < wanted:
        room = min(wanted - masked, largest)
        added = next((n for _ in range(_ATTEMPTS) if (n := _mask_block(mask, room, smallest, rng))), 0)
        if added == 0:
            return
        masked += added


def _mask_block(mask: Bool[np.ndarray, "g g"], room: float, smallest: int, rng: np.random.Generator) -> int:
    """Try one rectangle; the number of patches that it newly masks, 0 where it does not fit."""
    grid = len(mask)
    area = smallest + (room - smallest) * rng.random()
    aspect = math.exp(rng.uniform(math.log(_MIN_ASPECT), -math.log(_MIN_ASPECT)))
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if height >= grid or width >= grid:
        return 0
    top, left = rng.integers(grid - height + 1), rng.integers(grid - width + 1)
    block = mask[top : top + height, left : left + width]
    new = block.size - int(block.sum())
    if not 0 < new <= room:
        return 0
    block[:] = True
    return new


def _kept(patches: int, ratio: float) -> int:
    return max(int(patches * (1 - ratio) + 1e-9), 1)


def _check_drop(ratio: float) -> None:
    if not 0 <= ratio < 1:
        raise ValueError(f"the ratio of dropped patches must lie in [0, 1), got {ratio}")
