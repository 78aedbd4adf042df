"""The dense reference: what every other backend must equal, values and gradients. Ten readable lines."""

import torch
from jaxtyping import Float
from torch import Tensor

from prototile.assignments.lazy import Assignments
from prototile.assignments.pairs import Pairs


def cross_entropy(student: Assignments, targets: Assignments, pairs: Pairs) -> Float[Tensor, ""]:
    """sum over t, s, b of views[t][s] rows[b] (-sum_k q_tbk log p_sbk)."""
    log_p = student.log_probabilities()
    weights, rows = pairs.table(log_p), pairs.row_weights(log_p)
    q = targets.detach().probabilities().to(log_p).unflatten(0, (weights.shape[0], -1))
    log_p = log_p.unflatten(0, (weights.shape[1], -1))
    return -torch.einsum("tbk,sbk,ts,b->", q, log_p, weights, rows)
