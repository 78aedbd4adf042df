"""Audits side by side: checkpoints of any kind, or epochs of a run.

    compare(audits)              the table of their numbers
    changes(before, after)       which groups merged or split between two partitions of the same things
    follow(a, b)                 the same for prototypes of two checkpoints that share their space

n things (prototypes, or images); k and l prototypes, d dims.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.audit.clusters import ClusterAudit
from prototile.audit.cover import Unique
from prototile.audit.embeddings import EmbeddingAudit
from prototile.audit.labels import Contingency
from prototile.audit.plain import plain
from prototile.audit.prototypes import PrototypeAudit
from prototile.audit.result import Audit
from prototile.precision import no_autocast, no_tf32, wide
from prototile.sphere import normalize

SHARE = 0.2  # of a group's things that a part must have for the group to count as split
_NUMBERS = 2**24


@dataclass(frozen=True)
class Merge:
    """Groups `before` of which most things are now in one group `after`."""

    before: tuple[int, ...]
    after: int
    things: int  # in the group after


@dataclass(frozen=True)
class Split:
    """A group `before` whose things are now in several groups `after`."""

    before: int
    after: tuple[int, ...]
    things: int  # in the group before


@dataclass(frozen=True, eq=False)
class Changes:
    """What became of the groups of a partition, from the largest merge and split on."""

    kind: str  # "prototypes" or "images": what was grouped
    things: int
    before: int  # groups
    after: int
    kept: int  # groups of which most things are in one group that holds no other group's majority
    merges: tuple[Merge, ...] = field(repr=False)
    splits: tuple[Split, ...] = field(repr=False)
    nmi: float  # normalised mutual information of the two partitions: 1 where nothing changed
    destination: Int[Tensor, " before"] = field(repr=False)  # the group that most things of each group are in now

    @property
    def merged(self) -> int:
        """Groups that share their new group with another."""
        return sum(len(merge.before) for merge in self.merges)

    @property
    def split(self) -> int:
        return len(self.splits)

    def as_dict(self) -> dict[str, Any]:
        numbers = ("kind", "things", "before", "after", "kept", "merged", "split", "nmi", "merges", "splits")
        return {name: plain(getattr(self, name)) for name in numbers}

    def __str__(self) -> str:
        return (
            f"{self.before:,} groups became {self.after:,}: {self.kept:,} kept, {self.merged:,} merged into "
            f"{len(self.merges):,}, {self.split:,} split"
        )


@dataclass(frozen=True)
class Row:
    """One number of every audit, in their order; none where an audit does not have it."""

    name: str  # "unique prototypes"
    part: str  # which head, or which embeddings: "cls"
    values: tuple[float | None, ...]
    format: str = ",.4g"  # how a value is written

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "part": self.part, "values": plain(self.values)}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Audits side by side; `changes` from each audit to the next, by head, where they can be told."""

    names: tuple[str, ...]
    rows: tuple[Row, ...]
    changes: tuple[tuple[str, str, str, Changes], ...] = ()  # head, name before, name after

    def as_dict(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "rows": plain(self.rows),
            "changes": [
                {"part": part, "before": before, "after": after} | change.as_dict()
                for part, before, after, change in self.changes
            ],
        }


def compare(audits: Sequence[Audit], *, run: bool = False, same_images: bool = False) -> Comparison:
    """The numbers of these audits, and what changed from each to the next, head by head.

    `run`: they are epochs of one run, so that prototype k is the same in all. `same_images`: their clusters are of the
    same images in the same order; images then tell which clusters of quite different models correspond. With neither
    there is no telling.
    """
    if len(audits) < 2:
        raise ValueError(f"a comparison needs at least two audits, got {len(audits)}")
    found: list[tuple[str, str, str, Changes]] = []
    for a, b in pairwise(audits):
        if run:
            for head in (head for head in a.prototypes if head in b.prototypes):
                one, two = a.prototypes[head].unique.labels, b.prototypes[head].unique.labels
                if len(one) == len(two):
                    found.append((head, a.name, b.name, changes(one, two, "prototypes")))
        elif same_images:
            for head in (head for head in a.clusters if head in b.clusters):
                one, two = a.clusters[head].merged_assigned, b.clusters[head].merged_assigned
                if len(one) == len(two):
                    found.append((head, a.name, b.name, changes(one, two, "images")))
    return Comparison(tuple(audit.name for audit in audits), tuple(_rows(audits)), tuple(found))


def changes(before: Int[Tensor, " n"], after: Int[Tensor, " n"], kind: str = "prototypes") -> Changes:
    """What became of the groups of the same things: entry i is the group of thing i."""
    if len(before) != len(after) or not len(before):
        raise ValueError(f"both must group the same things, at least one; got {len(before)} and {len(after)}")
    groups = int(after.max()) + 1
    cell, count = torch.unique(before * groups + after, return_counts=True)
    table = Contingency(cell // groups, cell % groups, count.double())
    destination, share = table.majority(int(before.max()) + 1)
    arrived: dict[int, list[int]] = {}
    for group, there in enumerate(destination.tolist()):
        if share[group] > 0.5:
            arrived.setdefault(there, []).append(group)
    sizes_before, sizes_after = table.rows.long(), table.columns.long()
    merges = [Merge(tuple(x), there, int(sizes_after[there])) for there, x in arrived.items() if len(x) > 1]
    parts: dict[int, list[int]] = {}
    large = table.count >= SHARE * table.rows[table.row]
    for group, there in zip(table.row[large].tolist(), table.column[large].tolist(), strict=True):
        parts.setdefault(group, []).append(there)
    splits = [Split(group, tuple(x), int(sizes_before[group])) for group, x in parts.items() if len(x) > 1]
    return Changes(
        kind=kind,
        things=len(before),
        before=int((sizes_before > 0).sum()),
        after=int((sizes_after > 0).sum()),
        kept=sum(len(x) == 1 for x in arrived.values()),
        merges=tuple(sorted(merges, key=lambda x: (-x.things, x.after))),
        splits=tuple(sorted(splits, key=lambda x: (-x.things, x.before))),
        nmi=table.nmi(),
        destination=destination,
    )


def follow(a: Float[Tensor, "k d"], before: Unique, b: Float[Tensor, "l d"], after: Unique) -> Changes:
    """Of prototypes that need not correspond by index: each of `a` is followed to the nearest direction of `b`.

    Both must be of one space, as of two checkpoints of one run.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"prototypes of {a.shape[1]} and of {b.shape[1]} dims are of different spaces")
    return changes(before.labels, after.labels[nearest_prototypes(a, b)], "prototypes")


@torch.no_grad()
@no_autocast
@no_tf32
def nearest_prototypes(a: Float[Tensor, "k d"], b: Float[Tensor, "l d"]) -> Int[Tensor, " k"]:
    """For each prototype of `a` the one of `b` with the nearest direction."""
    x, y = normalize(wide(a.detach())), normalize(wide(b.detach()))
    return torch.cat([(part @ y.T).argmax(1) for part in x.split(max(1, _NUMBERS // len(y)))]).cpu()


_PROTOTYPES: tuple[tuple[str, Callable[[PrototypeAudit], float | None], str], ...] = (
    ("prototypes", lambda x: x.prototypes, ",.0f"),
    ("unique prototypes", lambda x: x.count, ",.0f"),
    ("unique share", lambda x: x.share, ".1%"),
    ("unique in the order of indices", lambda x: x.in_order, ",.0f"),
    ("largest group", lambda x: float(x.unique.redundancy.max()), ",.0f"),
    ("duplicate pairs", lambda x: x.duplicates, ",.0f"),
    ("median distance to the nearest", lambda x: float(x.nearest.median()), ".4g"),
    ("effective rank", lambda x: x.effective_rank, ".1f"),
)
_CLUSTERS: tuple[tuple[str, Callable[[ClusterAudit], float | None], str], ...] = (
    ("images", lambda x: x.images, ",.0f"),
    ("empty clusters", lambda x: x.empty, ",.0f"),
    ("empty by chance", lambda x: x.empty_by_chance, ",.1f"),
    ("empty after merging", lambda x: x.merged_empty, ",.0f"),
    ("largest relative size", lambda x: x.largest, ",.1f"),
    ("Gini coefficient", lambda x: x.gini, ".3f"),
    ("effective number", lambda x: x.effective, ",.1f"),
    ("mean entropy", lambda x: x.entropy, ".3f"),
    ("mean confidence", lambda x: x.confidence, ".3f"),
    ("KL to uniform", lambda x: x.to_uniform, ".3f"),
    ("distance to uniform", lambda x: x.distance_to_uniform, ".1%"),
    ("KL to the prior", lambda x: x.to_prior, ".3f"),
    ("distance to the prior", lambda x: x.distance_to_prior, ".1%"),
    ("power-law exponent of sizes", lambda x: None if x.power is None else x.power.exponent, ".3f"),
    ("its error", lambda x: None if x.power is None else x.power.error, ".3f"),
    ("mass and redundancy, Spearman", lambda x: x.mass.spearman, ".3f"),
    ("mass and redundancy, slope", lambda x: x.mass.slope, ".3f"),
    ("NMI", lambda x: None if x.labels is None else x.labels.nmi, ".3f"),
    ("ARI", lambda x: None if x.labels is None else x.labels.ari, ".3f"),
    ("purity", lambda x: None if x.labels is None else x.labels.purity, ".1%"),
    ("majority label right", lambda x: None if x.labels is None else x.labels.accuracy, ".1%"),
    ("best matching right", lambda x: None if x.labels is None else x.labels.matched, ".1%"),
)
_EMBEDDINGS: tuple[tuple[str, Callable[[EmbeddingAudit], float | None], str], ...] = (
    ("dims", lambda x: x.dims, ",.0f"),
    ("RankMe", lambda x: x.rankme, ",.1f"),
    ("alpha-ReQ", lambda x: x.alpha_req, ".3f"),
    ("LiDAR", lambda x: x.lidar, ",.1f"),
    ("uniformity", lambda x: x.uniformity, ".3f"),
    ("alignment", lambda x: x.alignment, ".3f"),
    ("spread", lambda x: x.spread, ".3f"),
    ("mean cosine", lambda x: x.cosine, ".3f"),
    ("mean correlation of dims", lambda x: x.correlation, ".3f"),
    ("entropy of a dim", lambda x: x.entropy, ".3f"),
    ("chi-square of two dims", lambda x: x.chi_square, ".2f"),
    ("neighbour overlap, raw", lambda x: x.neighbors["raw"].overlap if "raw" in x.neighbors else None, ".1%"),
    ("neighbour AUC, raw", lambda x: x.neighbors["raw"].auc if "raw" in x.neighbors else None, ".3f"),
    ("neighbours of the same label", lambda x: x.agreement, ".1%"),
)


def _rows(audits: Sequence[Audit]) -> Iterator[Row]:
    yield from _rows_of([audit.prototypes for audit in audits], _PROTOTYPES)
    yield from _rows_of([audit.clusters for audit in audits], _CLUSTERS)
    yield from _rows_of([audit.embeddings for audit in audits], _EMBEDDINGS)


def _rows_of(parts: Sequence[Any], table: Sequence[tuple[str, Callable[[Any], float | None], str]]) -> Iterator[Row]:
    """A row for each number that some audit has, part by part in the order in which they are met."""
    for part in dict.fromkeys(name for found in parts for name in found):
        for name, read, form in table:
            values = tuple(None if part not in found else read(found[part]) for found in parts)
            if any(value is not None for value in values):
                yield Row(name, part, values, form)
