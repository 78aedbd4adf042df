r"""Low-shot classification: a linear classifier from 1, 2 or 5 images of each class, or one in a hundred (MSN).

Rows of features lose their own mean and are L2-normalised, each by itself; then multinomial logistic regression without
intercept, $\frac1n \sum CE + \frac{\lambda}{2 n} \|W\|^2$ with $\lambda = 0.00025$ (https://arxiv.org/abs/2204.07141).

n images, t of them to learn from, m of these that a split has, d dims.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prototile.evaluation.convex import Problem
from prototile.evaluation.features import labelled, same_dims
from prototile.evaluation.splits import read_ids, share_of_each, some_of_each, write_ids
from prototile.sphere import normalize

LAMBDA = 0.00025  # the script's default; its README shows ten times as much
_OFFICIAL = {1: ("1imgs_class.txt",), 2: ("2imgs_class.txt",), 5: ("5imgs_class.txt", "3imgs_class.txt")}
_OFFICIAL_SHARE = ("1percent.txt",)


@dataclass(frozen=True)
class Split:
    """Which training images a split has: so many of each class, or a share; its number is its seed."""

    images: int | None
    share: float | None = None
    number: int = 0

    def __post_init__(self) -> None:
        if (self.images is None) == (self.share is None):
            raise ValueError("a split has so many images of each class, or a share of them: give one of both")

    @property
    def name(self) -> str:
        size = self.images if self.share is None else self.share
        assert size is not None
        return size_name(size)

    def drawn(self, labels: Int[Tensor, " t"]) -> Int[Tensor, " m"]:
        if self.share is not None:
            return share_of_each(labels, self.share, seed=self.number)
        assert self.images is not None
        return some_of_each(labels, self.images, seed=self.number)


def size_name(size: int | float) -> str:
    """Of images per class, or of a share below 1."""
    return f"{size} per class" if size >= 1 else f"{100 * size:g}%"


@dataclass(frozen=True, eq=False)
class LowShot:
    """Top-1 of each split of one size; their mean is what papers report."""

    name: str  # "1 per class", "1%"
    values: Sequence[float]
    images: int
    learned: Sequence[int]  # training images of each split
    right: Sequence[Bool[Tensor, " n"]] = field(repr=False)

    @property
    def value(self) -> float:
        return fmean(self.values)

    @property
    def standard_error(self) -> float | None:
        return None if len(self.values) < 2 else stdev(self.values) / len(self.values) ** 0.5

    def as_dict(self) -> dict[str, Any]:
        found = {name: value for name, value in vars(self).items() if name != "right"}
        return found | {"value": self.value, "standard_error": self.standard_error}

    def __str__(self) -> str:
        spread = "" if self.standard_error is None else f" ± {self.standard_error:.1%}"
        return f"low-shot {self.value:.1%}{spread} from {self.name} ({len(self.values)} splits)"


def low_shot(
    train: Float[Tensor, "t d"],
    train_labels: Int[Tensor, " t"],
    test: Float[Tensor, "n d"],
    test_labels: Int[Tensor, " n"],
    parts: Sequence[Int[Tensor, " _m"]],
    *,
    name: str = "some",
    penalty: float = LAMBDA,
    tolerance: float = 1e-5,
    iterations: int = 300,
    device: torch.device | str | None = None,
) -> LowShot:
    """A classifier from each of `parts`, numbers of training images, tested on all test images with a label."""
    if not parts:
        raise ValueError("low-shot classification needs a split at least")
    if not penalty > 0:
        raise ValueError(f"the penalty must be positive, got {penalty}")
    same_dims(train, test)
    queries, wanted = labelled(test, test_labels, "test")
    queries, wanted = rows_by_themselves(queries), wanted.cpu()
    classes = int(max(train_labels.max(), wanted.max())) + 1
    right = []
    for numbers in parts:
        x, y = labelled(train[numbers], train_labels[numbers], "training")
        problem = Problem(rows_by_themselves(x), y, classes=classes, intercept=False, device=device)
        found = problem.fit(penalty / len(x), tolerance=tolerance, iterations=iterations)
        right.append(found.predicted(queries) == wanted)
    values = [float(x.double().mean()) for x in right]
    return LowShot(name, values, len(queries), [len(numbers) for numbers in parts], right)


def rows_by_themselves(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Each without the mean over its dims, and of length one."""
    return normalize(x - x.mean(1, keepdim=True))


def splits_of(
    size: int | float,
    count: int,
    labels: Int[Tensor, " t"],
    ids: Sequence[str],
    *,
    official: Path | None = None,
    kept: Path | None = None,
) -> dict[str, Int[Tensor, " _m"]]:
    """The training images of each split of this size (images per class, or a share below 1), by the split's name.

    ImageNet's `official` lists lie in folders imagenet_subsets1, 2, 3 of one; where there are none of this size, splits
    are drawn, each by its number, and their lists go into the folder `kept`, for others to use.
    """
    if official is not None and (lists := official_lists(official, size)):
        return {str(file.relative_to(official)): read_ids(file, ids) for file in lists}
    found = {}
    for number in range(count):
        split = Split(None, size, number) if isinstance(size, float) else Split(size, None, number)
        name = f"{split.name.replace(' ', '-').replace('%', 'percent')}-{number}.txt"
        found[name] = split.drawn(labels)
        if kept is not None:
            write_ids(kept / name, [str(ids[int(i)]) for i in found[name]])
    return found


def official_lists(folder: Path, size: int | float) -> list[Path]:
    """MSN's lists of this size; one of five images is called after three."""
    names = _OFFICIAL_SHARE if size == 0.01 else _OFFICIAL.get(int(size), ()) if size >= 1 else ()
    places = [folder / f"imagenet_subsets{i}" for i in (1, 2, 3)]
    found = [next((place / name for name in names if (place / name).is_file()), None) for place in places]
    return [file for file in found if file is not None]
