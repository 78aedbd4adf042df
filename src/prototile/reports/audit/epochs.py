"""A run over its epochs: unique prototypes, the marginal's entropy, empty clusters, sizes.

Epoch.of(number, audit)             from an audit
Epoch.read(number, dictionary)      from what an audit's JSON holds
figures(epochs)                     for each head
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from prototile.audit.result import Audit
from prototile.reports import svg
from prototile.reports.audit.figure import above, ranks
from prototile.reports.page import count, percent, short
from prototile.reports.svg import Figure, round_ticks

CURVES = 5  # epochs whose sizes are drawn
KINDS = ("age1", "age2", "age3", "age4", "age5")


@dataclass(frozen=True)
class Moment:
    """One head at one epoch; what needs images is none without them. `sizes` go from the largest on."""

    prototypes: int
    unique: int
    effective: float | None = None  # exp of the marginal's entropy
    empty: int | None = None
    empty_by_chance: float | None = None
    sizes: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Epoch:
    """The heads of a network after so many epochs."""

    number: float
    heads: Mapping[str, Moment]

    @classmethod
    def of(cls, number: float, audit: Audit) -> "Epoch":
        return cls.read(number, audit.as_dict())

    @classmethod
    def read(cls, number: float, audit: Mapping[str, Any]) -> "Epoch":
        """From `Audit.as_dict()`, or the JSON that was written of it."""
        heads = {}
        for head, found in audit["prototypes"].items():
            clusters = audit["clusters"].get(head)
            images = {}
            if clusters is not None:
                images = {name: clusters[name] for name in ("effective", "empty", "empty_by_chance")}
                images["sizes"] = tuple(sorted(clusters["sizes"], reverse=True))
            heads[head] = Moment(found["prototypes"], found["unique"], **images)
        return cls(number, heads)


def figures(epochs: Sequence[Epoch]) -> Iterator[tuple[str, Figure]]:
    """Of each head, by its name, where there are two epochs at least."""
    ordered = sorted(epochs, key=lambda epoch: epoch.number)
    for head in dict.fromkeys(head for epoch in ordered for head in epoch.heads):
        moments = [(epoch.number, epoch.heads[head]) for epoch in ordered if head in epoch.heads]
        if len(moments) > 1:
            yield head, _counts(moments)
            if any(moment.empty is not None for _, moment in moments):
                yield head, _empties(moments)
            if sum(moment.sizes is not None for _, moment in moments) > 1:
                yield head, _sizes(moments)


def _counts(moments: list[tuple[float, Moment]]) -> Figure:
    k = max(moment.prototypes for _, moment in moments)
    effective = [(number, x.effective) for number, x in moments if x.effective is not None]
    lines = [svg.Line([(number, float(x.unique)) for number, x in moments], "kind2")]
    legend = [("kind2", "unique prototypes M")]
    if effective:
        lines.append(svg.Line(effective, "kind3"))
        legend.append(("kind3", "effective number of the marginal"))
    tips = []
    for at, (number, x) in zip(_between(moments), moments, strict=True):
        told = f"epoch {number:g}\nM = {count(x.unique)} of {count(x.prototypes)}"
        if x.effective is not None:
            told += f"\neffectively {count(x.effective)}, entropy {math.log(max(x.effective, 1e-12)):.2f} nats"
        tips.append(svg.Tip(at, told))
    first, last = moments[0][1], moments[-1][1]
    told = f"M went from {count(first.unique)} to {count(last.unique)}"
    if first.effective is not None and last.effective is not None:
        told += f", exp of the marginal’s entropy from {count(first.effective)} to {count(last.effective)}"
    return Figure(
        "Prototypes over the epochs",
        svg.chart(
            lines,
            _epochs(moments),
            svg.Axis(0, 1.04 * k, [round(k * share) for share in (0, 0.25, 0.5, 0.75, 1)], "prototypes"),
            title="Unique prototypes and the effective number of clusters over epochs",
            tips=tips,
        ),
        f"{told}.",
        tuple(legend),
    )


def _empties(moments: list[tuple[float, Moment]]) -> Figure:
    kept = [(number, x) for number, x in moments if x.empty is not None and x.empty_by_chance is not None]
    shares = [(number, 100 * (x.empty or 0) / x.prototypes) for number, x in kept]
    chance = [(number, 100 * (x.empty_by_chance or 0) / x.prototypes) for number, x in kept]
    highest = max(*(share for _, share in [*shares, *chance]), 1)
    ticks = svg.even_ticks(min(highest, 100), 4)
    tips = [
        svg.Tip(at, f"epoch {number:g}\n{count(x.empty or 0)} empty ({percent((x.empty or 0) / x.prototypes)})")
        for at, (number, x) in zip(_between(kept), kept, strict=True)
    ]
    return Figure(
        "Empty clusters over the epochs",
        svg.chart(
            [svg.Line(chance, "soft", dashed=True), svg.Line(shares, "kind1")],
            _epochs(kept),
            svg.Axis(0, ticks[-1], ticks, "% of the clusters"),
            title="The share of empty clusters over epochs",
            tips=tips,
        ),
        "Clusters that are no image’s most probable one, and how many images at random would leave.",
        (("kind1", "empty"), ("soft", "by chance")),
    )


def _sizes(moments: list[tuple[float, Moment]]) -> Figure:
    kept = [(number, x.sizes, x.prototypes) for number, x in moments if x.sizes and sum(x.sizes)]
    kept = [kept[i] for i in ranks(len(kept), places=CURVES)]
    floor = 0.6 * min(k / sum(sizes) for _, sizes, k in kept)
    highest = above(max(sizes[0] * k / sum(sizes) for _, sizes, k in kept))
    lines, legend = [], []
    for i, (number, sizes, k) in enumerate(kept):
        kind = KINDS[round(i * (len(KINDS) - 1) / max(len(kept) - 1, 1))]
        used = sum(size > 0 for size in sizes)
        curve = [(100 * rank / k, sizes[rank] * k / sum(sizes)) for rank in ranks(used)]
        lines.append(svg.Line([*curve, (100 * used / k, floor)], kind, steps=True))
        legend.append((kind, f"epoch {number:g}"))
    largest = " to ".join(short(sizes[0] * k / sum(sizes)) for _, sizes, k in (kept[0], kept[-1]))
    return Figure(
        "Sizes over the epochs",
        svg.chart(
            lines,
            svg.Axis(0, 100, [0, 25, 50, 75, 100], "% of the clusters, from the largest on"),
            svg.Axis(floor, highest, svg.power_ticks(floor, highest), "relative size", log=True),
            title="Relative cluster sizes at some epochs",
            rules=[svg.Rule(1, "an equal share")],
        ),
        f"Relative to the mean; the largest cluster went from {largest} times.",
        tuple(legend),
    )


def _epochs(moments: Sequence[tuple[float, Moment]]) -> svg.Axis:
    first, last = moments[0][0], moments[-1][0]
    return svg.Axis(first, max(last, first + 1e-9), round_ticks(first, last), "epoch")


def _between(moments: Sequence[tuple[float, Moment]]) -> list[float]:
    """Where the pointer passes from one epoch to the next: halfway."""
    numbers = [number for number, _ in moments]
    return [numbers[0], *((a + b) / 2 for a, b in pairwise(numbers))]
