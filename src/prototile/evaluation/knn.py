"""Weighted nearest neighbours: the quickest answer to what features are worth.

n images, t of them to learn from, d dims, c classes.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prototile.evaluation.features import checked, same_dims
from prototile.precision import no_autocast, no_tf32, wide
from prototile.sphere import normalize

_BLOCK_NUMBERS = 2**24  # similarities that are held at a time
_FEW = 8  # times k: so many that are nearer than those so far are taken out, of more all are sorted
_QUERIES = 1024  # test images at a time, where there are many to learn from


@dataclass(frozen=True)
class NearestNeighbors:
    """Shares of test images whose class is the first of the vote, and among the first five, for each k."""

    top1: Mapping[int, float]
    top5: Mapping[int, float]
    images: int
    right: Mapping[int, Bool[Tensor, " n"]] = field(default_factory=dict, repr=False, compare=False)  # of each image

    @property
    def best_k(self) -> int:
        """The k with the highest top-1, the smallest among equals."""
        return max(self.top1, key=lambda k: (self.top1[k], -k))

    @property
    def accuracy(self) -> float:
        """Top-1 for the best k, as papers report it."""
        return self.top1[self.best_k]

    def as_dict(self) -> dict[str, Any]:
        found = {"top1": dict(self.top1), "top5": dict(self.top5), "images": self.images}
        return found | {"best_k": self.best_k, "accuracy": self.accuracy}

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
    device: torch.device | str | None = None,
) -> NearestNeighbors:
    r"""Each of the k nearest training images votes $\exp(s / \tau)$ for its class, s its cosine (Wu et al. 2018).

    Of equally near ones the first votes, of equally voted classes the first wins. Images of label -1 have none and are
    left out. With `leave_one_out` both sets are the same and no image votes for itself. It is computed on `device`,
    in blocks of test rows x training rows: a million of either may lie on disk.
    """
    if not ks or min(ks) < 1:
        raise ValueError(f"ks must be numbers of neighbours, at least 1, got {tuple(ks)}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    for labels, part in ((train_labels, "training"), (test_labels, "test")):
        if labels.ndim != 1:
            raise ValueError(f"{part} images need one class each, got labels of shape {tuple(labels.shape)}")
    if leave_one_out and not _same(train, test):
        raise ValueError("leave_one_out is for one set of images: pass the same features as train and test")
    checked(train, train_labels, "training")
    checked(test, test_labels, "test")
    same_dims(train, test)
    known, tested = (train_labels >= 0), (test_labels >= 0).nonzero().flatten()
    labelled = int(known.sum()) - leave_one_out
    if labelled < 1:
        raise ValueError("leave_one_out needs at least two labelled images")
    shown = {k: min(k, labelled) for k in ks}
    if any(k != there for k, there in shown.items()):
        warnings.warn(f"k = {max(ks)} of {labelled} neighbours: all of them vote", stacklevel=2)
    there = train.device if device is None else torch.device(device)
    y, wanted = train_labels.to(there), test_labels[tested].to(there)
    classes = int(max(y.max(), wanted.max())) + 1
    ranks: dict[int, list[Tensor]] = {k: [] for k in dict.fromkeys(shown.values())}
    done = 0
    for near, index in _neighbors(train, known.to(there), test, tested, max(ranks), leave_one_out):
        votes = ((near - near[:, :1]) / temperature).exp()  # a common factor, so that the nearest has 1
        for k, found in ranks.items():
            score = votes.new_zeros(len(votes), classes).scatter_add_(1, y[index[:, :k]], votes[:, :k])
            found.append(_rank(score, wanted[done : done + len(votes)]).cpu())
        done += len(near)
    rank = {k: torch.cat(found) for k, found in ranks.items()}
    top1, top5 = ({k: int((found < n).sum()) / len(tested) for k, found in rank.items()} for n in (1, 5))
    return NearestNeighbors(top1, top5, len(tested), {k: found == 0 for k, found in rank.items()})


def _neighbors(
    train: Float[Tensor, "t d"],
    known: Bool[Tensor, " t"],
    test: Float[Tensor, "n d"],
    tested: Int[Tensor, " q"],
    k: int,
    leave_one_out: bool,
) -> Iterator[tuple[Float[Tensor, "_m k"], Int[Tensor, "_m k"]]]:
    """For some test images at a time, the largest cosines with known training images, and which these are."""
    device, every = known.device, bool(known.all())
    rows = min(len(tested), _BLOCK_NUMBERS, max(_QUERIES, _BLOCK_NUMBERS // len(train)))
    columns = max(1, _BLOCK_NUMBERS // rows)
    for some in tested.split(rows):
        queries = normalize(wide(test[some.cpu()].to(device)))
        near, index = queries.new_empty(len(some), 0), torch.empty(len(some), 0, dtype=torch.long, device=device)
        for first in range(0, len(train), columns):
            block = slice(first, first + columns)
            cosines = queries @ normalize(wide(train[block].to(device))).T
            if not every:
                cosines.masked_fill_(~known[block], -torch.inf)
            if leave_one_out:
                own = some.to(device) - first
                inside = (own >= 0) & (own < cosines.shape[1])
                cosines[inside.nonzero()[:, 0], own[inside]] = -torch.inf
            near, index = _merged(near, index, cosines, first, k)
        yield near, index


def _merged(
    near: Float[Tensor, "n k"], index: Int[Tensor, "n k"], cosines: Float[Tensor, "n t"], first: int, k: int
) -> tuple[Float[Tensor, "n _k"], Int[Tensor, "n _k"]]:
    """The k nearest of those so far and of the next training images, which begin at number `first`.

    Those so far come first: of equally near ones they have the lower numbers. Once there are k, few others are nearer.
    """
    if near.shape[1] == k:
        row, column = (cosines > near[:, -1:]).nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=len(near))
        if (most := int(counts.max())) <= _FEW * k:
            place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
            values, numbers = near.new_full((len(near), most), -torch.inf), index.new_zeros(len(near), most)
            values[row, place], numbers[row, place] = cosines[row, column], column + first
            near, places = _nearest(torch.cat([near, values], 1), k)
            return near, torch.cat([index, numbers], 1).gather(1, places)
    before = near.shape[1]
    whole = torch.cat([near, cosines], 1) if before else cosines
    near, places = _nearest(whole, min(k, whole.shape[1]))
    kept = index.gather(1, places.clamp(max=before - 1)) if before else places
    return near, torch.where(places < before, kept, places - before + first)


def _nearest(cosines: Float[Tensor, "n t"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The k largest of every row, of equal ones the first: `topk` alone may take any of them."""
    values, index = cosines.topk(k, 1)
    last = (cosines >= values[:, -1:]).nonzero()[:, 0]  # which of them belong is not decided by their value, if many
    tied = torch.bincount(last, minlength=len(cosines)) > k if len(last) > k * len(cosines) else None
    index = index.sort(dim=1).values
    values, order = cosines.gather(1, index).sort(dim=1, descending=True, stable=True)
    index = index.gather(1, order)
    for row in () if tied is None else tied.nonzero().flatten().tolist():
        sorted_row = cosines[row].sort(dim=0, descending=True, stable=True)
        values[row], index[row] = sorted_row.values[:k], sorted_row.indices[:k]
    return values, index


def _rank(score: Float[Tensor, "n c"], wanted: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """How many classes are before each row's own; equal ones come in order, and one without votes comes last."""
    own = score.gather(1, wanted[:, None])
    before = torch.arange(score.shape[1], device=score.device) < wanted[:, None]
    rank = ((score > own) | ((score == own) & before)).sum(1)
    return torch.where(own[:, 0] > 0, rank, score.shape[1])


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and all(bool((x == y).all()) for x, y in zip(a.split(2**16), b.split(2**16), strict=True))
