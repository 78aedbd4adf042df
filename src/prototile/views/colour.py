"""Colour: operations on pixels in [0, 1], in place, on many images at once.

    brightness_, contrast_, saturation_, hue_    the float operations of torchvision's ColorJitter, each clamped
    gray_                                        the luma in all three channels
    solarize_                                    values from 128 / 255 on inverted
    linear_jitter_                               jitter and grey composed to one 3 x 4 matrix an image

The composed form is faster and another operator: it clamps once, after all of jitter, and its hue is a rotation of the
plane of chrominance (YIQ), which keeps the luma, where `hue_` turns HSV's hexagon, which keeps the largest channel.

On a CPU comparisons are numbers here, and multiplied: masks and `where` take ten times as long.
Axes: n images, h w pixels.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from prototile.views.draws import BRIGHTNESS, CONTRAST, GRAY, GRAY_SLOT, HUE, SATURATION, SOLARIZE, Looks

_LUMA = (0.2989, 0.587, 0.114)
_SOLARIZE_FROM = 128 / 255
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
_OPERATIONS = SOLARIZE + 2  # NOTHING counts, from the end


def brightness_(x: Float[Tensor, "n 3 h w"], factor: Float[Tensor, "n 1 1 1"]) -> None:
    x.mul_(factor).clamp_(0, 1)


def contrast_(x: Float[Tensor, "n 3 h w"], factor: Float[Tensor, "n 1 1 1"]) -> None:
    """Towards the luma of the image's mean, or away from it."""
    torch.lerp(_luma(x.mean((2, 3), keepdim=True)), x, factor, out=x).clamp_(0, 1)


def saturation_(x: Float[Tensor, "n 3 h w"], factor: Float[Tensor, "n 1 1 1"]) -> None:
    """Towards each pixel's luma, or away from it."""
    torch.lerp(_luma(x), x, factor, out=x).clamp_(0, 1)


def hue_(x: Float[Tensor, "n 3 h w"], turns: Float[Tensor, "n 1 1 1"]) -> None:
    """Turn HSV's hue; value and saturation stay. With the hue in [0, 6) a channel is low + chroma * ramp(hue)."""
    r, g, b = x.split(1, 1)
    larger, smaller = torch.maximum(g, b), torch.minimum(g, b)
    high, middle = torch.maximum(r, larger), torch.minimum(r, larger)
    low = torch.minimum(middle, smaller)
    chroma = high.sub_(low)
    sector = torch.lt(g, b, out=torch.empty_like(g)).mul_(-6)
    red_leads = torch.ge(r, larger, out=larger)
    sector.add_(1).mul_(red_leads.mul_(2).sub_(1)).sub_(1)  # stays where red leads, else -2 - sector
    hue = middle.sub_(smaller).div_(chroma.clamp_min(1e-12))  # greys have no hue, and no chroma to show it
    hue.add_(sector).abs_().mul_(1 / 6).add_(turns + 1).frac_().mul_(6)
    for channel, ramp in (
        (r, (hue - 3).abs_().sub_(1)),
        (g, (hue - 2).abs_().neg_().add_(2)),
        (b, (hue - 4).abs_().neg_().add_(2)),
    ):
        channel.copy_(ramp.clamp_(0, 1).mul_(chroma).add_(low))


def gray_(x: Float[Tensor, "n 3 h w"]) -> None:
    x.copy_(_luma(x).expand_as(x))


def solarize_(x: Float[Tensor, "n 3 h w"]) -> None:
    inverted = torch.ge(x, _SOLARIZE_FROM, out=torch.empty_like(x))
    x.add_(inverted.mul_(1 - 2 * x))


def linear_jitter_(x: Float[Tensor, "n 3 h w"], looks: Looks) -> None:
    """Jitter and grey of every image, as one matrix each."""
    means = x.mean((2, 3)).cpu().numpy().astype(np.float64)
    matrix, shift = (torch.from_numpy(part).to(x) for part in _composed(looks, means))
    x.copy_(torch.baddbmm(shift.unsqueeze(2), matrix, x.flatten(2)).clamp_(0, 1).view_as(x))


def _luma(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    r, g, b = x.split(1, 1)
    return (r * _LUMA[0]).add_(g, alpha=_LUMA[1]).add_(b, alpha=_LUMA[2])


def _composed(
    looks: Looks, means: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, "n 3 3"], Float[np.ndarray, "n 3"]]:
    """The affine maps that the operations make; contrast needs the image's mean, which is mapped along."""
    steps = _matrices(looks.factors)
    luma, rows = np.array(_LUMA), np.arange(len(means))
    matrix, shift = np.broadcast_to(np.eye(3), (len(means), 3, 3)), np.zeros_like(means)
    for operation in looks.order[:, : GRAY_SLOT + 1].T:
        step = steps[rows, operation]
        mean = (matrix @ means[..., None])[..., 0] + shift
        offset = np.where(operation == CONTRAST, (1 - looks.factors[:, CONTRAST]) * (mean @ luma), 0.0)
        matrix, shift = step @ matrix, (step @ shift[..., None])[..., 0] + offset[:, None]
    return matrix, shift


def _matrices(factors: Float[np.ndarray, "n factors"]) -> Float[np.ndarray, "n operations 3 3"]:
    """The linear part of every operation, by its number; NOTHING, the last, is the identity."""
    luma, identity = np.tile(_LUMA, (3, 1)), np.eye(3)
    matrices = np.tile(identity, (len(factors), _OPERATIONS, 1, 1))
    scale = factors[:, :, None, None].astype(np.float64)
    matrices[:, BRIGHTNESS] = scale[:, BRIGHTNESS] * identity
    matrices[:, CONTRAST] = scale[:, CONTRAST] * identity
    matrices[:, SATURATION] = scale[:, SATURATION] * identity + (1 - scale[:, SATURATION]) * luma
    matrices[:, GRAY] = luma
    turn = np.tile(identity, (len(factors), 1, 1))
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(2 * np.pi * factors[:, HUE])
    turn[:, 1, 2] = np.sin(2 * np.pi * factors[:, HUE])
    turn[:, 2, 1] = -turn[:, 1, 2]
    matrices[:, HUE] = _FROM_YIQ @ turn @ _TO_YIQ
    return matrices
