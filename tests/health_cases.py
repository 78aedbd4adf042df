"""A rank's health for `audit/test_health.py`: importable by spawned processes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prototile.assignments import Assignments
from prototile.audit import cluster_health, embedding_health
from prototile.priors import PowerLaw

PROTOTYPES = 6


def health_numbers(rank: int, world: int) -> dict[str, float]:
    """Of this rank's share of the rows."""
    generator = torch.Generator().manual_seed(3)

    def own(x: Tensor) -> Tensor:
        return x.chunk(world)[rank]

    z, t, w = (F.normalize(torch.randn(n, 5, generator=generator), dim=1) for n in (24, 24, PROTOTYPES))
    student, targets = Assignments(own(z), w, 0.1), Assignments(own(t), w, 0.05)
    clusters = cluster_health(student, targets, PowerLaw(1.0)(PROTOTYPES), w)
    return vars(clusters) | vars(embedding_health(own(z)))
