"""How many prototypes are really there: a cover of their directions by representatives.

    unique(directions)                    M, which prototype is represented by which, and how many each stands for
    unique(directions, mode="index")      the same in one pass, in the order of indices: what a run is watched with

A representative covers a prototype whose cosine distance to it is below epsilon (Govindarajan et al. 2024,
definition 4.1, https://arxiv.org/abs/2410.14060). The definition leaves open which cover; a smallest one is NP-hard.

k prototypes, d dims, m representatives.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prototile.precision import no_autocast, no_tf32, wide
from prototile.sphere import normalize

EPSILON = 0.025  # cosine distance: 12.8 degrees (Govindarajan et al. 2024)
BORDERLINE = 1e-6  # rounding of a float32 product may turn distances that lie as close to epsilon

_BLOCK = 1024  # 4 MiB of float32 products at a time
_CANDIDATES = 256  # representatives that are compared with all others at a time

Mode = Literal["degree", "index"]


@dataclass(frozen=True)
class Unique:
    """A cover of K directions: M parts, each with a representative; part 0 was found first.

    `borderline` counts pairs so close to epsilon that rounding decided; it is None where not all pairs were looked at.
    """

    epsilon: float
    mode: Mode
    labels: Int[Tensor, " k"] = field(repr=False)  # the part of every prototype
    representatives: Int[Tensor, " m"] = field(repr=False)
    borderline: int | None

    @property
    def count(self) -> int:
        """M, the number of unique prototypes."""
        return len(self.representatives)

    @property
    def redundancy(self) -> Int[Tensor, " m"]:
        """How many prototypes each representative stands for, itself included; they sum to K."""
        return torch.bincount(self.labels, minlength=self.count)

    def as_dict(self) -> dict[str, Any]:
        """As plain numbers and lists."""
        return {
            "prototypes": len(self.labels),
            "unique": self.count,
            "epsilon": self.epsilon,
            "mode": self.mode,
            "borderline": self.borderline,
            "representatives": self.representatives.tolist(),
            "redundancy": self.redundancy.tolist(),
            "labels": self.labels.tolist(),
        }

    def __str__(self) -> str:
        largest = int(self.redundancy.max())
        said = f"{self.count:,} of {len(self.labels):,} prototypes are unique (cosine distance {self.epsilon:g})"
        said += f", one stands for up to {largest:,}"
        return said + (f"; {self.borderline:,} pairs are borderline" if self.borderline else "")


@torch.no_grad()
@no_autocast
@no_tf32
def unique(directions: Float[Tensor, "k d"], epsilon: float = EPSILON, *, mode: Mode = "degree") -> Unique:
    """A greedy cover of the rows' directions, the same in every run and in bounded memory.

    `mode="degree"` walks prototypes from the one that covers most down to the one that covers fewest (the lower index
    first, among equals), so that the order of rows decides among equals only. What is not covered yet becomes a
    representative and takes all it covers that nobody took before. It costs K^2 D / 2 multiply-adds for the degrees and
    at most as much again where nearly all prototypes have a twin: K = 16,384 of 256 dims take seconds on two cores,
    65,536 about a minute.

    `mode="index"` walks in the order of rows: at most K^2 D / 2, far less where prototypes have collapsed. Where
    clusters are as wide as epsilon it finds more representatives, up to half.

    A row of zeros has no direction and stands for itself.
    """
    _check(directions, epsilon, mode)
    x = normalize(wide(directions.detach()))
    alone, borderline = torch.zeros(len(x), dtype=torch.bool, device=x.device), None
    order = torch.arange(len(x), device=x.device)
    if mode == "degree":
        degrees, borderline = _degrees(x, epsilon)
        alone = degrees == 1
        order = degrees.argsort(descending=True, stable=True)
    owner = torch.where(alone, torch.arange(len(x), device=x.device), -1)  # who represents whom
    _cover_(owner, x, order[~alone[order]], 1 - epsilon)
    found = order[owner[order] == order]  # a representative is its own; in the order of the walk
    part = torch.empty_like(order)
    part[found] = torch.arange(len(found), device=x.device)
    return Unique(epsilon, mode, part[owner].cpu(), found.cpu(), borderline)


def _check(directions: Tensor, epsilon: float, mode: str) -> None:
    if directions.ndim != 2 or 0 in directions.shape:
        raise ValueError(f"prototypes must be a matrix, one a row, and at least one; got {tuple(directions.shape)}")
    if not 0 < epsilon <= 2:
        raise ValueError(f"epsilon is a cosine distance between 0 and 2 (the paper's: {EPSILON}), got {epsilon}")
    if mode not in ("degree", "index"):
        raise ValueError(f"mode must be 'degree' or 'index', got {mode!r}")
    if not bool(directions.isfinite().all()):
        bad = int((~directions.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"prototype {bad} is not finite (NaN or infinity): the run that made it has diverged")


def _degrees(x: Float[Tensor, "k d"], epsilon: float) -> tuple[Int[Tensor, " k"], int]:
    """How many each row covers, itself included, and the number of borderline pairs."""
    degrees = torch.ones(len(x), dtype=torch.long, device=x.device)
    borderline = torch.zeros((), dtype=torch.long, device=x.device)
    for row in range(0, len(x), _BLOCK):
        rows = slice(row, row + _BLOCK)
        for column in range(row, len(x), _BLOCK):
            columns = slice(column, column + _BLOCK)
            cosines = x[rows] @ x[columns].T
            if row == column:
                cosines.fill_diagonal_(-torch.inf)
            if float(cosines.max()) <= 1 - epsilon - BORDERLINE:
                continue  # most tiles of a healthy run
            covered = cosines > 1 - epsilon
            pairs = ((cosines - (1 - epsilon)).abs() < BORDERLINE).sum()
            degrees[rows] += covered.sum(1)
            if row != column:
                degrees[columns] += covered.sum(0)
            borderline += pairs // 2 if row == column else pairs
    return degrees, int(borderline)


def _cover_(owner: Int[Tensor, " k"], x: Float[Tensor, "k d"], order: Int[Tensor, " n"], threshold: float) -> None:
    """Walks `order`; candidates are compared with all that are still free at once, then taken one after the other."""
    free = order
    while len(free):
        candidates = free[:_CANDIDATES]
        covers = x[candidates] @ x[free].T > threshold
        chosen = _first_come(covers[:, : len(candidates)])
        covers = covers[chosen]
        taken = covers.any(0)
        taken[chosen] = True
        first = covers.to(torch.uint8).argmax(0)  # the first among equals
        first[chosen] = torch.arange(len(chosen), device=x.device)
        owner[free[taken]] = candidates[chosen][first[taken]]
        free = free[~taken]


def _first_come(covers: Bool[Tensor, "n n"]) -> Int[Tensor, " m"]:
    """Who of the candidates becomes a representative: each that none before it covers."""
    table = covers.cpu().numpy()
    covered = table[0] & False
    chosen = []
    for i, row in enumerate(table):
        if not covered[i]:
            chosen.append(i)
            covered |= row
    return torch.tensor(chosen, device=covers.device)
