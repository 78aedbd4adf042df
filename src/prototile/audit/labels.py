"""Clusters against classes: what assignments say about labels that nobody gave them.

n images, k clusters, c classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from prototile.audit.plain import plain


@dataclass(frozen=True, eq=False)
class GroupAudit:
    """Classes of the head, the middle or the tail: the mean over its classes; none where the group has no image."""

    classes: int
    images: int
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class LabelAudit:
    """Hard assignments against labels, of the images that have one.

    `purity` rises with the number of clusters, to 1 where each image has its own; `accuracy` does not: each half of
    the images is told by the majority labels of the other half.
    """

    images: int
    classes: int
    clusters: int  # that hold an image
    nmi: float
    ari: float
    purity: float
    accuracy: float
    groups: Mapping[str, GroupAudit]  # head, middle, tail, or whatever was asked for
    majority: Int[Tensor, " k"] = field(repr=False)  # the most frequent class of each cluster, -1 where it is empty
    share: Float[Tensor, " k"] = field(repr=False)  # of the cluster's images that are of that class

    def as_dict(self) -> dict[str, Any]:
        names = ("images", "classes", "clusters", "nmi", "ari", "purity", "accuracy", "groups", "majority", "share")
        return {name: plain(getattr(self, name)) for name in names}

    def __str__(self) -> str:
        return (
            f"NMI {self.nmi:.3f}, ARI {self.ari:.3f}, purity {self.purity:.1%}, majority label right for "
            f"{self.accuracy:.1%} of {self.images:,} images ({self.classes:,} classes)"
        )
