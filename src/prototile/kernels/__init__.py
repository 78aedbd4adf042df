"""Fused kernels for GPUs, in Triton: `code` what they compute, `launch` how they are started.

Both are imported only where they can serve: Triton takes a second to import, and does not exist everywhere.
"""

import importlib.util
import logging
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from prototile.precision import products_dtype

_log = logging.getLogger(__name__)
_reasons: dict[tuple[torch.device, int, torch.dtype], str | None] = {}
_said: set[str] = set()


class Sums(NamedTuple):
    """Per row or per prototype: the weights' sum, and those of weighted vectors and numbers where there are any."""

    total: Tensor
    products: Tensor | None = None
    extra: Tensor | None = None

    def each(self, function: Callable[[Tensor], Tensor]) -> "Sums":
        products, extra = (None if x is None else function(x) for x in self[1:])
        return Sums(function(self.total), products, extra)


def serve(x: Tensor, products: torch.dtype | None = None, *, exact: bool = False) -> bool:
    """Whether the kernels should work on vectors like these, with products in this dtype (or as autocast has it).

    On a GPU where they do not, a log line says why, once. Products of float32 numbers are left to PyTorch, unless TF32
    is allowed or an `exact` kernel is asked for: one with sums of vectors has no room to hold them as three TF32
    products.
    """
    if x.device.type != "cuda" or x.dtype == torch.float64:
        return False
    products = products or products_dtype(x)
    if not exact and products == torch.float32 and not tf32_allowed():
        return _say("products are in float32: autocast, or torch.backends.cuda.matmul.fp32_precision, allows others")
    reason = unsupported(x, products)
    return reason is None or _say(reason)


def tf32_allowed() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"  # type: ignore[attr-defined]


def unsupported(x: Tensor, products: torch.dtype | None = None) -> str | None:
    """Why the kernels cannot work on vectors like these; None where they can."""
    key = x.device, x.shape[1], products or products_dtype(x)
    if key not in _reasons:  # a dictionary, not `functools.cache`: torch.compile looks in here
        _reasons[key] = _why_not(*key)
    return _reasons[key]


def _why_not(device: torch.device, dims: int, products: torch.dtype) -> str | None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if products == torch.float64:
        return "they compute in float32 at most, and these numbers are float64"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type != "cuda" and not interpreted:
        return "there is no GPU (Triton's interpreter runs them where TRITON_INTERPRET=1 is set)"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than Ampere"
    from prototile.kernels import launch

    if not launch.fits(device, dims, products.itemsize):
        return f"vectors of {dims} dims do not fit its shared memory"
    return launch.trial(device, dims, products)


def _say(reason: str) -> bool:
    if reason not in _said:
        _said.add(reason)
        _log.info("the fused kernels are not used: %s; plain PyTorch serves instead", reason)
    return False
