"""prototile: self-supervised vision models whose representations are clusters.

Which distribution do the clusters follow, and which should they? So far these are the mathematical core, and data and
views: every block works alone in a plain PyTorch loop. Each module opens with a table of what it holds and where the
papers use it.
"""

from prototile import data, losses, regularizers, schedules, training, views
from prototile.assignments import (
    Assignments,
    Pairs,
    cross_entropy,
    cross_entropy_and_mean,
    dense,
    release_scratch,
    scratch_budget,
    smooth,
)
from prototile.balancing import (
    Balancer,
    Centering,
    ExplicitBalancing,
    ProbabilityCentering,
    Queue,
    Sequential,
    Sharpen,
    Sinkhorn,
)
from prototile.heads import ExCBHead, Head, Prototypes
from prototile.neighbors import nearest
from prototile.priors import Explicit, FromCounts, PowerLaw, Prior, Uniform
from prototile.regularizers import (
    EffectiveEntropy,
    KoLeo,
    ManifoldCapacity,
    MatchPrior,
    Regularizer,
    Uniformity,
    VarianceCovariance,
)

__all__ = [
    "Assignments",
    "Balancer",
    "Centering",
    "EffectiveEntropy",
    "ExCBHead",
    "Explicit",
    "ExplicitBalancing",
    "FromCounts",
    "Head",
    "KoLeo",
    "ManifoldCapacity",
    "MatchPrior",
    "Pairs",
    "PowerLaw",
    "Prior",
    "ProbabilityCentering",
    "Prototypes",
    "Queue",
    "Regularizer",
    "Sequential",
    "Sharpen",
    "Sinkhorn",
    "Uniform",
    "Uniformity",
    "VarianceCovariance",
    "cross_entropy",
    "cross_entropy_and_mean",
    "data",
    "dense",
    "losses",
    "nearest",
    "regularizers",
    "release_scratch",
    "schedules",
    "scratch_budget",
    "smooth",
    "training",
    "views",
]
