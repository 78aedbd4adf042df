"""Mass against redundancy: whether prototypes that stand for many also have more images.

m unique prototypes, b bins of redundancy factors.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.audit.plain import plain

_FEW = 5  # unique prototypes of one redundancy factor, below which factors are binned


@dataclass(frozen=True, eq=False)
class MassByRedundancy:
    """The mean share of images of unique prototypes that stand for equally many (Govindarajan et al. 2024, figure 1).

    Images go to unique prototypes alone. Redundancy factors are binned, geometrically where few prototypes share one:
    bin i holds factors in [low[i], high[i]].
    """

    low: Int[Tensor, " b"]
    high: Int[Tensor, " b"]
    mean: Float[Tensor, " b"]  # share of the images
    prototypes: Int[Tensor, " b"]  # how many unique ones are in the bin
    spearman: float | None  # rank correlation of redundancy and share; none where all factors are the same
    slope: float | None  # of log share on log redundancy, over unique prototypes that have images

    def as_dict(self) -> dict[str, Any]:
        return {name: plain(getattr(self, name)) for name in ("low", "high", "mean", "prototypes", "spearman", "slope")}


def mass_by_redundancy(shares: Float[Tensor, " m"], redundancy: Int[Tensor, " m"]) -> MassByRedundancy:
    """Shares of the images, or of the marginal, of unique prototypes."""
    shares, redundancy = shares.detach().cpu().double(), redundancy.cpu()
    bins = _bins(redundancy)
    often = torch.bincount(bins)
    kept = often > 0
    total = torch.zeros(len(often), dtype=torch.float64).index_add_(0, bins, shares)
    low, high = (
        torch.zeros(len(often), dtype=torch.long).scatter_reduce_(0, bins, redundancy, how, include_self=False)
        for how in ("amin", "amax")
    )
    used = shares > 0
    return MassByRedundancy(
        low=low[kept],
        high=high[kept],
        mean=(total / often.clamp(min=1))[kept],
        prototypes=often[kept],
        spearman=_correlation(_ranks(redundancy), _ranks(shares)),
        slope=_slope(redundancy[used].double().log(), shares[used].log()),
    )


def _bins(redundancy: Int[Tensor, " m"]) -> Int[Tensor, " m"]:
    """Each factor by itself as long as it has members enough, doubling bins from there on."""
    counts = torch.bincount(redundancy)[1:]
    first = next((r for r, count in enumerate(counts.tolist(), 1) if count < _FEW), len(counts) + 1)
    doubling = first + torch.log2((redundancy.double() / first).clamp(min=1)).floor().long()
    return torch.where(redundancy < first, redundancy, doubling)


def _ranks(x: Tensor) -> Float[Tensor, " m"]:
    """Ranks, equal numbers sharing the mean of theirs."""
    _, inverse, counts = x.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).double()[inverse]


def _correlation(a: Tensor, b: Tensor) -> float | None:
    a, b = a - a.mean(), b - b.mean()
    spread = (a.square().sum() * b.square().sum()).sqrt()
    return float(a @ b / spread) if float(spread) > 0 else None


def _slope(x: Tensor, y: Tensor) -> float | None:
    if len(x) < 2 or not float(x.max() - x.min()) > 0:
        return None
    x = x - x.mean()
    return float(x @ y / x.square().sum())
