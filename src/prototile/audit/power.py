r"""Laws of rank: how fast sizes fall from the largest one on.

    fit_power(sizes)        exponent of counts, with its error
    nearest_power(shares)   exponent of shares that are no counts, without

A line through sorted sizes on two logarithmic axes has two faults: small counts dominate it, and sorting makes a slope
of mere chance (of equal shares, too). Here counts are Poisson draws around shares whose order nobody knows,

$P(n) = \frac1K \sum_r \mathrm{Poisson}(n; N r^{-\tau} / \sum_s s^{-\tau})$,

and the exponent maximises the sum of log P over prototypes. Its error is that of the estimating equation (Godambe): the
score's variance over draws, rank by rank and given N, over its squared slope. Both are taken in tau^2, for the
likelihood is even in tau: so interval and error hold near 0, where no draw tells tau from 0.

k prototypes, c distinct counts, r ranks (or cells of ranks).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.audit.plain import plain

_STEEPEST = 5.0
_EXACT, _CELLS = 64, 600  # ranks by themselves, and cells of equal ratio for those behind
_DRAWS = 3  # that the noise is taken from


@dataclass(frozen=True)
class PowerFit:
    """Sizes as a law of rank: the r-th largest share is proportional to r^-exponent.

    `distance` is the total variation between the sorted sizes and the law, `noise` what sampling so many images alone
    makes it: where the distance is much larger, the sizes follow no power law, and the error means nothing.
    """

    exponent: float
    error: float | None  # standard error: from the images being a sample; none where sizes are no counts
    low: float | None  # 95% interval
    high: float | None
    distance: float
    noise: float | None

    def as_dict(self) -> dict[str, Any]:
        return {name: plain(getattr(self, name)) for name in ("exponent", "error", "low", "high", "distance", "noise")}

    def __str__(self) -> str:
        error = "" if self.error is None else f" +- {self.error:.3f}"
        return f"exponent {self.exponent:.3f}{error}, {self.distance:.1%} of the mass lies off that law"


def fit_power(sizes: Int[Tensor, " k"]) -> PowerFit:
    """Of how many images each prototype has, by maximum likelihood whatever their order."""
    counts = sizes.detach().cpu().double()
    total = float(counts.sum())
    if len(counts) < 2 or total < 1:
        raise ValueError(f"a law of rank needs two sizes and one image, got {len(counts)} sizes and {total:.0f} images")
    law = _Law(len(counts), total)
    values, often = counts.unique(return_counts=True)

    def fit(exponent: float) -> float:
        return float(often.double() @ law.log_density(values, exponent))

    exponent = _maximum(fit)
    square, error = exponent**2, law.error_of_square(exponent)
    low, high = (math.sqrt(max(square + z * error, 0)) for z in (-1.96, 1.96))
    # half the width of the interval of one error: error / (2 tau) where tau is far from 0
    spread = (math.sqrt(square + error) - math.sqrt(max(square - error, 0))) / 2
    shares = counts.sort(descending=True).values / total
    return PowerFit(exponent, spread, low, high, _variation(shares, law.shares(exponent)), law.noise(exponent))


def nearest_power(shares: Float[Tensor, " k"]) -> PowerFit:
    """The law of rank with the least KL(sorted shares || law); nobody knows its error."""
    ordered = shares.detach().cpu().double().sort(descending=True).values
    ordered = ordered / ordered.sum()
    law = _Law(len(ordered), 1.0)
    wanted = float(ordered @ law.log_rank)
    low, high = 0.0, _STEEPEST
    for _ in range(60):  # the mean log rank falls with the exponent
        middle = (low + high) / 2
        low, high = (middle, high) if float(law.shares(middle) @ law.log_rank) > wanted else (low, middle)
    return PowerFit(low, None, None, None, _variation(ordered, law.shares(low)), None)


class _Law:
    """Counts of `total` images around shares r^-tau of k ranks; of ranks far behind, those of a cell are one."""

    def __init__(self, k: int, total: float):
        self.total = total
        self.log_rank = torch.arange(1, k + 1, dtype=torch.float64).log()
        edges = torch.logspace(math.log10(_EXACT + 1), math.log10(k + 1), _CELLS + 1).round().double()
        edges = torch.cat([torch.arange(1, min(_EXACT, k) + 1), edges if k > _EXACT else edges.new_tensor([k + 1])])
        edges = edges.double().unique()
        self.often = edges.diff()
        self.cell = (edges[:-1].log() + (edges[1:] - 1).log()) / 2  # log rank in the middle of each cell

    def shares(self, exponent: float) -> Float[Tensor, " k"]:
        return (-exponent * self.log_rank).softmax(0)

    def means(self, exponent: float) -> Float[Tensor, " r"]:
        """The expected count of each cell's ranks."""
        log = -exponent * self.cell
        return (log - (log + self.often.log()).logsumexp(0)).exp() * self.total

    def log_density(self, counts: Float[Tensor, " c"], exponent: float) -> Float[Tensor, " c"]:
        mean = self.means(exponent)
        log = counts[:, None] * mean.log() - mean - torch.lgamma(counts + 1)[:, None]
        return (log + (self.often / self.often.sum()).log()).logsumexp(1)

    def error_of_square(self, exponent: float) -> float:
        """The standard error of tau^2."""
        mean = self.means(exponent)
        grid = _grid(float(mean.max()))
        step = 1e-3 * max(exponent**2, 1e-2)
        above, below = exponent**2 + step, max(exponent**2 - step, 0)
        logs = [self.log_density(grid, math.sqrt(square)) for square in (above, below)]
        score = (logs[0] - logs[1]) / (above - below)
        counts, weights = _draws(mean)
        scores = _interpolated(score, grid, counts)
        first, second = (weights * scores).sum(1), (weights * scores.square()).sum(1)
        along = (weights * scores * (counts - mean[:, None])).sum(1)
        variance = self.often @ (second - first.square()) - (self.often @ along).square() / self.total
        return math.sqrt(max(float(variance), 0)) / float(self.often @ second)

    def noise(self, exponent: float) -> float:
        """The total variation between the law and sorted counts that are drawn from it."""
        shares = self.shares(exponent)
        generator = torch.Generator().manual_seed(0)
        found = 0.0
        for _ in range(_DRAWS):
            drawn = torch.poisson(shares * self.total, generator=generator).sort(descending=True).values
            found += _variation(drawn / drawn.sum().clamp(min=1), shares) / _DRAWS
        return found


def _maximum(fit) -> float:
    """Where a function of the exponent is largest: on a grid, then by golden section beside its best point."""
    grid = [0.1 * i for i in range(round(_STEEPEST / 0.1) + 1)]
    best = max(grid, key=fit)
    low, high = max(best - 0.1, 0.0), min(best + 0.1, _STEEPEST)
    ratio = (math.sqrt(5) - 1) / 2
    points = [high - ratio * (high - low), low + ratio * (high - low)]
    values = [fit(point) for point in points]
    for _ in range(30):
        if values[0] >= values[1]:
            high, points[1], values[1] = points[1], points[0], values[0]
            points[0] = high - ratio * (high - low)
            values[0] = fit(points[0])
        else:
            low, points[0], values[0] = points[0], points[1], values[1]
            points[1] = low + ratio * (high - low)
            values[1] = fit(points[1])
    middle = (low + high) / 2
    return 0.0 if low < 1e-6 and fit(0.0) >= fit(middle) else middle


def _grid(largest: float) -> Float[Tensor, " c"]:
    """Counts that are dense enough to interpolate between: all small ones, then a fifth of a deviation apart."""
    end = max(largest + 9 * math.sqrt(largest), 200)
    roots = torch.arange(math.sqrt(200), math.sqrt(end) + 0.1, 0.1, dtype=torch.float64)
    return torch.cat([torch.arange(201, dtype=torch.float64), roots.square().clamp(min=200)]).unique()


def _draws(mean: Float[Tensor, " r"]) -> tuple[Float[Tensor, "r j"], Float[Tensor, "r j"]]:
    """Counts around each mean and their probabilities."""
    z = torch.linspace(-6, 6, 121, dtype=torch.float64)
    near = mean[:, None] + mean.sqrt()[:, None] * z
    small = torch.arange(121, dtype=torch.float64).expand_as(near)  # all there are: means up to 40 stay below 121
    counts = torch.where(mean[:, None] <= 40, small, near)
    log = counts * mean[:, None].clamp(min=1e-300).log() - torch.lgamma(counts + 1)
    return counts, log.softmax(1)


def _interpolated(values: Float[Tensor, " c"], grid: Float[Tensor, " c"], at: Float[Tensor, "r j"]) -> Tensor:
    right = torch.searchsorted(grid, at.contiguous()).clamp(1, len(grid) - 1)
    share = (at - grid[right - 1]) / (grid[right] - grid[right - 1])
    return values[right - 1] + share * (values[right] - values[right - 1])


def _variation(p: Tensor, q: Tensor) -> float:
    return float((p - q).abs().sum() / 2)
