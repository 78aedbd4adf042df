"""What assignments ask of the kernels."""

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prototile import distributed
from prototile.assignments.pairs import Pairs
from prototile.assignments.reductions import alternated
from prototile.assignments.tiles import Logits
from prototile.kernels import Sums
from prototile.precision import products_dtype

if TYPE_CHECKING:
    from prototile.assignments.lazy import Assignments


def cross_entropy(student: "Assignments", targets: "Assignments", pairs: Pairs) -> Tensor:
    """See `objective.cross_entropy`."""
    return _loss(student, targets, pairs, mean=False)[0]


def cross_entropy_and_sums(student: "Assignments", targets: "Assignments", pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The cross-entropy, and the sum of the student's assignments over this rank's rows."""
    return _loss(student, targets, pairs, mean=True)


def column_sums(assignments: "Assignments") -> Tensor:
    """The sum of assignments over this rank's rows, differentiable unless they are adjusted."""
    if assignments.adjustment is not None:
        return column_logsumexp(assignments, -row_logsumexp(assignments)).exp()
    return _loss(assignments, None, Pairs(((0.0,),)), mean=True)[1]


def row_logsumexp(assignments: "Assignments") -> Tensor:
    """log sum_k exp(logit), per row."""
    return _ops().fused_row_logsumexp(*_side(assignments), products_dtype(*_operands(assignments)))


def column_logsumexp(assignments: "Assignments", potential: Tensor | None) -> Tensor:
    """log sum_n exp(logit + potential_n), per prototype, over this rank's rows."""
    return _ops().fused_column_logsumexp(*_side(assignments), potential, products_dtype(*_operands(assignments)))


def argmax(assignments: "Assignments") -> tuple[Tensor, Tensor]:
    """The first largest logit of every row: where it is and its value."""
    return _ops().fused_argmax(*_side(assignments), products_dtype(*_operands(assignments)))


def sinkhorn(assignments: "Assignments", log_mass: Tensor, iterations: int, potential: Tensor | None) -> Tensor:
    """See `reductions.sinkhorn`; two passes an iteration, since a program sees some of the rows only."""
    z, w = _operands(assignments)
    dtype = products_dtype(z, w)  # rounded once, not in every pass
    assignments = replace(assignments, embeddings=z.to(dtype), prototypes=w.to(dtype))
    return alternated(
        log_mass,
        iterations,
        potential,
        rows=lambda offset: row_logsumexp(assignments.shift(offset)),
        columns=lambda potential: distributed.logsumexp(column_logsumexp(assignments, potential)),
    )


def over_rows(
    logits: Logits, *, subtract: Tensor, values: Tensor | None, extra: Tensor | None, gain: Tensor | None
) -> Sums:
    """See `passes.over_rows`."""
    sides = _sides()
    side = sides.Side.of_logits(logits)
    values = side.prototypes if values is logits.prototypes else side.as_values(values)
    return sides.over_rows(side, subtract=subtract - logits.peak[:, 0], values=values, extra=extra, gain=gain)


def over_prototypes(
    logits: Logits,
    *,
    subtract: Tensor,
    values: Tensor | None,
    extra: Tensor | None,
    gain: Tensor | None,
    alpha: Tensor | None,
) -> Sums:
    """See `passes.over_prototypes`."""
    sides = _sides()
    side = sides.Side.of_logits(logits)
    values = side.rows if values is logits.rows else side.as_values(values)
    subtract = subtract - logits.peak[:, 0]
    return sides.over_prototypes(side, subtract=subtract, values=values, extra=extra, gain=gain, alpha=alpha)


def _loss(student: "Assignments", targets: "Assignments | None", pairs: Pairs, *, mean: bool) -> tuple[Tensor, Tensor]:
    z, w, offset = student.embeddings, student.prototypes, student.offset
    dtype = products_dtype(z, w)
    if targets is None:
        teacher = None, None, None, None, None, []
    else:
        constant = targets.detach()
        *side, numbers = _side(constant)
        teacher = *side, numbers
        dtype = torch.promote_types(dtype, products_dtype(*_operands(constant)))
    views = len(pairs.views[0])
    rows = pairs.row_weights(z).to(torch.float32)
    gradients = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (z, w, offset))
    loss, sums, *_ = _ops().fused_loss(
        z, w, offset, student.temperature, *teacher,
        [weight for row in pairs.views for weight in row], views, rows, dtype, gradients, mean,
    )  # fmt: skip
    return loss, sums


def _ops():
    from prototile.assignments.fused import ops  # with Triton, which takes a second

    return ops


def _sides():
    from prototile.assignments.fused import sides

    return sides


def _operands(assignments: "Assignments") -> tuple[Tensor, Tensor]:
    return assignments.embeddings, assignments.prototypes


def _side(
    assignments: "Assignments",
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, list[float]]:
    """Embeddings, prototypes, offset, scale, winner, and temperature, bound, boost."""
    adjustment = assignments.adjustment
    fields = *_operands(assignments), assignments.offset
    if adjustment is None:
        return *fields, None, None, [assignments.temperature]
    return *fields, adjustment.scale, adjustment.winner, [assignments.temperature, adjustment.bound, adjustment.boost]
