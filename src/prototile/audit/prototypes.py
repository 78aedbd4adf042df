"""Prototypes as they are, without any image: how many are real, how redundant, how far apart.

    audit_prototypes(weights)    a `PrototypeAudit`: unique prototypes, the sweep over epsilon, neighbours, norms, rank

k prototypes, d dims, m unique ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.audit.cover import EPSILON, Unique, checked_directions, cover
from prototile.audit.plain import Histogram, plain, quantiles
from prototile.audit.spectrum import effective_rank, products_of, singular_values
from prototile.audit.triangle import closeness
from prototile.precision import no_autocast, no_tf32, wide

SWEEP = (0.001, 0.005, 0.01, EPSILON, 0.05, 0.1, 0.2, 0.5)
DUPLICATE = 1e-6  # cosine distance below which float32 products cannot tell two directions apart

_ROWS = 4096  # of which differences are held at a time


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


@torch.no_grad()
@no_autocast
@no_tf32
def audit_prototypes(
    weights: Float[Tensor, "k d"],
    epsilon: float = EPSILON,
    *,
    epsilons: Sequence[float] = SWEEP,
    temperature: float | None = None,
) -> PrototypeAudit:
    """All numbers of one layer of prototypes, from one look at all pairs: K^2 D / 2 multiply-adds, and little beyond.

    `weights` have the norms that the method gives them. M is that of `unique(weights, epsilon)`, and so at every
    epsilon of the sweep.
    """
    x = checked_directions(weights, (epsilon, *epsilons))
    levels = tuple(sorted({DUPLICATE, epsilon, *epsilons}))
    close = closeness(x, levels, neighbors=True)
    assert close.nearest is not None
    found = cover(x, close, levels.index(epsilon), "degree")
    in_order = cover(x, close, levels.index(epsilon), "index").count
    counts = {epsilon: found.count}
    for other in sorted(set(epsilons) - {epsilon}):
        degrees = close.degrees[levels.index(other)]
        same = [known for known in counts if torch.equal(close.degrees[levels.index(known)], degrees)]  # the same pairs
        counts[other] = counts[same[0]] if same else cover(x, close, levels.index(other), "degree").count
    return PrototypeAudit(
        prototypes=len(x),
        dims=x.shape[1],
        unique=found,
        in_order=in_order,
        sweep=tuple(sorted((e, counts[e]) for e in {*epsilons})),
        nearest=_distances(x, close.nearest),
        nearest_index=close.nearest.cpu(),
        duplicates=int((close.degrees[levels.index(DUPLICATE)].long() - 1).sum()) // 2,
        effective_rank=effective_rank(singular_values(products_of(x))),
        norms=torch.linalg.vector_norm(wide(weights.detach()), dim=1).cpu(),
        temperature=temperature,
    )


def _distances(x: Float[Tensor, "k d"], nearest: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Cosine distances to these rows, exact where they are tiny; infinite where there is no other row."""
    if len(x) < 2:
        return torch.full((len(x),), torch.inf)
    found = []
    for rows in torch.arange(len(x), device=x.device).split(_ROWS):
        pair = [x[index].double() for index in (rows, nearest[rows])]
        norms = [torch.linalg.vector_norm(side, dim=1, keepdim=True) for side in pair]
        a, b = (side / norm.clamp(min=1e-12) for side, norm in zip(pair, norms, strict=True))
        directed = (norms[0] > 0) & (norms[1] > 0)  # a row of zeros has a cosine of 0 to all
        found.append(torch.where(directed[:, 0], (a - b).square().sum(1) / 2, 1.0))
    return torch.cat(found).float().cpu()
