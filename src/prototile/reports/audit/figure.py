"""What figures of an audit have alike: a drawing with its name, what its colours are, and how to read it.

k prototypes.
"""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from prototile.audit.plain import Histogram
from prototile.reports import svg
from prototile.reports.page import count

PLACES = 160  # that a curve of many numbers is drawn by
BANDS = 48  # places that a pointer can read


def histogram(
    found: Sequence[Histogram],
    kinds: Sequence[str],
    names: Sequence[str],
    label: str,
    *,
    title: str,
    powers: bool = False,
    uprights: Sequence[svg.Rule] = (),
) -> Markup:
    """Shares per bin of histograms with the same edges; `powers` of ten where those are of logarithms."""
    edges = [10.0**edge if powers else edge for edge in found[0].edges]
    shares = [_shares(each) for each in found]
    highest = max((max(each) for each in shares), default=0) or 1
    lines = [
        svg.Line([*zip(edges, [*each, each[-1]], strict=True)], kind, steps=True, filled=True)
        for each, kind in zip(shares, kinds, strict=True)
    ]
    tips = []
    for i, edge in enumerate(edges[:-1]):
        told = [f"{edge:.3g} to {edges[i + 1]:.3g}"]
        told += [f"{name}: {100 * each[i]:.2g} %" for name, each in zip(names, shares, strict=True)]
        tips.append(svg.Tip(edge, "\n".join(told)))
    ticks = svg.power_ticks(edges[0], edges[-1]) if powers else svg.round_ticks(edges[0], edges[-1])
    up = svg.even_ticks(100 * highest, 4)
    scaled = [svg.Line([(a, 100 * b) for a, b in line.points], line.kind, steps=True, filled=True) for line in lines]
    return svg.chart(
        scaled,
        svg.Axis(edges[0], edges[-1], ticks, label, log=powers),
        svg.Axis(0, max(up[-1], 1e-9), up, "% of all"),
        title=title,
        uprights=[rule for rule in uprights if edges[0] <= rule.level <= edges[-1]],
        tips=tips,
    )


def ranks(number: int, *, log: bool = False, places: int = PLACES) -> list[int]:
    """Places 0 ... number - 1 to draw a sorted curve by, the first and the last among them."""
    if number <= places:
        return list(range(number))
    spread = np.geomspace(1, number, places) - 1 if log else np.linspace(0, number - 1, places)
    return sorted({*spread.round().astype(int).tolist(), 0, number - 1})


def whole_ticks(highest: int) -> list[float]:
    """From 0 to a count, which is the last."""
    ticks = [tick for tick in svg.even_ticks(highest, 4) if tick <= 0.9 * highest and tick == int(tick)]
    return [*ticks, highest]


def rank_ticks(highest: int) -> list[float]:
    """Powers of ten up to a count."""
    return svg.power_ticks(1, max(highest, 2))


def above(highest: float) -> float:
    """The end of a logarithmic axis that has this as its greatest number."""
    return 1.6 * highest


def of(part: int, whole: int) -> str:
    return f"{count(part)} of {count(whole)}"


def _shares(found: Histogram) -> list[float]:
    total = max(sum(found.counts), 1)
    return [number / total for number in found.counts]
