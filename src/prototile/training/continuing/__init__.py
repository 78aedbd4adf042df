"""Going on from a finished checkpoint: a few epochs more, with a criterion that spreads embeddings.

running       `continue_training`: guard, before and after, a run on disk
restoring     `restore`: any checkpoint -> the method that goes on
assembling    a method around imported networks
recognising   which method a checkpoint is of
described     plain values -> parts of methods
criteria      E2MC and its rivals, with published coefficients
recipe        optimisation and views that methods are continued with
rebuilding    prototypes from images, staged unfreezing, the optimiser's memory
keeping       the guard that keeps the best weights
measuring     before and after
result        Continued, the record
"""

from prototile.training.continuing.criteria import E2MC, Criterion, add_ons, space_of
from prototile.training.continuing.keeping import Judge, KeepBest
from prototile.training.continuing.measuring import Bench, Measures
from prototile.training.continuing.recipe import BATCH, EPOCHS, FACTOR, optimization_for, views_for
from prototile.training.continuing.restoring import CONTINUED, Restored, restore, settle_
from prototile.training.continuing.result import Continued
from prototile.training.continuing.running import continue_training, planned

__all__ = [
    "BATCH",
    "CONTINUED",
    "E2MC",
    "EPOCHS",
    "FACTOR",
    "Bench",
    "Continued",
    "Criterion",
    "Judge",
    "KeepBest",
    "Measures",
    "Restored",
    "add_ons",
    "continue_training",
    "optimization_for",
    "planned",
    "restore",
    "settle_",
    "space_of",
    "views_for",
]
