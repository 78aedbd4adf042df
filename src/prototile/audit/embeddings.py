"""Embeddings: how they fill their space, with one row per image.

n images, d dims, v views of each image, q of the images that neighbours are looked up for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from prototile.audit.plain import Histogram, plain, quantiles

BINS = 100  # of distances, as in the figure (E2MC, figure 4)


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


@dataclass(frozen=True, eq=False)
class Marginals:
    """One and two dims at a time, after the mapping into (0, 1) of E2MC (figures 2 and D.1).

    `chi_square` is of a 10 x 10 grid against equal counts, per degree of freedom: 1 is what chance makes of uniform
    points, whatever their number, and what lies above grows with the number of images (`images`).
    """

    space: str  # "hypersphere": by the normal distribution function; "hypercube": by a sigmoid
    images: int
    entropy: Float[Tensor, " d"] = field(repr=False)  # m-spacings entropy of each dim: 0 for uniform numbers
    distance: Float[Tensor, " d"] = field(repr=False)  # Kolmogorov-Smirnov distance of each dim to uniform numbers
    pairs: Int[Tensor, "p 2"]  # the dims of each pair
    grids: Int[Tensor, "p g g"] = field(repr=False)  # how many images are where
    chi_square: Float[Tensor, " p"]

    def as_dict(self) -> dict[str, Any]:
        return {
            "space": self.space,
            "images": self.images,
            "mean entropy": plain(float(self.entropy.mean())),
            "entropy": quantiles(self.entropy),
            "mean distance to uniform": plain(float(self.distance.mean())),
            "pairs": plain(self.pairs),
            "chi_square": plain(self.chi_square),
            "mean chi_square": plain(float(self.chi_square.mean())),
            "grids": plain(self.grids),
        }


@dataclass(frozen=True, eq=False)
class EmbeddingAudit:
    """How embeddings of images fill their space; numbers that need what was not given are none.

    rankme         exp of the entropy of the singular values: how many dims are in use (Garrido et al. 2023)
    alpha_req      exponent of the decay of the covariance's eigenvalues, over `alpha_range` (Agrawal et al. 2022)
    uniformity     log of the mean Gaussian kernel between directions; -4 is the sphere's limit (Wang & Isola 2020)
    spread         mean deviation of the directions' dims times sqrt(d): 1 all over the sphere, 0 for a constant
    cosine         mean cosine of two images
    correlation    mean absolute correlation of two dims
    alignment      mean squared distance between directions of two views of an image (Wang & Isola 2020)
    lidar          rank of what tells images apart from their views' jitter (Thilak et al. 2024)
    agreement      share of images whose nearest other image has the same label
    """

    images: int
    dims: int
    neighbors: Mapping[str, NeighborDistances]  # by space: "raw", "unit" (directions), "sigmoid"
    marginals: Marginals
    rankme: float
    alpha_req: float | None
    alpha_range: tuple[int, int] | None
    eigenvalues: Float[Tensor, " r"] = field(repr=False)  # of the covariance, from the largest, float64
    uniformity: float
    spread: float
    cosine: float
    correlation: float
    norms: Float[Tensor, " n"] = field(repr=False)
    alignment: float | None
    lidar: float | None
    agreement: float | None
    seed: int

    @property
    def entropy(self) -> float:
        """The mean over dims of the m-spacings entropy."""
        return float(self.marginals.entropy.mean())

    @property
    def chi_square(self) -> float:
        """The mean over pairs of dims."""
        return float(self.marginals.chi_square.mean())

    def as_dict(self) -> dict[str, Any]:
        numbers = (
            "images", "dims", "rankme", "alpha_req", "alpha_range", "uniformity", "spread", "cosine", "correlation",
            "alignment", "lidar", "agreement", "seed", "neighbors", "marginals", "eigenvalues",
        )  # fmt: skip
        return {name: plain(getattr(self, name)) for name in numbers} | {"norms": quantiles(self.norms)}

    def __str__(self) -> str:
        return (
            f"{self.images:,} images in {self.dims:,} dims: RankMe {self.rankme:.1f}, "
            f"uniformity {self.uniformity:.3f}, spread {self.spread:.3f}"
        )
