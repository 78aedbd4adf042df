"""How many prototypes are really there: a cover of their directions by representatives.

    unique(directions)                    M, which prototype is represented by which, and how many each stands for
    unique(directions, mode="index")      the same in one pass, in the order of indices: what a run is watched with

A representative covers a prototype whose cosine distance to it is below epsilon (Govindarajan et al. 2024,
definition 4.1, https://arxiv.org/abs/2410.14060). The definition leaves open which cover; a smallest one is NP-hard.

k prototypes, d dims, m representatives.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prototile.audit.triangle import BORDERLINE, Closeness, closeness
from prototile.precision import no_autocast, no_tf32, wide
from prototile.sphere import normalize

__all__ = ["BORDERLINE", "EPSILON", "Unique", "checked_directions", "cover", "unique"]

EPSILON = 0.025  # cosine distance: 12.8 degrees (Govindarajan et al. 2024)

_LEAST, _CANDIDATES = 16, 256  # representatives that are compared with all others at a time
_NUMBERS = 2**24  # products that they may make
_ROUNDS = 64

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
    little beyond: K = 16,384 of 256 dims take seconds on two cores, 65,536 less than a minute.

    `mode="index"` walks in the order of rows: at most K^2 D / 2, far less where prototypes have collapsed. Where
    clusters are as wide as epsilon it finds more representatives, up to half.

    A row of zeros has no direction and stands for itself.
    """
    if mode not in ("degree", "index"):
        raise ValueError(f"mode must be 'degree' or 'index', got {mode!r}")
    x = checked_directions(directions, (epsilon,))
    if mode == "degree":
        return cover(x, closeness(x, (epsilon,)), 0, mode)
    owner, order = torch.full((len(x),), -1, device=x.device), torch.arange(len(x), device=x.device)
    _walk_(owner, x, order, len(x), 1 - epsilon)
    return _as_unique(owner, order, epsilon, mode, None)


def checked_directions(directions: Tensor, epsilons: Sequence[float]) -> Float[Tensor, "k d"]:
    """The prototypes as unit vectors, or an error that says what is wrong with them."""
    if directions.ndim != 2 or 0 in directions.shape:
        raise ValueError(f"prototypes must be a matrix, one a row, and at least one; got {tuple(directions.shape)}")
    for epsilon in epsilons:
        if not 0 < epsilon <= 2:
            raise ValueError(f"epsilon is a cosine distance between 0 and 2 (the paper's: {EPSILON}), got {epsilon}")
    if not bool(directions.isfinite().all()):
        bad = int((~directions.isfinite()).any(1).nonzero()[0])
        raise ValueError(f"prototype {bad} is not finite (NaN or infinity): the run that made it has diverged")
    return normalize(wide(directions.detach()))


def cover(x: Float[Tensor, "k d"], close: Closeness, level: int, mode: Mode) -> Unique:
    """The cover at one of the epsilons for which all pairs have been looked at.

    Few rows cover many: those are compared with all others again, when it is their turn. The others' pairs are there.
    """
    epsilon, device = close.epsilons[level], x.device
    everyone, degrees = torch.arange(len(x), device=device), close.degrees[level]
    owner = torch.where(degrees == 1, everyone, -1)
    source, target = close.pairs.at(level)
    heavy = close.pairs.complete <= level
    if mode == "degree":
        order = degrees.argsort(descending=True, stable=True)
        heavy = degrees >= degrees[heavy].min() if bool(heavy.any()) else heavy  # all that come before one, too
    else:
        order = everyone
        heavy = _reaching(heavy, source, target)
    walked = order[heavy[order]]
    _walk_(owner, x, torch.cat([walked, order[~heavy[order] & (owner[order] < 0)]]), len(walked), 1 - epsilon)
    rank = torch.empty_like(everyone)
    rank[order] = everyone
    _settle_(owner, rank, order, source, target)
    return _as_unique(owner, order, epsilon, mode, close.borderline[level])


def _as_unique(owner: Tensor, order: Tensor, epsilon: float, mode: Mode, borderline: int | None) -> Unique:
    found = order[owner[order] == order]  # a representative is its own; in the order of the walk
    part = torch.empty_like(order)
    part[found] = torch.arange(len(found), device=order.device)
    return Unique(epsilon, mode, part[owner].cpu(), found.cpu(), borderline)


def _reaching(heavy: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """The heavy rows, and all that chains of pairs lead from to one."""
    reached, before = heavy.clone(), -1
    while before != (now := int(reached.sum())):
        reached[source[reached[target]]] = True
        before = now
    return reached


def _walk_(
    owner: Int[Tensor, " k"], x: Float[Tensor, "k d"], free: Int[Tensor, " n"], walked: int, threshold: float
) -> None:
    """Takes the first `walked` of those that are `free`, in order, as long as they are, as candidates.

    Candidates are compared with each other; those that none before them covers, with all that are still free.
    """
    while walked:
        candidates = free[: min(walked, max(_LEAST, min(_CANDIDATES, _NUMBERS // len(free))))]
        chosen = _first_come(x[candidates] @ x[candidates].T > threshold)
        few = x[candidates[chosen]]
        # copies of nearly all rows would cost more than products with all
        covers = (few @ x.T > threshold)[:, free] if 2 * len(free) > len(x) else few @ x[free].T > threshold
        taken = covers.any(0)
        taken[chosen] = True
        first = covers.to(torch.uint8).argmax(0)  # the first among equals
        first[chosen] = torch.arange(len(chosen), device=x.device)
        owner[free[taken]] = candidates[chosen][first[taken]]
        walked -= int(taken[:walked].sum())
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


def _settle_(
    owner: Int[Tensor, " k"],
    rank: Int[Tensor, " k"],
    order: Int[Tensor, " k"],
    source: Int[Tensor, " p"],
    target: Int[Tensor, " p"],
) -> None:
    """The same walk over all that is free, from its pairs: many at a time.

    Who has no free neighbour before it becomes a representative, its neighbours are covered, and so on; each of them
    belongs to the first representative beside it.
    """
    undecided = owner < 0
    chosen = torch.zeros_like(undecided)
    wanted = undecided[source] & undecided[target]
    source, target = source[wanted], target[wanted]
    open_source, open_target = source, target
    for _ in range(_ROUNDS):
        if not len(open_source):
            break
        blocked = torch.zeros_like(undecided)
        blocked[open_target[rank[open_source] < rank[open_target]]] = True
        new = undecided & ~blocked
        chosen |= new
        undecided &= ~new
        undecided[open_target[new[open_source]]] = False
        wanted = undecided[open_source] & undecided[open_target]
        open_source, open_target = open_source[wanted], open_target[wanted]
    chosen |= _one_by_one(undecided, rank, order, open_source, open_target) if len(open_source) else undecided
    first = torch.full_like(rank, len(rank))
    pairs = chosen[source] & ~chosen[target]
    first.scatter_reduce_(0, target[pairs], rank[source[pairs]], "amin")
    owner[chosen] = chosen.nonzero().flatten()
    covered = (first < len(rank)).nonzero().flatten()
    owner[covered] = order[first[covered]]


def _one_by_one(undecided: Tensor, rank: Tensor, order: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Representatives among the undecided, in order: for long chains, of which each round decides the first only."""
    by_rank = torch.argsort(rank[source])
    starts = torch.searchsorted(rank[source[by_rank]], torch.arange(len(rank) + 1, device=rank.device)).tolist()
    targets, free = target[by_rank].cpu().numpy(), undecided.cpu().numpy().copy()
    chosen = torch.zeros_like(undecided, device="cpu").numpy()
    for position, i in enumerate(order.tolist()):
        if free[i]:
            chosen[i] = True
            free[targets[starts[position] : starts[position + 1]]] = False
    return torch.from_numpy(chosen).to(undecided.device)
