"""Are two evaluations different? Paired tests on the images, or over seeds.

    compare(a, b)              two records of the same protocol on the same test images
    compare_all(first, second) all that two lists of records share
    mcnemar, paired_t          the tests

n images, s seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from prototile.evaluation.records import Record, is_share, shown, unpacked, unpacked_classes

_DRAWS = 2000  # of a bootstrap
_LEVEL = 0.95  # of the interval


@dataclass(frozen=True)
class Difference:
    """By how much the second record is better than the first, the 95% interval of that, and how probable by chance.

    `test` is the test: McNemar's on images that one of both has right, a bootstrap of images, or Student's t over
    seeds. Without any of them there is no p.
    """

    protocol: str
    metric: str
    first: float
    second: float
    test: str
    p: float | None
    low: float | None
    high: float | None
    pairs: int  # images, or seeds
    better: int = 0  # how many of them the second has better
    worse: int = 0

    @property
    def difference(self) -> float:
        return self.second - self.first

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"difference": self.difference}

    def __str__(self) -> str:
        values = f"{shown(self.first, self.metric)} -> {shown(self.second, self.metric)}"
        scale, unit = (100, " points") if is_share(self.metric) else (1, "")
        said = f"{self.protocol} ({self.metric}): {values}, {scale * self.difference:+.2f}{unit}"
        if self.p is None:
            return f"{said}; {self.test}"
        return f"{said} [{scale * self.low:+.2f}, {scale * self.high:+.2f}], p = {self.p:.2g} ({self.test})"  # type: ignore[operator]


def compare(first: Record, second: Record, *, seed: int = 0) -> Difference:
    """Paired by images where both records say which were right: McNemar's exact test with one seed each, a bootstrap of
    images of the mean over seeds otherwise, within classes where the metric is a mean over these. Else paired by
    seeds.

    Images tell how sure the difference is between these two networks; what other seeds of pre-training would give, they
    cannot tell.
    """
    if first.subject != second.subject:
        raise ValueError(
            f"{first.protocol} ({first.metric}) and {second.protocol} ({second.metric}) are not of the same protocol, "
            "options and test images: records can be compared where these agree"
        )
    basics = (first.protocol, first.metric, first.value, second.value)
    if first.right and second.right and first.images == second.images:
        a, b = (np.mean([unpacked(text, x.images) for text in x.right], 0) for x in (first, second))
        gain = b - a
        counts = int((gain > 0).sum()), int((gain < 0).sum())
        if first.classes is None and len(first.right) == len(second.right) == 1:
            low, high = _wald(counts, len(gain))
            return Difference(*basics, "McNemar, exact", mcnemar(*counts), low, high, len(gain), *counts)
        labels = None if first.classes is None else unpacked_classes(first.classes)
        p, low, high = _bootstrap(gain, labels, seed)
        return Difference(*basics, f"bootstrap of {len(gain):,} images", p, low, high, len(gain), *counts)
    return _by_seeds(first, second, basics)


def compare_all(first: Sequence[Record], second: Sequence[Record]) -> list[Difference]:
    """Of the latest records of each kind, in the first's order."""
    latest = [{x.subject: x for x in records} for records in (first, second)]
    return [compare(x, latest[1][subject]) for subject, x in latest[0].items() if subject in latest[1]]


def mcnemar(better: int, worse: int) -> float:
    """Two-sided: how probable is a split as uneven as this of the images that only one of both has right?"""
    total = better + worse
    if total == 0:
        return 1.0
    k = np.arange(min(better, worse) + 1)
    logs = [math.lgamma(total + 1) - math.lgamma(i + 1) - math.lgamma(total - i + 1) - total * math.log(2) for i in k]
    return min(1.0, 2 * math.fsum(math.exp(x) for x in logs))


def paired_t(differences: Float[np.ndarray, " s"]) -> tuple[float, float, float]:
    """Student's: p, two-sided, and the 95% interval of the mean."""
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / math.sqrt(len(differences))
    freedom = len(differences) - 1
    if error == 0:
        return (1.0 if mean == 0 else 0.0), mean, mean
    half = _t_quantile(freedom) * error
    return _t_tail(abs(mean) / error, freedom), mean - half, mean + half


def _by_seeds(first: Record, second: Record, basics: tuple[str, str, float, float]) -> Difference:
    if first.seeds == second.seeds and len(first.values) == len(second.values) > 1:
        gain = np.array(second.values) - np.array(first.values)
        p, low, high = paired_t(gain)
        counts = int((gain > 0).sum()), int((gain < 0).sum())
        return Difference(*basics, f"t over {len(gain)} seeds", p, low, high, len(gain), *counts)
    why = "no test: one seed each, and no record of which images were right"
    return Difference(*basics, why, None, None, None, len(first.values))


def _bootstrap(
    gain: Float[np.ndarray, " n"], labels: Int[np.ndarray, " n"] | None, seed: int
) -> tuple[float, float, float]:
    """p and interval of the mean gain over images, or of the mean of classes' means; drawn within classes there."""
    random = np.random.default_rng(seed)
    groups = [gain] if labels is None else [gain[labels == k] for k in np.unique(labels[labels >= 0])]
    drawn = np.zeros(_DRAWS)
    for part in groups:
        # equal gains are one sort of image: drawing n of them is drawing how many of each sort
        kinds, counts = np.unique(part, return_counts=True)
        drawn += random.multinomial(len(part), counts / len(part), _DRAWS) @ kinds / len(part) / len(groups)
    tail = min(float((drawn <= 0).mean()), float((drawn >= 0).mean()))
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return min(1.0, max(2 * tail, 2 / (_DRAWS + 1))), float(low), float(high)


def _wald(counts: tuple[int, int], images: int) -> tuple[float, float]:
    """The interval of a difference of two shares of the same images."""
    better, worse = counts
    mean = (better - worse) / images
    half = 1.959964 * math.sqrt(max(0.0, (better + worse) / images - mean**2) / images)
    return mean - half, mean + half


def _t_tail(t: float, freedom: int) -> float:
    """P(|T| > t): the density in t = sqrt(v) tan(a) is a power of cos(a)."""
    whole, inside = (_cosines(limit, freedom - 1) for limit in (math.pi / 2, math.atan(t / math.sqrt(freedom))))
    return max(0.0, 1 - inside / whole)


def _cosines(limit: float, power: int) -> float:
    """The integral of cos^power from 0 to `limit`, by Gauss and Legendre."""
    nodes, weights = np.polynomial.legendre.leggauss(64)
    return float(limit / 2 * (weights * np.cos(limit / 2 * (nodes + 1)) ** power).sum())


def _t_quantile(freedom: int) -> float:
    low, high = 0.0, 1e3
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_tail(middle, freedom) > 1 - _LEVEL else (low, middle)
    return high
