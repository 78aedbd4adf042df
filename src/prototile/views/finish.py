"""Finishing: from cropped uint8 pixels to the floats that a network takes, in a CPU worker or on batches on a GPU.

Images of a batch go through different operations in different orders. In each slot the images are sorted by their
operation, which makes its images one contiguous run, and each operation is applied to its run.

Axes: n images, h w pixels.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from prototile.precision import no_autocast, no_tf32
from prototile.views import colour
from prototile.views.blur import blur_
from prototile.views.draws import BLUR, BRIGHTNESS, CONTRAST, GRAY, GRAY_SLOT, HUE, NOTHING, SATURATION, SOLARIZE, Looks
from prototile.views.spec import Colour, Normalization

_WITH_FACTOR: dict[int, Callable[[Tensor, Tensor], None]] = {
    BRIGHTNESS: colour.brightness_,
    CONTRAST: colour.contrast_,
    SATURATION: colour.saturation_,
    HUE: colour.hue_,
}
_WITHOUT: dict[int, Callable[[Tensor], None]] = {GRAY: colour.gray_, SOLARIZE: colour.solarize_}

# Float images that are worked on at a time: about what a core's cache holds; on a GPU, enough to keep it busy.
_CHUNK_BYTES = {"cpu": 2**21}
_CHUNK_BYTES_ELSEWHERE = 2**28
# Up to so many runs are taken as they lie: sorting moves all images of the chunk.
_FEW_RUNS = 4


@torch.no_grad()
@no_autocast
@no_tf32
def finish(
    images: UInt8[Tensor, "n 3 h w"], looks: Looks, normalization: Normalization, method: Colour = "exact"
) -> Float[Tensor, "n 3 h w"]:
    """Apply each image's operations and normalise, on the device of `images`."""
    device = images.device
    out = torch.empty(images.shape, dtype=torch.float32, device=device)
    mean, std = _statistics(normalization, out)
    scale, shift = 1 / std, mean / std
    maps = None
    if method == "linear":
        maps = colour.composed(_there(looks.order[:, : GRAY_SLOT + 1], device), _there(looks.factors, device))
        looks = Looks(looks.order[:, GRAY_SLOT + 1 :], looks.factors)
    step = max(1, _CHUNK_BYTES.get(device.type, _CHUNK_BYTES_ELSEWHERE) // (4 * math.prod(images.shape[1:])))
    for start in range(0, len(images), step):
        rows = slice(start, start + step)
        x = images[rows].float().mul_(1 / 255)
        if maps is not None:
            colour.affine_(x, maps[0][rows], maps[1][rows])
        x, place = _operated(x, looks[rows])
        if (place[1:] > place[:-1]).all():
            torch.mul(x, scale, out=out[rows]).sub_(shift)
        else:
            torch.index_select(x.mul_(scale).sub_(shift), 0, _there(place.argsort(), device), out=out[rows])
    return out


def denormalized(images: Float[Tensor, "*views 3 h w"], normalization: Normalization) -> Float[Tensor, "*views 3 h w"]:
    """Pixels in [0, 1] again, to be looked at."""
    mean, std = _statistics(normalization, images)
    return images * std + mean


def _statistics(normalization: Normalization, like: Tensor) -> list[Float[Tensor, "3 1 1"]]:
    return [torch.tensor(x).to(like).view(3, 1, 1) for x in (normalization.mean, normalization.std)]


def _operated(x: Float[Tensor, "n 3 h w"], looks: Looks) -> tuple[Float[Tensor, "n 3 h w"], Int[np.ndarray, " n"]]:
    """The images after their operations, and which image lies where. What to do is known here, without asking a GPU."""
    place, factors = np.arange(len(x)), _there(looks.factors, x.device)
    for operations in looks.order.T:
        runs = _runs(operations[place])
        if len(runs) > _FEW_RUNS:
            by = operations[place].argsort(kind="stable")
            place, there = place[by], _there(by, x.device)
            x, factors = x.index_select(0, there), factors.index_select(0, there)
            runs = _runs(operations[place])
        for operation, run in runs:
            if operation == BLUR:
                blur_(x[run], factors[run, BLUR], float(looks.factors[place[run], BLUR].max()))
            elif operation in _WITH_FACTOR:
                _WITH_FACTOR[operation](x[run], factors[run, operation].view(-1, 1, 1, 1))
            else:
                _WITHOUT[operation](x[run])
    return x, place


def _there(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)


def _runs(operations: Int[np.ndarray, " n"]) -> list[tuple[int, slice]]:
    """Where neighbours have the same operation: it, and which they are."""
    edges = [0, *(np.flatnonzero(operations[1:] != operations[:-1]) + 1).tolist(), len(operations)]
    runs = ((int(operations[start]), slice(start, stop)) for start, stop in pairwise(edges) if start < stop)
    return [run for run in runs if run[0] != NOTHING]
