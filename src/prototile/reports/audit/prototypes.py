"""Figures of prototypes, without any image.

k prototypes, m unique ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from prototile.audit.plain import Histogram
from prototile.audit.prototypes import PrototypeAudit
from prototile.reports import svg
from prototile.reports.audit.figure import above, histogram, of, rank_ticks, ranks
from prototile.reports.page import count, percent, short
from prototile.reports.svg import Figure

TILES = 4096  # prototypes that can be told apart as tiles
SHADES = 6
SHADE_NAMES = ("unique", "2–3 alike", "4–7", "8–15", "16–31", "32 and more")


@dataclass(frozen=True)
class Share:
    """Prototypes in groups of about this size: `prototypes` of them in `groups`."""

    shade: int
    name: str
    prototypes: int
    groups: int
    text: str


def shade(redundancy: int) -> int:
    """The colour of a group of so many prototypes."""
    return min(redundancy.bit_length() - 1, SHADES - 1)


def shares(audit: PrototypeAudit) -> tuple[Share, ...]:
    """How many prototypes are unique, in pairs, and so on: parts of a bar that is K long."""
    prototypes, groups = [0] * SHADES, [0] * SHADES
    for redundancy in audit.unique.redundancy.tolist():
        prototypes[shade(redundancy)] += redundancy
        groups[shade(redundancy)] += 1
    return tuple(
        Share(
            i, name, p, g, f"{name}: {count(p)} prototypes ({percent(p / audit.prototypes)}) in {count(g)} directions"
        )
        for i, (name, p, g) in enumerate(zip(SHADE_NAMES, prototypes, groups, strict=True))
        if p
    )


def tiles(audit: PrototypeAudit) -> Markup | None:
    """Every prototype a tile, groups as patches; none where they are too many to see."""
    if audit.prototypes > TILES:
        return None
    groups = audit.unique.redundancy.sort(descending=True).values.tolist()
    return svg.tiling(groups, title=f"{of(audit.count, audit.prototypes)} prototypes are unique")


def figures(audit: PrototypeAudit) -> Iterator[Figure]:
    yield sweep([audit], ["kind2"], [""])
    yield redundancies(audit)
    if audit.prototypes > 1:
        yield distances(audit)
    if not audit.alike:
        yield norms(audit)


def sweep(audits: Sequence[PrototypeAudit], kinds: Sequence[str], names: Sequence[str]) -> Figure:
    """M / K over epsilon."""
    shares = [[(epsilon, 100 * found / a.prototypes) for epsilon, found in sorted(a.sweep)] for a in audits]
    lowest = min(share for line in shares for _, share in line)
    log = lowest < 5
    floor = lowest / 1.6 if log else 0.0
    ticks = svg.power_ticks(floor, 100) if log else [0, 25, 50, 75, 100]
    points = [
        svg.Point(epsilon, 100 * found / a.prototypes, kind, _told(name, epsilon, found, a.prototypes))
        for a, kind, name in zip(audits, kinds, names, strict=True)
        for epsilon, found in a.sweep
    ]
    used = {a.unique.epsilon for a in audits}
    steps = [epsilon for line in shares for epsilon, _ in line]
    return Figure(
        "Unique prototypes at any distance",
        svg.chart(
            [svg.Line(line, kind) for line, kind in zip(shares, kinds, strict=True)],
            svg.Axis(min(steps), max(steps), svg.power_ticks(min(steps), max(steps)), "ε, cosine distance", log=True),
            svg.Axis(floor, 180 if log else 112, ticks, "M / K, %", log=log),
            title="Unique prototypes as a share of all, over the distance below which two count as one",
            uprights=[svg.Rule(epsilon, f"ε = {epsilon:g}") for epsilon in sorted(used)],
            points=points,
        ),
        "Prototypes closer than ε count as one. A curve that is low from the left on has true copies; one that falls "
        "only at large ε has prototypes that are merely near each other.",
        _legend(kinds, names),
    )


def redundancies(audit: PrototypeAudit) -> Figure:
    """How many prototypes each unique one stands for, sorted, on logarithmic axes."""
    values = audit.unique.redundancy.sort(descending=True).values.tolist()
    chosen = ranks(len(values), log=True)
    points = [(i + 1.0, float(values[i])) for i in chosen]
    highest = max(values[0], 2)
    tips = [svg.Tip(i + 1, f"direction {count(i + 1)} of {count(len(values))}\n{_alike(values[i])}") for i in chosen]
    bins = ", ".join(
        f"{count(n)} for {a}" if a == b else f"{count(n)} for {a}–{b}" for a, b, n in audit.redundancies() if n
    )
    return Figure(
        "How many each unique one stands for",
        svg.chart(
            [svg.Line(points, "kind1", steps=True)],
            svg.Axis(1, max(len(values), 2), rank_ticks(len(values)), "unique prototypes, most copies first", log=True),
            svg.Axis(0.8, above(highest), svg.power_ticks(1, above(highest)), "redundancy factor", log=True),
            title="Redundancy factors from the largest on",
            tips=tips,
        ),
        f"Unique prototypes and how many they stand for: {bins}. They sum to K = {count(audit.prototypes)}.",
    )


def distances(audit: PrototypeAudit) -> Figure:
    """Cosine distances to the nearest other prototype."""
    found = audit.distances()
    first = next((i for i, number in enumerate(found.counts) if number), 0)
    found = Histogram(found.edges[max(first - 1, 0) :], found.counts[max(first - 1, 0) :])
    near = int((audit.nearest < audit.unique.epsilon).sum())
    median = float(audit.nearest.median())
    return Figure(
        "Distance to the nearest other prototype",
        histogram(
            [found],
            ["kind2"],
            ["prototypes"],
            "cosine distance",
            title="Histogram of cosine distances to the nearest other prototype",
            powers=True,
            uprights=[svg.Rule(audit.unique.epsilon, f"ε = {audit.unique.epsilon:g}")],
        ),
        f"{of(near, audit.prototypes)} prototypes have another one within ε; the median distance is {short(median)}. "
        f"{count(audit.duplicates)} pairs cannot be told apart in single precision.",
    )


def norms(audit: PrototypeAudit) -> Figure:
    """Lengths of prototypes, which are concentrations where assignments do not normalise them."""
    values = audit.norms
    told = f"From {short(float(values.min()))} to {short(float(values.max()))}, median {short(float(values.median()))}."
    if audit.concentrations is not None:
        kappa = audit.concentrations
        told += (
            f" Divided by the temperature {audit.temperature:g} they are concentrations κ of von Mises-Fisher "
            f"distributions, from {short(float(kappa.min()))} to {short(float(kappa.max()))}."
        )
    return Figure(
        "Norms",
        histogram(
            [Histogram.of(values, 50)], ["kind3"], ["prototypes"], "norm", title="Histogram of prototypes' norms"
        ),
        told,
    )


def _legend(kinds: Sequence[str], names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((kind, name) for kind, name in zip(kinds, names, strict=True) if name)


def _told(name: str, epsilon: float, found: int, k: int) -> str:
    head = f"{name}\n" if name else ""
    return f"{head}ε = {epsilon:g}\nM = {count(found)} of {count(k)} ({percent(found / k)})"


def _alike(number: int) -> str:
    return "has no copy" if number == 1 else f"{count(number)} prototypes, one direction"
