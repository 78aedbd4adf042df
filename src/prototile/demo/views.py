"""Two views of each image, made in one go for the whole batch.

v views, b images, n = v x b of both, h w pixels.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from prototile.types import Views

AREA = (0.5, 1.0)
ASPECT = (3 / 4, 4 / 3)
CONTRAST = (0.6, 1.4)
BRIGHTNESS = (-0.2, 0.2)
NOISE = 0.03


def two_views(images: Float[Tensor, "b 1 h w"], generator: Generator) -> Views:
    """Random crops stretched to full size, of other contrast and brightness and with a little noise; no flips."""
    both = images.repeat(2, 1, 1, 1)
    grid = F.affine_grid(boxes(len(both), generator), list(both.shape), align_corners=False)
    cropped = F.grid_sample(both, grid, mode="bilinear", padding_mode="border", align_corners=False)
    mean = cropped.mean((1, 2, 3), keepdim=True)
    contrast, brightness = (
        _uniform(len(both), low, high, generator).view(-1, 1, 1, 1) for low, high in (CONTRAST, BRIGHTNESS)
    )
    noise = NOISE * torch.randn(cropped.shape, generator=generator)
    return Views((mean + contrast * (cropped - mean) + brightness + noise).view(2, *images.shape))


def boxes(count: int, generator: Generator) -> Float[Tensor, "n 2 3"]:
    """Matrices from a view's coordinates to its image's, both from -1 to 1: scale, and an offset that stays inside."""
    area = _uniform(count, *AREA, generator)
    aspect = _uniform(count, math.log(ASPECT[0]), math.log(ASPECT[1]), generator).exp()
    size = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], dim=1).clamp(max=1)
    offset = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - size)
    return torch.cat([torch.diag_embed(size), offset[:, :, None]], dim=2)


def _uniform(count: int, low: float, high: float, generator: Generator) -> Float[Tensor, " n"]:
    return low + (high - low) * torch.rand(count, generator=generator)
