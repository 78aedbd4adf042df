"""Embeddings: how they fill their space, with one row per image.

n images, d dims, v views of each image, q of the images that neighbours are looked up for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.audit.distances import NeighborDistances, neighbor_distances
from prototile.audit.marginals import Marginals, audit_marginals
from prototile.audit.plain import plain, quantiles
from prototile.audit.spectrum import chunks, effective_rank, rankme
from prototile.precision import no_autocast, no_tf32, wide
from prototile.sphere import normalize

Space = Literal["raw", "unit", "sigmoid"]

AT_MOST = 50_000  # images that are looked at: as many as the published figures have, and ranks are settled far earlier
KERNEL = 10_000  # images of which all pairs are taken for the uniformity

_LIDAR_EPS, _LIDAR_DELTA = 1e-7, 1e-4  # the papers'
_ALPHA = (11, 100)  # the first ranks are few and special, the last are noise
_ALPHA_LEAST = 30  # eigenvalues, for a fit to mean something
_BLOCK = 1024


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
    sampled: int | None = None  # how many images were looked at, where there are too many

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
            "alignment", "lidar", "agreement", "seed", "sampled", "neighbors", "marginals", "eigenvalues",
        )  # fmt: skip
        return {name: plain(getattr(self, name)) for name in numbers} | {"norms": quantiles(self.norms)}

    def __str__(self) -> str:
        return (
            f"{self.images:,} images in {self.dims:,} dims: RankMe {self.rankme:.1f}, "
            f"uniformity {self.uniformity:.3f}, spread {self.spread:.3f}"
        )


@torch.no_grad()
@no_autocast
@no_tf32
def audit_embeddings(
    x: Float[Tensor, "n d"],
    *,
    views: Float[Tensor, "v n d"] | None = None,
    labels: Int[Tensor, " n"] | None = None,
    space: Literal["hypersphere", "hypercube"] = "hypersphere",
    spaces: Sequence[Space] = ("raw", "unit", "sigmoid"),
    at_most: int = AT_MOST,
    seed: int = 0,
) -> EmbeddingAudit:
    """Of embeddings before any normalisation; `views` are those of augmented views of the same images.

    `space` says how E2MC's measures map them into (0, 1) (regularizers.EffectiveEntropy), `spaces` in which distances
    are taken. Of more than `at_most` images a sample is looked at, drawn by `seed`.
    """
    if len(x) < 2:
        raise ValueError(f"an audit of embeddings needs at least two images, got {len(x)}")
    for name, given in (("labels", labels), ("views", None if views is None else views[0])):
        if given is not None and len(given) != len(x):
            raise ValueError(f"there are {name} of {len(given)} images, and embeddings of {len(x)}")
    images = len(x)
    if images > at_most:
        rows = torch.randperm(images, generator=torch.Generator().manual_seed(seed))[:at_most].sort().values
        x, labels = x[rows], None if labels is None else labels[rows]
        views = None if views is None else views[:, rows]
    x = wide(x.detach())
    if not bool(x.isfinite().all()):
        raise ValueError("the embeddings hold NaN or infinity: the network has diverged")
    unit = normalize(x)
    neighbors, agreement = _neighbors(x, unit, spaces, labels)
    moments = _Moments(x)
    eigenvalues = moments.eigenvalues()
    alpha, used = _decay(eigenvalues)
    cosine = (unit.double().sum(0).square().sum() - unit.double().square().sum()) / (len(x) * (len(x) - 1))
    return EmbeddingAudit(
        images=images,
        dims=x.shape[1],
        neighbors=neighbors,
        marginals=audit_marginals(x, space, seed=seed),
        rankme=rankme(moments.products),
        alpha_req=alpha,
        alpha_range=used,
        eigenvalues=eigenvalues,
        uniformity=_uniformity(unit, seed),
        spread=float(unit.double().std(0, correction=0).mean()) * math.sqrt(x.shape[1]),
        cosine=float(cosine),
        correlation=moments.correlation(),
        norms=torch.linalg.vector_norm(x, dim=1).cpu(),
        alignment=None if views is None else alignment_of(views),
        lidar=None if views is None else lidar(views),
        agreement=agreement,
        seed=seed,
        sampled=len(x) if len(x) < images else None,
    )


def _neighbors(
    x: Tensor, unit: Tensor, spaces: Sequence[Space], labels: Tensor | None
) -> tuple[dict[str, NeighborDistances], float | None]:
    """Distances in each space, and how often the nearest direction has the same label."""
    found, nearest = {}, None
    for name in spaces:
        rows = {"raw": x, "unit": unit, "sigmoid": x.sigmoid() if name == "sigmoid" else x}[name]
        found[name], index = neighbor_distances(rows)
        nearest = index if name == "unit" else nearest
    if labels is None:
        return found, None
    nearest = neighbor_distances(unit, 1)[1] if nearest is None else nearest
    labels = labels.cpu()
    known = (labels >= 0) & (labels[nearest] >= 0)
    return found, float((labels == labels[nearest])[known].double().mean()) if bool(known.any()) else None


class _Moments:
    """Sums of products of the rows, as they are and about their mean; in float64."""

    def __init__(self, x: Float[Tensor, "n d"]):
        self.rows, self.mean = len(x), x.double().mean(0).cpu()
        self.products, self.covariance = (torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64) for _ in range(2))
        for part in chunks(x):
            self.products += (part.T @ part).cpu()
            part = part - self.mean.to(part)
            self.covariance += (part.T @ part).cpu() / (self.rows - 1)

    def eigenvalues(self) -> Float[Tensor, " r"]:
        return torch.linalg.eigvalsh(self.covariance).flip(0).clamp(min=0)[: self.rows - 1]

    def correlation(self) -> float:
        """The mean absolute correlation of two dims, of those that vary."""
        deviation = self.covariance.diagonal().sqrt()
        varying = deviation > 1e-12 * float(deviation.max())
        d = int(varying.sum())
        if d < 2:
            return 0.0
        scale = deviation[varying]
        ratio = self.covariance[varying][:, varying] / scale / scale[:, None]
        return float((ratio.abs().sum() - d) / (d * (d - 1)))


def _decay(eigenvalues: Float[Tensor, " r"]) -> tuple[float | None, tuple[int, int] | None]:
    """The exponent of a power law through eigenvalues, and the ranks that it is fitted to.

    Least squares on logarithmic axes, each rank weighted by one over itself: ranks count evenly along the axis.
    """
    count = int((eigenvalues > 1e-10 * eigenvalues[:1]).sum())
    if count < _ALPHA_LEAST:
        return None, None
    first, last = _ALPHA[0], min(_ALPHA[1], count)
    rank = torch.arange(first, last + 1, dtype=torch.float64)
    x, y, weight = rank.log(), eigenvalues[first - 1 : last].log(), 1 / rank
    x = x - (weight * x).sum() / weight.sum()
    return float(-(weight * x * y).sum() / (weight * x.square()).sum()), (first, last)


def _uniformity(unit: Float[Tensor, "n d"], seed: int) -> float:
    """log mean exp(-2 |a - b|^2) over pairs of different images (Wang & Isola 2020)."""
    rows = torch.randperm(len(unit), generator=torch.Generator().manual_seed(seed))[:KERNEL].sort().values
    x, total = unit[rows.to(unit.device)], 0.0
    for start in range(0, len(x), _BLOCK):
        for other in range(start, len(x), _BLOCK):
            kernel = ((x[start : start + _BLOCK] @ x[other : other + _BLOCK].T).clamp(max=1) * 4 - 4).exp()
            if start == other:
                kernel.fill_diagonal_(0)
            total += float(kernel.sum(dtype=torch.float64)) * (1 if start == other else 2)
    return math.log(total / (len(x) * (len(x) - 1)))


def alignment_of(views: Float[Tensor, "v n d"]) -> float:
    """Mean squared distance between the directions of two views of an image."""
    v = _several(views)
    total = 0.0
    for part in views.split(_BLOCK, 1):
        u = normalize(wide(part.detach()).flatten(0, 1)).view(part.shape).double()
        total += float(v * u.square().sum() - u.sum(0).square().sum())
    return total / (v * (v - 1) / 2) / views.shape[1]


@torch.no_grad()
def lidar(views: Float[Tensor, "v n d"]) -> float:
    r"""exp of the entropy of the eigenvalues of $\Sigma_w^{-1/2} \Sigma_b \Sigma_w^{-1/2}$ (Thilak et al. 2024).

    Between are images, within the views of one, each covariance with one degree of freedom less; 1e-4 is added to the
    diagonal within.
    """
    v, (n, d) = _several(views), views.shape[1:]
    if n < 2:
        raise ValueError(f"what tells images apart needs at least two of them, got {n}")
    within, between, total = (torch.zeros(d, size, dtype=torch.float64) for size in (d, d, 1))
    for part in views.split(max(1, 2**22 // (v * d)), 1):
        z = part.detach().double().cpu()
        mean = z.mean(0)
        total += mean.sum(0)[:, None]
        between += mean.T @ mean
        jitter = (z - mean).flatten(0, 1)
        within += jitter.T @ jitter
    between = (between - total @ total.T / n) / (n - 1)
    within = within / (n * (v - 1)) + _LIDAR_DELTA * torch.eye(d, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(within)
    whitening = vectors / values.sqrt()
    return effective_rank(torch.linalg.eigvalsh(whitening.T @ between @ whitening).clamp(min=0), _LIDAR_EPS)


def _several(views: Tensor) -> int:
    if views.ndim != 3 or len(views) < 2:
        raise ValueError(f"views must be at least two, views x images x dims, got {tuple(views.shape)}")
    return len(views)
