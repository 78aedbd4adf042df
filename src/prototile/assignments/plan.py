"""Which backend computes a cross-entropy, and in blocks of how many images: decided by sizes and the budget.

    backend    what it keeps                       products of a row with all prototypes (t teacher, s student views)
    naive      everything, dense                   -  (the reference; used only when asked for)
    direct     exponentials of a block of images   t + 3 s
    row        exponentials of a block of rows     3 t + 3 s  (through the expected prototype)
    stream     one tile                            2 t + 4 s
    fused      one tile, on the chip               2 t + 4 s  (in half precision under autocast; GPUs only)

`direct` wins wherever enough rows fit the budget for its products to run at full speed. `row` is for images whose
views do not fit together, `stream` for when not even a hundred rows do. A GPU that can computes all in float32 or
less by `fused`, which shares nothing with the others but the definition: see `fused`.
"""

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from prototile import kernels
from prototile.assignments.scratch import budget
from prototile.assignments.tiles import Logits, tile_size

Backend = Literal["naive", "direct", "row", "stream", "fused"]
_forced: list[Backend] = []  # of the contexts around, the innermost last; a list, for torch.compile reads it
_STREAM_NUMBERS = 2**22  # of a tile: 16 MiB in float32


@dataclass(frozen=True)
class Plan:
    """A backend and the size of its blocks: images, or rows for the backend `row`."""

    backend: Backend
    block: int


@contextmanager
def backend(name: Backend):
    """Within this context the named backend is used, for tests and measurements; sizes decide otherwise."""
    if name not in get_args(Backend):
        raise ValueError(f"unknown backend {name!r}; there are {', '.join(get_args(Backend))}")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def forced_backend() -> Backend | None:
    return _forced[-1] if _forced else None


def fuses(embeddings: Tensor, products: torch.dtype | None = None) -> bool:
    """Whether the fused kernels compute what is asked of these rows, with products in this dtype or autocast's."""
    forced = forced_backend()
    if forced is None:
        return kernels.serve(embeddings, products)
    if forced == "fused" and (reason := kernels.unsupported(embeddings, products)):
        raise ValueError(f"the backend 'fused' cannot serve here: {reason}")
    return forced == "fused"


def choose(student: Logits, teacher_views: int, *, mean: bool) -> Plan:
    """The cheapest plan within the scratch budget; with `mean`, the column sums are wanted too."""
    s, t = student.views, teacher_views
    images, row_bytes = max(student.images, 1), student.num_prototypes * student.rows.element_size()
    limit = budget(student.prototypes)
    tile = min(tile_size(student.rows.device), student.num_prototypes)
    options: dict[Backend, tuple[int, float]] = {}
    if block := min(images, limit // (row_bytes * (s + t))):
        options["direct"] = block, (t + 3 * s) * _slowdown(block * s)
    if (block := min(images * s, limit // row_bytes)) and not mean:
        options["row"] = block, (3 * t + 3 * s) * _slowdown(block)
    block = max(1, min(images, _STREAM_NUMBERS // (tile * (s + t))))
    options["stream"] = block, (2 * t + (6 if mean else 4) * s) * _slowdown(block * s)
    forced = forced_backend()
    if forced in options:
        name: Backend = forced
    elif forced == "row":  # not even a row within the budget, or a mean is wanted
        name = "direct" if mean and "direct" in options else "stream"
    elif forced == "direct":
        return Plan("direct", 1)
    else:
        name = min(options, key=lambda option: options[option][1])
    return Plan(name, _even(images * s if name == "row" else images, options[name][0]))


def _even(length: int, block: int) -> int:
    """The block size that makes as few blocks, of equal size."""
    return math.ceil(length / math.ceil(length / block))


def _slowdown(rows: int) -> float:
    """Products of few rows run below full speed: measured +25 % at 64 rows, +6 % at 256."""
    return 1 + 16 / rows
