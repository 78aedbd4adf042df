r"""Cross-entropy and mean assignment, with teacher and student rows of the same images side by side.

t teacher views, s student views, b images, d dims, k prototypes; M = pair weights, r = row weights, n_s = sum_t M_ts.

Per block of images, one visit of all tiles gives the normalisers Z and the products sum_k q_k l_k, hence

    loss = sum_b r_b [ sum_s n_s log Z_sb - sum_ts M_ts sum_k q_tbk l_sbk ],

and a second visit the derivative with respect to the logits, in place, and its products with the operands:

    dS_sbk = p_sbk (alpha_sb + g_k) - r_b sum_t M_ts q_tbk,    alpha_sb = r_b n_s - sum_k p_sbk g_k,

where g is the gradient that reaches the column sums of p (zero when only the cross-entropy is wanted).

Backend `direct` keeps a block's exponentials between the visits (t + 3 s products of a row with all prototypes),
`stream` recomputes them tile by tile (2 t + 4 s). Without a mean the gradient is formed in the forward pass, since
the block's exponentials are there; with a mean it has to wait for g, and the last block is kept until then.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from prototile.assignments.plan import Plan, choose
from prototile.assignments.scratch import Loan, borrow
from prototile.assignments.tiles import Exponentials, Logits, spans
from prototile.autograd import scaled, uncompiled
from prototile.precision import no_autocast


@dataclass(frozen=True, eq=False)
class Problem:
    """What is to be computed, apart from the tensors that get a gradient. Without a teacher: only the mean."""

    student: Logits
    teacher: Logits | None
    weights: Float[Tensor, "t s"]  # M
    rows: Float[Tensor, " b"]  # r
    plan: Plan


class Gradients:
    """The gradients with respect to the student's embeddings, prototypes and offset; those that are wanted.

    The first block writes and the others add, which spares clearing a matrix as large as the prototypes.
    """

    def __init__(self, student: Logits, wanted: tuple[bool, bool, bool]):
        like, dims = student.rows, student.rows.shape[1]
        self.embeddings = like.new_empty(student.views, student.images, dims) if wanted[0] else None
        self.prototypes = like.new_empty(student.num_prototypes, dims) if wanted[1] else None
        self.offset = like.new_empty(student.num_prototypes) if wanted[2] else None
        self._empty = True

    def add(self, start: int, stop: int, tile: Tensor, rows: Tensor, weight: Tensor) -> None:
        """For the prototypes of a tile: tile' @ rows, and tile' @ weight for their offset."""
        beta = 0 if self._empty else 1
        if self.prototypes is not None:
            self.prototypes[start:stop].addmm_(tile.T, rows, beta=beta)
        if self.offset is not None:
            self.offset[start:stop].addmv_(tile.T, weight, beta=beta)

    def block_done(self) -> None:
        """Every tile was added to."""
        self._empty = False

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if self._empty:  # there was no block
            for x in (self.prototypes, self.offset):
                if x is not None:
                    x.zero_()
        z = self.embeddings
        return None if z is None else z.flatten(0, 1), self.prototypes, self.offset


@uncompiled
@no_autocast
def column_sums(
    z: Float[Tensor, "n d"], w: Float[Tensor, "k d"], offset: Float[Tensor, "..."] | None, logits: Logits
) -> Float[Tensor, " k"]:
    """The sum over this rank's rows of softmax(z @ w.T / temperature + offset), differentiable."""
    problem = Problem(
        student=logits,
        teacher=None,
        weights=z.new_zeros(0, logits.views),
        rows=z.new_ones(logits.images),
        plan=choose(logits, 0, mean=True),
    )
    return CrossEntropyAndColumnSums.apply(z, w, offset, problem)[1]  # type: ignore[index]


class CrossEntropy(torch.autograd.Function):
    """The weighted cross-entropy; its gradient is formed in the forward pass, block by block."""

    @staticmethod
    def forward(ctx, z: Tensor, w: Tensor, offset: Tensor | None, problem: Problem) -> Tensor:
        wanted = ctx.needs_input_grad[:3]
        gradients = Gradients(problem.student, wanted)
        loss, one = z.new_zeros(()), z.new_ones(())
        for start, stop in spans(problem.student.images, problem.plan.block):
            block = _Block(problem, start, stop)
            loss += block.cross_entropy()
            if any(wanted):
                block.add_gradients(gradients, one, None)
            del block  # hands its scratch memory on to the next
        ctx.save_for_backward(*gradients.results())
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return *scaled(ctx.saved_tensors, grad), None


class CrossEntropyAndColumnSums(torch.autograd.Function):
    """The weighted cross-entropy together with the column sums of the student's assignments, in one pass."""

    @staticmethod
    def forward(ctx, z: Tensor, w: Tensor, offset: Tensor | None, problem: Problem) -> tuple[Tensor, Tensor]:
        loss, sums = z.new_zeros(()), z.new_zeros(problem.student.num_prototypes)
        ctx.problem, ctx.totals, ctx.last = problem, [], None
        block = None
        for start, stop in spans(problem.student.images, problem.plan.block):
            del block  # hands its scratch memory on to the next
            block = _Block(problem, start, stop)
            loss += block.cross_entropy()
            block.add_column_sums(sums)
            ctx.totals.append(block.totals())
        if any(ctx.needs_input_grad[:3]):
            ctx.last = block
        # what the backward pass reads again: autograd notices when it is changed in place
        teacher = problem.teacher
        ctx.save_for_backward(problem.student.prototypes, None if teacher is None else teacher.prototypes)
        return loss, sums

    @staticmethod
    @once_differentiable
    @no_autocast
    def backward(ctx, grad: Tensor, grad_sums: Tensor):
        problem: Problem = ctx.problem
        _ = ctx.saved_tensors
        gradients = Gradients(problem.student, ctx.needs_input_grad[:3])
        blocks = list(spans(problem.student.images, problem.plan.block))
        for (start, stop), totals in zip(reversed(blocks), reversed(ctx.totals), strict=True):
            block, ctx.last = ctx.last, None
            if block is None:
                block = _Block(problem, start, stop)
                block.restore(totals)
            block.add_gradients(gradients, grad, grad_sums)
            del block
        return *gradients.results(), None


class _Block:
    """The images [start, stop), in all views."""

    def __init__(self, problem: Problem, start: int, stop: int):
        student, teacher, plan = problem.student, problem.teacher, problem.plan
        self.images = slice(start, stop)
        self.weights, self.row_weights = problem.weights, problem.rows[start:stop]
        self.temperature = student.temperature
        keep = 0 if plan.backend == "stream" else student.num_prototypes
        self.student = Exponentials(student.block(start, stop), keep=keep)
        self.teacher = None if teacher is None else Exponentials(teacher.block(start, stop), keep=keep)
        self.s, self.t, self.n = student.views, 0 if teacher is None else teacher.views, stop - start

    def totals(self) -> tuple[Tensor, Tensor | None]:
        return self.student.total, None if self.teacher is None else self.teacher.total

    def restore(self, totals: tuple[Tensor, Tensor | None]) -> None:
        """The state after `cross_entropy`, from the normalisers that it found."""
        self.student.total, teacher_total = totals
        self.student.fill()
        if self.teacher is not None and teacher_total is not None:
            self.teacher.total = teacher_total
            self.teacher.fill()

    def cross_entropy(self) -> Tensor:
        """The first visit: normalisers of both sides, and this block's share of the loss."""
        student, teacher = self.student, self.teacher
        if teacher is None:
            for _ in student.accumulate():
                pass
            return student.total.new_zeros(())
        agreement = student.total.new_zeros(self.n, self.t, self.s)  # sum_k exp(l_tk) l_sk
        for start, stop, q in teacher.accumulate():
            logits = student.logits(start, stop)
            self._add_agreement(agreement, q, logits)
            student.total += logits.exp_().sum(1)
        student.filled = True
        agreement /= teacher.total.view(self.t, self.n).T[:, :, None]
        log_total = student.total.view(self.s, self.n).log()
        per_image = (self.weights.sum(0)[:, None] * log_total).sum(0)
        per_image -= (agreement * self.weights).sum((1, 2))
        return self.row_weights @ per_image

    def _add_agreement(self, agreement: Tensor, q: Tensor, logits: Tensor) -> None:
        if self.t == self.s == 1:
            agreement[:, 0, 0] += torch.linalg.vecdot(q, logits)
        else:
            by_image = q.view(self.t, self.n, -1).transpose(0, 1), logits.view(self.s, self.n, -1)
            agreement.baddbmm_(by_image[0], by_image[1].permute(1, 2, 0))

    def add_column_sums(self, sums: Tensor) -> None:
        """The column sums of the student's assignments, after the normalisers are known."""
        inverse = 1 / self.student.total
        for start, stop in self.student.tiles:
            sums[start:stop].addmv_(self.student.tile(start, stop).T, inverse)

    def add_gradients(self, into: Gradients, grad: Tensor, grad_sums: Tensor | None) -> None:
        """The second visit: the derivative with respect to the logits, in place, and its products."""
        student = self.student
        total = student.total.view(self.s, self.n)
        wished = grad * self.row_weights * self.weights.sum(0)[:, None]  # r_b n_s
        if grad_sums is None:  # the student's exponentials stay as they are: dS = (alpha / Z) (E - ...)
            alpha, factor = None, wished / total
            share = total / self.weights.sum(0).masked_fill(self.weights.sum(0) == 0, 1)[:, None]
        else:  # dS = (1 / Z) (E (alpha + g) - ...)
            pulled = student.total.new_zeros(self.s * self.n)
            for start, stop in student.tiles:
                pulled.addmv_(student.tile(start, stop), grad_sums[start:stop])
            alpha, factor = (wished - pulled.view(self.s, self.n) / total).reshape(-1, 1), 1 / total
            share = grad * self.row_weights * total
        factor = factor.reshape(-1, 1)
        rows = student.source.rows * factor
        products = torch.zeros_like(rows)
        for start, stop in student.tiles:
            derivative = student.tile(start, stop)
            if alpha is not None and grad_sums is not None:
                derivative.mul_(alpha + grad_sums[start:stop])
            self._subtract_targets(derivative.view(self.s, self.n, -1), share, start, stop)
            if into.embeddings is not None:
                products.addmm_(derivative, student.source.prototypes[start:stop])
            into.add(start, stop, derivative, rows, factor[:, 0])
        into.block_done()
        student.filled = False  # overwritten
        if into.embeddings is not None:
            into.embeddings[:, self.images] = products.mul_(factor / self.temperature).view(self.s, self.n, -1)

    def _subtract_targets(self, derivative: Tensor, share: Tensor, start: int, stop: int) -> None:
        """derivative_s -= share_s sum_t M_ts q_t, for runs of student views that have the same teachers."""
        if self.teacher is None:
            return
        q = self.teacher.tile(start, stop).view(self.t, self.n, -1)
        inverse = 1 / self.teacher.total.view(self.t, self.n, 1)
        for first, stop_view, weights in self._runs:
            views = derivative[first:stop_view]
            share_of_views = share[first:stop_view, :, None]
            teachers = [(t, weight) for t, weight in enumerate(weights) if weight != 0]
            if len(teachers) == 1:
                t, weight = teachers[0]
                views.addcmul_(q[t], share_of_views * (weight * inverse[t]), value=-1)
            elif teachers:
                mixture = self._mixture.tensor[: q[0].numel()].view_as(q[0])
                for i, (t, weight) in enumerate(teachers):
                    if i == 0:
                        torch.mul(q[t], weight * inverse[t], out=mixture)
                    else:
                        mixture.addcmul_(q[t], weight * inverse[t])
                views.addcmul_(mixture, share_of_views, value=-1)

    @cached_property
    def _mixture(self) -> Loan:
        width = max(stop - start for start, stop in self.student.tiles)
        return borrow(self.n * width, self.student.total)

    @cached_property
    def _runs(self) -> list[tuple[int, int, tuple[float, ...]]]:
        """Runs of student views with the same weights: [first, last), and the weight of each teacher view."""
        columns = [tuple(column) for column in self.weights.T.tolist()]
        starts = [s for s in range(self.s) if s == 0 or columns[s] != columns[s - 1]]
        stops = [*starts[1:], self.s]
        return [(a, b, columns[a]) for a, b in zip(starts, stops, strict=True)]
