"""Audit: what prototypes, assignments and embeddings are really like. Tensors in, plain results out.

    prototypes    how many are unique, and which stand for which
    health        the numbers that show whether a run is well
    diagnosis     known failures, told from them in plain words

Nothing here knows methods or training.
"""

from prototile.audit.diagnosis import Finding, Watch, diagnose
from prototile.audit.health import (
    ClusterHealth,
    EmbeddingHealth,
    Health,
    Window,
    cluster_health,
    embedding_health,
)
from prototile.audit.prototypes import Unique, unique

__all__ = [
    "ClusterHealth",
    "EmbeddingHealth",
    "Finding",
    "Health",
    "Unique",
    "Watch",
    "Window",
    "cluster_health",
    "diagnose",
    "embedding_health",
    "unique",
]
