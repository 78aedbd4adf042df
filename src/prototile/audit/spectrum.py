"""How many dims rows really use: ranks that need no threshold, from sums of products.

n rows, d dims, s singular values.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

RANKME_EPS = 1e-7  # the paper's

_NUMBERS = 2**22  # of rows that are widened at a time


def chunks(x: Float[Tensor, "n d"]) -> Iterator[Float[Tensor, "m d"]]:
    """All rows in float64, few at a time: they may lie on disk."""
    for part in x.split(max(1, _NUMBERS // x.shape[1])):
        yield part.detach().double()


def products_of(x: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """x^T x, in float64 on the CPU."""
    total = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for part in chunks(x):
        total.addmm_(part.T, part)
    return total.cpu()


def rankme(products: Float[Tensor, "d d"]) -> float:
    """The effective rank of rows with these summed products as Garrido et al. 2023 take it."""
    return effective_rank(singular_values(products), RANKME_EPS)


def singular_values(products: Float[Tensor, "d d"]) -> Float[Tensor, " d"]:
    """Of rows with these summed products (x^T x, in float64), from the largest; accurate to 1e-8 of the largest."""
    return torch.linalg.eigvalsh(products).flip(0).clamp(min=0).sqrt()


def effective_rank(singular: Float[Tensor, " s"], eps: float = 0.0) -> float:
    """exp of the entropy of s / sum(s) + eps (Roy & Vetterli 2007; with eps 1e-7 RankMe, Garrido et al. 2023).

    0 where all values are.
    """
    total = singular.sum()
    if not bool(total > 0):
        return 0.0
    p = singular / total + eps
    return float((-torch.xlogy(p, p).sum()).exp())
