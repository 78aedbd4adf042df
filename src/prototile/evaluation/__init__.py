"""Evaluation: what frozen features are worth.

    features    images -> features, the same in every run
    stored      the same and any other outputs, kept on disk
    knn         weighted nearest neighbours
    linear      a quick linear probe

The papers' protocols will stand beside them.
"""

from prototile.evaluation.features import Crop, FeatureSet, encode, extract
from prototile.evaluation.knn import NearestNeighbors, knn
from prototile.evaluation.linear import LinearProbe, linear
from prototile.evaluation.stored import Stored, outputs_of

__all__ = [
    "Crop",
    "FeatureSet",
    "LinearProbe",
    "NearestNeighbors",
    "Stored",
    "encode",
    "extract",
    "knn",
    "linear",
    "outputs_of",
]
