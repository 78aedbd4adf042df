"""What ours is compared with: bare products, dense losses in the style of the official codes, and lightly's.

b images, t teacher and s student views, d dims, k prototypes. All are given unit vectors and form the logits
themselves. lightly is imported only here and only when asked for.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from inputs import PATCHES, STUDENT_TEMPERATURE, SWAV_TEMPERATURE, TEACHER_TEMPERATURE, PatchProblem, Problem
from prototile.assignments.tiles import spans

Loss = Callable[[], Tensor]


# ---------------------------------------------------------------------------------------------- bare products
def products(problem: Problem) -> Callable[[], None]:
    """The products that no dense algorithm can do without, one per teacher row and three per student row.

    On tiles that stay in a CPU's cache, into memory that is there already: the time that could be reached.
    """
    on_cpu = problem.rows.device.type == "cpu"
    height, width = (512, 2048) if on_cpu else (8192, 8192)
    rows, w = problem.rows.detach(), problem.prototypes.detach()
    teacher_rows, teacher_w = problem.teacher_rows, problem.teacher_prototypes
    tile, dz, dw = (w.new_empty(size) for size in (height * width, height * w.shape[1], width * w.shape[1]))

    def view(flat: Tensor, *shape: int) -> Tensor:
        return flat[: shape[0] * shape[1]].view(shape)

    def run() -> None:
        for first, last in spans(len(rows), height):
            z = rows[first:last]
            for start, stop in spans(len(w), width):
                logits = torch.mm(z, w[start:stop].T, out=view(tile, len(z), stop - start))
                torch.mm(logits, w[start:stop], out=view(dz, len(z), w.shape[1]))
                torch.mm(logits.T, z, out=view(dw, stop - start, w.shape[1]))
        for first, last in spans(len(teacher_rows), height):
            z = teacher_rows[first:last]
            for start, stop in spans(len(w), width):
                torch.mm(z, teacher_w[start:stop].T, out=view(tile, len(z), stop - start))

    return run


def upper_triangle(x: Tensor, block: int = 2048) -> Callable[[], None]:
    """The products of all pairs of rows, each pair of blocks once, in one block of memory."""
    tile = x.new_empty(min(block, len(x)) ** 2)

    @torch.no_grad()
    def run() -> None:
        for first, last in spans(len(x), block):
            for start, stop in spans(len(x) - first, block):
                shape = last - first, stop - start
                torch.mm(
                    x[first:last],
                    x[first + start : first + stop].T,
                    out=tile[: shape[0] * shape[1]].view(shape),
                )

    return run


# ------------------------------------------------------------------------------------------------ dense losses
def double_loop(problem: Problem, center: Tensor | None = None) -> Tensor:
    """DINO's cross-entropy as it is mostly written: a log-softmax for every pair of different views.

    A `center` is subtracted from the teacher's scores, and afterwards moved towards their mean.
    """
    case = problem.case
    predictions = (problem.rows @ problem.prototypes.T / STUDENT_TEMPERATURE).chunk(case.student_views)
    with torch.no_grad():
        targets = _targets(problem.teacher_rows @ problem.teacher_prototypes.T, center).chunk(case.teacher_views)
    terms = [
        (-q * F.log_softmax(prediction, dim=-1)).sum(-1).mean()
        for t, q in enumerate(targets)
        for s, prediction in enumerate(predictions)
        if s != t or case.student_views == 1
    ]
    return torch.stack(terms).sum() / len(terms)


def ibot(problem: PatchProblem, center: Tensor, patch_center: Tensor) -> Tensor:
    """iBOT's as it is mostly written: logits and losses of all patches, of which the mask then takes some."""
    views = problem.case.teacher_views
    predictions = (problem.patches @ problem.prototypes.T / STUDENT_TEMPERATURE).chunk(views)
    with torch.no_grad():
        scores = problem.teacher_patches @ problem.teacher_prototypes.T
        targets = _targets(scores, patch_center).chunk(views)
    total = problem.patches.new_zeros(())
    for q, prediction, mask in zip(targets, predictions, problem.mask.float().chunk(views), strict=True):
        losses = (-q * F.log_softmax(prediction, dim=-1)).sum(-1).view(-1, PATCHES)
        total = total + ((losses * mask).sum(1) / mask.sum(1).clamp(min=1)).mean() / views
    return double_loop(problem, center) + total


def _targets(scores: Tensor, center: Tensor | None) -> Tensor:
    if center is None:
        return F.softmax(scores / TEACHER_TEMPERATURE, dim=-1)
    targets = F.softmax((scores - center) / TEACHER_TEMPERATURE, dim=-1)
    center.lerp_(scores.mean(0), 0.1)
    return targets


def einsum(
    rows: Tensor, prototypes: Tensor, teacher_rows: Tensor, teacher_prototypes: Tensor, weights: Tensor
) -> Tensor:
    """Cross-entropies of all pairs of views at once; `weights` are t x s, divided by the images. For compilation."""
    with torch.no_grad():
        targets = (teacher_rows @ teacher_prototypes.T / TEACHER_TEMPERATURE).softmax(-1)
    log_predictions = (rows @ prototypes.T / STUDENT_TEMPERATURE).log_softmax(-1)
    t, s = weights.shape
    by_view = targets.unflatten(0, (t, -1)), log_predictions.unflatten(0, (s, -1))
    return -(torch.einsum("tbk,sbk->ts", *by_view) * weights).sum()


def compiled_einsum(problem: Problem) -> Loss:
    torch._dynamo.reset()  # every case has sizes of its own: none counts as a recompilation
    compiled = torch.compile(einsum, dynamic=False)
    weights = problem.pairs().table(problem.rows) / problem.case.images
    operands = problem.rows, problem.prototypes, problem.teacher_rows, problem.teacher_prototypes
    return lambda: compiled(*operands, weights)


def dense_sinkhorn(problem: Problem, temperature: float, iterations: int = 3) -> Tensor:
    """Sinkhorn on the matrix of exponentials, step by step as in the codes of SwAV and DINOv2."""
    with torch.no_grad():
        plan = torch.exp(problem.rows @ problem.prototypes.T / temperature).T
        k, n = plan.shape
        plan /= plan.sum()
        for _ in range(iterations):
            plan /= plan.sum(1, keepdim=True)
            plan /= k
            plan /= plan.sum(0, keepdim=True)
            plan /= n
        plan *= n
        return plan.T


def mean_entropy_gap(problem: Problem) -> Tensor:
    """ME-MAX from dense assignments: log K - H(mean)."""
    mean = (problem.rows @ problem.prototypes.T / STUDENT_TEMPERATURE).softmax(-1).mean(0)
    return torch.xlogy(mean, mean * len(mean)).sum()


# --------------------------------------------------------------------------------------------------- lightly
@cache
def lightly_losses() -> ModuleType | None:
    """lightly's losses; None, and a note, where it is not installed."""
    try:
        return import_module("lightly.loss")
    except ImportError:
        print("lightly is not installed (extra `bench`): its losses are left out")
        return None


def _scores(rows: Tensor, prototypes: Tensor, views: int) -> list[Tensor]:
    return list((rows @ prototypes.T).chunk(views))


def _teacher_scores(problem: Problem) -> list[Tensor]:
    with torch.no_grad():
        return _scores(problem.teacher_rows, problem.teacher_prototypes, problem.case.teacher_views)


def _temperatures(problem: Problem) -> dict[str, float]:
    sizes = {"output_dim": problem.case.prototypes}
    return sizes | {"student_temp": STUDENT_TEMPERATURE, "teacher_temp": TEACHER_TEMPERATURE}


def lightly_dino(losses: ModuleType, problem: Problem) -> Loss:
    criterion = losses.DINOLoss(**_temperatures(problem)).to(problem.rows.device)

    def loss() -> Tensor:
        scores = _scores(problem.rows, problem.prototypes, problem.case.student_views)
        return criterion(_teacher_scores(problem), scores)

    return loss


def lightly_ibot(losses: ModuleType, problem: PatchProblem) -> Loss:
    of_class_tokens = lightly_dino(losses, problem)
    criterion = losses.IBOTPatchLoss(**_temperatures(problem)).to(problem.rows.device)
    chosen = problem.mask.flatten()
    mask = problem.mask.unflatten(1, (14, 14))

    def loss() -> Tensor:
        with torch.no_grad():
            targets = problem.teacher_patches[chosen] @ problem.teacher_prototypes.T
        return of_class_tokens() + criterion(targets, problem.patches[chosen] @ problem.prototypes.T, mask)

    return loss


def lightly_msn(losses: ModuleType, problem: Problem) -> Loss:
    """Without Sinkhorn, as ours here; it normalises what it is given once more."""
    criterion = losses.MSNLoss(temperature=STUDENT_TEMPERATURE, sinkhorn_iterations=0, regularization_weight=1)
    return lambda: criterion(problem.rows, problem.teacher_rows, problem.prototypes)


def lightly_swav(losses: ModuleType, problem: Problem) -> Loss:
    criterion = losses.SwaVLoss(temperature=STUDENT_TEMPERATURE, sinkhorn_epsilon=SWAV_TEMPERATURE)
    return lambda: criterion(_scores(problem.rows, problem.prototypes, problem.case.student_views), []).squeeze()


def lightly_sinkhorn(losses: ModuleType, problem: Problem, temperature: float) -> Tensor:
    with torch.no_grad():
        scores = problem.rows @ problem.prototypes.T
    return losses.swav_loss.sinkhorn(scores, iterations=3, epsilon=temperature)


def lightly_koleo(losses: ModuleType, x: Tensor) -> Loss:
    criterion = losses.KoLeoLoss()
    return lambda: criterion(x)
