"""Gaussian blur of many images, each with its own deviation, as matrix products with banded blocks.

Axes: n images, c channels, h w pixels.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

_BLOCK = 16  # pixels that one block of the band gives from _BLOCK + 2 * radius
_DEVIATIONS = 4  # what lies further out weighs less than 1e-4


def blur_(x: Float[Tensor, "n c h w"], sigma: Float[Tensor, " n"], widest: float) -> None:
    """Blur each image by a Gaussian of its `sigma`, at most `widest`, in place.

    Edges are reflected, as in torchvision's GaussianBlur.
    """
    n, c, h, w = x.shape
    radius = min(max(1, math.ceil(_DEVIATIONS * widest)), h - 1, w - 1)
    band = _band(sigma, radius)
    rows, columns = math.ceil(h / _BLOCK), math.ceil(w / _BLOCK)
    y = F.pad(x, (radius, radius, radius, radius), mode="reflect")
    y = F.pad(y, (0, columns * _BLOCK - w, 0, rows * _BLOCK - h)).contiguous()
    height, width = y.shape[2:]
    window = _BLOCK + 2 * radius
    # windows overlap by 2 * radius: views of the same memory
    windows = y.as_strided((n, c, rows, window, width), (c * height * width, height * width, _BLOCK * width, width, 1))
    y = torch.matmul(band[:, None, None], windows).reshape(n, c * rows * _BLOCK, width)
    windows = y.as_strided((n, columns, y.shape[1], window), (y.shape[1] * width, _BLOCK, width, 1))
    y = torch.matmul(windows, band.transpose(1, 2)[:, None])
    x.copy_(y.permute(0, 2, 1, 3).reshape(n, c, rows * _BLOCK, columns * _BLOCK)[..., :h, :w])


def _band(sigma: Float[Tensor, " n"], radius: int) -> Float[Tensor, "n block window"]:
    """Rows of the kernel, each one pixel further right than the row above."""
    offset = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    kernel = (-0.5 * (offset / sigma[:, None]) ** 2).exp()
    # each ends where it would alone, whatever the others' radius
    kernel = kernel * (offset.abs() <= (_DEVIATIONS * sigma[:, None]).ceil())
    kernel = kernel / kernel.sum(1, keepdim=True)
    window = _BLOCK + 2 * radius
    sheared = kernel.new_zeros(len(sigma), _BLOCK, window + 1)
    sheared[:, :, : 2 * radius + 1] = kernel[:, None]
    return sheared.flatten(1)[:, : _BLOCK * window].view(-1, _BLOCK, window)
