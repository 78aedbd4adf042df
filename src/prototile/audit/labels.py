"""Clusters against classes: what assignments say about labels that nobody gave them.

n images, k clusters, c classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching
from torch import Tensor

from prototile.audit.plain import plain


@dataclass(frozen=True, eq=False)
class GroupAudit:
    """Classes of the head, the middle or the tail: the mean over its classes; none where the group has no image."""

    classes: int
    images: int
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class LabelAudit:
    """Hard assignments against labels, of the images that have one.

    `purity` rises with the number of clusters, to 1 where each image has its own; `accuracy` does not: each half of
    the images is told by the majority labels of the other half. `matched` gives each class one cluster at most and each
    cluster one class, the best ones (Kuhn 1955): it falls where clusters are more than classes.
    """

    images: int
    classes: int
    clusters: int  # that hold an image
    nmi: float
    ari: float
    purity: float
    accuracy: float
    matched: float
    groups: Mapping[str, GroupAudit]  # head, middle, tail, or whatever was asked for
    majority: Int[Tensor, " k"] = field(repr=False)  # the most frequent class of each cluster, -1 where it is empty
    share: Float[Tensor, " k"] = field(repr=False)  # of the cluster's images that are of that class

    def as_dict(self) -> dict[str, Any]:
        return {name: plain(value) for name, value in vars(self).items()}

    def __str__(self) -> str:
        return (
            f"NMI {self.nmi:.3f}, ARI {self.ari:.3f}, purity {self.purity:.1%}, majority label right for "
            f"{self.accuracy:.1%}, the best matching for {self.matched:.1%} of {self.images:,} images "
            f"({self.classes:,} classes)"
        )


def audit_labels(
    assigned: Int[Tensor, " n"],
    labels: Int[Tensor, " n"],
    clusters: int,
    *,
    groups: Mapping[str, Int[Tensor, " _"] | Int[np.ndarray, " _"]] | None = None,
    seed: int = 0,
) -> LabelAudit:
    """Hard assignments to so many clusters against labels, of which -1 is none.

    `groups` names the classes of the head, the middle and the tail (`data.Groups` by their training counts, say).
    NMI is over the arithmetic mean of both entropies; the halves that `accuracy` swaps are drawn by `seed`.
    """
    if len(assigned) != len(labels):
        raise ValueError(f"there are {len(labels)} labels for {len(assigned)} images: one each, -1 for none")
    there = labels.cpu() >= 0
    if not bool(there.any()):
        raise ValueError("no image has a label (-1 is none): leave labels out")
    k, y = assigned.cpu()[there].long(), labels.cpu()[there].long()
    classes = int(y.max()) + 1
    cell, count = torch.unique(k * classes + y, return_counts=True)
    table = Contingency(cell // classes, cell % classes, count.double())
    majority, share = table.majority(clusters)
    right = _predicted_by_the_other_half(k, y, clusters, classes, seed)
    return LabelAudit(
        images=len(y),
        classes=len(y.unique()),
        clusters=len(k.unique()),
        nmi=table.nmi(),
        ari=table.ari(),
        purity=float((share * torch.bincount(k, minlength=clusters)).sum() / len(y)),
        accuracy=float(right.double().mean()),
        matched=table.matched(),
        groups={name: _group(ids, y, right, classes) for name, ids in (groups or {}).items()},
        majority=majority,
        share=share,
    )


class Contingency:
    """The contingency of clusters and classes, by its cells that are not empty."""

    def __init__(self, row: Tensor, column: Tensor, count: Tensor):
        self.row, self.column, self.count, self.total = row, column, count, float(count.sum())
        self.rows, self.columns = (torch.bincount(index, count) for index in (row, column))

    def nmi(self) -> float:
        entropies = [_entropy(counts / self.total) for counts in (self.rows, self.columns)]
        if sum(entropies) == 0:
            return 1.0  # one cluster, one class
        ratio = self.count * self.total / (self.rows[self.row] * self.columns[self.column])
        return min(max(float(self.count @ ratio.log() / self.total) / (sum(entropies) / 2), 0.0), 1.0)

    def ari(self) -> float:
        cells, rows, columns = (float((c * (c - 1)).sum() / 2) for c in (self.count, self.rows, self.columns))
        chance = rows * columns / max(self.total * (self.total - 1) / 2, 1)
        highest = (rows + columns) / 2
        return 1.0 if highest == chance else (cells - chance) / (highest - chance)

    def matched(self) -> float:
        """The share of the images that are in their class's cluster, under the best one-to-one matching."""
        clusters, classes = len(self.rows), len(self.columns)
        # an empty cluster for each class, so that all find one; and one more in each cell, as zero would be none
        own = torch.arange(classes)
        row, column = torch.cat([self.column, own]), torch.cat([self.row, clusters + own])
        counts = torch.cat([self.count, self.count.new_zeros(classes)]) + 1
        weights = csr_matrix((counts.numpy(), (row.numpy(), column.numpy())))
        chosen = weights[min_weight_full_bipartite_matching(weights, maximize=True)]
        return (float(chosen.sum()) - classes) / self.total

    def majority(self, clusters: int) -> tuple[Int[Tensor, " k"], Float[Tensor, " k"]]:
        """The most frequent class of each cluster, the lowest among equals, and its share."""
        order = torch.argsort(self.column, stable=True)
        order = order[torch.argsort(-self.count[order], stable=True)]
        order = order[torch.argsort(self.row[order], stable=True)]
        first = torch.ones(len(order), dtype=torch.bool)
        first[1:] = self.row[order][1:] != self.row[order][:-1]
        best = order[first]
        majority, share = torch.full((clusters,), -1), torch.zeros(clusters)
        majority[self.row[best]] = self.column[best]
        share[self.row[best]] = (self.count[best] / self.rows[self.row[best]]).float()
        return majority, share


def _entropy(p: Tensor) -> float:
    return float(-torch.xlogy(p, p).sum())


def _predicted_by_the_other_half(k: Tensor, y: Tensor, clusters: int, classes: int, seed: int) -> Bool[Tensor, " n"]:
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    halves = order[: len(y) // 2], order[len(y) // 2 :]
    right = torch.zeros(len(y), dtype=torch.bool)
    for known, told in (halves, halves[::-1]):
        if len(known):
            cell, count = torch.unique(k[known] * classes + y[known], return_counts=True)
            majority, _ = Contingency(cell // classes, cell % classes, count.double()).majority(clusters)
            right[told] = majority[k[told]] == y[told]
    return right


def _group(ids: Tensor | np.ndarray, y: Tensor, right: Tensor, classes: int) -> GroupAudit:
    """The mean over the group's classes that have images."""
    ids = torch.as_tensor(ids).long()
    here = ids[ids < classes]
    often = torch.bincount(y, minlength=classes)[here]
    hits = torch.bincount(y[right], minlength=classes)[here]
    seen = often > 0
    accuracy = float((hits[seen] / often[seen]).mean()) if bool(seen.any()) else None
    return GroupAudit(len(ids), int(often.sum()), accuracy)
