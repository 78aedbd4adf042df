"""Clusters: how images spread over prototypes, by assignments without any balancing.

n images, k prototypes, m unique ones, d dims.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.audit.labels import LabelAudit
from prototile.audit.mass import MassByRedundancy
from prototile.audit.plain import Histogram, plain, quantiles
from prototile.audit.power import PowerFit


@dataclass(frozen=True, eq=False)
class ClusterAudit:
    """How images spread over prototypes; `marginal` is the mean assignment, float64, `sizes` count most probable ones.

    `merged` ones are of assignments among the unique prototypes only, in the order of their representatives: of exact
    duplicates the first takes all images, so that the others look empty without being dead.
    """

    images: int
    prototypes: int
    temperature: float
    marginal: Float[Tensor, " k"] = field(repr=False)
    sizes: Int[Tensor, " k"] = field(repr=False)
    entropy: float  # mean over images, in nats
    confidence: float  # mean probability of the most probable prototype
    entropies: Histogram = field(repr=False)  # of the images, as shares of ln K
    confidences: Histogram = field(repr=False)
    assigned: Int[Tensor, " n"] = field(repr=False)
    scores: Float[Tensor, " n"] = field(repr=False)  # probability of the assigned prototype
    prior: Float[Tensor, " k"] | None = field(repr=False)
    power: PowerFit | None  # of the sizes; none where fewer than three clusters have images
    marginal_power: PowerFit | None  # of the marginal
    representatives: Int[Tensor, " m"] = field(repr=False)
    redundancy: Int[Tensor, " m"] = field(repr=False)
    merged_assigned: Int[Tensor, " n"] = field(repr=False)  # numbers of unique prototypes, 0 to m - 1
    merged_sizes: Int[Tensor, " m"] = field(repr=False)
    merged_marginal: Float[Tensor, " m"] = field(repr=False)  # mean assignment among unique ones
    mass: MassByRedundancy  # of merged sizes
    soft_mass: MassByRedundancy  # of the merged marginal
    labels: LabelAudit | None  # of `assigned`
    merged_labels: LabelAudit | None  # of `merged_assigned`
    merged_power: PowerFit | None = None  # of `merged_sizes`, as `power`

    @property
    def empty(self) -> int:
        """Prototypes that are no image's most probable one."""
        return int((self.sizes == 0).sum())

    @property
    def merged_empty(self) -> int:
        """Unique prototypes without an image when images may go to unique ones only."""
        return int((self.merged_sizes == 0).sum())

    @property
    def empty_by_chance(self) -> float:
        """Prototypes that so many images at random would leave empty: K (1 - 1/K)^n, about K exp(-n/K)."""
        return self.prototypes * left_empty(self.images, self.prototypes)

    @property
    def merged_empty_by_chance(self) -> float:
        unique = len(self.merged_sizes)
        return unique * left_empty(self.images, unique)

    @property
    def relative_sizes(self) -> Float[Tensor, " k"]:
        """Sizes over their mean, sorted from the largest: N_c K / N."""
        return self.sizes.sort(descending=True).values.double() * (self.prototypes / self.images)

    @property
    def largest(self) -> float:
        """The largest size over the mean size."""
        return float(self.sizes.max()) * self.prototypes / self.images

    @property
    def gini(self) -> float:
        """Gini coefficient of the sizes: 0 where all are equal, 1 - 1/K where one prototype has all."""
        ordered = self.sizes.sort().values.double()
        rank = torch.arange(1, self.prototypes + 1, dtype=torch.float64)
        return float((2 * rank - self.prototypes - 1) @ ordered / (self.prototypes * ordered.sum()))

    @property
    def marginal_entropy(self) -> float:
        """Entropy of the marginal, in nats; ln K is uniform."""
        return float(-torch.xlogy(self.marginal, self.marginal).sum())

    @property
    def effective(self) -> float:
        """The effective number of prototypes, exp of the marginal's entropy."""
        return math.exp(self.marginal_entropy)

    @property
    def faint(self) -> int:
        """Prototypes with less than a tenth of their fair share of the marginal."""
        return int((self.marginal < 0.1 / self.prototypes).sum())

    @property
    def to_uniform(self) -> float:
        """KL(marginal || uniform) = ln K less the marginal's entropy."""
        return max(math.log(self.prototypes) - self.marginal_entropy, 0.0)

    @property
    def distance_to_uniform(self) -> float:
        """Total variation between marginal and uniform."""
        return float((self.marginal - 1 / self.prototypes).abs().sum() / 2)

    @property
    def to_prior(self) -> float | None:
        """KL(marginal || prior), prototype by prototype, as the prior's term of a loss has it."""
        if self.prior is None:
            return None
        return float((torch.xlogy(self.marginal, self.marginal) - torch.xlogy(self.marginal, self.prior)).sum())

    @property
    def distance_to_prior(self) -> float | None:
        """Total variation, prototype by prototype."""
        return None if self.prior is None else float((self.marginal - self.prior).abs().sum() / 2)

    @property
    def sorted_distance_to_prior(self) -> float | None:
        """Total variation of the sorted marginal and the sorted prior: the shape alone, whoever has which share."""
        if self.prior is None:
            return None
        ordered = (x.sort(descending=True).values for x in (self.marginal, self.prior))
        return float((next(ordered) - next(ordered)).abs().sum() / 2)

    def members(self, prototype: int, count: int, *, seed: int = 0, merged: bool = False) -> Int[Tensor, " members"]:
        """At most so many images of a prototype: half those with the highest probability, half any others, seeded."""
        owner = self.merged_assigned if merged else self.assigned
        images = (owner == prototype).nonzero().flatten()
        best = images[self.scores[images].argsort(descending=True, stable=True)]
        top, rest = best[: (count + 1) // 2], best[(count + 1) // 2 :]
        drawn = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[: count // 2]
        return torch.cat([top, rest[drawn]])

    def as_dict(self) -> dict[str, Any]:
        numbers = (
            "images", "prototypes", "temperature", "entropy", "confidence", "empty", "empty_by_chance", "merged_empty",
            "merged_empty_by_chance", "largest", "gini", "marginal_entropy", "effective", "faint", "to_uniform",
            "distance_to_uniform", "to_prior", "distance_to_prior", "sorted_distance_to_prior", "power",
            "marginal_power", "merged_power", "mass", "soft_mass", "labels", "merged_labels", "entropies",
            "confidences", "sizes", "marginal", "merged_sizes", "merged_marginal", "representatives", "redundancy",
        )  # fmt: skip
        return {name: plain(getattr(self, name)) for name in numbers} | {
            "relative sizes": quantiles(self.relative_sizes)
        }

    def __str__(self) -> str:
        return (
            f"{self.images:,} images over {self.prototypes:,} prototypes: {self.empty:,} empty, the largest "
            f"{self.largest:.1f} times the mean, effectively {self.effective:,.0f} in use"
        )


def left_empty(images: int, bins: int) -> float:
    """The chance that images at random leave a bin empty."""
    return math.exp(images * math.log1p(-1 / bins)) if bins > 1 else 0.0
