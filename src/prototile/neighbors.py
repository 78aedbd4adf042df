"""Nearest neighbours among rows, without a matrix of all similarities.

k rows (unit vectors), d dims.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile import kernels
from prototile.precision import no_autocast

_BLOCK = 1024  # 4 MiB of float32 similarities at a time


@torch.no_grad()
@no_autocast
def nearest(x: Float[Tensor, "k d"], *, block: int = _BLOCK) -> tuple[Int[Tensor, " k"], Float[Tensor, " k"]]:
    """For every row the other row with the largest inner product (the first, among equals), and that product.

    Only blocks on and above the diagonal are multiplied, each serving its rows and its columns: K^2 D
    multiply-adds instead of 2 K^2 D, and block x block numbers of memory. The same result for any block size, up to
    rounding.
    """
    k = x.shape[0]
    if k < 2:
        raise ValueError(f"a nearest neighbour needs at least two rows, got {k}")
    if not bool(x.isfinite().all()):
        raise ValueError("the rows hold numbers that are not finite (NaN or infinity)")
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    if kernels.serve(x, x.dtype, exact=True):
        from prototile.kernels.nearest import fused_nearest

        return fused_nearest(x.contiguous())
    best = x.new_full((k,), -torch.inf)
    index = torch.zeros(k, dtype=torch.long, device=x.device)
    scratch = x.new_empty(min(block, k) ** 2)
    for row in range(0, k, block):
        rows = slice(row, min(row + block, k))
        for column in range(row, k, block):
            columns = slice(column, min(column + block, k))
            shape = rows.stop - rows.start, columns.stop - columns.start
            tile = torch.mm(x[rows], x[columns].T, out=scratch[: shape[0] * shape[1]].view(shape))
            if row == column:
                tile.fill_diagonal_(-torch.inf)
            _improve(best, index, rows, tile, column)
            if row != column:
                _improve(best, index, columns, tile, row, columns=True)
    return index, best


def _improve(best: Tensor, index: Tensor, part: slice, tile: Tensor, offset: int, *, columns: bool = False) -> None:
    """Takes over the maxima of `tile`'s rows (or columns) where they are larger, and looks up where.

    `part` says which of all rows they are, `offset` where the other axis begins.
    """
    top = tile.amax(0 if columns else 1)
    improved = torch.nonzero(top > best[part]).flatten()
    best[part.start + improved] = top[improved]
    for few in improved.split(128):  # few at a time: their copy stays in cache
        lines = tile.index_select(1, few).T.contiguous() if columns else tile.index_select(0, few)
        index[part.start + few] = _first_largest(lines) + offset


def _first_largest(x: Float[Tensor, "n m"]) -> Int[Tensor, " n"]:
    """Where each row is largest; on a CPU by numpy, which takes a tenth of torch's time."""
    return x.argmax(1) if x.is_cuda else torch.from_numpy(x.numpy().argmax(1))
