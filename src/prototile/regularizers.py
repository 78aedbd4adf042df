r"""Regularisers: penalties on the marginal, on prototypes or on embeddings. All are minimised; weights are outside.

    regulariser            of                              penalises                                     where
    MatchPrior             marginal                        KL(p_bar || pi); uniform = ME-MAX             MSN, PMSN
    KoLeo                  prototypes or embeddings        rows close to their nearest neighbour         KoLeo-proto
    EffectiveEntropy       projections, before L2          low entropy and covariance of mapped dims     E2MC
    VarianceCovariance     projections or unit vectors     small spread per dim, correlated dims         VICReg
    Uniformity             unit vectors                    pairs that are close                          AUH
    ManifoldCapacity       unit vectors of all views       a small nuclear norm of the centroids         MMCR

n images, v views, d dims, k prototypes. Those over embeddings use the rows of all ranks (KoLeo, as published, its own
rank's). Each class is a thin shell around a function of tensors; all compute in at least float32.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prototile import distributed
from prototile.autograd import scaled
from prototile.losses.redundancy import covariance, variance_hinge
from prototile.neighbors import nearest
from prototile.precision import KeepsDtype, full_precision, wide
from prototile.priors import checked_prior
from prototile.sphere import pull_back_, unit_rows

_ROWS = 4096  # of which differences are held at a time


class Regularizer(nn.Module, ABC):
    """A penalty: a tensor in, a number to minimise out."""

    @abstractmethod
    def forward(self, x: Tensor) -> Float[Tensor, ""]: ...


class MatchPrior(KeepsDtype, Regularizer):
    r"""$D_{KL}(\bar p \,\|\, \pi)$ of the marginal (Assran et al. 2023, equation 9).

    For a uniform prior it is MSN's ME-MAX, log K - H(p_bar). Zero exactly where the marginal is the prior; infinite
    where a prototype with prior zero has mass.
    """

    def __init__(self, prior: Float[Tensor, " k"]):
        super().__init__()
        self.prior: Tensor
        self.register_buffer("prior", checked_prior(prior).clone())

    def forward(self, x: Float[Tensor, " k"]) -> Float[Tensor, ""]:
        """Of the mean assignment, `Assignments.mean()`."""
        return match_prior(x, self.prior)


class KoLeo(Regularizer):
    r"""$-\frac1n \sum_i \log \min_{j \ne i} \|x_i - x_j\|$ of normalised rows: spreads them (Sablayrolles et al. 2019).

    KoLeo-proto (Govindarajan et al. 2024, equation 5 and appendix A.3) applies it to prototypes, in random
    partitions of 2,048 whose values are *summed* by default, as printed; `reduction="mean"` makes the value
    comparable for any K. `partition=None` searches all rows exactly, in bounded memory. DINOv2 applies it to the
    backbone's class tokens of one view, without partitions.

    Partitions are drawn from the number of calls so far, a buffer: the same on all ranks, resumable. See `koleo`
    for what happens to exact duplicates; `duplicates` counts those that the last call met.
    """

    def __init__(self, *, partition: int | None = 2048, reduction: Literal["sum", "mean"] = "sum"):
        super().__init__()
        if partition is not None and partition < 2:
            raise ValueError(f"a partition needs at least two rows, got {partition}")
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
        self.partition, self.reduction = partition, reduction
        self.calls: Tensor
        self.duplicates: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("duplicates", torch.zeros((), dtype=torch.long), persistent=False)

    def forward(self, x: Float[Tensor, "k d"]) -> Float[Tensor, ""]:
        """Of prototypes (their direction counts, not their norm) or of one view's embeddings."""
        generator = torch.Generator().manual_seed(int(self.calls))
        self.calls += 1
        parts = [None]
        if self.partition is not None and len(x) > self.partition:
            order = torch.randperm(len(x), generator=generator).to(x.device)
            parts = list(order.split(_partition_sizes(len(x), self.partition)))
        total, duplicates = _koleo(x, parts, 1e-8, generator)
        self.duplicates.copy_(duplicates)
        return total if self.reduction == "sum" else total / len(parts)


class EffectiveEntropy(Regularizer):
    r"""Effective entropy maximisation: $-\beta H + \gamma C$ of mapped projections (E2MC, Chakraborty et al. 2025).

    Projections *before* L2 normalisation are mapped into (0, 1), by the normal distribution function where the
    method normalises them afterwards (`space="hypersphere"`: SwAV, SimSiam) or by a sigmoid (`"hypercube"`:
    VICReg). H is the mean over dims of the m-spacings entropy, C the off-diagonal covariance per dim. The entropies
    of the views are averaged, as in the official code (`reduction="sum"`: as printed, twice as strong for two
    views); covariances are summed.
    """

    def __init__(
        self,
        *,
        beta: float = 1.0,
        gamma: float = 25.0,
        space: Literal["hypersphere", "hypercube"] = "hypersphere",
        reduction: Literal["mean", "sum"] = "mean",
        eps: float = torch.finfo(torch.float32).eps,
    ):
        super().__init__()
        if space not in ("hypersphere", "hypercube"):
            raise ValueError(f"space must be 'hypersphere' or 'hypercube', got {space!r}")
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
        self.beta, self.gamma, self.reduction, self.eps = beta, gamma, reduction, eps
        self.space: Literal["hypersphere", "hypercube"] = space

    def forward(self, x: Float[Tensor, "v n d"]) -> Float[Tensor, ""]:
        """Of the full-size views' projections."""
        _views_by_rows(x)
        mapped = [unit_interval(_all_rows(view), self.space) for view in x]
        entropies = torch.stack([spacings_entropy(u, eps=self.eps).mean() for u in mapped])
        entropy = entropies.mean() if self.reduction == "mean" else entropies.sum()
        return self.gamma * torch.stack([covariance(u) for u in mapped]).sum() - self.beta * entropy


class VarianceCovariance(Regularizer):
    r"""$\mu \sum_v \mathrm{var}(z_v) / V + \nu \sum_v \mathrm{cov}(z_v)$, VICReg's two spread terms as an add-on.

    In projector space the wished standard deviation is 1; with `space="hypersphere"` the rows are normalised and it is
    1 / sqrt(d). Defaults are those of the E2MC paper (appendix A.1).
    """

    def __init__(
        self, *, mu: float = 0.1, nu: float = 0.001, space: Literal["hypersphere", "projector"] = "hypersphere"
    ):
        super().__init__()
        if space not in ("hypersphere", "projector"):
            raise ValueError(f"space must be 'hypersphere' or 'projector', got {space!r}")
        self.mu, self.nu, self.space = mu, nu, space

    def forward(self, x: Float[Tensor, "v n d"]) -> Float[Tensor, ""]:
        """Of the full-size views' projections, before L2 normalisation."""
        _views_by_rows(x)
        target = 1.0
        if self.space == "hypersphere":
            x, target = F.normalize(wide(x), dim=-1), x.shape[-1] ** -0.5
        views = [_all_rows(view) for view in x]
        spread = torch.stack([variance_hinge(view, target) for view in views])
        return self.mu * spread.mean() + self.nu * torch.stack([covariance(view) for view in views]).sum()


class Uniformity(Regularizer):
    r"""$\log \mathrm{mean}_{i<j} \exp(-t \|z_i - z_j\|^2)$, averaged over views (Wang & Isola 2020; AUH)."""

    def __init__(self, *, t: float = 2.0):
        super().__init__()
        self.t = t

    def forward(self, x: Float[Tensor, "v n d"]) -> Float[Tensor, ""]:
        """Of the full-size views; rows are normalised here."""
        _views_by_rows(x)
        return torch.stack([uniformity(_all_rows(view), self.t) for view in x]).mean()


class ManifoldCapacity(Regularizer):
    r"""$-\|C\|_*$, the nuclear norm of the images' centroids over all views (MMCR, Yerxa et al. 2023)."""

    def forward(self, x: Float[Tensor, "v n d"]) -> Float[Tensor, ""]:
        """Of all views, local ones too; rows are normalised here, centroids are not. It grows with the batch.

        Images with a number that is not finite in any view are left out (as zero centroids, which add nothing).
        """
        _views_by_rows(x)
        finite = x.isfinite().all(-1).all(0)[None, :, None]
        return manifold_capacity(_all_rows(F.normalize(wide(torch.where(finite, x, 0)), dim=-1).mean(0)))


# ------------------------------------------------------------------------------------------------- functions
@full_precision
def match_prior(mean: Float[Tensor, " k"], prior: Float[Tensor, " k"]) -> Float[Tensor, ""]:
    """KL(mean || prior)."""
    if len(mean) != len(prior):
        raise ValueError(f"the marginal is over {len(mean)} prototypes but the prior over {len(prior)}")
    log_mean = mean.clamp(min=torch.finfo(mean.dtype).tiny).log()  # a mean may underflow, and its gradient be finite
    return (mean * log_mean - torch.xlogy(mean, prior.to(mean))).sum()


def koleo(x: Float[Tensor, "k d"], *, eps: float = 1e-8) -> Float[Tensor, ""]:
    """-mean log of the distance to the nearest other row, after L2 normalisation.

    The neighbour is found without gradient, its row receives one. `eps` enters as in DINOv2's code: under the norm,
    in every component of the difference, and in the logarithm; 0 gives the printed formula. Rows closer than 1e-6
    to their neighbour would get opposite gradients that cancel, for ever: they are moved by noise of 1e-4 before
    the distance is taken, which pulls exact duplicates apart.
    """
    return _koleo(x, [None], eps, torch.Generator().manual_seed(0))[0]


@full_precision
def _koleo(x: Tensor, parts: Sequence[Tensor | None], eps: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The sum over these parts of the rows (None: all), and how many rows have an exact duplicate."""
    if len(x) < 2:
        raise ValueError(f"KoLeo needs at least two rows, got {len(x)}")
    return _KoLeo.apply(x, parts, eps, generator)  # type: ignore[return-value]


class _KoLeo(torch.autograd.Function):
    """Block by block, with the gradient formed on the way: beside it, one copy of the rows and no k x k matrix."""

    @staticmethod
    def forward(ctx, x: Tensor, parts: Sequence[Tensor | None], eps: float, generator: torch.Generator):
        unit, norm, bounded = unit_rows(x, eps)
        neighbor, weight = _neighbors_and_weights(unit, parts)
        everyone = torch.arange(len(unit), device=unit.device)
        distance = torch.cat([_difference(unit, rows, neighbor, eps)[1] for rows in everyone.split(_ROWS)])
        duplicate = distance < 1e-6
        gradient = torch.zeros_like(unit) if ctx.needs_input_grad[0] else None
        total = _add_logs(unit, everyone[~duplicate], neighbor, weight, eps, gradient)
        alike = everyone[duplicate]
        if len(alike):
            involved = torch.unique(torch.cat([alike, neighbor[alike]]))  # sorted; both ends of every such pair
            noise = torch.randn(len(involved), unit.shape[1], generator=generator, dtype=unit.dtype).to(unit.device)
            moved, own = unit[involved] + 1e-4 * noise, torch.zeros_like(unit[involved])
            partner = torch.searchsorted(involved, neighbor[involved].clamp(max=int(involved[-1])))
            rows = torch.searchsorted(involved, alike)
            total += _add_logs(moved, rows, partner, weight[involved], eps, own)
            if gradient is not None:
                gradient.index_add_(0, involved, own)
        ctx.save_for_backward(None if gradient is None else pull_back_(gradient, unit, norm, bounded))
        ctx.mark_non_differentiable(count := duplicate.sum())
        return total, count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _: Tensor):
        return *scaled(ctx.saved_tensors, grad), None, None, None


def _neighbors_and_weights(unit: Tensor, parts: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Every row's nearest other row within its part, and one over the size of that part."""
    if parts[0] is None:
        return nearest(unit)[0], unit.new_full((len(unit),), 1 / len(unit))
    neighbor = torch.empty(len(unit), dtype=torch.long, device=unit.device)
    weight = unit.new_empty(len(unit))
    for part in parts:
        assert part is not None
        neighbor[part] = part[nearest(unit[part])[0]]
        weight[part] = 1 / len(part)
    return neighbor, weight


def _add_logs(
    unit: Tensor, rows: Tensor, neighbor: Tensor, weight: Tensor, eps: float, gradient: Tensor | None
) -> Tensor:
    """-sum weight log(distance) of these rows; its derivative is added to the gradient of both ends."""
    total = unit.new_zeros(())
    for part in rows.split(_ROWS):
        difference, distance = _difference(unit, part, neighbor, eps)
        total -= weight[part] @ (distance + eps).log()
        if gradient is not None:
            difference *= (-weight[part] / (distance * (distance + eps)))[:, None]
            gradient.index_add_(0, part, difference)
            gradient.index_add_(0, neighbor[part], difference, alpha=-1)
    return total


def _difference(unit: Tensor, rows: Tensor, neighbor: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    difference = unit[rows] - unit[neighbor[rows]] + eps
    return difference, torch.linalg.vector_norm(difference, dim=-1)


def _partition_sizes(count: int, size: int) -> list[int]:
    """Sizes that add up to `count`; a last one of a single row joins the one before."""
    sizes = [min(size, count - start) for start in range(0, count, size)]
    if len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


@full_precision
def unit_interval(z: Float[Tensor, "n d"], space: Literal["hypersphere", "hypercube"]) -> Float[Tensor, "n d"]:
    """Every number mapped into (0, 1): by the standard normal distribution function, or by a sigmoid."""
    return 0.5 * (1 + torch.erf(z / math.sqrt(2))) if space == "hypersphere" else torch.sigmoid(z)


@full_precision
def spacings_entropy(u: Float[Tensor, "n d"], *, eps: float = 1e-7) -> Float[Tensor, " d"]:
    r"""Vasicek's m-spacings entropy of every dim, m = round(sqrt(n)) (E2MC, equation 2.4).

    $\frac{1}{n-m} \sum_i \log(\frac{n+1}{m} (u_{(i+m)} - u_{(i)}) + \epsilon)$; about 0 for uniform numbers in (0, 1).
    """
    n = len(u)
    m = round(n**0.5)
    if n - m < 1:
        raise ValueError(f"the spacings entropy needs at least two rows, got {n}")
    ordered = u.sort(0).values
    return ((n + 1) / m * (ordered[m:] - ordered[:-m]) + eps).log().mean(0)


@full_precision
def uniformity(z: Float[Tensor, "n d"], t: float = 2.0) -> Float[Tensor, ""]:
    """log of the mean Gaussian kernel over all pairs of different rows, after L2 normalisation."""
    if len(z) < 2:
        raise ValueError(f"uniformity needs at least two rows, got {len(z)}")
    squared = torch.pdist(F.normalize(z, dim=-1)).square()
    return (-t * squared).logsumexp(0) - math.log(len(squared))


@full_precision
def manifold_capacity(centroids: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Minus the nuclear norm."""
    return -torch.linalg.svdvals(centroids).sum()


def _views_by_rows(x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.ndim != 3:
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"embeddings must be a tensor, views x rows x dims, got {shape}: stack the views")


def _all_rows(z: Tensor) -> Tensor:
    return distributed.gather(wide(z))
