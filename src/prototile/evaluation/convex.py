r"""Linear classifiers that minimise a convex loss: one solver for logistic regression and support vector machines.

    Problem(x, targets, loss=...)    rows and targets, prepared once for a whole grid of penalties
    Linear                           a fitted classifier

$J = \frac1n \sum_i L_i + \frac12 \sum_j \lambda_j \|W_j\|^2$, the intercept free: scikit-learn's objective for
$\lambda = 1 / (C n)$. L-BFGS whose first guess at the Hessian is $\kappa X^T X / n + \lambda$, which is diagonal in the
basis of the eigenvectors of $X^T X$; $\kappa$ is the most that the loss bends (Böhning 1992; of softmax the most on
average, 1 / c). A fit that begins where its neighbour on a path of penalties ended then takes a few passes over the
rows. The basis changes the weights, never the rows: these are read in blocks and may lie on disk.

n images, d dims, r dims that vary, c classes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prototile.evaluation.lbfgs import Minimum, Objective, Step, minimum
from prototile.precision import no_autocast, no_tf32

Loss = Literal["softmax", "sigmoid", "squared hinge"]

_CURVATURE = {"softmax": None, "sigmoid": 0.25, "squared hinge": 2.0}  # the most that a loss bends; softmax: on average
_BLOCK_NUMBERS = {"cpu": 2**21, "cuda": 2**27}  # of rows, or of scores, that are held at a time
_RESIDENT_NUMBERS = 2**28  # rows of so many numbers are centred once, in memory; others each time


@dataclass(frozen=True, eq=False)
class Linear:
    """scores = weight x + bias, as torch's `nn.Linear`."""

    weight: Float[Tensor, "c d"] = field(repr=False)
    bias: Float[Tensor, " c"] = field(repr=False)
    passes: int = 0  # over the rows, to fit it
    slope: float = float("nan")  # the largest entry of the gradient, where it ended

    def predicted(self, x: Float[Tensor, "n d"], rows: Int[Tensor, " m"] | None = None) -> Int[Tensor, " _m"]:
        """The class of the highest score of each row (or of these), on the CPU; equal ones come in order."""
        return self._mapped(x, rows, lambda scores: scores.argmax(1))

    def scores(self, x: Float[Tensor, "n d"], rows: Int[Tensor, " m"] | None = None) -> Float[Tensor, "_m c"]:
        """Of all rows, or of these, on the CPU."""
        return self._mapped(x, rows, lambda scores: scores)

    @no_autocast
    @no_tf32
    def _mapped(self, x: Tensor, rows: Tensor | None, read: Callable[[Tensor], Tensor]) -> Tensor:
        step = max(1, _BLOCK_NUMBERS[self.weight.device.type] // max(self.weight.shape))
        parts = x.split(step) if rows is None else (x[part] for part in rows.split(step))
        return torch.cat([read(F.linear(part.to(self.weight), self.weight, self.bias)).cpu() for part in parts])


class Problem:
    """Rows and targets: a class for each row (softmax), or -1 / 1 for each row and class (sigmoid, squared hinge).

    `weights` are factors of the loss of each row and class; of softmax there are none. `rows` are the numbers of those
    that are looked at, where these are not all. Computed in the dtype of `x`, on `device`.
    """

    @no_autocast
    @no_tf32
    def __init__(
        self,
        x: Float[Tensor, "n d"],
        targets: Int[Tensor, "n *c"],
        *,
        loss: Loss = "softmax",
        classes: int | None = None,
        intercept: bool = True,
        weights: Float[Tensor, "n c"] | None = None,
        rows: Int[Tensor, " m"] | None = None,
        device: torch.device | str | None = None,
    ):
        if loss not in _CURVATURE:
            raise ValueError(f"loss must be one of {', '.join(_CURVATURE)}, got {loss!r}")
        if len(x) == 0 or len(targets) != len(x) or targets.ndim != (1 if loss == "softmax" else 2):
            wanted = "a class" if loss == "softmax" else "-1 or 1 for every class"
            raise ValueError(f"each of {len(x)} rows needs {wanted}, got targets of shape {tuple(targets.shape)}")
        if weights is not None and (loss == "softmax" or weights.shape != targets.shape):
            raise ValueError("weights are factors for each row and class of a sigmoid or squared hinge loss")
        self.device = x.device if device is None else torch.device(device)
        self.loss, self.intercept = loss, intercept
        if targets.ndim == 2:
            self.classes = targets.shape[1]
        else:
            self.classes = int(targets.max()) + 1 if classes is None else classes
        self._rows, self._count = rows, len(x) if rows is None else len(rows)
        self._targets = (targets if rows is None else targets[rows]).to(self.device)
        self._weights = weights if weights is None or rows is None else weights[rows]
        self._x = x
        self._step = max(1, _BLOCK_NUMBERS[self.device.type] // max(x.shape[1], self.classes))
        self._centre()
        values, self._basis = self._spectrum()
        bends = _CURVATURE[loss] or 1 / self.classes
        self._bias_bends = bends * (1.0 if weights is None else max(1e-12, float(weights.max())))
        self._bends = self._bias_bends * values  # r

    def __len__(self) -> int:
        return self._count

    def fit(
        self,
        l2: float | Float[Tensor, " c"],
        start: Linear | None = None,
        *,
        tolerance: float = 1e-4,
        iterations: int = 100,
    ) -> Linear:
        """The minimum for this penalty (or one for each class), from `start` or from zero.

        It ends where no entry of the gradient is larger than `tolerance`, or after so many steps.
        """
        return next(self.path([l2], start, tolerance=tolerance, iterations=iterations))

    def path(
        self,
        penalties: Sequence[float | Float[Tensor, " c"]],
        start: Linear | None = None,
        *,
        tolerance: float = 1e-4,
        iterations: int = 100,
    ) -> Iterator[Linear]:
        """The minimum for one penalty after the other: each search begins where the last one ended, and remembers how
        the loss bends there. From strong to weak is quick.
        """
        point, steps = self._from(start), ()
        for l2 in penalties:
            penalty = torch.as_tensor(l2, dtype=self._basis.dtype, device=self.device).expand(self.classes)[:, None]
            if not bool((penalty > 0).all()) or (self.loss == "softmax" and bool((penalty != penalty[0]).any())):
                raise ValueError(f"the penalty must be positive, and softmax has one for all classes, got {l2}")
            bent = [Step(step.s, step.y + self._padded(penalty) * step.s) for step in steps]
            found = self._minimum(penalty, point, tolerance, iterations, bent)
            steps = [Step(step.s, step.y - self._padded(penalty) * step.s) for step in found.steps]
            point = found.point
            yield self._outside(found)

    def _padded(self, penalty: Float[Tensor, "c 1"]) -> Float[Tensor, "c r_and_bias"]:
        """Of each weight; the bias has none."""
        each = penalty.expand(-1, len(self._bends))
        return torch.cat([each, torch.zeros_like(penalty)], 1) if self.intercept else each

    @no_autocast
    @no_tf32
    @torch.no_grad()
    def _minimum(self, penalty: Tensor, point: Tensor, tolerance: float, iterations: int, steps: list[Step]) -> Minimum:
        bends = self._bends
        if self.intercept:
            bends = torch.cat([bends, bends.new_tensor([self._bias_bends])])
        inverse, objective = 1 / (bends + self._padded(penalty)), self._objective(penalty)
        return minimum(objective, point, inverse, tolerance=tolerance, iterations=iterations, steps=steps)

    @no_autocast
    @no_tf32
    def _outside(self, found: Minimum) -> Linear:
        """The classifier of rows as they were given."""
        weight = found.point[:, : len(self._bends)] @ self._basis.T
        bias = found.point[:, -1] - weight @ self._mean if self.intercept else weight.new_zeros(self.classes)
        return Linear(weight, bias, found.calls, found.steepness)

    @no_autocast
    @no_tf32
    def _from(self, start: Linear | None) -> Float[Tensor, "c r_and_bias"]:
        if start is None:
            return self._basis.new_zeros(self.classes, len(self._bends) + self.intercept)
        weight, bias = start.weight.to(self._basis), start.bias.to(self._basis)
        inner = weight @ self._basis
        if self.intercept:
            inner = torch.cat([inner, (bias + weight @ self._mean)[:, None]], 1)
        return self._centred(inner)

    def _centred(self, x: Float[Tensor, "c r_and_bias"]) -> Float[Tensor, "c r_and_bias"]:
        """Softmax does not see what all classes share, which is zero at the minimum: rounding shall not bring it in."""
        return x - x.mean(0) if self.loss == "softmax" else x

    def _objective(self, penalty: Float[Tensor, "c 1"]) -> Objective:
        """The value and gradient at weights in the basis, and the gradient's largest entry outside of it."""

        def objective(point: Tensor) -> tuple[float, Tensor, float]:
            inner = point[:, : len(self._bends)]
            weight = inner @ self._basis.T
            bias = point[:, -1] if self.intercept else point.new_zeros(self.classes)
            total, slope, bias_slope = self._pass(weight, bias.contiguous())
            slope = slope / len(self) + penalty * weight
            value = total / len(self) + 0.5 * float((penalty * inner.square()).sum(dtype=torch.float64))
            gradient, steepest = slope @ self._basis, slope.abs().max()
            if self.intercept:
                bias_slope = bias_slope / len(self)
                gradient = torch.cat([gradient, bias_slope[:, None]], 1)
                steepest = torch.maximum(steepest, bias_slope.abs().max())
            return value, self._centred(gradient), float(steepest)

        return objective

    def _pass(self, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """Summed over all rows: the loss, and its gradient."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        slope, bias_slope = torch.zeros_like(weight), torch.zeros_like(bias)
        for rows, x in self._blocks():
            scores = F.linear(x, weight, bias)
            factor = None if self._weights is None else self._weights[rows].to(scores)
            loss = _LOSSES[self.loss](scores, self._targets[rows], factor)  # scores become the loss's gradient
            total += loss.sum(dtype=torch.float64)
            slope.addmm_(scores.T, x)  # several times as fast as its transpose, with few classes
            bias_slope += scores.sum(0)
        return float(total), slope, bias_slope

    def _blocks(self) -> Iterator[tuple[slice, Float[Tensor, "m d"]]]:
        """Rows about their mean, some at a time."""
        for start in range(0, self._count, self._step):
            rows = slice(start, start + self._step)
            x = self._x[rows if self._rows is None else self._rows[rows]].to(self.device)
            yield rows, x if self._resident or not self.intercept else x - self._mean

    def _centre(self) -> None:
        x, self._resident = self._x, False
        self._mean = torch.zeros(x.shape[1], dtype=x.dtype, device=self.device)
        if self.intercept:
            total = torch.zeros(x.shape[1], dtype=torch.float64, device=self.device)
            for _, part in self._blocks():
                total += part.sum(0, dtype=torch.float64)
            self._mean = (total / self._count).to(x.dtype)
        numbers = self._count * x.shape[1]
        if numbers <= _RESIDENT_NUMBERS or numbers * x.element_size() < _room(self.device):
            x = (x if self._rows is None else x[self._rows]).to(self.device)
            self._x, self._rows = x - self._mean if self.intercept else x, None
            self._resident = True

    def _spectrum(self) -> tuple[Float[Tensor, " r"], Float[Tensor, "d r"]]:
        """The eigenvalues of X^T X / n and their directions; of fewer rows than dims, those that the rows span."""
        n, d = self._count, self._x.shape[1]
        if n < d:
            x = torch.cat([part for _, part in self._blocks()]).double()
            values, vectors = torch.linalg.eigh(x @ x.T / n)
            kept = values > 1e-12 * values[-1:]
            if not bool(kept.any()):
                return values[:0].to(self._x.dtype), vectors.new_zeros(d, 0).to(self._x.dtype)
            values, vectors = values[kept], x.T @ vectors[:, kept] / (n * values[kept]).sqrt()
            return values.to(self._x.dtype), torch.linalg.qr(vectors).Q.to(self._x.dtype)
        products = torch.zeros(d, d, dtype=torch.float64, device=self.device)
        for _, part in self._blocks():
            products += part.T @ part
        values, vectors = torch.linalg.eigh(products / n)
        return values.clamp(min=0).to(self._x.dtype), vectors.to(self._x.dtype)


def _room(device: torch.device) -> float:
    """Bytes that rows may take on a GPU; on a CPU they are where they are."""
    return 0.6 * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0.0


def _softmax(scores: Tensor, targets: Tensor, factor: Tensor | None) -> Tensor:
    scores.sub_(scores.amax(1, keepdim=True))
    own = scores.gather(1, targets[:, None])
    total = scores.exp_().sum(1, keepdim=True)
    scores.div_(total).scatter_add_(1, targets[:, None], -torch.ones_like(own))
    return total.log() - own


def _sigmoid(scores: Tensor, targets: Tensor, factor: Tensor | None) -> Tensor:
    signs = targets.to(scores)
    margin = signs * scores
    torch.mul(signs, torch.sigmoid(-margin), out=scores).neg_()
    return _weighted(F.softplus(-margin), scores, factor)


def _squared_hinge(scores: Tensor, targets: Tensor, factor: Tensor | None) -> Tensor:
    signs = targets.to(scores)
    gap = (1 - signs * scores).clamp(min=0)
    torch.mul(signs, gap, out=scores).mul_(-2)
    return _weighted(gap.square(), scores, factor)


def _weighted(loss: Tensor, slopes: Tensor, factor: Tensor | None) -> Tensor:
    if factor is None:
        return loss
    slopes.mul_(factor)
    return loss * factor


# Each gives the losses of the rows, and leaves in `scores` what they grow by with every score.
_LOSSES = {"softmax": _softmax, "sigmoid": _sigmoid, "squared hinge": _squared_hinge}
