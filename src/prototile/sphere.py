"""Rows as unit vectors, with one matrix of memory less in each direction than `F.normalize`.

n rows, d dims.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from prototile.precision import full_precision


@full_precision
def normalize(x: Float[Tensor, "n d"], eps: float = 1e-12) -> Float[Tensor, "n d"]:
    """x / max(|x|, eps), row by row; a zero row stays zero. Equals `F.normalize`, in at least float32."""
    return _Normalize.apply(x, eps)  # type: ignore[return-value]


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, eps: float) -> Tensor:
        unit, norm, bounded = unit_rows(x, eps)
        ctx.save_for_backward(unit, norm, bounded)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        unit, norm, bounded = ctx.saved_tensors
        return pull_back_(grad.clone(), unit, norm, bounded), None


def unit_rows(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x / bounded, the rows' norms, and bounded = max(norm, eps); for functions with a gradient of their own."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    bounded = norm.clamp(min=eps)
    return x / bounded, norm, bounded


def pull_back_(grad: Tensor, unit: Tensor, norm: Tensor, bounded: Tensor) -> Tensor:
    """The gradient with respect to rows, from that with respect to unit = rows / bounded, in its place."""
    radial = torch.einsum("nd,nd->n", grad, unit)[:, None] * (norm >= bounded)
    return grad.addcmul_(unit, radial, value=-1).div_(bounded)
