"""Nearest neighbours among rows, as an operator of torch."""

import torch
from torch import Tensor

from prototile.kernels import launch
from prototile.kernels.launch import Form


@torch.library.custom_op("prototile::fused_nearest", mutates_args=())
def fused_nearest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Per row the first other row with the largest inner product, and that product."""
    top, where = launch.largest(x, x, Form(1.0), others_only=True, exact=True)
    return where, top


@fused_nearest.register_fake
def _(x):
    return x.new_empty(x.shape[0], dtype=torch.long), x.new_empty(x.shape[0], dtype=torch.float32)
