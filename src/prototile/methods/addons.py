"""Add-ons: a regulariser on what a method's student makes, with its weight; any number of them, on any method.

    add-on                  regulariser             of                                        paper
    koleo_proto             KoLeo                   the student's prototypes                  Govindarajan et al. 2024
    koleo_data              KoLeo                   pooled features, full-size views          DINOv2, Oquab et al. 2023
    e2mc                    EffectiveEntropy        projections, full-size views              Chakraborty et al. 2025
    vcreg                   VarianceCovariance      projections, full-size views              Bardes et al. 2022
    auh                     Uniformity              projections, full-size views              Wang & Isola 2020
    mmcr_term               ManifoldCapacity        projections, all views                    Yerxa et al. 2023

Projections are the projector's outputs before L2 normalisation. Each set of prototypes is one term (separate heads for
class and patch tokens: two). `full-size views` are those of the first group that the student sees.

n rows (v views x b images), d dims.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prototile import distributed
from prototile.heads import Prototypes
from prototile.regularizers import (
    EffectiveEntropy,
    KoLeo,
    ManifoldCapacity,
    Regularizer,
    Uniformity,
    VarianceCovariance,
)

Of = Literal["prototypes", "features", "projections", "all projections"]


class AddOn(nn.Module):
    """`weight` times a regulariser of something that the student makes."""

    def __init__(self, name: str, regularizer: Regularizer, of: Of, weight: float):
        super().__init__()
        if weight < 0:
            raise ValueError(f"the weight of {name} must not be negative, got {weight}")
        self.name, self.regularizer, self.of, self.weight = name, regularizer, of, weight

    def forward(
        self,
        prototypes: Sequence[Prototypes],
        features: Float[Tensor, "f b e"],
        projections: Float[Tensor, "v b d"],
    ) -> Float[Tensor, ""]:
        """The unweighted sum over what it is applied to; there are `f` full-size views."""
        terms = [self.regularizer(x) for x in self._inputs(prototypes, features, projections)]
        return torch.stack(terms).sum()

    def _inputs(self, prototypes: Sequence[Prototypes], features: Tensor, projections: Tensor) -> Iterator[Tensor]:
        if self.of == "prototypes":
            if not prototypes:
                raise ValueError(f"{self.name} is for methods with prototypes, and this one has none")
            yield from (distributed.whole(each.vectors) for each in prototypes)
        elif self.of == "features":
            yield from features
        else:
            yield projections[: len(features)] if self.of == "projections" else projections


def koleo_proto(weight: float = 0.1, *, partition: int | None = 2048) -> AddOn:
    """Spreads prototypes, so that no two become the same (Govindarajan et al. 2024, equation 5).

    Where they are shared out over ranks, each gathers all of them, K x d numbers, for the length of a step.
    """
    return AddOn("koleo_proto", KoLeo(partition=partition), "prototypes", weight)


def koleo_data(weight: float = 0.1) -> AddOn:
    """Spreads features within this rank's part of the batch, each full-size view by itself (Oquab et al. 2023)."""
    return AddOn("koleo_data", KoLeo(partition=None), "features", weight)


def e2mc(
    *, beta: float = 1.0, gamma: float = 25.0, space: Literal["hypersphere", "hypercube"] = "hypersphere"
) -> AddOn:
    """Effective entropy maximisation; the defaults are SwAV's (Chakraborty et al. 2025)."""
    return AddOn("e2mc", EffectiveEntropy(beta=beta, gamma=gamma, space=space), "projections", 1.0)


def vcreg(*, mu: float = 0.1, nu: float = 0.001, space: Literal["hypersphere", "projector"] = "hypersphere") -> AddOn:
    """Variance and covariance of projections (Bardes et al. 2022; weights of Chakraborty et al. 2025, A.1)."""
    return AddOn("vcreg", VarianceCovariance(mu=mu, nu=nu, space=space), "projections", 1.0)


def auh(weight: float = 0.5, *, t: float = 2.0) -> AddOn:
    """Uniformity on the sphere (Wang & Isola 2020)."""
    return AddOn("auh", Uniformity(t=t), "projections", weight)


def mmcr_term(weight: float = 0.005) -> AddOn:
    """The capacity of the images' manifolds (Yerxa et al. 2023)."""
    return AddOn("mmcr", ManifoldCapacity(), "all projections", weight)


class AddOns(nn.Module):
    """Several of them: their weighted sum, and each by name."""

    def __init__(self, add_ons: Sequence[AddOn] = ()):
        super().__init__()
        names = [add_on.name for add_on in add_ons]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"an add-on may be given once: {', '.join(sorted(twice))}; change its weight instead")
        self.each = nn.ModuleList(add_ons)

    def forward(
        self,
        prototypes: Sequence[Prototypes],
        features: Float[Tensor, "f b e"],
        projections: Float[Tensor, "v b d"],
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        total: Tensor | float = 0.0
        parts: dict[str, Tensor] = {}
        for add_on in self.each:
            assert isinstance(add_on, AddOn)
            parts[add_on.name] = add_on(prototypes, features, projections)
            total = total + add_on.weight * parts[add_on.name]
        return total, parts
