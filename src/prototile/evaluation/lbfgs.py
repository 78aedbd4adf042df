r"""The minimum of a smooth convex function of a matrix, where a diagonal is known that its Hessian is like.

    minimum(objective, start, inverse, ...)    L-BFGS (Nocedal & Wright 2006, chapter 7)

The first guess at the inverse Hessian is a given diagonal D, times $s^T y / y^T D y$ of the last step s, which changed
the gradient by y. The objective is a sum over many rows, so that nothing else costs much.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Objective = Callable[[Tensor], tuple[float, Tensor, float]]  # its value and gradient, and how steep it is

_MEMORY = 10  # steps that are remembered
_TRIES = 12  # of a step's length
_STALLED = 10  # steps in turn that bring no more than rounding, after which it ends
_DECREASE = 1e-4  # of what the gradient promises, for a step to be taken (Armijo)


class Step(NamedTuple):
    """A step, and by what it changed the gradient."""

    s: Tensor
    y: Tensor


class Minimum(NamedTuple):
    """Where it lies, how often the objective was asked, how steep it still is there, and the last steps."""

    point: Tensor
    calls: int
    steepness: float
    steps: Sequence[Step]


def minimum(
    objective: Objective,
    start: Float[Tensor, "c r"],
    inverse: Float[Tensor, "c r"],
    *,
    tolerance: float,
    iterations: int,
    steps: Sequence[Step] = (),
) -> Minimum:
    """Ends where the objective says that it is no steeper than `tolerance`, where steps do not help, or after so many.

    `steps` are some that another search has made, of an objective that bends alike.
    """
    point, calls = start, 1
    memory = deque([step for step in steps if _bends(step)], maxlen=_MEMORY)
    value, gradient, steepness = objective(point)
    stalled = 0
    while steepness > tolerance and iterations > 0 and stalled < _STALLED:
        direction = _direction(gradient, inverse, memory)
        promised = _dot(gradient, direction)
        noise = 4 * torch.finfo(gradient.dtype).eps * abs(value)
        length, taken = 1.0, None
        for _ in range(_TRIES):
            there = objective(point + length * direction)
            calls += 1
            if there[0] <= value + _DECREASE * length * promised + noise:
                taken = there
                break
            bend = there[0] - value - length * promised  # of the parabola through what is known
            length *= min(0.5, max(0.1, -promised * length / (2 * bend))) if bend > 0 else 0.5
        if taken is None:
            if not memory:
                break
            memory.clear()
            continue
        step = Step(length * direction, taken[1] - gradient)
        if _bends(step):
            memory.append(step)
        point = point + step.s
        stalled = stalled + 1 if value - taken[0] <= noise else 0
        value, gradient, steepness = taken
        iterations -= 1
    return Minimum(point, calls, steepness, tuple(memory))


def _direction(gradient: Tensor, inverse: Tensor, memory: Sequence[Step]) -> Tensor:
    """Downhill: minus the guessed inverse Hessian times the gradient."""
    q, factors = gradient.clone(), []
    products = [_dot(step.s, step.y) for step in memory]
    for step, product in zip(reversed(memory), reversed(products), strict=True):
        factors.append(_dot(step.s, q) / product)
        q -= factors[-1] * step.y
    scale = products[-1] / _dot(memory[-1].y, inverse * memory[-1].y) if memory else 1.0
    q = scale * inverse * q
    for step, product, factor in zip(memory, products, reversed(factors), strict=True):
        q += (factor - _dot(step.y, q) / product) * step.s
    return -q


def _bends(step: Step) -> bool:
    return _dot(step.s, step.y) > 1e-12 * (_dot(step.s, step.s) * _dot(step.y, step.y)) ** 0.5


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))
