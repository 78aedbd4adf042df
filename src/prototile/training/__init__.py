"""Training: optimisers, what is done to gradients before they are used, and callbacks and loggers that watch a run."""

from prototile.training.bar import Bar
from prototile.training.logs import GoOn, JsonLines, TensorBoard, weights_and_biases
from prototile.training.monitor import Monitor
from prototile.training.optimizers import LARC, LARS, clip_each_, drop_gradients_
from prototile.training.probe import Probe

__all__ = [
    "LARC",
    "LARS",
    "Bar",
    "GoOn",
    "JsonLines",
    "Monitor",
    "Probe",
    "TensorBoard",
    "clip_each_",
    "drop_gradients_",
    "weights_and_biases",
]
