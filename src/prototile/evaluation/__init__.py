"""Evaluation: what frozen features are worth.

    features    images -> features, the same in every run
    knn         weighted nearest neighbours
    linear      a quick linear probe

The papers' protocols will stand beside them.
"""

from prototile.evaluation.features import FeatureSet, encode, extract
from prototile.evaluation.knn import NearestNeighbors, knn
from prototile.evaluation.linear import LinearProbe, linear

__all__ = ["FeatureSet", "LinearProbe", "NearestNeighbors", "encode", "extract", "knn", "linear"]
