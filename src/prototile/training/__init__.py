"""Training: one LightningModule for every method, and what a run needs around it.

    run            `fit`: a method, a loader and an optimisation in; a run on disk out
    module         Training, the LightningModule
    optimization   optimisers, schedules, clipping and what is special about some parts, as data
    optimizers     LARS, LARC, clipping and freezing
    checkpointing  atomic checkpoints; signals
    guard          broken numbers stop a run
    sharding       which strategy serves how many ranks
    folder         a run's folder and its log
    monitor        health numbers and findings while a run goes on
    probe          kNN and a linear probe while a run goes on
    bar, logs      progress; metrics.jsonl, TensorBoard, W&B

Lightning is imported here and nowhere else.
"""

from prototile.training.bar import Bar
from prototile.training.checkpointing import Interrupted
from prototile.training.guard import Diverged
from prototile.training.logs import GoOn, JsonLines, TensorBoard, weights_and_biases
from prototile.training.module import Training
from prototile.training.monitor import Monitor
from prototile.training.optimization import Optimization, Special
from prototile.training.optimizers import LARC, LARS, clip_each_, drop_gradients_
from prototile.training.probe import Probe
from prototile.training.run import Run, fit

__all__ = [
    "LARC",
    "LARS",
    "Bar",
    "Diverged",
    "GoOn",
    "Interrupted",
    "JsonLines",
    "Monitor",
    "Optimization",
    "Probe",
    "Run",
    "Special",
    "TensorBoard",
    "Training",
    "clip_each_",
    "drop_gradients_",
    "fit",
    "weights_and_biases",
]
