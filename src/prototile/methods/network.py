"""What a student and its teacher have alike, and what it makes of views.

n rows (v views x b images, view after view), p patches, d dims.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prototile.assignments import Assignments
from prototile.backbones import Backbone
from prototile.heads import ExCBHead, Head, Prototypes
from prototile.types import Features, Views


class Network(nn.Module):
    """A backbone and its heads: `head` for pooled features, `patch_head` for patches (the same module if shared)."""

    def __init__(self, backbone: Backbone, head: Head | ExCBHead, patch_head: Head | None = None):
        super().__init__()
        self.backbone, self.head, self.patch_head = backbone, head, patch_head

    @property
    def prototypes(self) -> list[Prototypes]:
        """The sets of prototypes; shared ones once."""
        heads = [self.head] if self.patch_head is None else [self.head, self.patch_head]
        return list(dict.fromkeys(head.prototypes for head in heads))


@dataclass(frozen=True)
class Encoded:
    """What a network made of groups of views: features of each group, and projections of all pooled features."""

    network: Network
    features: tuple[Features, ...]
    views: tuple[int, ...]  # of each group
    projections: Float[Tensor, "n d"]

    @property
    def count(self) -> int:
        """Views of all groups."""
        return sum(self.views)

    @property
    def pooled(self) -> Float[Tensor, "n d"]:
        return torch.cat([group.pooled for group in self.features])

    def leading(self) -> "Encoded":
        """The first group alone, as constants: what teaches where there is no teacher."""
        rows = len(self.features[0].pooled)
        return Encoded(self.network, self.features[:1], self.views[:1], self.projections[:rows].detach())

    def assignments(self, temperature: float) -> Assignments:
        return self.network.head.prototypes(self.projections, temperature)


def encode(network: Network, groups: Sequence[Views], *, whole: bool = False) -> Encoded:
    """One pass of the backbone for each group, one of the head for all; `whole` ignores what hides patches."""
    features = features_of(network.backbone, groups, whole=whole, patches=network.patch_head is not None)
    projections = network.head.projector(torch.cat([group.pooled for group in features]))
    return Encoded(network, features, tuple(len(views.images) for views in groups), projections)


def features_of(
    backbone: Backbone, groups: Sequence[Views], *, whole: bool = False, patches: bool = False
) -> tuple[Features, ...]:
    """The features of each group, view after view; with `patches`, where heads look at them."""
    return tuple(
        backbone(
            views.images.flatten(0, 1),
            keep=None if whole or views.keep is None else views.keep.flatten(0, 1),
            mask=None if whole or views.mask is None else views.mask.flatten(0, 1),
            patches=patches,
        )
        for views in groups
    )


def by_view(rows: Float[Tensor, "n d"], views: int) -> Float[Tensor, "v b d"]:
    return rows.unflatten(0, (views, -1))
