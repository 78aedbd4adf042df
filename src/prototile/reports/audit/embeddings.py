"""Figures of embeddings: how they fill their space.

n images, d dims.
"""

from collections.abc import Iterator

import torch
from markupsafe import Markup

from prototile.audit.embeddings import EmbeddingAudit, NeighborDistances
from prototile.audit.plain import Histogram
from prototile.reports import svg
from prototile.reports.audit.figure import histogram, ranks
from prototile.reports.page import count, minus, percent, short
from prototile.reports.svg import Figure

SPACES = {
    "raw": "as they are",
    "unit": "as unit vectors",
    "sigmoid": "after a sigmoid",
    "compact": "mapped into the unit cube",
}
CELL = 20


def figures(audit: EmbeddingAudit) -> Iterator[Figure]:
    for space, found in audit.neighbors.items():
        yield neighbors(space, found)
    yield spectrum(audit)
    if len(audit.marginals.entropy):
        yield entropies(audit)
    if float(audit.norms.max() - audit.norms.min()) > 1e-4 * float(audit.norms.max()):
        yield norms(audit)


def numbers(audit: EmbeddingAudit) -> Iterator[tuple[str, str, str]]:
    """Name, value, and what it means; those that could not be had are left out."""
    yield "RankMe", f"{short(audit.rankme)} of {count(audit.dims)}", "dims in use, by the singular values’ entropy"
    if audit.lidar is not None:
        yield "LiDAR", short(audit.lidar), "dims that tell images apart in spite of their views"
    if audit.alpha_req is not None:
        yield "α-ReQ", f"{audit.alpha_req:.2f}", "decay of the spectrum; near 1 is best for what follows"
    yield "uniformity", minus(audit.uniformity, 2), "of directions; lower is more even, −4 the limit"
    if audit.alignment is not None:
        yield "alignment", short(audit.alignment), "squared distance of two views of an image"
    yield "spread", f"{audit.spread:.3f}", "1 all over the sphere, 0 for a constant"
    yield "mean cosine", minus(audit.cosine, 3), "of two images"
    yield "correlation", f"{audit.correlation:.3f}", "mean absolute one of two dims"
    yield "entropy per dim", minus(audit.entropy, 3), f"by m-spacings on the {audit.marginals.space}; 0 is uniform"
    yield "χ² of pairs", short(audit.chi_square), "per degree of freedom; 1 is uniform"
    if audit.agreement is not None:
        yield "neighbours agree", percent(audit.agreement), "nearest image has the same label"


def neighbors(space: str, found: NeighborDistances) -> Figure:
    """Distances to the nearest image and to a farther one (E2MC, Chakraborty et al. 2025, figure 4)."""
    near, far = found.histograms()
    nth = f"{found.rank}{_suffix(found.rank)}"
    return Figure(
        f"Nearest and {nth} neighbours, {SPACES.get(space, space)}",
        histogram(
            [near, far],
            ["kind2", "kind3"],
            ["nearest", nth],
            "Euclidean distance",
            title=f"Histograms of distances to the nearest and to the {nth} neighbour",
        ),
        f"They overlap by {percent(found.overlap)}; one image’s {nth} neighbour is farther than another’s nearest with "
        f"probability {found.auc:.3f}, and for {percent(found.within)} of the images it is nearer than the median "
        f"nearest one. Among {count(found.images)} images.",
        (("kind2", "nearest"), ("kind3", f"{nth} nearest")),
    )


def spectrum(audit: EmbeddingAudit) -> Figure:
    """Eigenvalues of the covariance, and the power law that alpha-ReQ fits."""
    values = audit.eigenvalues[audit.eigenvalues > 0].double()
    values = values[values > values[:1] * 1e-9] if len(values) else torch.ones(1, dtype=torch.float64)
    values = values / values.sum()
    chosen = ranks(len(values), log=True)
    lines, legend = [], [("kind2", "eigenvalues")]
    first = percent(float(values[0]))
    told = f"{count(len(values))} of {count(audit.dims)} directions carry variance, the first one {first}."
    if audit.alpha_req is not None and audit.alpha_range is not None:
        first, last = max(audit.alpha_range[0], 1), min(audit.alpha_range[1], len(values))
        if last > first:
            middle = (first * last) ** 0.5
            at = float(values[min(round(middle), len(values)) - 1])
            law = [(float(x), at * (x / middle) ** -audit.alpha_req) for x in (first, last)]
            lines.append(svg.Line(law, "kind1", dashed=True))
            legend.append(("kind1", f"α-ReQ: exponent {audit.alpha_req:.2f}"))
    floor = min([float(values[-1]), *(b for line in lines for _, b in line.points)]) / 1.6
    highest = 1.6 * max([float(values[0]), *(b for line in lines for _, b in line.points)])
    return Figure(
        "Spectrum",
        svg.chart(
            [*lines, svg.Line([(i + 1.0, float(values[i])) for i in chosen], "kind2")],
            svg.Axis(1, max(len(values), 2), svg.power_ticks(1, max(len(values), 2)), "rank", log=True),
            svg.Axis(floor, highest, svg.power_ticks(floor, highest), "share of the variance", log=True),
            title="Eigenvalues of the covariance from the largest on",
            tips=[
                svg.Tip(i + 1, f"eigenvalue {i + 1}\n{percent(float(values[i]), 3)} of the variance") for i in chosen
            ],
        ),
        told,
        tuple(legend),
    )


def entropies(audit: EmbeddingAudit) -> Figure:
    """M-spacings entropy of each dim."""
    found = audit.marginals
    values = found.entropy[torch.isfinite(found.entropy)]
    low = min(float(values.min()) if len(values) else -1.0, -0.05)
    return Figure(
        "Entropy of each dim",
        histogram(
            [Histogram.of(values, 40, low, max(0.0, float(values.max()) if len(values) else 0.0))],
            ["kind4"],
            ["dims"],
            f"nats, on the {found.space}",
            title="Histogram of the m-spacings entropy of each dim",
        ),
        f"Each dim alone, mapped into (0, 1): 0 would be uniform, and the mean is {minus(audit.entropy, 3)}. "
        f"Kolmogorov-Smirnov distance to uniform numbers: {float(found.distance.mean()):.3f} on average.",
    )


def norms(audit: EmbeddingAudit) -> Figure:
    values = audit.norms
    return Figure(
        "Norms of embeddings",
        histogram([Histogram.of(values, 50)], ["kind6"], ["images"], "norm", title="Histogram of embeddings’ norms"),
        f"From {short(float(values.min()))} to {short(float(values.max()))}, median {short(float(values.median()))}.",
    )


def pairs(audit: EmbeddingAudit) -> list[tuple[str, Markup]]:
    """Where images lie in pairs of dims (E2MC, figures 2 and D.1): cells as strong as they are full."""
    found = audit.marginals
    panels = []
    for (a, b), grid, chi in zip(found.pairs.tolist(), found.grids, found.chi_square.tolist(), strict=True):
        name = f"dims {a} and {b}: χ² {short(chi)}"
        panels.append((name, _grid(grid.tolist(), name)))
    return panels


def _grid(counts: list[list[int]], title: str) -> Markup:
    """Rows are the first dim, drawn from left to right; the second one goes up."""
    cells, total = len(counts), max(sum(map(sum, counts)), 1)
    fullest = max(max(map(max, counts)), 1)
    side = CELL * cells
    parts = [Markup('<rect class="frame" width="{}" height="{}"/>').format(side, side)]
    for i, row in enumerate(counts):
        for j, number in enumerate(row):
            if number:
                parts.append(
                    Markup(
                        '<rect class="cell" x="{}" y="{}" width="{}" height="{}" fill-opacity="{}" data-tip="{}"/>'
                    ).format(
                        CELL * i,
                        side - CELL * (j + 1),
                        CELL,
                        CELL,
                        f"{number / fullest:.2f}",
                        f"{count(number)} images, {short(number * cells**2 / total)} times an even share",
                    )
                )
    return svg.drawing(parts, side, side, title)


def _suffix(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
