"""VOC 2007: a support vector machine for each class, scored by mean average precision (VISSL).

n images, t of them to learn from, d dims, c classes, f folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prototile.evaluation.convex import Problem
from prototile.evaluation.features import all_labelled, same_dims
from prototile.evaluation.scores import average_precision, mean_average_precision, present

# E2MC's (Chakraborty et al. 2025), and VISSL's own
_SMALL_COSTS = tuple(m * 10.0**e for e in range(-6, 0) for m in (1, 3))
COSTS = (*_SMALL_COSTS, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
VISSL_COSTS = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)

_POSITIVE = 2.0  # how much more a positive image weighs
_EPS = 1e-5  # added to norms


@dataclass(frozen=True, eq=False)
class SupportVectors:
    """Mean average precision over classes, each class's, and its cost."""

    value: float
    images: int
    each: Sequence[float]
    costs: Sequence[float]
    selected_on: Literal["validation"] = "validation"
    validation: Sequence[float] = field(default=(), repr=False)  # average precision of the folds, of each class

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def __str__(self) -> str:
        return f"SVM {self.value:.1%} (mAP of {len(self.each)} classes) of {self.images:,} images"


def support_vectors(
    train: Float[Tensor, "t d"],
    train_labels: Int[Tensor, "t c"],
    test: Float[Tensor, "n d"],
    test_labels: Int[Tensor, "n c"],
    *,
    costs: Sequence[float] = COSTS,
    folds: int = 3,
    tolerance: float = 1e-4,
    iterations: int = 2000,
    device: torch.device | str | None = None,
) -> SupportVectors:
    r"""$\frac12 \|w\|^2 + C \sum_i a_i \max(0, 1 - y_i (w x_i + b))^2$ on L2-normalised features, with b in w and
    $a_i$ 2 for positive images (Goyal et al. 2019, liblinear's objective, here at its minimum).

    Each class has the C of the best average precision over the folds, which are stretches of its positive and its
    negative images; of equal ones the smallest. Labels are 1, 0 (difficult: negative in training, left out of the
    test) and -1. The precision's envelope is integrated over all recalls.
    """
    if not costs or min(costs) <= 0:
        raise ValueError(f"costs must be positive, got {tuple(costs)}")
    x, y = all_labelled(train, train_labels, "training")
    queries, wanted = all_labelled(test, test_labels, "test")
    same_dims(x, queries)
    positive = present(y)
    if bool(((positive.sum(0) < folds) | ((~positive).sum(0) < folds)).any()):
        raise ValueError(f"every class needs {folds} images that have it and {folds} that have not, one for each fold")
    x, queries = _with_one(x), _with_one(queries)
    costs = sorted(costs)
    scores = _validated(x, positive, costs, folds, tolerance, iterations, device)  # costs x classes
    best = scores.argmax(0)  # the first of equal ones
    chosen = [costs[i] for i in best.tolist()]
    found = _machines(x, positive, _weights(positive, x), device).fit(
        _penalty(chosen, x), tolerance=tolerance, iterations=iterations
    )
    value, each = mean_average_precision(found.scores(queries), wanted.cpu(), "envelope")
    return SupportVectors(value, len(queries), each, chosen, validation=scores.amax(0).tolist())


def _validated(
    x: Tensor, positive: Tensor, costs: Sequence[float], folds: int, tolerance: float, iterations: int, device: Any
) -> Float[Tensor, "costs c"]:
    """The mean over folds of the average precision of each cost and class."""
    parts = _folds(positive, folds)
    found = torch.zeros(folds, len(costs), positive.shape[1], dtype=torch.float64)
    for fold in range(folds):
        held = parts == fold
        problem = _machines(x, positive, _weights(positive, x) * ~held, device)
        path = problem.path(
            [_penalty([c] * positive.shape[1], x) for c in costs], tolerance=tolerance, iterations=iterations
        )
        for i, machine in enumerate(path):
            scores = machine.scores(x)
            for k in range(positive.shape[1]):
                found[fold, i, k] = average_precision(scores[held[:, k], k], positive[held[:, k], k])
    return found.mean(0)


def _folds(positive: Bool[Tensor, "t c"], folds: int) -> Int[Tensor, "t c"]:
    """Which fold an image is in, for each class: positive and negative images in equal stretches, in their order."""
    found = torch.empty(positive.shape, dtype=torch.long)
    for wished in (positive, ~positive):
        place, total = wished.cumsum(0) - 1, wished.sum(0)
        # as scikit-learn: the first folds have one more where they cannot be equal
        small, larger = total // folds, total % folds
        fold = torch.where(place < larger * (small + 1), place // (small + 1), (place - larger) // small.clamp(min=1))
        found[wished] = fold[wished]
    return found


def _machines(x: Tensor, positive: Tensor, weights: Tensor, device: Any) -> Problem:
    signs = torch.where(positive, 1, -1)
    return Problem(x, signs, loss="squared hinge", intercept=False, weights=weights, device=device)


def _weights(positive: Bool[Tensor, "t c"], x: Tensor) -> Float[Tensor, "t c"]:
    return torch.where(positive, _POSITIVE, 1.0).to(x.dtype)


def _penalty(costs: Sequence[float], x: Tensor) -> Float[Tensor, " c"]:
    return 1 / (torch.tensor(costs, dtype=x.dtype) * len(x))


def _with_one(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d_and_one"]:
    """Rows of length one, and the intercept's input, which is penalised with them."""
    x = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + _EPS)
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)
