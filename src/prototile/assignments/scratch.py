"""Reused scratch memory. On a CPU a fresh large buffer costs its page faults, more than an exp per number.

`borrow` lends a flat buffer that goes back to the pool by itself when nobody holds the loan any more.
"""

from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock

import torch
from torch import Tensor

_BUDGET: ContextVar[int | None] = ContextVar("scratch budget", default=None)
_MAX_IDLE = 4
_idle: list[Tensor] = []
_lock = RLock()  # a loan may be collected, and returned, while this thread borrows


class Loan:
    """A borrowed flat buffer; it is returned when the loan is garbage collected."""

    def __init__(self, buffer: Tensor, size: int):
        self._buffer = buffer
        self.tensor = buffer[:size]

    def __del__(self) -> None:
        if self._buffer.device.type == "cpu":  # CUDA has a pool of its own
            with _lock:
                _idle.append(self._buffer)
                _idle.sort(key=Tensor.numel)
                del _idle[:-_MAX_IDLE]


def borrow(size: int, like: Tensor) -> Loan:
    """A flat buffer of `size` numbers, of the dtype and device of `like`, holding anything."""
    with _lock:
        for buffer in _idle:  # sorted: the smallest that fits
            if buffer.numel() >= size and buffer.dtype == like.dtype and buffer.device == like.device:
                _idle[:] = [other for other in _idle if other is not buffer]
                return Loan(buffer, size)
    with torch.inference_mode(False):  # an inference tensor could not be written outside that mode
        return Loan(torch.empty(size, dtype=like.dtype, device=like.device), size)


def release() -> None:
    """Give all idle scratch memory back to the system."""
    with _lock:
        _idle.clear()


def budget(prototypes: Tensor) -> int:
    """The bytes that a block of assignments may take: as many as the prototypes' gradient, at least 64 MiB."""
    return _BUDGET.get() or max(64 * 2**20, prototypes.numel() * prototypes.element_size())


@contextmanager
def scratch_budget(bytes: int):
    """Within this context a block of assignments takes at most so many bytes of scratch memory."""
    if bytes < 1:
        raise ValueError(f"a scratch budget must be positive, got {bytes}")
    token = _BUDGET.set(bytes)
    try:
        yield
    finally:
        _BUDGET.reset(token)
