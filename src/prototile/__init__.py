"""prototile: self-supervised vision models whose representations are clusters.

Which distribution do the clusters follow, and which should they? `pretrain` trains a method; every block works alone in
a plain PyTorch loop, too. Each module opens with a table of what it holds and where the papers use it.

What needs timm or Lightning is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from prototile import data, losses, regularizers, schedules, views
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

if TYPE_CHECKING:
    from prototile import audit, backbones, checkpoints, demo, evaluation, methods, recipes, reports, training
    from prototile.cli.auditing import audit_checkpoint
    from prototile.cli.continuing import continue_checkpoint
    from prototile.cli.evaluating import evaluate
    from prototile.cli.exporting import export_checkpoint
    from prototile.cli.finetuning import finetune_checkpoint
    from prototile.cli.pretraining import pretrain

_LATER = ("audit", "backbones", "checkpoints", "demo", "evaluation", "methods", "recipes", "reports", "training")

_VERBS = {
    "pretrain": "pretraining",
    "audit_checkpoint": "auditing",
    "continue_checkpoint": "continuing",
    "evaluate": "evaluating",
    "export_checkpoint": "exporting",
    "finetune_checkpoint": "finetuning",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f"prototile.{name}")
    if name in _VERBS:
        return getattr(importlib.import_module(f"prototile.cli.{_VERBS[name]}"), name)
    raise AttributeError(f"module 'prototile' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


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
    "audit",
    "audit_checkpoint",
    "backbones",
    "checkpoints",
    "continue_checkpoint",
    "cross_entropy",
    "cross_entropy_and_mean",
    "data",
    "demo",
    "dense",
    "evaluate",
    "evaluation",
    "export_checkpoint",
    "finetune_checkpoint",
    "losses",
    "methods",
    "nearest",
    "pretrain",
    "recipes",
    "regularizers",
    "release_scratch",
    "reports",
    "schedules",
    "scratch_budget",
    "smooth",
    "training",
    "views",
]
