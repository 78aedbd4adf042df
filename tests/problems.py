"""Random cross-entropy problems for several tests."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prototile.assignments import Assignments, Pairs


@dataclass
class Problem:
    """A student, its targets and their pairing, with the leaves that get a gradient."""

    student: Assignments
    targets: Assignments
    pairs: Pairs
    leaves: list[Tensor]


def unit(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1).to(dtype)


def random_problem(
    *,
    images: int = 5,
    dims: int = 8,
    prototypes: int = 37,
    teacher_views: int = 2,
    student_views: int = 3,
    dtype: torch.dtype = torch.float64,
    student_offset: bool = False,
    teacher_offset: str = "none",  # or "shared" or "per view"
    weighted: bool = False,
    scale: float = 1.0,
) -> Problem:
    """Unit vectors (times `scale`), DINO's temperatures, and any pairing."""
    z = (scale * unit(student_views * images, dims)).to(dtype).requires_grad_()
    w = unit(prototypes, dims).to(dtype).requires_grad_()
    offset = torch.randn(prototypes, dtype=torch.float64).to(dtype).requires_grad_() if student_offset else None
    shapes = {"none": None, "shared": (prototypes,), "per view": (teacher_views, prototypes)}
    shape = shapes[teacher_offset]
    tilt = None if shape is None else torch.randn(*shape, dtype=torch.float64).to(dtype)
    if min(teacher_views, student_views) == 1:
        pairs = Pairs.every(teacher_views, student_views)
    else:
        pairs = Pairs.cross(teacher_views, student_views)
    if weighted:
        table = torch.rand(teacher_views, student_views)
        table[:, -1] = 0 if student_views > 1 else 1  # a student view without a teacher
        pairs = Pairs.weighted(table).weighing(torch.rand(images, dtype=torch.float64))
    return Problem(
        Assignments(z, w, 0.1, offset),
        Assignments(
            (scale * unit(teacher_views * images, dims)).to(dtype), unit(prototypes, dims).to(dtype), 0.04, tilt
        ),
        pairs,
        [leaf for leaf in (z, w, offset) if leaf is not None],
    )


def relative_error(value: Tensor, reference: Tensor, *, least: float = 0.01) -> float:
    """The largest deviation against the largest number, or against `least`: what should be zero need not be exactly."""
    value, reference = value.detach().double(), reference.detach().double()
    scale = reference.abs().max().clamp(min=max(least, torch.finfo(torch.float64).tiny))
    return float((value - reference).abs().max() / scale)
