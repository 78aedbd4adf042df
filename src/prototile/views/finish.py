"""Finishing: from cropped uint8 pixels to the floats that a network takes, in a CPU worker or on batches on a GPU.

Images of a batch go through different operations in different orders. In each slot the images are sorted by their
operation, which makes its images one contiguous run, and each operation is applied to its run.

Axes: n images, h w pixels.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from prototile.precision import no_autocast
from prototile.views import colour
from prototile.views.blur import blur_
from prototile.views.draws import (
    BLUR,
    BLUR_SLOT,
    BRIGHTNESS,
    CONTRAST,
    GRAY,
    HUE,
    NOTHING,
    SATURATION,
    SLOTS,
    SOLARIZE,
    Looks,
)
from prototile.views.spec import Colour, Normalization

_WITH_FACTOR: dict[int, Callable[[Tensor, Tensor], None]] = {
    BRIGHTNESS: colour.brightness_,
    CONTRAST: colour.contrast_,
    SATURATION: colour.saturation_,
    HUE: colour.hue_,
    BLUR: lambda x, sigma: blur_(x, sigma.flatten()),
}
_WITHOUT: dict[int, Callable[[Tensor], None]] = {GRAY: colour.gray_, SOLARIZE: colour.solarize_}

# Float images that are worked on at a time: what a core's cache holds; on a GPU, enough to keep it busy.
_CHUNK_BYTES = {"cpu": 2**20}
_CHUNK_BYTES_ELSEWHERE = 2**28


@torch.no_grad()
@no_autocast
def finish(
    images: UInt8[Tensor, "n 3 h w"], looks: Looks, normalization: Normalization, method: Colour = "exact"
) -> Float[Tensor, "n 3 h w"]:
    """Apply each image's operations and normalise, on the device of `images`."""
    out = torch.empty(images.shape, device=images.device)
    mean, std = (torch.tensor(x, device=images.device).view(3, 1, 1) for x in (normalization.mean, normalization.std))
    chunk_bytes = _CHUNK_BYTES.get(images.device.type, _CHUNK_BYTES_ELSEWHERE)
    step = max(1, chunk_bytes // (4 * math.prod(images.shape[1:])))
    for start in range(0, len(images), step):
        rows = slice(start, start + step)
        x = images[rows].float().div_(255)
        x = _operated(x, looks[rows], method)
        torch.sub(x, mean, out=out[rows]).div_(std)
    return out


def _operated(x: Float[Tensor, "n 3 h w"], looks: Looks, method: Colour) -> Float[Tensor, "n 3 h w"]:
    first = 0
    if method == "linear":
        colour.linear_jitter_(x, looks)
        first = BLUR_SLOT
    place = np.arange(len(x))  # which image lies where
    for slot in range(first, SLOTS):
        operations = looks.order[place, slot]
        if (operations == NOTHING).all():
            continue
        if (operations[1:] < operations[:-1]).any():
            by = operations.argsort(kind="stable")
            x = x.index_select(0, torch.from_numpy(by).to(x.device))
            place, operations = place[by], operations[by]
        for operation, run in _runs(operations):
            if operation in _WITH_FACTOR:
                factor = torch.from_numpy(looks.factors[place[run], operation]).to(x.device)
                _WITH_FACTOR[operation](x[run], factor.view(-1, 1, 1, 1))
            elif operation != NOTHING:
                _WITHOUT[operation](x[run])
    if (place[1:] < place[:-1]).any():
        x = x.index_select(0, torch.from_numpy(place.argsort()).to(x.device))
    return x


def _runs(values: Int[np.ndarray, " n"]) -> Iterator[tuple[int, slice]]:
    """Each value of a sorted array with the slice where it stands."""
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for start, stop in pairwise(edges):
        yield int(values[start]), slice(start, stop)
