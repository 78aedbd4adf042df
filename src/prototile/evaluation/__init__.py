"""Evaluation: what frozen features are worth. Protocols are functions of features and labels.

features    images -> features, the same in every run
stored      the same and any other outputs, kept on disk
knn         weighted nearest neighbours
linear      a quick linear probe
published   the linear protocols of the papers; heads: linear classifiers side by side; viewed: of augmented views
lowshot     from 1, 2, 5 images of each class, or 1% of them
logistic    logistic regression over a grid; transfer: the suite of data sets
svm         VOC 2007's support vector machines
scores      metrics; head, middle and tail
splits      parts of the training images, drawn by a seed
convex      one solver for all that is convex; lbfgs: its search
records     results on disk; comparing: paired tests of two of them
"""

from prototile.evaluation.comparing import Difference, compare, compare_all
from prototile.evaluation.features import Crop, FeatureSet, encode, extract
from prototile.evaluation.knn import NearestNeighbors, knn
from prototile.evaluation.linear import LinearProbe, linear
from prototile.evaluation.logistic import Logistic, logistic
from prototile.evaluation.lowshot import LowShot, low_shot
from prototile.evaluation.published import LinearRecipe, LinearResult, published_linear
from prototile.evaluation.records import Record, append, read
from prototile.evaluation.scores import Grouped, average_precision, grouped, mean_average_precision, mean_per_class
from prototile.evaluation.stored import Stored, outputs_of
from prototile.evaluation.svm import SupportVectors, support_vectors

__all__ = [
    "Crop",
    "Difference",
    "FeatureSet",
    "Grouped",
    "LinearProbe",
    "LinearRecipe",
    "LinearResult",
    "Logistic",
    "LowShot",
    "NearestNeighbors",
    "Record",
    "Stored",
    "SupportVectors",
    "append",
    "average_precision",
    "compare",
    "compare_all",
    "encode",
    "extract",
    "grouped",
    "knn",
    "linear",
    "logistic",
    "low_shot",
    "mean_average_precision",
    "mean_per_class",
    "outputs_of",
    "published_linear",
    "read",
    "support_vectors",
]
