"""At least float32 inside losses, whatever the autocast."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def wide(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 where it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """The function with its floating-point tensors widened and autocast off."""

    @functools.wraps(function)
    def widened(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next((x.device.type for x in args if isinstance(x, Tensor)), "cpu")
        arguments = [wide(x) if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
        with torch.autocast(device, enabled=False):
            return function(*arguments, **kwargs)  # type: ignore[arg-type]

    return widened
