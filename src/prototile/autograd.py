"""For autograd functions that form their gradient in the forward pass, and stay out of torch.compile."""

import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def scaled(gradients: tuple[Tensor | None, ...], factor: Tensor) -> Iterator[Tensor | None]:
    """Each gradient times the incoming one; on a CPU not even copied where that is 1."""
    is_one = factor.device.type == "cpu" and factor.item() == 1
    return (x if x is None or is_one else x * factor for x in gradients)


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function as it is: torch.compile calls it and does not look inside (its type says what it takes).

    `torch.compiler.disable` is applied at the first call: it imports the compiler, which takes seconds.
    """
    disabled: list[Callable[P, R]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not disabled:
            disabled.append(cast(Callable[P, R], torch.compiler.disable(function)))
        return disabled[0](*args, **kwargs)

    return call
