"""Losses that decorrelate dims. n images, d dims."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prototile import distributed
from prototile.precision import full_precision, same_shape


class VICReg(NamedTuple):
    """The total and its unweighted parts."""

    loss: Float[Tensor, ""]
    invariance: Float[Tensor, ""]
    variance: Float[Tensor, ""]
    covariance: Float[Tensor, ""]


@full_precision
def vicreg(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "n d"],
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
) -> VICReg:
    r"""25 mse + 25 (variance hinges, averaged over views) + 1 (covariances, summed) (Bardes et al. 2022).

    The mean squared error is over rows and dims of this rank; the other two see all ranks. Needs two rows.
    """
    same_shape(a, b)
    mse = (a - b).square().mean()
    views = [distributed.gather(view) for view in (a, b)]
    hinge = (variance_hinge(views[0]) + variance_hinge(views[1])) / 2
    cov = covariance(views[0]) + covariance(views[1])
    total = invariance_weight * mse + variance_weight * hinge + covariance_weight * cov
    return VICReg(total, mse, hinge, cov)


@full_precision
def barlow_twins(
    a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], redundancy: float = 0.005, *, eps: float = 1e-5
) -> Float[Tensor, ""]:
    r"""$\sum_i (C_{ii} - 1)^2 + \lambda \sum_{i \ne j} C_{ij}^2$, C the cross-correlation (Zbontar et al. 2021).

    Each dim is standardised over the batch of all ranks, with the biased variance. Needs two rows.
    """
    same_shape(a, b)
    a, b = (_standardized(distributed.gather(view), eps) for view in (a, b))
    correlation = a.T @ b / len(a)
    on = torch.diagonal(correlation)
    off = correlation.square().sum() - on.square().sum()
    return (on - 1).square().sum() + redundancy * off


@full_precision
def covariance(z: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """The squared off-diagonal covariances (with 1 / (n - 1)), summed, per dim."""
    z = _centred(z)
    products = z.T @ z / (len(z) - 1)
    return (products.square().sum() - products.diagonal().square().sum()) / z.shape[1]


@full_precision
def variance_hinge(z: Float[Tensor, "n d"], target: float = 1.0, *, eps: float = 1e-4) -> Float[Tensor, ""]:
    """mean_j relu(target - sqrt(var_j + eps)), with the unbiased variance over the batch."""
    variance = _centred(z).square().sum(0) / (len(z) - 1)
    return F.relu(target - (variance + eps).sqrt()).mean()


def _centred(z: Tensor) -> Tensor:
    if len(z) < 2:
        raise ValueError(f"a variance needs at least two rows, got {len(z)}: use a larger batch")
    return z - z.mean(0)


def _standardized(z: Tensor, eps: float) -> Tensor:
    if len(z) < 2:
        raise ValueError(f"standardising over the batch needs at least two rows, got {len(z)}")
    return (z - z.mean(0)) / (z.var(0, correction=0) + eps).sqrt()
