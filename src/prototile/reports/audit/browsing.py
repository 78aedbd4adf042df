"""Prototypes to browse: what a page's script lists, sorts and searches, as plain data.

Groups are unique prototypes with all that they stand for. Columns have one number per group.
"""

import math
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor

from prototile.audit.clusters import ClusterAudit
from prototile.audit.prototypes import PrototypeAudit
from prototile.reports.audit.pictures import Pictures
from prototile.reports.page import count

GROUPS = 65_536  # in the page: what is beyond is said to be left out
OWNERS = 262_144  # prototypes whose group can be looked up
SHOWN = 140  # groups of one head that have images
MEMBERS = 8  # images of a group


@dataclass(frozen=True)
class Browser:
    """`data` is for the page's script; `left_out` says in words what is not in it."""

    head: str
    data: dict[str, Any]
    left_out: tuple[str, ...]


class Album:
    """The images that a page holds, each once."""

    def __init__(self, pictures: Pictures):
        self._pictures = pictures
        self.images: dict[str, tuple[str, str]] = {}  # row: caption, data URI

    def add(self, row: int) -> bool:
        """Whether the image can be shown."""
        found = self._pictures[row]
        if found is not None:
            self.images[str(row)] = (self._pictures.caption(row), found)
        return found is not None


def browser(
    head: str, audit: PrototypeAudit, clusters: ClusterAudit | None, pictures: Pictures | None, album: Album | None
) -> Browser:
    """All groups of a head, the most redundant and then the largest first."""
    redundancy = audit.unique.redundancy
    sizes = _sizes(audit, clusters)
    order = _order(redundancy, sizes)
    kept = order[:GROUPS]
    representatives = audit.unique.representatives[kept]
    data: dict[str, Any] = {
        "prototypes": audit.prototypes,
        "unique": audit.count,
        "epsilon": audit.unique.epsilon,
        "parts": kept.tolist(),
        "representative": representatives.tolist(),
        "redundancy": redundancy[kept].tolist(),
        "nearest": [_rounded(x) for x in audit.nearest[representatives].tolist()],
        "closest": audit.nearest_index[representatives].tolist(),
        "owners": audit.unique.labels[:OWNERS].tolist() if audit.count < audit.prototypes else None,
    }
    if not audit.alike:
        data["norm"] = [_rounded(x) for x in audit.norms[representatives].tolist()]
    left = []
    if len(order) > len(kept):
        left.append(f"the {count(len(order) - len(kept))} groups with the fewest prototypes")
    if audit.prototypes > OWNERS and data["owners"] is not None:
        left.append(f"the groups of prototypes {count(OWNERS)} and above")
    if clusters is not None and sizes is not None:
        data["images"] = clusters.images
        data["size"] = sizes[kept].tolist()
        _add_labels(data, clusters, kept, pictures)
        if pictures is not None and album is not None and len(pictures) == clusters.images:
            data["members"] = _members(clusters, kept, sizes, album)
            used = int((sizes[kept] > 0).sum())
            if used > len(data["members"]):
                left.append(f"images of {count(used - len(data['members']))} groups that hold some")
    return Browser(head, data, tuple(left))


def _sizes(audit: PrototypeAudit, clusters: ClusterAudit | None) -> Int[Tensor, " m"] | None:
    """Images of each group, where the clusters are of these groups."""
    if clusters is None or len(clusters.merged_sizes) != audit.count:
        return None
    return clusters.merged_sizes


def _order(redundancy: Int[Tensor, " m"], sizes: Int[Tensor, " m"] | None) -> Int[Tensor, " m"]:
    if sizes is None:
        return redundancy.sort(descending=True, stable=True).indices
    by_size = sizes.sort(descending=True, stable=True).indices
    return by_size[redundancy[by_size].sort(descending=True, stable=True).indices]


def _add_labels(data: dict[str, Any], clusters: ClusterAudit, kept: Tensor, pictures: Pictures | None) -> None:
    labels = clusters.merged_labels
    if labels is None:
        return
    majority = labels.majority[kept].tolist()
    names = sorted({label for label in majority if label >= 0})
    place = {label: i for i, label in enumerate(names)}
    data["classes"] = [f"class {label}" if pictures is None else pictures.class_name(label) for label in names]
    data["majority"] = [place.get(label, -1) for label in majority]
    data["purity"] = [_rounded(x) for x in labels.share[kept].tolist()]


def _members(clusters: ClusterAudit, kept: Tensor, sizes: Tensor, album: Album) -> dict[str, list[int]]:
    """Images of some groups by their place in the list: the most redundant, the largest, and others evenly."""
    here = sizes[kept]
    used = (here > 0).nonzero().flatten()
    by_size = used[here[used].sort(descending=True, stable=True).indices]
    third = SHOWN // 3
    evenly = by_size[:: max(len(by_size) // third, 1)]
    chosen: dict[int, None] = dict.fromkeys([*used[:third].tolist(), *by_size[:third].tolist(), *evenly.tolist()])
    for each in by_size.tolist():
        if len(chosen) >= SHOWN:
            break
        chosen[each] = None
    rows = _rows(clusters, kept, list(chosen)[:SHOWN])
    return {str(place): shown for place, found in rows.items() if (shown := [row for row in found if album.add(row)])}


def _rows(clusters: ClusterAudit, kept: Tensor, places: list[int]) -> dict[int, list[int]]:
    return {place: clusters.members(int(kept[place]), MEMBERS, merged=True).tolist() for place in sorted(places)}


def _rounded(value: float) -> float | None:
    return float(f"{value:.3g}") if math.isfinite(value) else None
