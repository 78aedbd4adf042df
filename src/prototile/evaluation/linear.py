"""A quick linear probe: seconds instead of the hundred epochs of the papers' protocols.

n images, t of them to learn from, d dims, c classes.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from prototile.evaluation.features import labelled, same_dims
from prototile.precision import no_autocast, no_tf32


@dataclass(frozen=True)
class LinearProbe:
    """Shares of images whose class is predicted."""

    accuracy: float
    train_accuracy: float
    images: int
    l2: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"linear {self.accuracy:.1%} of {self.images:,} images (l2 = {self.l2:g})"


@no_autocast
@no_tf32
def linear(
    train: Float[Tensor, "t d"],
    train_labels: Int[Tensor, " t"],
    test: Float[Tensor, "n d"],
    test_labels: Int[Tensor, " n"],
    *,
    l2: float = 1e-3,
    iterations: int = 100,
) -> LinearProbe:
    r"""Multinomial logistic regression, $\frac1t \sum CE + \frac{l2}{2} \|W\|^2$, by L-BFGS on standardised features.

    Each dim has mean 0 and deviation 1 over the training images; the intercept is not penalised. It is scikit-learn's
    objective for C = 1 / (l2 t). Images of label -1 are left out. The papers' protocols train longer, with views and
    several rates, and score higher: compare this number with itself only.
    """
    if not l2 >= 0:
        raise ValueError(f"l2 must not be negative, got {l2}")
    x, y = labelled(train, train_labels, "training")
    queries, wanted = labelled(test, test_labels, "test")
    same_dims(x, queries)
    deviation, mean = torch.std_mean(x, 0, correction=0)
    scale = torch.where(deviation > 0, deviation, 1)  # a constant dim stays 0
    x, queries = (x - mean) / scale, (queries - mean) / scale
    classes = int(max(y.max(), wanted.max())) + 1
    weight, bias = _fitted(x, y, classes, l2, iterations)
    predicted = [(z @ weight + bias).argmax(1) for z in (queries, x)]
    accuracy, train_accuracy = (
        float((found == true).double().mean()) for found, true in zip(predicted, (wanted, y), strict=True)
    )
    return LinearProbe(accuracy, train_accuracy, len(queries), l2)


def _fitted(
    x: Float[Tensor, "t d"], y: Int[Tensor, " t"], classes: int, l2: float, iterations: int
) -> tuple[Float[Tensor, "d c"], Float[Tensor, " c"]]:
    weight = x.new_zeros(x.shape[1], classes, requires_grad=True)
    bias = x.new_zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, y) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()
