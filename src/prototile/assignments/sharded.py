r"""Assignments to prototypes that are shared out over ranks: each rank holds some rows of their matrix, and no other.

Rows are few and narrow, prototypes are many: the rows of all ranks are gathered, each rank looks at them from its own
prototypes (`passes`), and sums over prototypes are summed over ranks. What has one number per prototype (offsets,
marginals, counts) is whole on every rank. In the decoupled form (`decoupled`) rows meet prototypes only in such sums:

    Z_n = sum_k exp(l_nk),    v_t = sum_k q_tk w_k,    u_s = sum_k p_sk w_k,    and, with a gradient g that reaches
    the marginal,             h_s = sum_k p_sk g_k,    H_s = sum_k p_sk g_k w_k.

Two of the three passes that a gradient needs are made in the forward pass; no gradient of prototypes leaves its rank.
Gradients are those of the sum of all ranks' losses, as everywhere (`prototile.distributed`).

m rows of this rank, n of all (v views x b images, view-major), t teacher and s student views, d dims, k prototypes of
this rank.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from prototile import distributed
from prototile.assignments import reductions
from prototile.assignments.passes import Sums, over_prototypes, over_rows
from prototile.assignments.tiles import Logits
from prototile.autograd import uncompiled
from prototile.distributed import Shard
from prototile.precision import no_autocast


@dataclass(frozen=True)
class Rows:
    """How the rows of all ranks lie: view after view, and in each the images of one rank after those of another."""

    views: int
    counts: tuple[int, ...]  # images of each rank

    @classmethod
    def of(cls, rows: int, views: int, device: torch.device) -> "Rows":
        """Where this rank has so many rows."""
        return cls(views, distributed.counts(rows // views, device))

    @property
    def images(self) -> int:
        return sum(self.counts)

    @property
    def mine(self) -> slice:
        """The images of this rank."""
        start = sum(self.counts[: distributed.rank()])
        return slice(start, start + self.counts[distributed.rank()])

    def gather(self, x: Tensor) -> Tensor:
        """The rows of all ranks, from this rank's."""
        by_image = x.unflatten(0, (self.views, -1)).transpose(0, 1)
        return distributed.concatenate(by_image, self.counts).transpose(0, 1).flatten(0, 1)

    def own(self, x: Tensor) -> Tensor:
        """This rank's rows of all."""
        return x.unflatten(0, (self.views, -1))[:, self.mine].flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be computed, apart from the tensors that get a gradient. Without a teacher: only the column sums."""

    student: Logits  # the rows of all ranks, on the prototypes of this one
    teacher: Logits | None
    weights: Float[Tensor, "t s"]  # M
    rows: Float[Tensor, " b"]  # r, of all ranks' images
    layout: Rows  # of the student's rows
    shard: Shard
    marginal: bool  # whether column sums are wanted


@uncompiled
@no_autocast
def cross_entropy_and_column_sums(
    z: Float[Tensor, "m d"], w: Float[Tensor, "k d"], offset: Float[Tensor, "..."] | None, problem: Problem
) -> tuple[Float[Tensor, ""], Float[Tensor, " all"]]:
    """This rank's weighted cross-entropy, and the column sums of the student's assignments over the rows of all ranks.

    Without `marginal` there are no column sums (a tensor of no numbers).
    """
    return _CrossEntropy.apply(z, w, offset, problem)  # type: ignore[return-value]


def mean(
    z: Float[Tensor, "m d"],
    w: Float[Tensor, "k d"],
    offset: Float[Tensor, "..."] | None,
    logits: Logits,
    layout: Rows,
    shard: Shard,
) -> Float[Tensor, " all"]:
    """The mean assignment over the rows of all ranks, per prototype of all ranks; differentiable."""
    rows = logits.views * logits.images
    if rows == 0:
        raise ValueError("there are no rows to take a mean of")
    problem = Problem(
        student=logits,
        teacher=None,
        weights=logits.rows.new_zeros(0, logits.views),
        rows=logits.rows.new_ones(logits.images),
        layout=layout,
        shard=shard,
        marginal=True,
    )
    return cross_entropy_and_column_sums(z, w, offset, problem)[1] / rows


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor, w: Tensor, offset: Tensor | None, problem: Problem) -> tuple[Tensor, Tensor]:
        student, teacher, weights = problem.student, problem.teacher, problem.weights
        ctx.problem, ctx.expected, ctx.teacher_total = problem, None, None
        wished = weights.sum(0)[:, None] * problem.rows  # n_s r_b
        ctx.total, mean, _ = _expectations(student, student.prototypes if ctx.needs_input_grad[0] else None, None)
        ctx.mean = mean
        mine = problem.layout.mine
        log_total = (ctx.total - student.peak[:, 0]).view(student.views, -1)
        loss = (wished * log_total)[:, mine].sum()
        if teacher is not None:
            bias = None if student.offset is None else student.offset[0]
            ctx.teacher_total, ctx.expected, expected_bias = _expectations(teacher, student.prototypes, bias)
            assert ctx.expected is not None
            taught = _taught(problem, problem.rows)
            loss -= (ctx.expected.view_as(taught) * taught)[:, mine].sum()
            if expected_bias is not None:
                wanted = weights.sum(1)[:, None] * problem.rows * expected_bias.view(teacher.views, -1)
                loss -= wanted[:, mine].sum()
        sums = z.new_zeros(0)
        if problem.marginal:
            sums = over_prototypes(student, subtract=ctx.total).total
            sums = distributed.concatenate(sums, problem.shard.counts)
        # what the backward pass reads again: autograd notices when it is changed in place
        ctx.save_for_backward(student.prototypes, None if teacher is None else teacher.prototypes)
        return loss, sums

    @staticmethod
    @once_differentiable
    @no_autocast
    def backward(ctx, grad: Tensor, grad_sums: Tensor):
        problem: Problem = ctx.problem
        student, layout = problem.student, problem.layout
        _ = ctx.saved_tensors
        for_rows, for_prototypes, for_offset = ctx.needs_input_grad[:3]
        of_ranks = distributed.concatenate(grad.reshape(1), (1,) * len(layout.counts))
        counts = torch.tensor(layout.counts, device=grad.device)
        rows = problem.rows * of_ranks.repeat_interleave(counts, output_size=layout.images)
        alpha = (problem.weights.sum(0)[:, None] * rows).flatten()
        gain = pulled = None
        if problem.marginal:
            gain = problem.shard.cut(distributed.sum(grad_sums)).contiguous()
            values = student.prototypes if for_rows else None
            pulled = _over_ranks(over_rows(student, subtract=ctx.total, values=values, gain=gain))
            alpha = alpha - pulled.total
        z = w = offset = None
        if for_rows:
            z = alpha[:, None] * ctx.mean
            if pulled is not None:
                z += pulled.products
            if ctx.expected is not None:
                expected = ctx.expected.unflatten(0, (len(problem.weights), -1))
                z -= torch.einsum("ts,b,tbd->sbd", problem.weights, rows, expected).flatten(0, 1)
            z = layout.own(z) / student.temperature
        if for_prototypes or for_offset:
            w, offset = _of_prototypes(ctx, rows, alpha, gain)
            if for_offset:
                whole = offset.new_zeros(problem.shard.total)
                problem.shard.cut(whole).copy_(offset)
                offset = whole
        return z, w if for_prototypes else None, offset if for_offset else None, None


def _of_prototypes(ctx, rows: Tensor, alpha: Tensor, gain: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradients of this rank's prototypes and of their offset."""
    problem: Problem = ctx.problem
    student, teacher = problem.student, problem.teacher
    if gain is None:  # a factor of each row goes with the row
        values = alpha[:, None] * student.rows
        sums = over_prototypes(student, subtract=ctx.total, values=values, extra=alpha)
        w, offset = sums.products, sums.extra
    else:
        sums = over_prototypes(student, subtract=ctx.total, values=student.rows, gain=gain, alpha=alpha)
        w, offset = sums.products, sums.total
    assert w is not None
    assert offset is not None
    if teacher is not None:
        values, wished = _taught(problem, rows).flatten(0, 1), (problem.weights.sum(1)[:, None] * rows).flatten()
        taught = over_prototypes(teacher, subtract=ctx.teacher_total, values=values, extra=wished)
        assert taught.products is not None
        assert taught.extra is not None
        w, offset = w.sub_(taught.products), offset.sub_(taught.extra)
    return w, offset


def _taught(problem: Problem, rows: Tensor) -> Float[Tensor, "t b d"]:
    """What every teacher row is multiplied with: the student's rows (over their temperature) that it teaches."""
    by_view = problem.student.rows.unflatten(0, (problem.student.views, -1))
    return torch.einsum("ts,b,sbd->tbd", problem.weights, rows, by_view)


def _expectations(
    logits: Logits, values: Tensor | None, extra: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Per row, over the prototypes of all ranks: the log-normaliser, and the means of values and extra."""
    peak = peaks(logits)
    sums = _over_ranks(over_rows(logits, subtract=peak, values=values, extra=extra))
    products = None if sums.products is None else sums.products / sums.total[:, None]
    return sums.total.log() + peak, products, None if sums.extra is None else sums.extra / sums.total


def _over_ranks(sums: Sums) -> Sums:
    """The sums over all ranks, in one exchange."""
    parts = [sums.total[:, None], sums.products, None if sums.extra is None else sums.extra[:, None]]
    there = [part for part in parts if part is not None]
    summed = iter(distributed.sum(torch.cat(there, 1)).split([part.shape[1] for part in there], 1))
    total, products, extra = (None if part is None else next(summed) for part in parts)
    assert total is not None
    return Sums(total[:, 0], products, None if extra is None else extra[:, 0])


def peaks(logits: Logits) -> Float[Tensor, " n"]:
    """What to subtract from each row's logits on all ranks, so that exponentials of the rest are safe."""
    return distributed.max(logits.base[:, 0])


# ---------------------------------------------------------------------------------- reductions, not differentiable
@torch.no_grad()
def row_logsumexp(logits: Logits) -> Float[Tensor, " n"]:
    """log sum_k exp(logit) over the prototypes of all ranks, per row of all ranks."""
    return _expectations(logits, None, None)[0]


@torch.no_grad()
def column_logsumexp(logits: Logits, potential: Float[Tensor, " n"] | None, shard: Shard) -> Float[Tensor, " all"]:
    """log sum_n exp(logit + potential_n), per prototype of all ranks."""
    return distributed.concatenate(reductions.column_logsumexp(logits, potential), shard.counts)


@torch.no_grad()
def argmax(logits: Logits, shard: Shard) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """The first largest logit of every row of all ranks: which of all prototypes it is, and its value."""
    where, value = reductions.argmax(logits)
    best = distributed.max(value)
    return distributed.min(torch.where(value == best, where + shard.start, shard.total)), best


@torch.no_grad()
@no_autocast
def sinkhorn(
    logits: Logits,
    log_mass: Float[Tensor, " all"],
    iterations: int,
    potential: Float[Tensor, " n"] | None,
    shard: Shard,
) -> Float[Tensor, " all"]:
    """`reductions.sinkhorn` over all rows: a column is whole on its rank, so only the sums of rows are exchanged."""
    own = shard.cut(log_mass)
    peak = peaks(logits)
    start = peak.max().expand_as(peak) if potential is None else -potential
    offset = _scaled_columns(logits, own, iterations, start, peak)
    (broken,) = distributed.any_rank(not bool((offset.isfinite() | (own == -torch.inf)).all()), device=log_mass.device)
    if broken:
        offset = reductions.alternated(
            own,
            iterations,
            potential,
            rows=lambda offset: distributed.logsumexp(reductions.row_logsumexp_under(logits, offset)),
            columns=lambda potential: reductions.column_logsumexp(logits, potential),
        )
    return distributed.concatenate(offset, shard.counts)


def _scaled_columns(logits: Logits, log_mass: Tensor, iterations: int, subtract: Tensor, peak: Tensor) -> Tensor:
    """With exponentials that are scaled; not finite where they over- or underflow."""
    offset = torch.zeros_like(log_mass)
    for i in range(iterations):
        total = over_prototypes(logits, subtract=subtract).total
        offset = torch.where(log_mass == -torch.inf, log_mass, log_mass - total.log())
        if i < iterations - 1:
            rows = distributed.sum(over_rows(logits, subtract=peak, gain=offset.exp()).total)
            subtract = peak + rows.log()
    return offset
