"""What the contestants are given: the sizes of a case, and random unit vectors of these sizes."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from prototile.assignments import Assignments, Pairs

DIMS = 256
PATCHES = 196  # per view: 14 x 14
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.04
MSN_TEMPERATURE = 0.025  # of the targets: the student's, sharpened by 0.25
SWAV_TEMPERATURE = 0.05  # of the targets, and of Sinkhorn alone


@dataclass(frozen=True)
class Case:
    """A task and its sizes: images per view and views, where it has them, and prototypes."""

    task: str
    prototypes: int
    images: int = 0
    teacher_views: int = 0
    student_views: int = 1

    @property
    def name(self) -> str:
        rows = f" N={self.images}" if self.images else ""
        if self.teacher_views:
            rows = f" {self.teacher_views}x{self.student_views} B={self.images}"
        return f"{self.task}{rows} K={self.prototypes}"

    def reduced(self) -> "Case":
        """So small that it only shows whether everything runs."""
        return replace(self, prototypes=self.prototypes // 64, images=max(2, self.images // 8) if self.images else 0)


@dataclass(frozen=True)
class Problem:
    """Student and teacher rows, view-major, and the prototypes of both. The student's receive gradients."""

    case: Case
    rows: Tensor
    prototypes: Tensor
    teacher_rows: Tensor
    teacher_prototypes: Tensor

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.rows, self.prototypes

    @property
    def gradient_bytes(self) -> int:
        return self.prototypes.numel() * self.prototypes.element_size()

    def student(self) -> Assignments:
        return Assignments(self.rows, self.prototypes, STUDENT_TEMPERATURE)

    def teacher(self, temperature: float = TEACHER_TEMPERATURE) -> Assignments:
        return Assignments(self.teacher_rows, self.teacher_prototypes, temperature)

    def pairs(self) -> Pairs:
        views = self.case.teacher_views, self.case.student_views
        return Pairs.every(*views) if min(views) == 1 else Pairs.cross(*views)


@dataclass(frozen=True)
class PatchProblem(Problem):
    """iBOT's: class tokens as above, and the patches of the teacher's views, some of them masked."""

    patches: Tensor
    teacher_patches: Tensor
    mask: Tensor  # views and images x patches

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return self.rows, self.prototypes, self.patches


def unit(count: int, device: torch.device, generator: torch.Generator) -> Tensor:
    """Rows of length one, drawn on the CPU so that they are the same on every device."""
    return F.normalize(torch.randn(count, DIMS, generator=generator), dim=-1).to(device)


def problem(case: Case, device: torch.device, *, shared: bool = False) -> Problem:
    """Random rows; the teacher's prototypes are close to the student's, as its moving average is, or `shared`."""
    generator = torch.Generator().manual_seed(0)
    rows, teacher_rows = (
        unit(views * case.images, device, generator) for views in (case.student_views, case.teacher_views)
    )
    prototypes = unit(case.prototypes, device, generator)
    near = prototypes if shared else F.normalize(prototypes + 0.05 * unit(case.prototypes, device, generator), dim=-1)
    return Problem(case, rows.requires_grad_(), prototypes.requires_grad_(), teacher_rows, near.detach())


def patch_problem(case: Case, device: torch.device) -> PatchProblem:
    """Half of the views of images have 30 % of their patches masked, the others none: iBOT's setting on average."""
    base, generator = problem(case, device), torch.Generator().manual_seed(1)
    images = case.teacher_views * case.images
    mask = torch.rand(images, PATCHES, generator=generator).argsort(1) < 0.3 * PATCHES
    mask[1::2] = False
    patches, teacher_patches = (unit(images * PATCHES, device, generator) for _ in range(2))
    return PatchProblem(
        **vars(base), patches=patches.requires_grad_(), teacher_patches=teacher_patches, mask=mask.to(device)
    )


def near_prototypes(given: Problem, noise: float) -> Problem:
    """The same prototypes, but all views of an image lie near one of them, at a cosine of 1 / sqrt(1 + noise^2)."""
    case, generator = given.case, torch.Generator().manual_seed(2)
    device = given.rows.device
    home = torch.randint(case.prototypes, (case.images,), generator=generator).to(device)

    def close(views: int) -> Tensor:
        away = unit(views * case.images, device, generator)
        return F.normalize(given.prototypes.detach()[home.repeat(views)] + noise * away, dim=-1)

    return replace(given, rows=close(case.student_views).requires_grad_(), teacher_rows=close(case.teacher_views))
