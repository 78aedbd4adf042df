"""Spherical k-means: prototypes to start from. n rows, d dims, k prototypes."""

import torch
from jaxtyping import Float
from torch import Tensor

from prototile.assignments import Assignments
from prototile.precision import full_precision
from prototile.sphere import normalize


@torch.no_grad()
@full_precision
def spherical_kmeans(
    x: Float[Tensor, "n d"], num_prototypes: int, *, iterations: int = 50, seed: int = 0
) -> Float[Tensor, "k d"]:
    """Unit vectors, each the normalised mean of the rows with the largest cosine to it (Dhillon & Modha 2001).

    It starts from different rows at random. A prototype that is left without rows moves to the row that is worst
    represented, so that in the end every one has some (ExCB). All ranks that hold the same rows find the same.
    """
    if not 0 < num_prototypes <= len(x):
        raise ValueError(
            f"k-means finds between 1 and {len(x)} prototypes in {len(x)} embeddings, not {num_prototypes}: "
            "give it more images or take fewer prototypes"
        )
    x = normalize(x)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    centers = x[order[:num_prototypes]].clone()
    for _ in range(iterations):
        nearest = Assignments(x, centers, 1.0).hard()
        empty = _filled(x, centers, nearest)
        sums = torch.zeros_like(centers).index_add_(0, nearest, x)
        moved = normalize(sums)
        if not empty and torch.equal(moved, centers):
            break
        centers = moved
    return centers


def _filled(x: Tensor, centers: Tensor, nearest: Tensor) -> bool:
    """Gives every empty prototype the worst represented row of those that are not alone; whether there was any."""
    counts = torch.bincount(nearest, minlength=len(centers))
    empty = torch.nonzero(counts == 0).flatten().tolist()
    if empty:
        fit = torch.einsum("nd,nd->n", x, centers[nearest])
        rows = iter(fit.argsort().tolist())
        for k in empty:
            row = next(row for row in rows if counts[nearest[row]] > 1)
            counts[nearest[row]] -= 1
            nearest[row] = k
    return bool(empty)
