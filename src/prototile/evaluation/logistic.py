"""Logistic regression whose regularisation is chosen among 45: the transfer protocol of Ericsson et al. 2021.

n images, t of them to learn from, d dims, c classes.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prototile.evaluation.convex import Linear, Problem
from prototile.evaluation.features import checked, same_dims
from prototile.evaluation.scores import mean_average_precision, mean_per_class, present
from prototile.evaluation.splits import held_out
from prototile.precision import wide

Metric = Literal["top1", "mean per class", "mAP 11"]
SelectOn = Literal["validation", "test"]

GRID = tuple((10 ** torch.linspace(-5, 6, 45, dtype=torch.float64)).tolist())  # of C, which is 1 / lambda


@dataclass(frozen=True, eq=False)
class Logistic:
    """The score of test images at the chosen C, and those of all on the images that it was chosen on."""

    metric: Metric
    value: float
    images: int
    c: float
    curve: Mapping[float, float]  # by C
    selected_on: SelectOn
    passes: int  # over the training images, in all fits
    right: Bool[Tensor, " n"] | None = field(repr=False)  # of each test image, where it has one class
    each: Sequence[float] | None = field(default=None, repr=False)  # of each class, for mAP

    def as_dict(self) -> dict[str, Any]:
        left_out = ("right",)
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}

    def __str__(self) -> str:
        return f"logistic {self.value:.1%} ({self.metric}) of {self.images:,} images (C = {self.c:.3g})"


def logistic(
    train: Float[Tensor, "t d"],
    train_labels: Int[Tensor, " t *c"],
    test: Float[Tensor, "n d"],
    test_labels: Int[Tensor, " n *c"],
    *,
    metric: Metric = "top1",
    validation: tuple[Tensor, Tensor] | None = None,
    share: float = 0.2,
    seed: int = 0,
    select_on: SelectOn = "validation",
    cs: Sequence[float] = GRID,
    standardise: bool = False,
    tolerance: float = 1e-4,
    iterations: int = 100,
    device: torch.device | str | None = None,
) -> Logistic:
    r"""Multinomial regression, $\sum CE + \frac{1}{2C} \|W\|^2$ with a free intercept, for each C of the grid.

    The best C on `validation` (features and labels), or on the share of the training images that is drawn for that,
    is fitted again to all of them; of equal ones the largest, as in the original. With select_on="test" it is the best
    on the test images, which flatters it. Labels of several classes (VOC's 1, 0, -1) get one regression for each, and
    metric "mAP 11". Features are taken as they are, unless they are to be standardised.

    Fits go from the strongest regularisation to the weakest, each from its neighbour's solution.
    """
    if not cs or min(cs) <= 0:
        raise ValueError(f"C must be positive, got {tuple(cs)}")
    if select_on not in ("validation", "test"):
        raise ValueError(f"select_on must be 'validation' or 'test', got {select_on!r}")
    several = train_labels.ndim == 2
    if several != (metric == "mAP 11"):
        raise ValueError(
            f"metric {metric!r} is not for labels of shape {tuple(train_labels.shape)}: mAP is for several"
        )
    scale = _scale(train) if standardise else None
    learned, tested = _Part.of(train, train_labels, "training", scale), _Part.of(test, test_labels, "test", scale)
    same_dims(train, test)
    fitter = _Fitter(metric, sorted(cs), tolerance, iterations, device, _classes(train_labels, test_labels))
    if select_on == "test":
        best = fitter.best(learned, tested)
        found = best.found
    else:
        if validation is None:
            kept, held = held_out(train_labels, share, seed=seed)
            parts = replace(learned, rows=kept), replace(learned, rows=held)
        else:
            parts = learned, _Part.of(*validation, "validation", scale)
            learned = _Part.joined(*parts)
        best = fitter.best(*parts)
        found = next(fitter.path(learned, [best.c], best.found))
    value, right, each = fitter.scored(found, tested)
    passes = best.passes + (0 if select_on == "test" else found.passes)
    return Logistic(metric, value, len(tested.rows), best.c, best.curve, select_on, passes, right, each)


@dataclass(frozen=True, eq=False)
class _Part:
    """Images by their numbers, among features that may lie on disk."""

    x: Float[Tensor, "n d"]
    y: Int[Tensor, " n *c"]
    rows: Int[Tensor, " _m"]

    @classmethod
    def of(cls, x: Tensor, y: Tensor, part: str, scale: tuple[Tensor, Tensor] | None) -> "_Part":
        checked(x, y, part)
        x = wide(x.detach()) if scale is None else (wide(x.detach()) - scale[0]) / scale[1]
        return cls(x, y, torch.arange(len(y)) if y.ndim == 2 else (y >= 0).nonzero().flatten())

    @classmethod
    def joined(cls, a: "_Part", b: "_Part") -> "_Part":
        return cls(torch.cat([a.x, b.x]), torch.cat([a.y, b.y]), torch.cat([a.rows, b.rows + len(a.x)]))


@dataclass(frozen=True, eq=False)
class _Best:
    c: float
    found: Linear
    curve: Mapping[float, float]
    passes: int


@dataclass(frozen=True)
class _Fitter:
    metric: Metric
    cs: Sequence[float]
    tolerance: float
    iterations: int
    device: torch.device | str | None
    classes: int

    def path(self, part: _Part, cs: Sequence[float], start: Linear | None = None) -> Iterator[Linear]:
        options = {"rows": part.rows, "device": self.device}
        if part.y.ndim == 2:
            problem = Problem(part.x, torch.where(present(part.y), 1, -1), loss="sigmoid", **options)
        else:
            problem = Problem(part.x, part.y, classes=self.classes, **options)
        penalties = [1 / (c * len(problem)) for c in cs]
        return problem.path(penalties, start, tolerance=self.tolerance, iterations=self.iterations)

    def best(self, learned: _Part, judged: _Part) -> _Best:
        """Of the grid, on images that it has not learned from."""
        curve, passes, best, chosen = {}, 0, None, 0.0
        for c, found in zip(self.cs, self.path(learned, self.cs), strict=True):
            curve[c], passes = self.scored(found, judged)[0], passes + found.passes
            if best is None or curve[c] >= curve[chosen]:
                best, chosen = found, c
        assert best is not None
        return _Best(chosen, best, curve, passes)

    def scored(self, found: Linear, part: _Part) -> tuple[float, Bool[Tensor, " n"] | None, list[float] | None]:
        wanted = part.y[part.rows].cpu()
        if self.metric == "mAP 11":
            value, each = mean_average_precision(found.scores(part.x, part.rows), wanted, "eleven")
            return value, None, each
        right = found.predicted(part.x, part.rows) == wanted
        measure: Callable[..., float] = mean_per_class if self.metric == "mean per class" else _top1
        return measure(right, wanted), right, None


def _top1(right: Tensor, labels: Tensor) -> float:
    return float(right.double().mean())


def _classes(y: Tensor, wanted: Tensor) -> int:
    return y.shape[1] if y.ndim == 2 else int(max(y.max(), wanted.max())) + 1


def _scale(x: Float[Tensor, "t d"]) -> tuple[Tensor, Tensor]:
    """The mean and deviation of each dim; of a constant one 1."""
    deviation, mean = torch.std_mean(x, 0, correction=0)
    return mean, torch.where(deviation > 0, deviation, 1)
