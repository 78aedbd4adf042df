r"""Cross-entropy through the expected prototype: teacher and student rows never meet.

With v_t = sum_k q_tk w_k, the mean of the student's prototypes under the target,

    -sum_k q_tk log p_sk = log Z_s - <z_s, v_t> / temperature - sum_k q_tk offset_k,

so pairing t with s views costs n x d work, not n x k. It is the algorithm for a fused kernel (attention of teacher
rows over prototypes) and, here, of the backend `row`: for images whose views do not fit the budget together.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prototile.assignments.coupled import Gradients, Problem
from prototile.assignments.tiles import Exponentials, Logits, spans
from prototile.autograd import scaled


class CrossEntropyByRows(torch.autograd.Function):
    """The weighted cross-entropy; its gradient is formed in the forward pass, row block by row block."""

    @staticmethod
    def forward(ctx, z: Tensor, w: Tensor, offset: Tensor | None, problem: Problem) -> Tensor:
        student, teacher, weights, r = problem.student, problem.teacher, problem.weights, problem.rows
        assert teacher is not None
        gradients = Gradients(student, ctx.needs_input_grad[:3])
        rows = student.rows.unflatten(0, (student.views, -1))  # already divided by the temperature

        # what every teacher row is multiplied with: the student rows that it teaches
        taught = -torch.einsum("ts,b,sbd->tbd", weights, r, rows)
        expected, _, target_offset = _sweep(teacher, student, taught, -weights.sum(1)[:, None] * r, problem, gradients)
        loss = (expected * taught).sum() - (weights.sum(1)[:, None] * r * target_offset).sum()

        wished = weights.sum(0)[:, None] * r  # n_s r_b
        mean, log_total, _ = _sweep(student, student, wished[..., None] * rows, wished, problem, gradients)
        loss += (wished * log_total).sum()
        if gradients.embeddings is not None:
            pulled = torch.einsum("ts,b,tbd->sbd", weights, r, expected)
            gradients.embeddings.copy_((wished[..., None] * mean - pulled) / student.temperature)
        ctx.save_for_backward(*gradients.results())
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return *scaled(ctx.saved_tensors, grad), None


def _sweep(
    source: Logits, student: Logits, multiplier: Tensor, weight: Tensor, problem: Problem, into: Gradients
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over the rows of `source` (v views x b images): with p = softmax(its logits), per row

    the student prototype expected under p, the log-normaliser, and the student's offset expected under p;
    and into the gradients: p' @ multiplier for the prototypes, p' @ weight for the offset.
    """
    shape = source.views, source.images
    expected = source.rows.new_empty(*shape, student.prototypes.shape[1])
    log_total, offset = source.rows.new_empty(shape), source.rows.new_zeros(shape)
    for start, stop in spans(source.images, max(1, problem.plan.block // source.views)):
        exponentials = Exponentials(source.block(start, stop), keep=source.num_prototypes)
        products = torch.zeros_like(expected[:, start:stop]).flatten(0, 1)
        offsets = torch.zeros_like(exponentials.total)
        for a, b, tile in exponentials.accumulate():
            products.addmm_(tile, student.prototypes[a:b])
            if student.offset is not None:
                offsets.addmv_(tile, student.offset[0, a:b])
        total = exponentials.total[:, None]
        expected[:, start:stop] = (products / total).view(source.views, -1, products.shape[1])
        offset[:, start:stop] = (offsets / total[:, 0]).view(source.views, -1)
        log_total[:, start:stop] = total.log().view(source.views, -1)
        if exponentials.source.shift is not None:  # subtracted from the logits, but not from <z, v>
            log_total[:, start:stop] += exponentials.source.shift.view(source.views, -1)
        scaled_rows = multiplier[:, start:stop].flatten(0, 1) / total
        scaled_weight = weight[:, start:stop].flatten() / total[:, 0]
        for a, b in exponentials.tiles:
            into.add(a, b, exponentials.tile(a, b), scaled_rows, scaled_weight)
        into.block_done()
        del exponentials  # hands its scratch memory on to the next block
    return expected, log_total, offset
