"""Figures of clusters: how images spread over prototypes.

n images, k prototypes, m unique ones.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prototile.audit.clusters import ClusterAudit, PowerFit
from prototile.reports import svg
from prototile.reports.audit.figure import above, histogram, of, rank_ticks, ranks, whole_ticks
from prototile.reports.page import count, percent, short
from prototile.reports.svg import Figure

Curve = list[tuple[float, float]]


def figures(audit: ClusterAudit) -> Iterator[Figure]:
    yield sizes(audit)
    yield marginal(audit)
    if len(audit.mass.mean) > 1:
        yield mass(audit)
    yield confidence(audit)


def sizes(audit: ClusterAudit) -> Figure:
    """Relative cluster sizes, sorted (Maniadis Metaxas et al. 2024, figure 1)."""
    k, m = audit.prototypes, len(audit.merged_sizes)
    every, merged = _relative(audit.sizes), _relative(audit.merged_sizes)
    floor = 0.6 * min(k, m) / audit.images
    lines = [svg.Line(_by_chance(audit.images, k, floor), "soft", dashed=True)]
    legend = [("soft", "images thrown at random")]
    if m < k:
        lines.append(svg.Line(_sorted(merged, floor), "kind3", steps=True))
        legend.insert(0, ("kind3", f"among the {count(m)} unique ones only"))
    lines.append(svg.Line(_sorted(every, floor), "kind2", steps=True))
    legend.insert(0, ("kind2", "all prototypes"))
    highest = max(float(every[0]), float(merged[0]))
    tips = []
    for rank in ranks(k, places=48):
        told = [f"cluster {count(rank + 1)} from the largest on", f"{short(float(every[rank]))} times the mean"]
        if m < k:
            told.append(
                f"unique ones: {short(float(merged[rank]))} times" if rank < m else "unique ones: there is none"
            )
        tips.append(svg.Tip(rank, "\n".join(told)))
    return Figure(
        "Size of each cluster",
        svg.chart(
            lines,
            svg.Axis(0, k, whole_ticks(k), "clusters, from the largest on"),
            svg.Axis(floor, above(highest), svg.power_ticks(floor, above(highest)), "relative size", log=True),
            title="Relative cluster sizes from the largest on",
            rules=[svg.Rule(1, "an equal share")],
            tips=tips,
        ),
        _emptiness(audit),
        tuple(legend),
    )


def marginal(audit: ClusterAudit) -> Figure:
    """The mean assignment, sorted, beside uniform, the fitted power law and the prior."""
    k = audit.prototypes
    shares = audit.marginal.sort(descending=True).values.double() * k
    fit = audit.marginal_power
    lines, legend = [], [("kind2", "marginal")]
    highest, lowest = float(shares[0]), float(shares[shares > 0][-1])
    if fit is not None:
        law = _law(fit, k)
        lines.append(svg.Line(law, "kind1", dashed=True))
        legend.append(("kind1", f"power law of exponent {_exponent(fit)}"))
        highest = max(highest, law[0][1])
    prior = None
    if audit.prior is not None:
        prior = audit.prior.sort(descending=True).values.double() * k
        lines.append(svg.Line(_at_ranks(prior, 0), "kind6"))
        legend.append(("kind6", "prior"))
        highest = max(highest, float(prior[0]))
    floor = max(min(lowest, 0.5), highest / 1e6) / 1.3
    lines = [svg.Line([(a, max(b, floor)) for a, b in line.points], line.kind, dashed=line.dashed) for line in lines]
    lines.append(svg.Line(_at_ranks(shares, floor), "kind2"))
    tips = []
    for rank in ranks(k, log=True, places=48):
        told = f"prototype {count(rank + 1)} from the largest on\nmarginal: {short(float(shares[rank]))} times 1/K"
        tips.append(svg.Tip(rank + 1, told if prior is None else f"{told}\nprior: {short(float(prior[rank]))} times"))
    return Figure(
        "Marginal: the mean assignment",
        svg.chart(
            lines,
            svg.Axis(1, max(k, 2), rank_ticks(k), "prototypes, from the largest share on", log=True),
            svg.Axis(floor, above(highest), svg.power_ticks(floor, above(highest)), "share × K", log=True),
            title="The marginal from the largest share on, beside uniform, a power law and the prior",
            rules=[svg.Rule(1, "uniform")],
            tips=tips,
        ),
        _distances(audit),
        tuple(legend),
    )


def mass(audit: ClusterAudit) -> Figure:
    """The mean share of images over the redundancy factor (Govindarajan et al. 2024, figure 1)."""
    hard, soft = audit.mass, audit.soft_mass
    m = len(audit.merged_sizes)
    lines, points, seen = [], [], []
    for found, kind, name in ((soft, "kind4", "mean assignment"), (hard, "kind2", "share of images")):
        places = []
        for low, high, mean, number in zip(
            found.low.tolist(), found.high.tolist(), found.mean.tolist(), found.prototypes.tolist(), strict=True
        ):
            if mean > 0:
                span = f"{low}" if low == high else f"{low} to {high}"
                told = f"stands for {span} ({count(number)} unique prototypes)\n{name}: {percent(mean, 3)} each"
                x = math.sqrt(low * high)
                places.append((x, mean))
                points.append(svg.Point(x, mean, kind, told))
        lines.append(svg.Line(places, kind))
        seen += [mean for _, mean in places]
    floor, highest = min(*seen, 1 / m) / 1.6, above(max(*seen, 1 / m))
    end = max(float(hard.high[-1]), 2.0)
    told = "Each image goes to one of the unique prototypes only. "
    if hard.slope is not None:
        told += f"The slope of the logarithms is {hard.slope:.2f}. "
    if hard.spearman is not None:
        sense = "Copies hold more images" if hard.spearman > 0.1 else "Copies do not hold more images"
        told += f"{sense}: Spearman’s rank correlation is {hard.spearman:.2f}."
    return Figure(
        "Images against redundancy",
        svg.chart(
            lines,
            svg.Axis(1, end, svg.power_ticks(1, end), "redundancy factor", log=True),
            svg.Axis(floor, highest, svg.power_ticks(floor, highest), "share of the images", log=True),
            title="Mean share of images of unique prototypes over their redundancy factor",
            rules=[svg.Rule(1 / m, "an equal share, 1/M")],
            points=points,
        ),
        told,
        (("kind2", "most probable prototype"), ("kind4", "mean assignment")),
    )


def confidence(audit: ClusterAudit) -> Figure:
    """How decided assignments are."""
    k = audit.prototypes
    share = audit.entropy / math.log(k) if k > 1 else 0.0
    return Figure(
        "How decided assignments are",
        histogram(
            [audit.entropies, audit.confidences],
            ["kind3", "kind2"],
            ["entropy / ln K", "confidence"],
            "of an image’s assignment",
            title="Histograms of entropy and of the largest probability of assignments",
        ),
        f"At temperature {audit.temperature:g} the most probable prototype has {percent(audit.confidence)} on average, "
        f"and the entropy is {percent(share)} of ln K.",
        (("kind2", "confidence: the largest probability"), ("kind3", "entropy, as a share of ln K")),
    )


def compared(audits: Sequence[ClusterAudit], kinds: Sequence[str], names: Sequence[str]) -> Figure:
    """Relative sizes of several audits, over the share of the clusters."""
    floor = 0.6 * min(audit.prototypes / audit.images for audit in audits)
    lines = []
    for audit, kind in zip(audits, kinds, strict=True):
        curve = _sorted(_relative(audit.sizes), floor)
        lines.append(svg.Line([(100 * a / audit.prototypes, b) for a, b in curve], kind, steps=True))
    highest = max(audit.largest for audit in audits)
    tips = []
    for place in range(0, 100, 4):
        told = [f"at {place} % of the clusters, from the largest on"]
        for audit, name in zip(audits, names, strict=True):
            value = float(audit.relative_sizes[min(int(place / 100 * audit.prototypes), audit.prototypes - 1)])
            told.append(f"{name}: {short(value)} times")
        tips.append(svg.Tip(place, "\n".join(told)))
    return Figure(
        "Sizes of clusters",
        svg.chart(
            lines,
            svg.Axis(0, 100, [0, 25, 50, 75, 100], "% of the clusters, from the largest on"),
            svg.Axis(floor, above(highest), svg.power_ticks(floor, above(highest)), "relative size", log=True),
            title="Relative cluster sizes of all audits",
            rules=[svg.Rule(1, "an equal share")],
            tips=tips,
        ),
        "A curve that ends early leaves the rest of its clusters empty.",
        tuple(zip(kinds, names, strict=True)),
    )


def _emptiness(audit: ClusterAudit) -> str:
    k, m = audit.prototypes, len(audit.merged_sizes)
    told = (
        f"{of(audit.empty, k)} clusters are empty ({percent(audit.empty / k)}); {count(audit.images)} images at random "
        f"would leave {count(audit.empty_by_chance)}. The largest is {short(audit.largest)} times the mean."
    )
    if m < k:
        told += (
            f" Of copies the first takes all images; among the unique ones {of(audit.merged_empty, m)} are empty "
            f"({count(audit.merged_empty_by_chance)} by chance)."
        )
    return told


def _distances(audit: ClusterAudit) -> str:
    told = (
        f"From uniform: KL {short(audit.to_uniform)} nats, and {percent(audit.distance_to_uniform)} of the mass lies "
        "elsewhere."
    )
    if audit.marginal_power is not None:
        told += f" From the fitted power law: {percent(audit.marginal_power.distance)}."
    if audit.to_prior is not None and audit.distance_to_prior is not None:
        told += f" From the prior: KL {short(audit.to_prior)} nats, {percent(audit.distance_to_prior)} elsewhere"
        if audit.sorted_distance_to_prior is not None:
            told += f" ({percent(audit.sorted_distance_to_prior)} once both are sorted)"
        told += "."
    return told


def _exponent(fit: PowerFit) -> str:
    return f"{fit.exponent:.2f}" if fit.error is None else f"{fit.exponent:.2f} ± {fit.error:.2f}"


def _relative(sizes: Tensor) -> Tensor:
    ordered = sizes.sort(descending=True).values.double()
    return ordered * (len(ordered) / ordered.sum().clamp(min=1))


def _sorted(relative: Tensor, floor: float) -> Curve:
    """As stairs, down to the floor behind the last cluster that has images."""
    used = int((relative > 0).sum())
    if not used:
        return [(0.0, floor)]
    return [*((float(i), float(relative[i])) for i in ranks(used)), (float(used), floor)]


def _at_ranks(shares: Tensor, floor: float) -> Curve:
    return [(i + 1.0, max(float(shares[i]), floor)) for i in ranks(len(shares), log=True)]


def _law(fit: PowerFit, k: int) -> Curve:
    """Shares of a power law of rank, times K."""
    weights = torch.arange(1, k + 1, dtype=torch.float64) ** -fit.exponent
    return _at_ranks(weights * (k / weights.sum()), 0)


def _by_chance(images: int, k: int, floor: float) -> Curve:
    """Sorted relative sizes of images that are thrown at random: K P(X >= c) clusters have c images or more."""
    mean = images / k
    reach = int(mean + 8 * math.sqrt(mean) + 10)
    counts = torch.arange(reach + 1, dtype=torch.float64)
    log = counts * math.log(mean) - mean - torch.lgamma(counts + 1)
    tail = log.exp().flip(0).cumsum(0).flip(0) * k  # clusters of c images or more
    kept = [c for c in range(1, reach + 1) if float(tail[c]) >= 0.5]
    kept = [kept[i] for i in ranks(len(kept))]
    curve = [(min(float(tail[c]), float(k)), c / mean) for c in reversed(kept)]
    return [*curve, (curve[-1][0], floor)] if curve and curve[-1][0] < 0.995 * k else curve or [(0.0, 1.0)]
