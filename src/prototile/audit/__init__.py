"""Audit: what prototypes, assignments and embeddings are really like. Tensors in, plain results out.

    cover         how many prototypes are unique, and which stand for which; `triangle` looks at all pairs
    prototypes    all that prototypes tell without images: sweep, redundancy, neighbours, norms, rank
    clusters      how images spread over prototypes; `counting` them, some images at a time
    power         the law of rank that sizes follow, with its error
    mass          whether prototypes that stand for many have more images
    labels        clusters against classes
    embeddings    how embeddings fill their space
    maps          prototypes and images on a plane
    compare       audits side by side; what merged, what split
    verdict       what all this says, in plain words
    result        one checkpoint's audit as a whole
    health        the numbers that show whether a run is well
    diagnosis     known failures, told from them in plain words

Nothing here knows methods or training.
"""

from prototile.audit.clusters import ClusterAudit
from prototile.audit.compare import Changes, Comparison
from prototile.audit.counting import ClusterCounter, audit_clusters
from prototile.audit.cover import Unique, unique
from prototile.audit.diagnosis import Finding, Watch, diagnose
from prototile.audit.embeddings import EmbeddingAudit, NeighborDistances
from prototile.audit.health import (
    ClusterHealth,
    EmbeddingHealth,
    Health,
    Window,
    cluster_health,
    embedding_health,
)
from prototile.audit.labels import LabelAudit, audit_labels
from prototile.audit.maps import Map
from prototile.audit.mass import MassByRedundancy, mass_by_redundancy
from prototile.audit.power import PowerFit, fit_power
from prototile.audit.prototypes import PrototypeAudit, audit_prototypes
from prototile.audit.result import Audit
from prototile.audit.verdict import Statement, Verdict, verdict

__all__ = [
    "Audit",
    "Changes",
    "ClusterAudit",
    "ClusterCounter",
    "ClusterHealth",
    "Comparison",
    "EmbeddingAudit",
    "EmbeddingHealth",
    "Finding",
    "Health",
    "LabelAudit",
    "Map",
    "MassByRedundancy",
    "NeighborDistances",
    "PowerFit",
    "PrototypeAudit",
    "Statement",
    "Unique",
    "Verdict",
    "Watch",
    "Window",
    "audit_clusters",
    "audit_labels",
    "audit_prototypes",
    "cluster_health",
    "diagnose",
    "embedding_health",
    "fit_power",
    "mass_by_redundancy",
    "unique",
    "verdict",
]
