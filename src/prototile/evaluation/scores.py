"""What predictions are worth: the metrics of the protocols, of each class and over all.

    class_accuracies        of each class; NaN where it has no images
    shares                  the same from counts
    mean_per_class          their mean: Caltech101, Flowers, Pets
    average_precision       of ranked scores: VOC
    mean_average_precision  its mean over classes
    grouped, Grouped        head, middle and tail
    present, known          what VOC's labels say

n images, c classes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prototile.data.longtail import Groups, group_means

Points = Literal["steps", "envelope", "eleven"]


def class_accuracies(right: Bool[Tensor, " n"], labels: Int[Tensor, " n"], classes: int) -> Float[Tensor, " c"]:
    """The share of each class's images that are right, in float64."""
    return shares(torch.bincount(labels[right], minlength=classes), torch.bincount(labels, minlength=classes))


def shares(right: Int[Tensor, " c"], images: Int[Tensor, " c"]) -> Float[Tensor, " c"]:
    """Of each class's images those that are right, in float64; NaN where it has none."""
    return right.double() / torch.where(images > 0, images.double(), torch.nan)


def mean_per_class(right: Bool[Tensor, " n"], labels: Int[Tensor, " n"]) -> float:
    """The mean over classes that have images."""
    return float(class_accuracies(right, labels, int(labels.max()) + 1).nanmean())


def average_precision(scores: Float[Tensor, " n"], positive: Bool[Tensor, " n"], points: Points = "steps") -> float:
    r"""The area under the precision of the best-scored images over their recall; NaN without positive ones.

    steps      $\sum (r_i - r_{i-1}) p_i$, as scikit-learn
    envelope   the same with $\max_{r \ge r_i} p$ in place of $p_i$: VOC since 2010, VISSL
    eleven     the mean of $\max_{r \ge t} p$ over t = 0, 0.1, ..., 1: VOC 2007 (Everingham et al. 2010)

    Images of equal score come together.
    """
    total = int(positive.sum())
    if total == 0:
        return float("nan")
    order = scores.argsort(descending=True, stable=True)
    ranked, hits = scores[order], positive[order].cumsum(0)
    last = torch.ones_like(ranked, dtype=torch.bool)  # of those with equal score
    last[:-1] = ranked[1:] != ranked[:-1]
    place = torch.arange(1, len(ranked) + 1, device=ranked.device)
    hits, precision = hits[last], hits[last].double() / place[last]
    if points != "steps":
        precision = precision.flip(0).cummax(0).values.flip(0)
    if points == "eleven":
        # recall >= i / 10 in whole numbers; the last recall is 1
        first = torch.stack([(10 * hits >= i * total).int().argmax() for i in range(11)])
        return float(precision[first].mean())
    gained = torch.diff(hits, prepend=hits.new_zeros(1)).double() / total
    return float((gained * precision).sum())


def mean_average_precision(
    scores: Float[Tensor, "n c"], labels: Int[Tensor, "n c"], points: Points = "envelope"
) -> tuple[float, list[float]]:
    """The mean over classes that have positive images, and each class's; difficult images of a class are left out."""
    each = [
        average_precision(column[known(wanted)], present(wanted)[known(wanted)], points)
        for column, wanted in zip(scores.T, labels.T, strict=True)
    ]
    return float(np.nanmean(each)) if not np.isnan(each).all() else float("nan"), each


def present(labels: Int[Tensor, " *n"]) -> Bool[Tensor, " *n"]:
    """Whether the class is there: 1; a difficult one (0) counts as absent (-1), as in training."""
    return labels == 1


def known(labels: Int[Tensor, " *n"]) -> Bool[Tensor, " *n"]:
    """Whether it can be told: not where the class is there but difficult to see (0), which tests leave out."""
    return labels != 0


@dataclass(frozen=True)
class Group:
    """Classes of similar size: the mean of their accuracies, and how many classes and test images it is of."""

    accuracy: float
    classes: int
    tested: int  # classes that have test images
    images: int


@dataclass(frozen=True)
class Grouped:
    """Accuracy of head, middle and tail, and of all classes: their mean weighted by numbers of classes."""

    by: str
    groups: Mapping[str, Group]
    overall: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"{name} {x.accuracy:.1%} ({x.classes:,})" for name, x in self.groups.items()]
        return f"{', '.join(parts)}; all {self.overall:.1%}"


def grouped(
    right: Bool[Tensor, " n"],
    labels: Int[Tensor, " n"],
    counts: Int[Tensor, " c"],
    by: Literal["counts", "thirds"] = "counts",
) -> Grouped:
    """Mean accuracy over the classes of each group, by the classes' numbers of training images.

    By "counts", head has more than 100, tail fewer than 20 (Liu et al. 2019); by "thirds" each has equally many
    classes, for small data. A group without classes, or whose classes have no test images, is NaN.
    """
    if len(labels) and int(labels.max()) >= len(counts):
        raise ValueError(f"class {int(labels.max())} has test images, and there are training counts of {len(counts)}")
    if by not in ("counts", "thirds"):
        raise ValueError(f"groups are by 'counts' or by 'thirds', got {by!r}")
    numbers = counts.numpy()
    parts = Groups.by_count(numbers) if by == "counts" else Groups.by_thirds(numbers)
    accuracies = class_accuracies(right, labels, len(counts)).numpy()
    images = np.bincount(labels.numpy(), minlength=len(counts))
    means = group_means(accuracies, parts)._asdict()
    groups = {
        name: Group(means[name], len(ids), int(np.isfinite(accuracies[ids]).sum()), int(images[ids].sum()))
        for name, ids in parts._asdict().items()
    }
    return Grouped(by, groups, float(torch.from_numpy(accuracies).nanmean()))
