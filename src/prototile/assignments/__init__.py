"""Assignments of rows to prototypes, and the cross-entropy between them, without ever holding a matrix.

Where to look:  `lazy` what a user holds; `pairs` who teaches whom; `objective` cross-entropy; `plan` which backend;
`naive` the dense reference; `coupled` (direct, stream) and `decoupled` (row) the portable backends; `reductions`
log-sum-exps, arg-maxima and Sinkhorn's passes; `sharded` the same where each rank holds some of the prototypes, on the
two `passes`; `tiles` and `scratch` what they all stand on; `fused` all of it once more, by kernels for GPUs.
"""

from prototile.assignments.lazy import Assignments, dense, smooth
from prototile.assignments.objective import cross_entropy, cross_entropy_and_mean
from prototile.assignments.pairs import Pairs
from prototile.assignments.plan import backend
from prototile.assignments.scratch import release as release_scratch
from prototile.assignments.scratch import scratch_budget
from prototile.assignments.tiles import Adjustment

__all__ = [
    "Adjustment",
    "Assignments",
    "Pairs",
    "backend",
    "cross_entropy",
    "cross_entropy_and_mean",
    "dense",
    "release_scratch",
    "scratch_budget",
    "smooth",
]
