r"""Long tails: how many images each class has, cut from a source, counted, and split into head, middle and tail.

    Exponential(imbalance)       n_max imbalance^(-k / (C-1))            CIFAR-LT
    Power(exponent)              n_max (k+1)^-exponent                   laws of rank: Zipf, Pareto
    Step(imbalance, minority)    n_max, then n_max / imbalance           Buda et al. 2018

    long_tailed(source, profile)    a source's images, as many of each class as the profile says
    ClassCounts                     images of each class, as a table
    Groups                          the classes of head, middle and tail: by their counts, or by thirds
    group_means                     the mean of each group

Rank k = 0..C-1 counts from the largest class. A Pareto law of class sizes with index alpha is `Power(1 / alpha)`.

Axes: n images, c classes.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from prototile.data.source import Source, Subset
from prototile.views.randomness import Stream, generator

NAME_WIDTH = 28  # longer names are cut
BAR_WIDTH = 40
TABLE_ENDS = 10  # rows at either end of a table that is too long


class Profile(ABC):
    """How many images each class has, by rank, from the largest class on."""

    @abstractmethod
    def shares(self, num_classes: int) -> Float[np.ndarray, " c"]:
        """Each rank's count as a share of the largest one: 1 first, never rising."""

    def __call__(self, num_classes: int, largest: int) -> Int[np.ndarray, " c"]:
        """Whole numbers of images, rounded down; an error where a class is left with none."""
        if num_classes < 1:
            raise ValueError(f"a profile needs at least one class, got {num_classes}")
        shares = self.shares(num_classes)
        counts = _rounded_down(largest * shares)
        if counts[-1] < 1:
            raise ValueError(
                f"{self} leaves the last of {num_classes} classes without images when the largest has {largest}; "
                f"it takes a largest class of at least {int(np.ceil(1 / shares[-1] - 1e-9))}, or a flatter profile"
            )
        return counts


@dataclass(frozen=True)
class Exponential(Profile):
    r"""$n_k = n_{max} \rho^{-k / (C - 1)}$, $\rho$ the imbalance (Cao et al. 2019, https://arxiv.org/abs/1906.07413)."""

    imbalance: float = 100

    def __post_init__(self) -> None:
        _check_imbalance(self.imbalance)

    def shares(self, num_classes: int) -> Float[np.ndarray, " c"]:
        return self.imbalance ** -np.linspace(0, 1, num_classes)


@dataclass(frozen=True)
class Power(Profile):
    r"""$n_k = n_{max} (k + 1)^{-\tau}$, $\tau$ the exponent of the law of rank (Zipf's is 1)."""

    exponent: float

    def __post_init__(self) -> None:
        if not 0 <= self.exponent < float("inf"):
            raise ValueError(f"the exponent of a power law must be finite and at least 0, got {self.exponent}")

    def shares(self, num_classes: int) -> Float[np.ndarray, " c"]:
        return np.arange(1, num_classes + 1, dtype=np.float64) ** -self.exponent


@dataclass(frozen=True)
class Step(Profile):
    r"""$n_{max} / \rho$ for the last share of classes, $n_{max}$ before (https://arxiv.org/abs/1710.05381)."""

    imbalance: float
    minority: float = 0.5

    def __post_init__(self) -> None:
        _check_imbalance(self.imbalance)
        if not 0 <= self.minority < 1:
            raise ValueError(f"minority is a share of the classes, at least 0 and below 1, got {self.minority}")

    def shares(self, num_classes: int) -> Float[np.ndarray, " c"]:
        majority = max(num_classes - round(self.minority * num_classes), 1)
        return np.where(np.arange(num_classes) < majority, 1, 1 / self.imbalance)


def long_tailed(
    source: Source,
    profile: Profile,
    *,
    seed: int = 0,
    largest: int | None = None,
    order: Sequence[int] | Int[np.ndarray, " c"] | None = None,
) -> Subset:
    """As many images of each class as `profile` says, in the order of `source`.

    `order` names the classes from the largest on and is drawn where none is given; `largest` is the most that all
    classes can give. A class's images come in an order that only `seed` decides: of two cuts with one seed, the one
    that asks for more images of a class has all of the other's.
    """
    counts = ClassCounts.of(source)
    num_classes = len(counts.counts)
    if not counts.counts.all():
        empty = int(np.argmin(counts.counts))
        raise ValueError(f"class {empty} ({counts.names[empty]}) has no images: number the classes without it")
    if order is None:
        order = generator(seed, Stream.TAIL, 0, 0).permutation(num_classes)
    order = np.asarray(order)
    if not np.array_equal(np.sort(order), np.arange(num_classes)):
        raise ValueError(f"order must name each of the classes 0..{num_classes - 1} once, got {order}")
    wanted = np.empty(num_classes, np.int64)
    wanted[order] = _wanted(profile, largest, counts, order)

    images = np.split(np.argsort(class_labels(source.labels), kind="stable"), np.cumsum(counts.counts)[:-1])
    drawn = [generator(seed, Stream.TAIL, 1, k).permutation(images[k])[: wanted[k]] for k in range(num_classes)]
    return Subset(source, np.sort(np.concatenate(drawn)))


def _wanted(
    profile: Profile, largest: int | None, counts: "ClassCounts", order: Int[np.ndarray, " c"]
) -> Int[np.ndarray, " c"]:
    """Images of each rank, or an error where the class of that rank has not so many."""
    shares, available = profile.shares(len(order)), counts.counts[order]
    sizes = range(1, int(available[0]) + 1)
    most = bisect_right(sizes, False, key=lambda size: bool((_rounded_down(size * shares) > available).any()))
    wanted = profile(len(order), most if largest is None else largest)
    if (wanted > available).any():
        rank = int(np.argmax(wanted > available))
        raise ValueError(
            f"{profile} with a largest class of {largest} asks for {wanted[rank]} images of class {order[rank]} "
            f"({counts.names[order[rank]]}), which has {available[rank]}; largest can be at most {most}"
        )
    return wanted


def class_labels(labels: Int[np.ndarray, " n *c"] | None) -> Int[np.ndarray, " n"]:
    """One class for each image, or an error that says what the labels are instead."""
    if labels is None:
        raise ValueError("there are no labels: counts, long tails and samplers by class need one class for each image")
    if labels.ndim != 1:
        raise ValueError(f"images must have one class each; labels of shape {labels.shape} give each image several")
    if len(labels) == 0:
        raise ValueError("there are no images")
    if labels.min() < 0:
        where = int(np.argmin(labels))
        raise ValueError(f"image {where} has label {labels[where]}, no class; leave out images without one (Subset)")
    return labels


class Groups(NamedTuple):
    """The classes of head, middle and tail."""

    head: Int[np.ndarray, " head"]
    middle: Int[np.ndarray, " middle"]
    tail: Int[np.ndarray, " tail"]

    @classmethod
    def by_count(cls, counts: Int[np.ndarray, " c"], head: int = 100, tail: int = 20) -> "Groups":
        """Head: more than `head` training images, tail: fewer than `tail` (https://arxiv.org/abs/1904.05160)."""
        if tail > head + 1:
            raise ValueError(f"the tail (n < {tail}) and the head (n > {head}) overlap: tail can be at most {head + 1}")
        in_head, in_tail = counts > head, counts < tail
        return cls(np.flatnonzero(in_head), np.flatnonzero(~in_head & ~in_tail), np.flatnonzero(in_tail))

    @classmethod
    def by_thirds(cls, counts: Int[np.ndarray, " c"]) -> "Groups":
        """Equally many classes in each, for data whose counts are all large; one or two left over go to the front."""
        return cls(*(np.sort(third) for third in np.array_split(np.argsort(-counts, kind="stable"), 3)))


class GroupMeans(NamedTuple):
    """Of head, middle and tail."""

    head: float
    middle: float
    tail: float


def group_means(values: Float[np.ndarray, " c"], groups: Groups) -> GroupMeans:
    """The mean of `values` (per-class accuracies, say) over the classes of each group that have one, which is a number;
    NaN where a group has none.
    """
    known = (values[ids][np.isfinite(values[ids])] for ids in groups)
    return GroupMeans(*(float(found.mean()) if len(found) else float("nan") for found in known))


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Images of each class; prints as a table, from the largest class on."""

    counts: Int[np.ndarray, " c"]
    names: tuple[str, ...]

    @classmethod
    def of(cls, source: Source) -> "ClassCounts":
        labels = class_labels(source.labels)
        names = source.classes or tuple(str(k) for k in range(labels.max() + 1))
        if labels.max() >= len(names):
            where = int(np.argmax(labels))
            raise ValueError(f"image {where} has label {labels[where]}, but the source names {len(names)} classes only")
        return cls(np.bincount(labels, minlength=len(names)), names)

    @property
    def imbalance(self) -> float:
        """The largest class over the smallest; infinite where one has no images."""
        return float(self.counts.max() / self.counts.min()) if self.counts.min() else float("inf")

    @property
    def groups(self) -> Groups:
        """By their counts, at 100 and 20 images."""
        return Groups.by_count(self.counts)

    def __str__(self) -> str:
        ranked = np.argsort(-self.counts, kind="stable")
        left_out = len(ranked) - 2 * TABLE_ENDS
        if left_out > 1:
            ranked = np.concatenate([ranked[:TABLE_ENDS], ranked[-TABLE_ENDS:]])
        names = [shortened(self.names[k]) for k in ranked]
        largest = max(int(self.counts.max()), 1)
        name_width, count_width = max(map(len, names)), len(str(largest))
        rows = [
            f"{name:{name_width}}  {self.counts[k]:{count_width}}  {_bar(int(self.counts[k]) / largest)}".rstrip()
            for name, k in zip(names, ranked, strict=True)
        ]
        if left_out > 1:
            rows.insert(TABLE_ENDS, f"... {left_out} more")
        total = f"{len(self.counts)} classes, {self.counts.sum()} images, imbalance {self.imbalance:.4g}"
        return "\n".join([total, *rows])


def _rounded_down(numbers: Float[np.ndarray, " c"]) -> Int[np.ndarray, " c"]:
    # not one less where rounding left 49.999999999
    return np.floor(numbers + 1e-9).astype(np.int64)


def _check_imbalance(imbalance: float) -> None:
    if not 1 <= imbalance < float("inf"):
        raise ValueError(f"the imbalance is largest over smallest class, finite and at least 1, got {imbalance}")


def shortened(name: str) -> str:
    """A class's name as tables and figures show it."""
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 3]}..."


def _bar(share: float) -> str:
    return "#" * max(round(share * BAR_WIDTH), int(share > 0))
