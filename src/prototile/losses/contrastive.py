"""Contrastive losses. n images, d dims."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prototile import distributed
from prototile.precision import full_precision, same_shape


@full_precision
def nt_xent(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], temperature: float = 0.1) -> Float[Tensor, ""]:
    r"""$-\log \frac{\exp(z_i^\top z_{j(i)} / \tau)}{\sum_{k \ne i} \exp(z_i^\top z_k / \tau)}$, mean over both views.

    Rows are normalised here; the candidates are all rows of both views on all ranks (SimCLR, Chen et al. 2020).
    """
    same_shape(a, b)
    if not temperature > 0:
        raise ValueError(f"a temperature must be a positive number, got {temperature}")
    a, b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    everyone = torch.cat([distributed.gather(a), distributed.gather(b)])
    total, n = len(everyone) // 2, len(a)
    first = distributed.rank() * n
    own = torch.cat([torch.arange(first, first + n), torch.arange(total + first, total + first + n)])
    own = own.to(a.device)
    logits = torch.cat([a, b]) @ everyone.T / temperature
    itself = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, own[:, None], True)
    partner = (own + total) % (2 * total)
    return F.cross_entropy(logits.masked_fill(itself, -torch.inf), partner)
