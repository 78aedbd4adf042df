"""The contests: for every task ours, as the package is meant to be called, beside its rivals."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import inputs
import rivals
from inputs import MSN_TEMPERATURE, SWAV_TEMPERATURE, Case, PatchProblem, Problem
from measure import MIB, Contest
from prototile import sphere
from prototile.assignments import (
    Assignments,
    Pairs,
    backend,
    cross_entropy,
    cross_entropy_and_mean,
    scratch_budget,
)
from prototile.assignments.plan import Backend, choose
from prototile.balancing import Balancer, Centering, Sinkhorn
from prototile.neighbors import nearest
from prototile.priors import Uniform
from prototile.regularizers import KoLeo, match_prior

SMALL_BUDGET = MIB  # nothing is kept


# ------------------------------------------------------------------------------------------------------ ours
def plain(problem: Problem) -> Tensor:
    return cross_entropy(problem.student(), problem.teacher(), problem.pairs())


def dino(problem: Problem, balancer: Balancer) -> Tensor:
    return cross_entropy(problem.student(), balancer(problem.teacher()), problem.pairs())


def ibot(problem: PatchProblem, balancer: Balancer, patch_balancer: Balancer) -> Tensor:
    """Only masked patches meet prototypes; the centre is that of all patches nevertheless."""
    chosen = problem.mask.flatten()
    everything = replace(problem.teacher(), embeddings=problem.teacher_patches)
    targets = patch_balancer(replace(everything, embeddings=problem.teacher_patches[chosen]), observed=everything)
    student = replace(problem.student(), embeddings=problem.patches[chosen])
    return dino(problem, balancer) + cross_entropy(student, targets, Pairs.masked(problem.mask))


def msn(problem: Problem, prior: Tensor, *, normalize: bool = False) -> Tensor:
    student, teacher = problem.student(), problem.teacher(MSN_TEMPERATURE)
    if normalize:
        w = sphere.normalize(problem.prototypes)
        student = replace(student, embeddings=sphere.normalize(problem.rows), prototypes=w)
        teacher = replace(teacher, embeddings=sphere.normalize(problem.teacher_rows), prototypes=w.detach())
    loss, mean = cross_entropy_and_mean(student, teacher, problem.pairs())
    return loss + match_prior(mean, prior)


def swav(problem: Problem, balancer: Balancer) -> Tensor:
    """Targets and predictions share their products."""
    views = problem.case.student_views
    student = problem.student().hold()
    targets = balancer(replace(student.leading(2, views), temperature=SWAV_TEMPERATURE))
    return cross_entropy(student, targets, Pairs.cross(2, views))


def mean_entropy_gap(problem: Problem, prior: Tensor) -> Tensor:
    return match_prior(problem.student().mean(), prior)


# -------------------------------------------------------------------------------------------------- contests
def trained(loss: Callable[..., Tensor], *arguments: Any, **options: Any) -> Callable[[], Tensor]:
    """A step: forward and backward."""

    def step() -> Tensor:
        value = loss(*arguments, **options)
        value.backward()
        return value.detach()

    return step


def forced(name: Backend, step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def step_on_backend() -> Tensor:
        with backend(name):
            return step()

    return step_on_backend


def with_lightly(make: Callable[..., rivals.Loss], *arguments: Any) -> dict[str, Callable[[], Tensor]]:
    losses = rivals.lightly_losses()
    return {} if losses is None else {"lightly": trained(make(losses, *arguments))}


def _prior(problem: Problem) -> Tensor:
    return Uniform()(problem.case.prototypes).to(problem.rows.device)


def _plan(problem: Problem) -> str:
    plan = choose(problem.student().tiled(problem.case.student_views), problem.case.teacher_views, mean=False)
    return f"default plan: {plan.backend}, blocks of {plan.block} {'rows' if plan.backend == 'row' else 'images'}"


def cross_entropy_contest(case: Case, device: torch.device) -> Contest:
    problem = inputs.problem(case, device)
    ours = trained(plain, problem)
    contestants = {
        "gemm": rivals.products(problem),
        "default": ours,
        "direct": forced("direct", ours),
        "row": forced("row", ours),
        "stream": forced("stream", ours),
        "official loop": trained(rivals.double_loop, problem),
        "compiled einsum": trained(rivals.compiled_einsum(problem)),
    }
    return Contest(
        contestants,
        problem.leaves,
        problem.gradient_bytes,
        compiled=frozenset({"compiled einsum"}),
        notes=(_plan(problem),),
    )


def dino_contest(case: Case, device: torch.device) -> Contest:
    problem = inputs.problem(case, device)

    def ours() -> Callable[[], Tensor]:
        return trained(dino, problem, Centering(_prior(problem)))

    contestants = {
        "default": ours(),
        "stream": forced("stream", ours()),
        "official loop": trained(rivals.double_loop, problem, problem.rows.new_zeros(case.prototypes)),
    }
    return Contest(
        contestants | with_lightly(rivals.lightly_dino, problem),
        problem.leaves,
        problem.gradient_bytes,
        tolerances={"lightly": 0.05},  # it sums B K products one by one, in float32
        notes=(_plan(problem),),
    )


def ibot_contest(case: Case, device: torch.device) -> Contest:
    problem = inputs.patch_problem(case, device)

    def ours() -> Callable[[], Tensor]:
        return trained(ibot, problem, Centering(_prior(problem)), Centering(_prior(problem)))

    centers = (problem.rows.new_zeros(case.prototypes) for _ in range(2))
    contestants = {
        "default": ours(),
        "stream": forced("stream", ours()),
        "official, all patches": trained(rivals.ibot, problem, *centers),
    }
    return Contest(
        contestants | with_lightly(rivals.lightly_ibot, problem),
        problem.leaves,
        problem.gradient_bytes,
        tolerances={"lightly": 0.05},
        notes=(f"{int(problem.mask.sum())} of {problem.mask.numel()} patches are masked",),
    )


def msn_contest(case: Case, device: torch.device) -> Contest:
    problem = inputs.problem(case, device, shared=True)
    ours = trained(msn, problem, _prior(problem))
    contestants = {
        "default": ours,
        "default, normalizing": trained(msn, problem, _prior(problem), normalize=True),
        "stream": forced("stream", ours),
    }
    return Contest(
        contestants | with_lightly(rivals.lightly_msn, problem),
        problem.leaves,
        problem.gradient_bytes,
        notes=("lightly normalises rows and prototypes itself: 'normalizing' does so too",),
    )


def sinkhorn_contest(case: Case, device: torch.device) -> Contest:
    problem = inputs.problem(case, device, shared=True)
    teacher = replace(problem.student(), temperature=SWAV_TEMPERATURE)
    balancer = Sinkhorn(_prior(problem))

    def streamed() -> Assignments:
        with scratch_budget(SMALL_BUDGET):
            return balancer(teacher)

    contestants: dict[str, Callable[[], Any]] = {
        "default": lambda: balancer(teacher),
        "stream": streamed,
        "hold": lambda: balancer(teacher.hold()),
        "dinov2 style": partial(rivals.dense_sinkhorn, problem, SWAV_TEMPERATURE),
    }
    if losses := rivals.lightly_losses():
        contestants["lightly"] = partial(rivals.lightly_sinkhorn, losses, problem, SWAV_TEMPERATURE)
    note = f"'stream' has a scratch budget of {SMALL_BUDGET // MIB} MB; ours gives potentials, the others all targets"
    return Contest(contestants, read=_codes, notes=(note,))


def _codes(result: Assignments | Tensor) -> Tensor:
    with torch.no_grad():
        return result.probabilities() if isinstance(result, Assignments) else result


def mean_entropy_contest(case: Case, device: torch.device) -> Contest:
    problem = inputs.problem(case, device, shared=True)
    ours = trained(mean_entropy_gap, problem, _prior(problem))
    contestants = {
        "default": ours,
        "stream": forced("stream", ours),
        "dense": trained(rivals.mean_entropy_gap, problem),
    }
    return Contest(contestants, problem.leaves, problem.gradient_bytes)


def swav_contest(case: Case, device: torch.device) -> Contest:
    problem = inputs.problem(case, device, shared=True)
    contestants = {"default": trained(swav, problem, Sinkhorn(_prior(problem), views=2))}
    contestants |= with_lightly(rivals.lightly_swav, problem)
    return Contest(contestants, problem.leaves, problem.gradient_bytes)


def koleo_contest(case: Case, device: torch.device) -> Contest:
    x = inputs.unit(case.prototypes, device, torch.Generator().manual_seed(0)).requires_grad_()
    ours = {
        "default": trained(KoLeo(partition=None), x),
        "partitions of 2048, mean": trained(KoLeo(reduction="mean"), x),
    }
    size = x.numel() * x.element_size()
    if case.prototypes > 20_000:
        notes = ("the dense form would need several matrices of 17 GB",)
        return Contest(ours, (x,), size, tolerances={"partitions of 2048, mean": 1.0}, notes=notes)
    contestants = {"gemm": rivals.upper_triangle(x)} | ours | with_lightly(rivals.lightly_koleo, x)
    return Contest(contestants, (x,), size, tolerances={"partitions of 2048, mean": 1.0})


def nearest_contest(case: Case, device: torch.device) -> Contest:
    generator = torch.Generator().manual_seed(0)
    x = inputs.unit(case.prototypes, device, generator)
    sample = torch.randint(case.prototypes, (256,), generator=generator).to(device)

    def expected() -> Tensor:
        products = x[sample].double() @ x.double().T
        return products.scatter_(1, sample[:, None], -2).amax(1)

    return Contest(
        {"gemm": rivals.upper_triangle(x), "default": lambda: nearest(x)},
        read=lambda found: (x[sample].double() * x[found[0][sample]].double()).sum(1),
        reference=expected,
        notes=("checked on 256 rows against float64",),
    )


TASKS: dict[str, Callable[[Case, torch.device], Contest]] = {
    "cross-entropy": cross_entropy_contest,
    "dino": dino_contest,
    "ibot": ibot_contest,
    "msn": msn_contest,
    "sinkhorn": sinkhorn_contest,
    "me-max": mean_entropy_contest,
    "swav": swav_contest,
    "koleo": koleo_contest,
    "nearest": nearest_contest,
}


# -------------------------------------------------------------------------------------------------- accuracy
def accuracy(case: Case, device: torch.device) -> list[dict[str, Any]]:
    """Errors of loss and gradients against the naive formula in float64, on the same numbers.

    Random data; rows near their prototypes, so that targets are certain; and so near that predictions are, too.
    """
    drawn = inputs.problem(case, device)
    data_sets = {
        "random": drawn,
        "certain targets": inputs.near_prototypes(drawn, 1.0),
        "peaked": inputs.near_prototypes(drawn, 0.3),
    }
    rows = []
    for data, problem in data_sets.items():
        exact = _gradients(forced("naive", trained(plain, wide := _double(problem))), wide)
        for name in ("direct", "row", "stream", "naive"):
            for precise, given in ((False, problem), (True, wide)):
                found = _gradients(forced(name, trained(plain, given)), given)
                rows.append(_errors(data, name, found, exact) | {"dtype": "float64" if precise else "float32"})
        looped = _gradients(trained(rivals.double_loop, problem), problem)
        rows.append(_errors(data, "official loop", looped, exact) | {"dtype": "float32"})
    return [row for row in rows if (row["contestant"], row["dtype"]) != ("naive", "float64")]  # that is the reference


def _double(problem: Problem) -> Problem:
    named = ("rows", "prototypes", "teacher_rows", "teacher_prototypes")
    wide = {name: getattr(problem, name).detach().double() for name in named}
    return replace(problem, **wide | {name: wide[name].requires_grad_() for name in named[:2]})


def _gradients(step: Callable[[], Tensor], problem: Problem) -> dict[str, Tensor]:
    for leaf in problem.leaves:
        leaf.grad = None
    loss = step()
    found = {"loss": loss, "dz": problem.rows.grad, "dw": problem.prototypes.grad}
    return {name: value.double() for name, value in found.items() if value is not None}


def _errors(data: str, name: str, found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, Any]:
    errors = {key: float((found[key] - value).abs().max() / value.abs().max()) for key, value in exact.items()}
    return {"data": data, "contestant": name} | errors
