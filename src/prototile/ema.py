"""Moving averages of parameters: the teacher follows the student.

Only parameters are averaged; buffers, such as the running statistics of batch norm, are a teacher's own (Caron et
al. 2021; Assran et al. 2022).
"""

import copy
from typing import TypeVar

import torch
from torch import nn

from prototile import distributed

M = TypeVar("M", bound=nn.Module)


def teacher_of(student: M, *, shared: nn.Module | None = None) -> M:
    """A copy of `student` whose parameters take no gradient, apart from those of `shared`, which is not copied."""
    memo = {} if shared is None else {id(shared): shared}
    teacher = copy.deepcopy(student, memo)
    kept = set() if shared is None else {id(p) for p in shared.parameters()}
    for p in teacher.parameters():
        if id(p) not in kept:
            p.requires_grad_(False)
    return teacher


@torch.no_grad()
def follow_(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, parameter by parameter."""
    apart = [(t, s) for t, s in zip(teacher.parameters(), student.parameters(), strict=True) if t is not s]
    for sharded in (False, True):  # one call each: they do not mix
        pairs = [(t, s) for t, s in apart if distributed.is_sharded(t) is sharded]
        if pairs:
            torch._foreach_lerp_(  # type: ignore[reportPrivateImportUsage]
                [t for t, _ in pairs], [s.to(t.dtype) for t, s in pairs], 1 - momentum
            )
