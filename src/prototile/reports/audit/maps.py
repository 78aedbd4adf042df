"""Maps: prototypes and images as points of a plane (Govindarajan et al. 2024, figures 4 and 5)."""

from collections.abc import Iterator

from prototile.audit.maps import Map
from prototile.audit.result import Audit
from prototile.reports import svg
from prototile.reports.audit.figure import of
from prototile.reports.audit.pictures import Pictures
from prototile.reports.audit.prototypes import SHADE_NAMES, shade
from prototile.reports.page import count
from prototile.reports.svg import Figure

POINTS = 4000  # of a drawing: a page with more is slow
HUES = 12


def figures(audit: Audit, pictures: Pictures | None) -> Iterator[Figure]:
    for name, found in audit.maps.items():
        if len(found.images) + len(found.prototypes) > 1:
            head = _head(name, audit)
            yield together(found, head, audit, pictures) if len(found.images) else prototypes(found, head, audit)


def prototypes(found: Map, head: str, audit: Audit) -> Figure:
    """Unique prototypes, coloured by how many they stand for."""
    known = audit.prototypes.get(head)
    points, seen = [], set()
    for prototype, (x, y) in _thinned(found.prototypes.tolist(), found.prototype_points.tolist()):
        redundancy = 1 if known is None else int(known.unique.redundancy[known.unique.labels[prototype]])
        seen.add(shade(redundancy))
        points.append((redundancy, svg.Point(x, y, f"shade{shade(redundancy)}", _prototype(prototype, redundancy))))
    points.sort(key=lambda each: each[0])  # the most redundant ones on top
    return Figure(
        f"Map of prototypes ({head})",
        svg.cloud([point for _, point in points], title=f"t-SNE map of {count(len(points))} prototypes"),
        f"t-SNE of {of(len(points), found.of_prototypes)} unique prototypes by cosine distance, perplexity "
        f"{found.perplexity:g}, seed {found.seed}; coloured by how many each stands for. Distances across the map mean "
        "little.",
        tuple((f"shade{i}", SHADE_NAMES[i]) for i in sorted(seen)),
        square=True,
    )


def together(found: Map, head: str, audit: Audit, pictures: Pictures | None) -> Figure:
    """Images, coloured by their class or else by their cluster, and prototypes as crosses."""
    clusters = audit.clusters.get(head)
    rows = found.images.tolist()
    if pictures is not None and rows and max(rows) >= len(pictures):
        pictures = None
    groups: dict[int, str] = {}
    by = "class"
    if pictures is not None:
        groups = {row: label for row in rows if (label := pictures.label(row)) is not None}
    if not groups and clusters is not None:
        groups, by = {row: f"cluster {int(clusters.assigned[row])}" for row in rows}, "cluster"
    sizes = dict.fromkeys(groups.values(), 0)
    for name in groups.values():
        sizes[name] += 1
    hues = {name: i % HUES for i, name in enumerate(sorted(sizes, key=lambda name: (-sizes[name], name)))}
    points = []
    for row, (x, y) in _thinned(rows, found.image_points.tolist()):
        told = pictures.caption(row) if pictures is not None else f"image {row}"
        told = f"{told}\n{groups[row]}" if by == "cluster" and row in groups else told
        points.append(svg.Point(x, y, f"hue{hues[groups[row]]}" if row in groups else "soft", told))
    shown = len(points)
    for prototype, (x, y) in _thinned(found.prototypes.tolist(), found.prototype_points.tolist()):
        points.append(svg.Point(x, y, "ink", f"prototype {prototype}", "cross"))
    crosses = f" and {of(len(points) - shown, found.of_prototypes)} unique prototypes" if len(points) > shown else ""
    coloured = f"; coloured by {by}" if hues else ""
    if len(hues) > HUES:
        coloured += f" ({count(len(hues))} of them share {HUES} colours)"
    return Figure(
        f"Map of images ({head})",
        svg.cloud(points, title=f"t-SNE map of {count(shown)} images and of prototypes"),
        f"t-SNE of {of(shown, found.of_images)} images{crosses} by cosine distance, perplexity {found.perplexity:g}, "
        f"seed {found.seed}{coloured}.",
        tuple((f"hue{hue}", name) for name, hue in hues.items()) if len(hues) <= HUES else (),
        square=True,
    )


def _thinned(which: list[int], places: list[list[float]]) -> Iterator[tuple[int, list[float]]]:
    """At most so many, spread evenly."""
    stride = -(-len(which) // POINTS) if which else 1
    yield from zip(which[::stride], places[::stride], strict=True)


def _head(name: str, audit: Audit) -> str:
    """Which head a map is of."""
    heads = [*audit.prototypes, *audit.clusters]
    return next((head for head in heads if head == name or head in name.split()), heads[0] if heads else name)


def _prototype(number: int, redundancy: int) -> str:
    return f"prototype {number}\n" + ("unique" if redundancy == 1 else f"stands for {count(redundancy)}")
