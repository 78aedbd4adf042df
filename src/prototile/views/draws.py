"""Draws: from uniform numbers to boxes to crop and operations on pixels, for many images and views at once.

    Boxes          where each view is cropped, and whether it is flipped
    Looks          which operations each view's pixels go through, in which order, and how strongly
    draw_boxes     the distribution of torchvision's RandomResizedCrop and RandomHorizontalFlip
    draw_looks     that of its ColorJitter under RandomApply, RandomGrayscale, GaussianBlur and RandomSolarize

Every view uses up NUMBERS uniform numbers, whatever comes of them: another setting changes what they do, not which they
are. Axes: b images, v views, n = v * b rows, view after view.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from prototile.views.spec import View

# Operations by number; the first five have a factor. NOTHING is an empty slot.
BRIGHTNESS, CONTRAST, SATURATION, HUE, BLUR, GRAY, SOLARIZE = range(7)
NOTHING = -1
# Jitter's four in their drawn order, then grey, blur, solarise.
JITTER_SLOTS, GRAY_SLOT, BLUR_SLOT, SOLARIZE_SLOT = slice(0, 4), 4, 5, 6
SLOTS = 7

_ATTEMPTS = 10
_AREA, _ASPECT = slice(0, _ATTEMPTS), slice(_ATTEMPTS, 2 * _ATTEMPTS)
_TOP, _LEFT, _FLIP, _JITTER, _GRAY, _BLUR, _SIGMA, _SOLARIZE = range(20, 28)
_STRENGTH, _ORDER = slice(28, 32), slice(32, 36)
NUMBERS = 36


@dataclass(frozen=True)
class Boxes:
    """Where each view is cropped, in pixels of its image."""

    top: Int[np.ndarray, "b v"]
    left: Int[np.ndarray, "b v"]
    height: Int[np.ndarray, "b v"]
    width: Int[np.ndarray, "b v"]
    flip: Bool[np.ndarray, "b v"]


@dataclass(frozen=True)
class Looks:
    """The operation in each slot of a row, and the factors of the operations that have one, used or not."""

    order: Int[np.ndarray, "n slots"]
    factors: Float[np.ndarray, "n factors"]

    def __getitem__(self, rows: slice) -> "Looks":
        return Looks(self.order[rows], self.factors[rows])


def draw_boxes(
    views: Sequence[View],
    uniform: Float[np.ndarray, "b v numbers"],
    heights: Int[np.ndarray, " b"],
    widths: Int[np.ndarray, " b"],
) -> Boxes:
    """Crops whose area is a uniform share, whose aspect w / h log-uniform: the first of ten draws that fits the image.

    Where none fits, the largest centred crop with the nearest aspect.
    """
    low, high = _pairs([view.scale for view in views])
    thin, wide = _pairs([view.ratio for view in views])
    h, w = (x[:, None, None].astype(np.float64) for x in (heights, widths))
    area = h * w * (low + (high - low) * uniform[..., _AREA])
    aspect = np.exp(np.log(thin) + (np.log(wide) - np.log(thin)) * uniform[..., _ASPECT])
    width, height = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (width > 0) & (width <= w) & (height > 0) & (height <= h)
    first = fits.argmax(-1)[..., None]
    found = fits.any(-1)
    clipped_height = np.rint(np.minimum(h, w / thin))[..., 0]
    clipped_width = np.rint(np.minimum(w, h * wide))[..., 0]
    height = np.where(found, np.take_along_axis(height, first, -1)[..., 0], np.maximum(clipped_height, 1))
    width = np.where(found, np.take_along_axis(width, first, -1)[..., 0], np.maximum(clipped_width, 1))
    rest_h, rest_w = h[..., 0] - height, w[..., 0] - width
    top = np.where(found, np.floor((rest_h + 1) * uniform[..., _TOP]), rest_h // 2)
    left = np.where(found, np.floor((rest_w + 1) * uniform[..., _LEFT]), rest_w // 2)
    flip = uniform[..., _FLIP] < np.array([view.flip for view in views])
    top, left, height, width = (x.astype(np.int64) for x in (top, left, height, width))
    return Boxes(top, left, height, width, flip)


def draw_looks(views: Sequence[View], uniform: Float[np.ndarray, "b v numbers"]) -> Looks:
    """Which operations, in which order, and how strongly: rows are view after view."""
    order = np.concatenate([_order(view, uniform[:, v]) for v, view in enumerate(views)])
    factors = np.concatenate([_factors(view, uniform[:, v]) for v, view in enumerate(views)])
    return Looks(order, factors)


def _order(view: View, uniform: Float[np.ndarray, "b numbers"]) -> Int[np.ndarray, "b slots"]:
    order = np.full((len(uniform), SLOTS), NOTHING, np.int8)
    if view.jitter is not None:
        applied = uniform[:, _JITTER] < view.jitter.probability
        ranges = np.array([view.jitter.brightness, view.jitter.contrast, view.jitter.saturation, view.jitter.hue])
        shuffled = uniform[:, _ORDER].argsort(1)
        order[:, JITTER_SLOTS] = np.where(applied[:, None] & (ranges > 0)[shuffled], shuffled, NOTHING)
    order[uniform[:, _GRAY] < view.gray, GRAY_SLOT] = GRAY
    if view.blur is not None:
        order[uniform[:, _BLUR] < view.blur.probability, BLUR_SLOT] = BLUR
    order[uniform[:, _SOLARIZE] < view.solarize, SOLARIZE_SLOT] = SOLARIZE
    return order


def _factors(view: View, uniform: Float[np.ndarray, "b numbers"]) -> Float[np.ndarray, "b factors"]:
    low, high = np.ones(5), np.ones(5)
    if view.jitter is not None:
        strength = np.array([view.jitter.brightness, view.jitter.contrast, view.jitter.saturation])
        low[:3], high[:3] = np.maximum(0, 1 - strength), 1 + strength
        low[HUE], high[HUE] = -view.jitter.hue, view.jitter.hue
    if view.blur is not None:
        low[BLUR], high[BLUR] = view.blur.sigma
    strength = np.concatenate([uniform[:, _STRENGTH], uniform[:, _SIGMA, None]], 1)
    return (low + (high - low) * strength).astype(np.float32)


def _pairs(bounds: Sequence[tuple[object, object]]) -> Float[np.ndarray, "2 v 1"]:
    """Lows and highs of each view, to broadcast over attempts."""
    return np.array(bounds, np.float64).T[..., None]
