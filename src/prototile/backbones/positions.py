"""Position embeddings: fixed ones, and others than learned ones' own size.

g the side of the grid that they were made for, h w rows and columns of patches, t = g^2 + 1 tokens, d dims.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prototile.precision import wide

Resize = Literal["dino", "msn", "timm"]


def sincos(dims: int, grid: int) -> Float[Tensor, "1 {grid}**2+1 {dims}"]:
    r"""Fixed positions: zeros for the class token, then $(\sin c\omega, \cos c\omega, \sin r\omega, \cos r\omega)$ for
    row r and column c, $\omega_i = 10000^{-4i/d}$ (He et al. 2022, https://arxiv.org/abs/2111.06377).
    """
    if dims % 4:
        raise ValueError(f"fixed positions are four equal parts: dims must be divisible by 4, got {dims}")
    omega = 10000 ** -(torch.arange(dims // 4, dtype=torch.float64) * 4 / dims)
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * omega
    one = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = one.repeat(grid, 1), one.repeat_interleave(grid, dim=0)
    patches = torch.cat([columns, rows], dim=1)
    return torch.cat([torch.zeros(1, dims), patches.float()])[None]


def resized(
    positions: Float[Tensor, "1 t d"], height: int, width: int, how: Resize
) -> Float[Tensor, "1 {height}*{width}+1 d"]:
    """Positions of height x width patches, and of the class token, by bicubic interpolation of a square grid's.

    how      samples at                                                  used by
    "dino"   steps of g / (h + 0.1): what is asked for is cut off        DINO, iBOT, EsViT, DINOv2, ExCB
    "msn"    steps of g / h; square views only                           MSN, PMSN
    "timm"   steps of g / h, with antialiasing                           MAE, timm
    """
    grid = int((positions.shape[1] - 1) ** 0.5 + 0.5)
    if height == width == grid:
        return positions
    if how == "msn" and height != width:
        raise ValueError(f"MSN's positions are for square views, got {height} x {width} patches: pass resize='dino'")
    old = wide(positions[:, 1:]).unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    if how == "dino":
        # the offset is part of the published models: their sampling points are off by it
        scale = [(height + 0.1) / grid, (width + 0.1) / grid]
        new = F.interpolate(old, scale_factor=scale, mode="bicubic")
    else:
        new = F.interpolate(old, size=(height, width), mode="bicubic", antialias=how == "timm")
    return torch.cat([positions[:, :1], new.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)


def check_resize(how: str) -> None:
    if how not in get_args(Resize):
        raise ValueError(f"resize must be one of {', '.join(get_args(Resize))}, got {how!r}")
