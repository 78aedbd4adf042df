"""Training: so far the optimisers and what is done to gradients before they are used."""

from prototile.training.optimizers import LARC, LARS, clip_each_, drop_gradients_

__all__ = ["LARC", "LARS", "clip_each_", "drop_gradients_"]
