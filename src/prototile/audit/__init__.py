"""Audit: what prototypes, assignments and embeddings are really like. Tensors in, plain results out.

    cover         how many prototypes are unique, and which stand for which; `triangle` looks at all pairs
    prototypes    all that prototypes tell without images: sweep, redundancy, neighbours, norms, rank
    clusters      how images spread over prototypes; `counting` them, some images at a time
    power         the law of rank that sizes follow, with its error
    mass          whether prototypes that stand for many have more images
    labels        clusters against classes
    embeddings    how embeddings fill their space: their spectrum, views, labels of neighbours
    distances     how much nearer than any other image the nearest one is; `marginals` one and two dims at a time
    maps          prototypes and images on a plane
    compare       audits side by side; what merged, what split
    verdict       what all this says, in plain words
    result        one checkpoint's audit as a whole; `plain` writes any of this as strict JSON
    health        the numbers that show whether a run is well
    diagnosis     known failures, told from them in plain words

Nothing here knows methods or training.
"""

from prototile.audit.clusters import ClusterAudit
from prototile.audit.compare import Changes, Comparison, changes, compare, follow
from prototile.audit.counting import ClusterCounter, audit_clusters
from prototile.audit.cover import Unique, unique
from prototile.audit.diagnosis import Finding, Watch, diagnose
from prototile.audit.distances import NeighborDistances, nearest_images, neighbor_distances
from prototile.audit.embeddings import EmbeddingAudit, audit_embeddings
from prototile.audit.health import (
    ClusterHealth,
    EmbeddingHealth,
    Health,
    Window,
    cluster_health,
    embedding_health,
)
from prototile.audit.labels import LabelAudit, audit_labels
from prototile.audit.maps import Map, map_embeddings, map_prototypes
from prototile.audit.marginals import Marginals, audit_marginals
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
    "Marginals",
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
    "audit_embeddings",
    "audit_labels",
    "audit_marginals",
    "audit_prototypes",
    "changes",
    "cluster_health",
    "compare",
    "diagnose",
    "embedding_health",
    "fit_power",
    "follow",
    "map_embeddings",
    "map_prototypes",
    "mass_by_redundancy",
    "nearest_images",
    "neighbor_distances",
    "unique",
    "verdict",
]
