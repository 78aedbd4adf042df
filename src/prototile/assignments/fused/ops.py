r"""The operators that torch sees: what happens inside stays out of autograd, autocast and torch.compile.

With v = sum_k q_tk w_k for a teacher's row and u = sum_k p_sk w_k for a student's, M = pair weights, r = row weights
and n_s = sum_t M_ts (see `decoupled`),

    loss    = sum_sb n_s r_b log Z_sb - sum_ts M_ts r_b (<z_sb, v_tb> / temperature + sum_k q_tbk offset_k),
    dz_sb   = (n_s r_b u_sb - sum_t M_ts r_b v_tb) / temperature,
    dw_k    = (sum_sb p_sbk n_s r_b z_sb - sum_tb q_tbk sum_s M_ts r_b z_sb) / temperature,

and where a gradient g reaches the column sums of p,

    dz_sb  += (sum_k p_sbk g_k w_k - u_sb a_sb) / temperature,    dw_k += sum_sb p_sbk (g_k - a_sb) z_sb / temperature,

with a_sb = sum_k p_sbk g_k. The forward pass keeps vectors of the rows' size; the gradient of prototypes is formed in
the backward pass: 2 t + 2 s products there and before it, for t teacher and s student views.
"""

import functools

import torch
from torch import Tensor

from prototile.assignments.fused import sides
from prototile.assignments.fused.sides import Side
from prototile.kernels import Sums
from prototile.precision import no_autocast


@torch.library.custom_op("prototile::fused_loss", mutates_args=())
def fused_loss(
    z: Tensor,
    w: Tensor,
    offset: Tensor | None,
    temperature: float,
    teacher_z: Tensor | None,
    teacher_w: Tensor | None,
    teacher_offset: Tensor | None,
    teacher_scale: Tensor | None,
    teacher_winner: Tensor | None,
    teacher_numbers: list[float],
    table: list[float],
    views: int,
    rows: Tensor,
    dtype: torch.dtype,
    gradients: bool,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss, the column sums of p (with `mean`), and for the backward pass: log-normalisers of student and teacher,
    the derivative to z, and u. What is not wanted has no elements. Without a teacher only the column sums are.
    """
    student = Side.of(dtype, z, w, temperature, offset)
    teacher = _teacher(dtype, teacher_z, teacher_w, teacher_offset, teacher_scale, teacher_winner, teacher_numbers)
    return _loss(student, teacher, _table(table, views, z.device), rows, gradients, mean)


@no_autocast
def _loss(
    student: Side, teacher: Side | None, weights: Tensor, rows: Tensor, gradients: bool, mean: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    wished = (weights.sum(0)[:, None] * rows).flatten()  # n_s r_b
    log_z, expected = sides.normalizers(student, values=student.prototypes if gradients else None)
    loss = wished @ log_z
    u = expected.products
    direction = None if u is None else wished[:, None] * u
    teacher_log_z = None
    if teacher is not None:
        of_teacher = (weights.sum(1)[:, None] * rows).flatten()
        student_offset = None if student.offset is None else student.offset[0]
        teacher_log_z, targets = sides.normalizers(teacher, values=student.prototypes, extra=student_offset)
        v = _products(targets)
        loss = loss + (v * _taught(student, weights, rows)).sum()
        if targets.extra is not None:
            loss = loss - of_teacher @ targets.extra
        if direction is not None:
            direction -= torch.einsum(
                "ts,b,tbd->sbd", weights, rows, v.unflatten(0, (weights.shape[0], len(rows)))
            ).flatten(0, 1)
    sums = sides.over_prototypes(student, subtract=log_z).total if mean else None
    if direction is not None:
        direction /= student.temperature

    def given(x: Tensor | None) -> Tensor:
        return rows.new_empty(0) if x is None else x

    return loss, given(sums), log_z, given(teacher_log_z), given(direction), given(u if mean else None)


@fused_loss.register_fake
def _(
    z, w, offset, temperature, teacher_z, teacher_w, teacher_offset, teacher_scale, teacher_winner, teacher_numbers,
    table, views, rows, dtype, gradients, mean,
):  # fmt: skip
    n, d = z.shape
    return (
        rows.new_empty(()),
        rows.new_empty(w.shape[0] if mean else 0),
        rows.new_empty(n),
        rows.new_empty(0 if teacher_z is None else teacher_z.shape[0]),
        rows.new_empty((n, d) if gradients else 0),
        rows.new_empty((n, d) if gradients and mean else 0),
    )


@torch.library.custom_op("prototile::fused_loss_backward", mutates_args=())
def fused_loss_backward(
    grad: Tensor,
    grad_sums: Tensor | None,
    z: Tensor,
    w: Tensor,
    offset: Tensor | None,
    temperature: float,
    teacher_z: Tensor | None,
    teacher_w: Tensor | None,
    teacher_offset: Tensor | None,
    teacher_scale: Tensor | None,
    teacher_winner: Tensor | None,
    teacher_numbers: list[float],
    table: list[float],
    views: int,
    rows: Tensor,
    dtype: torch.dtype,
    log_z: Tensor,
    teacher_log_z: Tensor,
    direction: Tensor,
    u: Tensor,
    wants_rows: bool,
    wants_prototypes: bool,
    wants_offset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of embeddings, prototypes and offset; those not wanted have no elements."""
    student = Side.of(dtype, z, w, temperature, offset)
    teacher = _teacher(dtype, teacher_z, teacher_w, teacher_offset, teacher_scale, teacher_winner, teacher_numbers)
    weights = _table(table, views, z.device)
    return _gradients(
        grad, grad_sums, student, teacher, weights, rows, log_z, teacher_log_z, direction, u,
        wants_rows, wants_prototypes, wants_offset,
    )  # fmt: skip


@no_autocast
def _gradients(
    grad: Tensor,
    grad_sums: Tensor | None,
    student: Side,
    teacher: Side | None,
    weights: Tensor,
    rows: Tensor,
    log_z: Tensor,
    teacher_log_z: Tensor,
    direction: Tensor,
    u: Tensor,
    wants_rows: bool,
    wants_prototypes: bool,
    wants_offset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    nothing = rows.new_empty(0)
    grad_sums = None if grad_sums is None else grad_sums.contiguous()  # autograd may have expanded one number
    grad_z = direction * grad if wants_rows else nothing
    alpha, temperature = grad * (weights.sum(0)[:, None] * rows).flatten(), student.temperature
    if grad_sums is not None:
        pulled = sides.over_rows(student, subtract=log_z, values=student.prototypes, gain=grad_sums)
        alpha = alpha - pulled.total
        if wants_rows:
            grad_z += (_products(pulled) - pulled.total[:, None] * u) / temperature
    if not (wants_prototypes or wants_offset):
        return grad_z, nothing.clone(), nothing.clone()
    into = sides.over_prototypes(
        student,
        subtract=log_z,
        values=student.rows if wants_prototypes else None,
        extra=torch.full_like(log_z, temperature) if wants_offset else None,
        alpha=alpha / temperature,
        gain=None if grad_sums is None else grad_sums / temperature,
    )
    if teacher is not None:
        taught = teacher.as_values(grad * _taught(student, weights, rows)) if wants_prototypes else None
        into = sides.over_prototypes(
            teacher,
            subtract=teacher_log_z,
            values=taught,
            extra=-grad * (weights.sum(1)[:, None] * rows).flatten() if wants_offset else None,
            into=into,
        )
    return (
        grad_z,
        nothing.clone() if into.products is None else into.products,
        nothing.clone() if into.extra is None else into.extra,
    )


@fused_loss_backward.register_fake
def _(
    grad, grad_sums, z, w, offset, temperature, teacher_z, teacher_w, teacher_offset, teacher_scale, teacher_winner,
    teacher_numbers, table, views, rows, dtype, log_z, teacher_log_z, direction, u, wants_rows, wants_prototypes,
    wants_offset,
):  # fmt: skip
    return (
        rows.new_empty(z.shape if wants_rows else 0),
        rows.new_empty(w.shape if wants_prototypes else 0),
        rows.new_empty(w.shape[0] if wants_offset else 0),
    )


def _save(ctx, inputs, output) -> None:
    z, w, offset, ctx.temperature, *teacher = inputs[:9]
    ctx.teacher_numbers, ctx.table, ctx.views, rows, ctx.dtype, _, ctx.mean = inputs[9:]
    ctx.save_for_backward(z, w, offset, *teacher, rows, *output[2:])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad, grad_sums, *_):
    z, w, offset, *teacher, rows, log_z, teacher_log_z, direction, u = ctx.saved_tensors
    grads = fused_loss_backward(
        rows.new_zeros(()) if grad is None else grad,
        grad_sums if ctx.mean else None,
        z, w, offset, ctx.temperature, *teacher, ctx.teacher_numbers, ctx.table, ctx.views, rows,
        ctx.dtype, log_z, teacher_log_z, direction, u, *ctx.needs_input_grad[:3],
    )  # fmt: skip
    wanted = zip(grads, (z, w, offset), ctx.needs_input_grad[:3], strict=True)
    return *(x.to(like.dtype).view_as(like) if needs else None for x, like, needs in wanted), *[None] * 13


fused_loss.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("prototile::fused_row_logsumexp", mutates_args=())
def fused_row_logsumexp(
    z: Tensor,
    w: Tensor,
    offset: Tensor | None,
    scale: Tensor | None,
    winner: Tensor | None,
    numbers: list[float],
    dtype: torch.dtype,
) -> Tensor:
    """Per row the log of the sum of the logits' exponentials."""
    side = Side.of(dtype, z, w, numbers[0], offset, scale, winner, *numbers[1:])
    return sides.normalizers(side)[0] + side.row_peaks()


@fused_row_logsumexp.register_fake
def _(z, w, offset, scale, winner, numbers, dtype):
    return z.new_empty(z.shape[0], dtype=torch.float32)


@torch.library.custom_op("prototile::fused_column_logsumexp", mutates_args=())
def fused_column_logsumexp(
    z: Tensor,
    w: Tensor,
    offset: Tensor | None,
    scale: Tensor | None,
    winner: Tensor | None,
    numbers: list[float],
    potential: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Per prototype the log of the sum over this rank's rows of exp(logit + potential)."""
    side = Side.of(dtype, z, w, numbers[0], offset, scale, winner, *numbers[1:])
    return sides.column_logsumexp(side, None if potential is None else potential.float())


@fused_column_logsumexp.register_fake
def _(z, w, offset, scale, winner, numbers, potential, dtype):
    return z.new_empty(w.shape[0], dtype=torch.float32)


@torch.library.custom_op("prototile::fused_argmax", mutates_args=())
def fused_argmax(
    z: Tensor,
    w: Tensor,
    offset: Tensor | None,
    scale: Tensor | None,
    winner: Tensor | None,
    numbers: list[float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Per row the first prototype with the largest logit, and that logit."""
    return sides.largest(Side.of(dtype, z, w, numbers[0], offset, scale, winner, *numbers[1:]))


@fused_argmax.register_fake
def _(z, w, offset, scale, winner, numbers, dtype):
    return z.new_empty(z.shape[0], dtype=torch.long), z.new_empty(z.shape[0], dtype=torch.float32)


def _teacher(
    dtype: torch.dtype,
    z: Tensor | None,
    w: Tensor | None,
    offset: Tensor | None,
    scale: Tensor | None,
    winner: Tensor | None,
    numbers: list[float],
) -> Side | None:
    if z is None or w is None:
        return None
    return Side.of(dtype, z, w, numbers[0], offset, scale, winner, *numbers[1:])


def _taught(student: Side, weights: Tensor, rows: Tensor) -> Tensor:
    """Per teacher row, minus the student rows that it teaches, as the loss weighs them."""
    by_view = student.rows.float().unflatten(0, (weights.shape[1], len(rows)))
    return torch.einsum("ts,b,sbd->tbd", weights, rows, by_view).flatten(0, 1) / -student.temperature


def _products(sums: Sums) -> Tensor:
    assert sums.products is not None
    return sums.products


@functools.cache
def _known_table(table: tuple[float, ...], views: int, device: torch.device) -> Tensor:
    """Copied to the device once: a copy from the host would not be allowed while a CUDA graph is recorded."""
    with torch.inference_mode(False):
        return torch.tensor(table, device=device).reshape(-1, views)


def _table(table: list[float], views: int, device: torch.device) -> Tensor:
    return _known_table(tuple(table), views, device)
