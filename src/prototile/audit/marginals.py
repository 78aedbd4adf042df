"""One and two dims at a time: whether embeddings are spread evenly there.

n images, d dims, p pairs of dims, g x g cells.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.audit.plain import plain, quantiles
from prototile.precision import wide
from prototile.regularizers import spacings_entropy, unit_interval

PAIRS, CELLS = 10, 10  # pairs of dims, and cells of a grid's side

_NUMBERS = 2**24  # that are sorted at a time


@dataclass(frozen=True, eq=False)
class Marginals:
    """One and two dims at a time, after the mapping into (0, 1) of E2MC (figures 2 and D.1).

    `chi_square` is of a 10 x 10 grid against equal counts, per degree of freedom: 1 is what chance makes of uniform
    points, whatever their number; what lies above grows with the number of images.
    """

    space: str  # "hypersphere": by the normal distribution function; "hypercube": by a sigmoid
    images: int
    entropy: Float[Tensor, " d"] = field(repr=False)  # m-spacings entropy of each dim: 0 for uniform numbers
    distance: Float[Tensor, " d"] = field(repr=False)  # Kolmogorov-Smirnov distance of each dim to uniform numbers
    pairs: Int[Tensor, "p 2"]  # the dims of each pair
    grids: Int[Tensor, "p g g"] = field(repr=False)  # how many images are where
    chi_square: Float[Tensor, " p"]

    def as_dict(self) -> dict[str, Any]:
        return {
            "space": self.space,
            "images": self.images,
            "mean entropy": plain(float(self.entropy.mean())),
            "entropy": quantiles(self.entropy),
            "mean distance to uniform": plain(float(self.distance.mean())),
            "pairs": plain(self.pairs),
            "chi_square": plain(self.chi_square),
            "mean chi_square": plain(float(self.chi_square.mean())),
            "grids": plain(self.grids),
        }


@torch.no_grad()
def audit_marginals(
    x: Float[Tensor, "n d"], space: Literal["hypersphere", "hypercube"] = "hypersphere", *, seed: int = 0
) -> Marginals:
    """Of embeddings before any normalisation, mapped as E2MC maps them; `seed` draws the pairs of dims."""
    if len(x) < 2:
        raise ValueError(f"marginals need at least two images, got {len(x)}")
    entropy, distance = [], []
    for part in x.split(max(1, _NUMBERS // len(x)), 1):
        u = unit_interval(wide(part.detach()), space)
        entropy.append(spacings_entropy(u))
        ordered = u.sort(0).values
        rank = torch.arange(len(x) + 1, device=u.device)[:, None] / len(x)
        distance.append(torch.maximum((rank[1:] - ordered).amax(0), (ordered - rank[:-1]).amax(0)))
    pairs = drawn_pairs(x.shape[1], seed)
    columns = unit_interval(wide(x[:, pairs.flatten().to(x.device)].detach()), space)
    cells = (columns * CELLS).long().clamp(0, CELLS - 1).view(len(x), -1, 2)
    flat = cells[..., 0] * CELLS + cells[..., 1]
    counts = [torch.bincount(flat[:, i], minlength=CELLS**2) for i in range(len(pairs))]
    grids = torch.stack(counts).cpu() if counts else torch.empty(0, CELLS**2, dtype=torch.long)
    expected = len(x) / CELLS**2
    return Marginals(
        space=space,
        images=len(x),
        entropy=torch.cat(entropy).cpu(),
        distance=torch.cat(distance).cpu(),
        pairs=pairs,
        grids=grids.view(-1, CELLS, CELLS),
        chi_square=((grids - expected) ** 2 / expected).sum(1) / (CELLS**2 - 1),
    )


def drawn_pairs(dims: int, seed: int) -> Int[Tensor, "p 2"]:
    """Different pairs of different dims, as many as there are up to ten."""
    wanted = min(PAIRS, dims * (dims - 1) // 2)
    generator, found = torch.Generator().manual_seed(seed), {}
    while len(found) < wanted:
        a, b = torch.randint(dims, (2,), generator=generator).tolist()
        if a != b:
            found[min(a, b), max(a, b)] = None
    return torch.tensor(list(found), dtype=torch.long).view(-1, 2)
