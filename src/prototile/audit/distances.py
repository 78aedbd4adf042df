"""Neighbours of images: how much nearer than any other image the nearest one is.

    neighbor_distances(x)             to the nearest other image and to a far one
    nearest_images(x, queries, 8)     which they are, by cosine: the rows of a sheet

n images, q of them asked for, d dims.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.audit.plain import Histogram, plain, quantiles
from prototile.precision import no_autocast, no_tf32, wide
from prototile.sphere import normalize

BINS = 100  # of distances, as in the figure (E2MC, figure 4)

_NUMBERS = 2**24  # products that are held at a time
_BLOCK = 65536  # images that queries are compared with at a time
_RECOMPUTED = 4  # nearest candidates of which the exact distances decide


@dataclass(frozen=True, eq=False)
class NeighborDistances:
    """Euclidean distances of images to their nearest other image and to the one of this `rank`.

    They are those of figure 4 of E2MC (Chakraborty et al. 2025), where rank 100 of 50,000 images is taken: neighbours
    that are as far as any other image mean that images lie in no groups.
    """

    rank: int
    images: int  # among which neighbours were looked for
    near: Float[Tensor, " q"] = field(repr=False)
    far: Float[Tensor, " q"] = field(repr=False)
    overlap: float  # shared area of the two histograms on common bins: 1 where they are the same
    auc: float  # the chance that one image's far distance exceeds another's near one: 1/2 where they are the same
    within: float  # the share of images whose far distance is below the median near one

    def histograms(self, bins: int = BINS) -> tuple[Histogram, Histogram]:
        """Of the near and of the far distances, on bins from the least near to the greatest far one."""
        low, high = float(self.near.min()), float(self.far.max())
        return Histogram.of(self.near, bins, low, high), Histogram.of(self.far, bins, low, high)

    def as_dict(self) -> dict[str, Any]:
        near, far = self.histograms()
        return {
            "rank": self.rank,
            "images": self.images,
            "overlap": plain(self.overlap),
            "auc": plain(self.auc),
            "within": plain(self.within),
            "edges": plain(near.edges),
            "near": list(near.counts),
            "far": list(far.counts),
            "near distances": quantiles(self.near),
            "far distances": quantiles(self.far),
        }

    def __str__(self) -> str:
        return f"nearest and {self.rank}th neighbours overlap by {self.overlap:.1%} (AUC {self.auc:.3f})"


def rank_for(images: int) -> int:
    """100 of 50,000 images, and in proportion, but at least 10 (or all there are)."""
    return min(max(round(100 * images / 50_000), 10), images - 1)


@torch.no_grad()
@no_autocast
@no_tf32
def neighbor_distances(x: Float[Tensor, "n d"], rank: int | None = None) -> tuple[NeighborDistances, Int[Tensor, " n"]]:
    """Of all images among each other, the image itself left out; and which is the nearest.

    Candidates are found by float32 products of centred rows, their distances are taken anew from differences.
    """
    if len(x) < 2:
        raise ValueError(f"a neighbour needs at least two images, got {len(x)}")
    rank = rank_for(len(x)) if rank is None else rank
    if not 1 <= rank < len(x):
        raise ValueError(f"of {len(x)} images there are neighbours of rank 1 to {len(x) - 1}, not {rank}")
    x = wide(x.detach())
    x = x - x.mean(0)  # far from the origin, products would lose the distances
    squares = x.square().sum(1)
    near, far, index = [], [], []
    for rows in torch.arange(len(x), device=x.device).split(max(1, _NUMBERS // len(x))):
        scores = torch.addmm(squares, x[rows], x.T, beta=-1, alpha=2)  # the row's own square decides nothing
        scores[torch.arange(len(rows)), rows] = -torch.inf
        there = scores.topk(rank, 1).indices
        first = there[:, :_RECOMPUTED]
        distances = torch.linalg.vector_norm(x[rows, None] - x[first], dim=2)
        best, which = distances.min(1)
        near.append(best)
        index.append(first.gather(1, which[:, None])[:, 0])
        far.append(torch.linalg.vector_norm(x[rows] - x[there[:, -1]], dim=1))
    return _compared(rank, torch.cat(near).cpu(), torch.cat(far).cpu()), torch.cat(index).cpu()


def _compared(rank: int, near: Tensor, far: Tensor) -> NeighborDistances:
    far = torch.maximum(near, far)  # they may differ by rounding where all are equally far
    low, high = float(near.min()), float(far.max())
    shares = [torch.tensor(Histogram.of(x, BINS, low, high).counts).double() / len(x) for x in (near, far)]
    ordered = near.sort().values
    below, upto = (torch.searchsorted(ordered, far, right=right).double() for right in (False, True))
    return NeighborDistances(
        rank=rank,
        images=len(near),
        near=near,
        far=far,
        overlap=float(torch.minimum(*shares).sum()),
        auc=float((below + upto).mean() / 2 / len(near)),
        within=float((far < near.median()).double().mean()),
    )


@torch.no_grad()
@no_autocast
@no_tf32
def nearest_images(x: Float[Tensor, "n d"], queries: Int[Tensor, " q"], count: int) -> Int[Tensor, "q c"]:
    """The images with the largest cosines to each of these, itself left out, the first among equals."""
    if not 1 <= count < len(x):
        raise ValueError(f"of {len(x)} images each has 1 to {len(x) - 1} neighbours, not {count}")
    scores = torch.cat([normalize(wide(x[queries])) @ normalize(wide(part)).T for part in x.split(_BLOCK)], 1)
    scores[torch.arange(len(queries)), queries] = -torch.inf
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count].cpu()
