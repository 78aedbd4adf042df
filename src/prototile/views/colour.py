"""Colour: operations on pixels in [0, 1], in place, on many images at once.

    brightness_, contrast_, saturation_, hue_    the float operations of torchvision's ColorJitter, each clamped
    gray_                                        the luma in all three channels
    solarize_                                    values from 128 / 255 on inverted
    composed, affine_                            jitter and grey as one affine map of each image's pixels

The composed form is faster and another operator: it clamps once, after all of jitter, and its hue is a rotation of the
plane of chrominance (YIQ), which keeps the luma, where `hue_` turns HSV's hexagon, which keeps the largest channel.

On a CPU comparisons are numbers here, and multiplied: masks and `where` take ten times as long.
Axes: n images, h w pixels.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from prototile.views.draws import BRIGHTNESS, CONTRAST, GRAY, HUE, SATURATION, SOLARIZE

_LUMA = (0.2989, 0.587, 0.114)
_TO_LUMA = np.tile(_LUMA, (3, 1))
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


def composed(
    order: Int[Tensor, "n slots"], factors: Float[Tensor, "n factors"]
) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 3 3"]]:
    """What jitter and grey amount to without their clamps: pixels x of an image with mean m become A x + B m.

    The mean goes through the same map as the pixels, and contrast, which mixes in the mean's luma, adds to B.
    """
    steps, rows = _matrices(factors), torch.arange(len(factors), device=factors.device)
    luma, pull = factors.new_tensor(_TO_LUMA), (1 - factors[:, CONTRAST]).view(-1, 1, 1)
    of_pixel, of_mean = torch.eye(3).to(factors).expand(len(factors), 3, 3), factors.new_zeros(len(factors), 3, 3)
    for operation in order.long().T:
        step = steps[rows, operation]
        to_mean = (operation == CONTRAST).view(-1, 1, 1) * pull * (luma @ (of_pixel + of_mean))
        of_pixel, of_mean = step @ of_pixel, step @ of_mean + to_mean
    return of_pixel, of_mean


def affine_(x: Float[Tensor, "n 3 h w"], of_pixel: Float[Tensor, "n 3 3"], of_mean: Float[Tensor, "n 3 3"]) -> None:
    """Apply what `composed` gave."""
    shift = of_mean @ x.mean((2, 3)).unsqueeze(2)
    x.copy_(torch.baddbmm(shift, of_pixel, x.flatten(2)).clamp_(0, 1).view_as(x))


def _luma(x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 1 h w"]:
    r, g, b = x.split(1, 1)
    return (r * _LUMA[0]).add_(g, alpha=_LUMA[1]).add_(b, alpha=_LUMA[2])


def _matrices(factors: Float[Tensor, "n factors"]) -> Float[Tensor, "n operations 3 3"]:
    """The linear part of every operation, by its number; NOTHING, the last, is the identity."""
    luma, identity, to_yiq, from_yiq = (factors.new_tensor(x) for x in (_TO_LUMA, np.eye(3), _TO_YIQ, _FROM_YIQ))
    scale = factors[:, :, None, None]
    angle = 2 * math.pi * factors[:, HUE]
    turn = identity.repeat(len(factors), 1, 1)
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = angle.sin(), -angle.sin()
    matrices = identity.repeat(len(factors), _OPERATIONS, 1, 1)
    matrices[:, BRIGHTNESS] = scale[:, BRIGHTNESS] * identity
    matrices[:, CONTRAST] = scale[:, CONTRAST] * identity
    matrices[:, SATURATION] = torch.lerp(luma, identity, scale[:, SATURATION])
    matrices[:, HUE] = from_yiq @ turn @ to_yiq
    matrices[:, GRAY] = luma
    return matrices
