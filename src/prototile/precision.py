"""At least float32 inside losses, whatever the autocast; and in products of pixels, whatever TF32."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 where it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def products_dtype(*operands: Tensor) -> torch.dtype:
    """The dtype in which a GPU's kernels multiply: autocast's, or the operands' own where they are half precision."""
    device = operands[0].device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return functools.reduce(torch.promote_types, (x.dtype for x in operands))


def same_shape(a: Tensor, b: Tensor) -> None:
    """An error where two batches of embeddings do not belong together."""
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"both must be rows x dims of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")


class KeepsDtype(nn.Module):
    """A module whose state moves between devices but keeps its dtype when a model around it is cast.

    Running sizes and log means lose their meaning in half precision, and a prior its sum.
    """

    def _apply(self, fn, recurse: bool = True):
        return super()._apply(lambda x: fn(x) if x.is_meta else x.to(fn(x).device), recurse)


def no_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """The function with autocast off."""

    @functools.wraps(function)
    def exact(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs)

    return exact


def no_tf32(function: Callable[P, R]) -> Callable[P, R]:
    """The function with its float32 products computed in float32, whatever the user allows elsewhere."""

    @functools.wraps(function)
    def exact(*args: P.args, **kwargs: P.kwargs) -> R:
        backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
        allowed = [backend.fp32_precision for backend in backends]
        try:
            for backend in backends:
                backend.fp32_precision = "ieee"
            return function(*args, **kwargs)
        finally:
            for backend, precision in zip(backends, allowed, strict=True):
                backend.fp32_precision = precision

    return exact


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """The function with its floating-point tensors widened and autocast off."""
    exact = no_autocast(function)

    def widen(x):
        return wide(x) if isinstance(x, Tensor) and x.is_floating_point() else x

    @functools.wraps(function)
    def widened(*args: P.args, **kwargs: P.kwargs) -> R:
        return exact(*map(widen, args), **{name: widen(x) for name, x in kwargs.items()})  # type: ignore[arg-type]

    return widened
