"""Losses on masked patches. n images, c channels, h w pixels, p patches, d dims.

`mask` is true where a patch was hidden. Without a hidden patch the loss is 0, with zero gradients.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from prototile import distributed
from prototile.precision import full_precision


def patchify(images: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n p d"]:
    """Square patches in row-major order, each flattened as (row, column, channel)."""
    n, channels, height, width = images.shape
    if size < 1 or height % size or width % size:
        raise ValueError(f"images of {height} x {width} do not divide into patches of {size} x {size}")
    grid = images.reshape(n, channels, height // size, size, width // size, size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, size * size * channels)


def _mean_where(error: Tensor, mask: Tensor) -> Tensor:
    """Over the hidden patches of all ranks, which may differ in their number."""
    if mask.shape != error.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"a mask must be boolean of shape {tuple(error.shape)}, images x patches, "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return (error * mask).sum() / distributed.mean(mask.sum().to(error)).clamp(min=1 / distributed.world_size())


@full_precision
def masked_pixels(
    prediction: Float[Tensor, "n p d"],
    target: Float[Tensor, "n p d"],
    mask: Bool[Tensor, "n p"],
    *,
    normalize: bool = True,
) -> Float[Tensor, ""]:
    """Mean squared error over the pixels of hidden patches (MAE, He et al. 2022).

    `normalize` standardises every target patch by its own mean and (unbiased) variance plus 1e-6.
    """
    if normalize:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    error = (prediction - target).square().mean(-1)
    return _mean_where(error, mask)


@full_precision
def latent_regression(
    prediction: Float[Tensor, "n p d"],
    target: Float[Tensor, "n p d"],
    mask: Bool[Tensor, "n p"],
    *,
    beta: float = 2.0,
) -> Float[Tensor, ""]:
    """Smooth L1 over hidden patches: 0.5 e^2 / beta below beta, e - beta / 2 above (data2vec, Baevski et al. 2022)."""
    error = F.smooth_l1_loss(prediction, target.detach(), beta=beta, reduction="none").mean(-1)
    return _mean_where(error, mask)
