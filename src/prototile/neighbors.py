"""Nearest neighbours among rows, without a matrix of all similarities.

k rows (unit vectors), d dims.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BLOCK = 1024  # 4 MiB of float32 similarities at a time


@torch.no_grad()
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
    best = x.new_full((k,), -torch.inf)
    index = torch.zeros(k, dtype=torch.long, device=x.device)
    scratch = x.new_empty(min(block, k) ** 2)
    with torch.autocast(x.device.type, enabled=False):
        for row in range(0, k, block):
            rows = slice(row, min(row + block, k))
            for column in range(row, k, block):
                columns = slice(column, min(column + block, k))
                shape = rows.stop - rows.start, columns.stop - columns.start
                tile = torch.mm(x[rows], x[columns].T, out=scratch[: shape[0] * shape[1]].view(shape))
                if row == column:
                    tile.fill_diagonal_(-torch.inf)
                improve_(best, index, rows, tile, column)
                if row != column:
                    improve_(best, index, columns, tile.T, row)
    return index, best


def improve_(best: Tensor, index: Tensor, rows: slice, tile: Tensor, offset: int) -> Float[Tensor, " n"]:
    """Takes over the maxima of `tile`'s rows where they are larger, and looks up their position there; gives them."""
    top = tile.amax(1)
    improved = torch.nonzero(top > best[rows]).flatten()
    best[rows.start + improved] = top[improved]
    for part in improved.split(128):  # few at a time: their copy stays in cache
        index[rows.start + part] = tile[part].argmax(1) + offset
    return top
