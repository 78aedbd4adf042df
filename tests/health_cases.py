"""A rank's health for `audit/test_health.py`: importable by spawned processes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from prototile.assignments import Assignments
from prototile.audit import cluster_health, embedding_health
from prototile.methods import Clusters, Terms
from prototile.priors import PowerLaw
from prototile.training.monitor import Monitor

PROTOTYPES = 6


def looked_at(rank: int, world: int) -> list[str]:
    """The kinds of tokens that a monitor looks at where the last rank has no hidden patch."""
    z, w = F.normalize(torch.randn(4, 5), dim=1), F.normalize(torch.randn(PROTOTYPES, 5), dim=1)
    some = Clusters(Assignments(z, w, 0.1), Assignments(z, w, 0.05), PowerLaw(1.0)(PROTOTYPES))
    clusters = {"cls": some} if rank == world - 1 else {"cls": some, "patches": some}
    _, numbers = Monitor()._looked(1, Terms(torch.zeros(()), {}, z, clusters))
    return sorted({name.split("/")[1] for name in numbers if name.count("/") == 2})


def health_numbers(rank: int, world: int) -> dict[str, float]:
    """Of this rank's share of the rows."""
    generator = torch.Generator().manual_seed(3)

    def own(x: Tensor) -> Tensor:
        return x.chunk(world)[rank]

    z, t, w = (F.normalize(torch.randn(n, 5, generator=generator), dim=1) for n in (24, 24, PROTOTYPES))
    student, targets = Assignments(own(z), w, 0.1), Assignments(own(t), w, 0.05)
    clusters = cluster_health(student, targets, PowerLaw(1.0)(PROTOTYPES), w)
    return vars(clusters) | vars(embedding_health(own(z)))
