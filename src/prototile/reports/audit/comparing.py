"""Audits side by side: curves over each other, the table of their numbers, what merged and what split."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prototile.audit.compare import Changes, Comparison, Row
from prototile.audit.result import Audit
from prototile.reports.audit import clusters, prototypes
from prototile.reports.page import count
from prototile.reports.svg import KINDS, Figure

LISTED = 12  # merges and splits of each kind


@dataclass(frozen=True)
class Told:
    """What became of the groups of one head from an audit to another."""

    head: str
    before: str
    after: str
    changes: Changes
    merges: tuple[tuple[str, str, str], ...]  # groups before, group after, things
    splits: tuple[tuple[str, str, str], ...]


def figures(audits: Sequence[Audit], names: Sequence[str]) -> Iterator[tuple[str, Figure]]:
    """For each head that several have, by its name."""
    looks = list(zip(audits, (KINDS[i % len(KINDS)] for i in range(len(audits))), names, strict=True))
    for head in dict.fromkeys(head for audit in audits for head in audit.prototypes):
        found = [(audit.prototypes[head], kind, name) for audit, kind, name in looks if head in audit.prototypes]
        if len(found) > 1:
            yield head, prototypes.sweep(*map(list, zip(*found, strict=True)))
    for head in dict.fromkeys(head for audit in audits for head in audit.clusters):
        sizes = [(audit.clusters[head], kind, name) for audit, kind, name in looks if head in audit.clusters]
        if len(sizes) > 1:
            yield head, clusters.compared(*map(list, zip(*sizes, strict=True)))


def told(comparison: Comparison) -> list[Told]:
    return [
        Told(
            head,
            before,
            after,
            changes,
            tuple((_numbers(x.before), str(x.after), count(x.things)) for x in changes.merges[:LISTED]),
            tuple((str(x.before), _numbers(x.after), count(x.things)) for x in changes.splits[:LISTED]),
        )
        for head, before, after, changes in comparison.changes
    ]


def written(row: Row) -> list[str]:
    """The values as they are read; a dash where there is none."""
    return ["–" if value is None or value != value else format(value, row.format) for value in row.values]


def distinct(names: Sequence[str]) -> list[str]:
    """Names that tell audits apart: those that occur twice are numbered."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if names.count(name) == 1 else f"{name} ({seen[name]})")
    return found


def _numbers(numbers: Sequence[int], most: int = 8) -> str:
    shown = ", ".join(map(str, numbers[:most]))
    return shown if len(numbers) <= most else f"{shown} and {count(len(numbers) - most)} more"
