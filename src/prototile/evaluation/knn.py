"""Weighted nearest neighbours: the quickest answer to what features are worth.

n images, t of them to learn from, d dims, c classes.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.evaluation.features import labelled, same_dims
from prototile.precision import no_autocast, no_tf32
from prototile.sphere import normalize

_BLOCK_NUMBERS = 2**24  # similarities that are held at a time


@dataclass(frozen=True)
class NearestNeighbors:
    """Shares of test images whose class is the first of the vote, and among the first five, for each k."""

    top1: Mapping[int, float]
    top5: Mapping[int, float]
    images: int

    @property
    def best_k(self) -> int:
        """The k with the highest top-1, the smallest among equals."""
        return max(self.top1, key=lambda k: (self.top1[k], -k))

    @property
    def accuracy(self) -> float:
        """Top-1 for the best k, as papers report it."""
        return self.top1[self.best_k]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"best_k": self.best_k, "accuracy": self.accuracy}

    def __str__(self) -> str:
        return f"kNN {self.accuracy:.1%} (k = {self.best_k}) of {self.images:,} images"


@torch.no_grad()
@no_autocast
@no_tf32
def knn(
    train: Float[Tensor, "t d"],
    train_labels: Int[Tensor, " t"],
    test: Float[Tensor, "n d"],
    test_labels: Int[Tensor, " n"],
    ks: Sequence[int] = (10, 20),
    *,
    temperature: float = 0.07,
    leave_one_out: bool = False,
) -> NearestNeighbors:
    r"""Each of the k nearest training images votes $\exp(s / \tau)$ for its class, s its cosine (Wu et al. 2018).

    Of equally near ones the first votes, of equally voted classes the first wins. Images of label -1 have none and are
    left out. With `leave_one_out` both sets are the same and no image votes for itself. Memory is a block of test rows
    x the training rows.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be numbers of neighbours, at least 1, got {tuple(ks)}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    if leave_one_out and not (train.shape == test.shape and bool((train == test).all())):
        raise ValueError("leave_one_out is for one set of images: pass the same features as train and test")
    x, y = labelled(train, train_labels, "training")
    queries, wanted = labelled(test, test_labels, "test")
    same_dims(x, queries)
    if len(x) <= leave_one_out:
        raise ValueError("leave_one_out needs at least two labelled images")
    x, queries = normalize(x), normalize(queries)
    shown = {k: min(k, len(x) - leave_one_out) for k in ks}
    if any(k != there for k, there in shown.items()):
        warnings.warn(f"k = {max(ks)} of {max(shown.values())} neighbours: all of them vote", stacklevel=2)
    classes = int(max(y.max(), wanted.max())) + 1
    right = {k: torch.zeros(2, dtype=torch.long, device=x.device) for k in dict.fromkeys(shown.values())}
    step = max(1, _BLOCK_NUMBERS // len(x))
    for start in range(0, len(queries), step):
        cosines = queries[start : start + step] @ x.T
        if leave_one_out:
            rows = torch.arange(len(cosines), device=x.device)
            cosines[rows, rows + start] = -torch.inf
        near, index = _nearest(cosines, max(right))
        votes = ((near - near[:, :1]) / temperature).exp()  # a common factor, so that the nearest has 1
        for k, counts in right.items():
            score = votes.new_zeros(len(votes), classes).scatter_add_(1, y[index[:, :k]], votes[:, :k])
            counts += _right(score, wanted[start : start + step])
    top1, top5 = ({k: int(counts[i]) / len(queries) for k, counts in right.items()} for i in (0, 1))
    return NearestNeighbors(top1, top5, len(queries))


def _nearest(cosines: Float[Tensor, "n t"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The k largest of every row, of equal ones the first: `topk` alone may take any of them."""
    values, index = cosines.topk(k, 1)
    tied = (cosines >= values[:, -1:]).sum(1) > k  # which of the last ones belong is not decided by their value
    index = index.sort(dim=1).values
    values, order = cosines.gather(1, index).sort(dim=1, descending=True, stable=True)
    index = index.gather(1, order)
    for row in tied.nonzero().flatten().tolist():
        sorted_row = cosines[row].sort(dim=0, descending=True, stable=True)
        values[row], index[row] = sorted_row.values[:k], sorted_row.indices[:k]
    return values, index


def _right(score: Float[Tensor, "n c"], wanted: Int[Tensor, " n"]) -> Int[Tensor, "2"]:
    """How many rows have their class first, and among the first five; equal classes come in order."""
    own = score.gather(1, wanted[:, None])
    before = torch.arange(score.shape[1], device=score.device) < wanted[:, None]
    rank = ((score > own) | ((score == own) & before)).sum(1)
    rank = torch.where(own[:, 0] > 0, rank, score.shape[1])  # nobody voted for it
    return torch.stack([(rank < 1).sum(), (rank < 5).sum()])
