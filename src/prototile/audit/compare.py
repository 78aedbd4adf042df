"""Audits side by side: checkpoints of any kind, or epochs of a run.

    compare(audits)              the table of their numbers
    changes(before, after)       which groups merged or split between two partitions of the same things
    follow(a, b)                 the same for prototypes of two checkpoints that share their space

n things (prototypes, or images).
"""

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Int
from torch import Tensor

from prototile.audit.plain import plain


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
