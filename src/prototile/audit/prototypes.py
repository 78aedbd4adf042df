"""Prototypes as they are, without any image: how many are real, how redundant, how far apart.

    audit_prototypes(weights)    a `PrototypeAudit`: unique prototypes, the sweep over epsilon, neighbours, norms, rank

k prototypes, d dims, m unique ones.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.audit.cover import EPSILON, Unique, unique
from prototile.audit.plain import Histogram, plain, quantiles

__all__ = ["EPSILON", "SWEEP", "Group", "PrototypeAudit", "Unique", "unique"]

SWEEP = (0.001, 0.005, 0.01, EPSILON, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class Group:
    """A representative and how many prototypes it stands for; `members` are the first of them, itself included."""

    part: int  # its number among the parts of the cover
    representative: int
    size: int
    members: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class PrototypeAudit:
    """Prototypes as directions and norms; distances are cosine distances, 1 - cos.

    `in_order` is M of the greedy cover in the order of indices, which others may have published. `duplicates` counts
    pairs of prototypes that float32 cannot tell apart. `effective_rank` is exp of the entropy of the directions'
    singular values (Roy & Vetterli 2007).
    """

    prototypes: int
    dims: int
    unique: Unique
    in_order: int
    sweep: tuple[tuple[float, int], ...]  # epsilon and M
    nearest: Float[Tensor, " k"] = field(repr=False)  # cosine distance to the nearest other prototype
    nearest_index: Int[Tensor, " k"] = field(repr=False)
    duplicates: int
    effective_rank: float
    norms: Float[Tensor, " k"] = field(repr=False)  # all 1 where prototypes are normalised
    temperature: float | None = None  # of the student, where it is known

    @property
    def count(self) -> int:
        """M, the number of unique prototypes."""
        return self.unique.count

    @property
    def share(self) -> float:
        """M / K."""
        return self.count / self.prototypes

    @property
    def concentrations(self) -> Float[Tensor, " k"] | None:
        """kappa = norm / temperature, of the von Mises-Fisher distributions that prototypes with norms stand for."""
        return None if self.temperature is None else self.norms / self.temperature

    @property
    def alike(self) -> bool:
        """Whether all prototypes have the same norm, up to rounding."""
        return float(self.norms.max() - self.norms.min()) <= 1e-4 * float(self.norms.max())

    def redundancies(self) -> tuple[tuple[int, int, int], ...]:
        """Unique prototypes by redundancy factor, in bins that double: (least, greatest factor, how many)."""
        counts = torch.bincount(torch.floor(torch.log2(self.unique.redundancy.double())).long())
        return tuple((2**i, 2 ** (i + 1) - 1, count) for i, count in enumerate(counts.tolist()))

    def largest(self, count: int = 20, *, members: int = 20) -> tuple[Group, ...]:
        """The largest groups of prototypes that one stands for, the first found among equals."""
        sizes, parts = self.unique.redundancy.sort(descending=True, stable=True)
        found = []
        for size, part in zip(sizes[:count].tolist(), parts[:count].tolist(), strict=True):
            same = (self.unique.labels == part).nonzero().flatten()[:members].tolist()
            found.append(Group(part, int(self.unique.representatives[part]), size, tuple(same)))
        return tuple(found)

    def distances(self, bins: int = 60) -> Histogram:
        """Of log10 of the nearest distances, which are taken as at least 1e-7."""
        return Histogram.of(self.nearest.clamp(min=1e-7).log10(), bins, -7, math.log10(2))

    def as_dict(self) -> dict[str, Any]:
        """As plain numbers and lists; the nearest distances of all prototypes as a histogram."""
        return {
            "prototypes": self.prototypes,
            "dims": self.dims,
            "unique": self.count,
            "share": plain(self.share),
            "in_order": self.in_order,
            "sweep": [{"epsilon": epsilon, "unique": count} for epsilon, count in self.sweep],
            "duplicates": self.duplicates,
            "effective_rank": plain(self.effective_rank),
            "temperature": plain(self.temperature),
            "norms": quantiles(self.norms),
            "nearest": quantiles(self.nearest),
            "log10 nearest": plain(self.distances()),
            "redundancies": [{"from": a, "to": b, "unique": count} for a, b, count in self.redundancies()],
            "largest": plain(self.largest()),
            "cover": self.unique.as_dict(),
        }

    def __str__(self) -> str:
        return (
            f"{self.count:,} of {self.prototypes:,} prototypes are unique ({self.share:.1%}), "
            f"effective rank {self.effective_rank:.1f} of {self.dims:,} dims"
        )
