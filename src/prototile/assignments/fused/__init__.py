"""Fused kernels for GPUs: nothing of the size rows x prototypes is ever written to memory.

Where to look:  here what `Assignments` call; `ops` the operators and their formulas; `sides` the passes over rows and
over prototypes; `prototile.kernels` the Triton code.

Operands are rounded to autocast's dtype, or to half precision where they come in it; sums are those of float32.
Without either they stay in float32, with products of three TF32 ones (or a single one, where torch is told to allow
TF32). Nothing is read back from the device, so numbers that are not finite are not refused but come out as NaN, and
all can be recorded in a CUDA graph. Results are the same on every call.
"""

from prototile.assignments.fused.api import (
    argmax,
    column_logsumexp,
    column_sums,
    cross_entropy,
    cross_entropy_and_sums,
    over_prototypes,
    over_rows,
    row_logsumexp,
    sinkhorn,
)

__all__ = [
    "argmax",
    "column_logsumexp",
    "column_sums",
    "cross_entropy",
    "cross_entropy_and_sums",
    "over_prototypes",
    "over_rows",
    "row_logsumexp",
    "sinkhorn",
]
