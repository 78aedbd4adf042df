"""Every backend equals `naive`: values, gradients, at any sizes; and none holds an n x k matrix."""

import gc
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from problems import Problem, random_problem, relative_error, unit
from prototile.assignments import (
    Assignments,
    Pairs,
    backend,
    cross_entropy,
    cross_entropy_and_mean,
    dense,
    release_scratch,
    scratch_budget,
)
from prototile.assignments.scratch import borrow

BACKENDS = ("direct", "row", "stream")


def evaluate(problem: Problem, name: str, budget: int, *, mean: bool) -> list[torch.Tensor]:
    """The loss (with a penalty on the mean), the mean, and the gradients of all leaves."""
    with backend(name), scratch_budget(budget):
        if mean:
            loss, marginal = cross_entropy_and_mean(problem.student, problem.targets, problem.pairs)
            loss = loss + 3 * (marginal * marginal.log()).sum()
        else:
            loss, marginal = cross_entropy(problem.student, problem.targets, problem.pairs), torch.zeros(1)
        return [loss.detach(), marginal.detach(), *torch.autograd.grad(1.3 * loss, problem.leaves)]


def assert_equals_naive(problem: Problem, name: str, budget: int, *, mean: bool, tolerance: float) -> None:
    exact = evaluate(problem, "naive", budget, mean=mean)
    for value, reference in zip(evaluate(problem, name, budget, mean=mean), exact, strict=True):
        assert relative_error(value, reference) < tolerance


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(BACKENDS),
    mean=st.booleans(),
    images=st.integers(1, 9),
    prototypes=st.integers(1, 60),
    teacher_views=st.integers(1, 3),
    student_views=st.integers(1, 4),
    student_offset=st.booleans(),
    teacher_offset=st.sampled_from(["none", "shared", "per view"]),
    weighted=st.booleans(),
    scale=st.sampled_from([1.0, 40.0]),  # 40: logits far beyond what exp bears, the safe path, with their rounding
    budget=st.sampled_from([1, 4_000, 10**8]),
    seed=st.integers(0, 10**6),
)
def test_equals_naive_at_any_size(name, mean, budget, seed, scale, **sizes):
    torch.manual_seed(seed)
    problem = random_problem(scale=scale, **sizes)
    assert_equals_naive(problem, name, budget, mean=mean, tolerance=1e-12 * scale)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(("teacher_views", "student_views"), [(1, 1), (2, 12)])
def test_equals_naive_over_several_tiles(name, mean, teacher_views, student_views):
    """More prototypes than a tile holds, not a multiple of it."""
    problem = random_problem(
        images=6,
        dims=32,
        prototypes=2500,
        teacher_views=teacher_views,
        student_views=student_views,
        student_offset=True,
        teacher_offset="shared",
    )
    assert_equals_naive(problem, name, 400_000, mean=mean, tolerance=1e-12)


@pytest.mark.parametrize("name", BACKENDS)
def test_float32_is_accurate(name):
    """Against the exact result in float64: 2e-6 of the largest number, loss and gradients."""
    problem = random_problem(images=8, dims=256, prototypes=4096, teacher_views=2, student_views=12)
    exact = evaluate(problem, "naive", 10**9, mean=False)
    leaves = [leaf.detach().float().requires_grad_() for leaf in problem.leaves]
    rounded = Problem(
        replace(problem.student, embeddings=leaves[0], prototypes=leaves[1]),
        Assignments(problem.targets.embeddings.float(), problem.targets.prototypes.float(), 0.04),
        problem.pairs,
        leaves,
    )
    for value, reference in zip(evaluate(rounded, name, 2_000_000, mean=False), exact, strict=True):
        assert relative_error(value, reference, least=0) < 2e-6


class _LargestStorage(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation made."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *sizes])
        return out


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("name", ["stream", "direct", "row"])
def test_no_matrix_is_formed(name, mean):
    """With a budget of an eighth of the teacher's matrix, no tensor is larger than that, or than the prototypes."""
    images, prototypes, dims = 64, 20_000, 8
    problem = random_problem(images=images, dims=dims, prototypes=prototypes, teacher_views=2, student_views=2)
    budget = 2 * images * prototypes * 8 // 8
    with _LargestStorage() as memory:
        evaluate(problem, name, budget, mean=mean)
    assert memory.largest <= max(budget, prototypes * dims * 8)
    with _LargestStorage() as memory:
        evaluate(problem, "naive", budget, mean=mean)
    assert memory.largest >= 2 * images * prototypes * 8  # the recorder does see matrices


def test_held_products_change_nothing():
    problem = random_problem(teacher_offset="shared", student_offset=True)
    held = replace(problem, student=problem.student.hold(), targets=problem.targets.hold())
    for value, reference in zip(
        evaluate(held, "direct", 10**8, mean=True), evaluate(problem, "direct", 10**8, mean=True), strict=True
    ):
        assert relative_error(value, reference) < 1e-13


def test_teacher_may_share_the_students_products():
    """SwAV: the targets are the student's own rows under another temperature and offset, multiplied once."""
    student = random_problem(teacher_views=2, student_views=4).student
    shared = replace(student.hold().leading(2, 4), temperature=0.05)
    assert shared.held is not None
    apart = Assignments(student.embeddings[:10].detach(), student.prototypes.detach(), 0.05)
    pairs = Pairs.cross(2, 4)
    torch.testing.assert_close(cross_entropy(student.hold(), shared, pairs), cross_entropy(student, apart, pairs))


def test_other_tensors_lose_held_products():
    student = random_problem().student.hold()
    assert replace(student, temperature=1.0).held is not None
    assert replace(student, embeddings=student.embeddings.clone()).held is None


def test_backward_twice():
    for function in (cross_entropy, lambda *a: cross_entropy_and_mean(*a)[1].square().sum()):
        problem = random_problem()
        loss = function(problem.student, problem.targets, problem.pairs)
        first = torch.autograd.grad(loss, problem.leaves, retain_graph=True)
        second = torch.autograd.grad(loss, problem.leaves)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_held_products_live_as_long_as_the_loss():
    """The backward pass reads them again, after a method's forward has dropped student and targets."""

    def losses(keep: list) -> torch.Tensor:
        torch.manual_seed(1)
        problem = random_problem(images=40, prototypes=60, student_views=4)
        student, targets = problem.student.hold(), problem.targets.hold()
        loss, mean = cross_entropy_and_mean(student, targets, problem.pairs)
        keep.append(problem.leaves)
        return loss + (mean * mean.log()).sum()

    gradients = []
    for name in ("naive", "direct"):
        keep: list = []
        with backend(name), scratch_budget(20_000):
            loss = losses(keep)
            gc.collect()
            for _ in range(3):
                borrow(10_000, loss).tensor.fill_(torch.nan)
            gradients.append(torch.autograd.grad(loss, keep[0]))
    for value, reference in zip(*gradients, strict=True):
        assert relative_error(value, reference) < 1e-12


def test_inference_mode_leaves_no_trace():
    release_scratch()
    problem = random_problem()
    with torch.inference_mode():
        problem.targets.hold().mean()
        cross_entropy(problem.student.detach(), problem.targets, problem.pairs)
    cross_entropy(problem.student, problem.targets, problem.pairs).backward()


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("mean", [False, True])
def test_collapsed_opposite_sides_stay_finite(name, mean):
    """Both logits are bearable, but not the quotient of their normalisers, in float32."""
    direction = unit(1, 8, dtype=torch.float32)
    w = torch.nn.functional.normalize(direction + 0.1 * torch.randn(30, 8), dim=-1).requires_grad_()
    z = direction.repeat(6, 1).requires_grad_()
    problem = Problem(Assignments(z, w, 1 / 60), Assignments(-z.detach(), w.detach(), 1 / 60), Pairs.same(), [z, w])
    exact = evaluate(problem, "naive", 10**8, mean=mean)
    for value, reference in zip(evaluate(problem, name, 10**8, mean=mean), exact, strict=True):
        assert bool(value.isfinite().all())
        assert relative_error(value, reference) < 1e-4


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("bound", [70.0, 80.0, 85.0, 90.0])
def test_the_widest_logits_that_float32_bears(name, bound):
    """Where all prototypes lie on one line with the rows, sums of exponentials reach the end of float32."""
    direction = unit(1, 8, dtype=torch.float32)
    w = direction.repeat(3, 1).requires_grad_()
    z = (bound * direction).repeat(2, 1).requires_grad_()
    problem = Problem(Assignments(z, w, 1.0), Assignments(z.detach(), w.detach(), 1.0), Pairs.same(), [z, w])
    for value in evaluate(problem, name, 10**8, mean=True):
        assert bool(value.isfinite().all())
    with backend(name):
        loss = cross_entropy(problem.student, problem.targets, problem.pairs)
    assert loss.item() == pytest.approx(math.log(3), abs=1e-4)


def test_prototypes_changed_before_backward_are_noticed():
    problem = random_problem()
    teacher = problem.targets.prototypes
    loss, _ = cross_entropy_and_mean(problem.student, problem.targets, problem.pairs)
    teacher.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_only_wanted_gradients():
    """Frozen prototypes or embeddings get none, and the others are the same without them."""
    problem = random_problem()
    both = torch.autograd.grad(cross_entropy(problem.student, problem.targets, problem.pairs), problem.leaves)
    frozen = replace(problem.student, prototypes=problem.student.prototypes.detach())
    (alone,) = torch.autograd.grad(cross_entropy(frozen, problem.targets, problem.pairs), problem.leaves[:1])
    torch.testing.assert_close(alone, both[0], rtol=1e-13, atol=0)
    with torch.no_grad():
        assert not cross_entropy(problem.student, problem.targets, problem.pairs).requires_grad


def test_targets_are_constants():
    problem = random_problem()
    z, w = unit(10, 8).requires_grad_(), unit(37, 8).requires_grad_()
    cross_entropy(problem.student, Assignments(z, w, 0.04), problem.pairs).backward()
    assert z.grad is None
    assert w.grad is None


@pytest.mark.parametrize("name", [*BACKENDS, "naive"])
def test_half_precision_is_computed_in_float32(name):
    problem = random_problem(dtype=torch.bfloat16)
    exact = cross_entropy(
        replace(problem.student, embeddings=problem.leaves[0].double(), prototypes=problem.leaves[1].double()),
        replace(
            problem.targets,
            embeddings=problem.targets.embeddings.double(),
            prototypes=problem.targets.prototypes.double(),
        ),
        problem.pairs,
    )
    with backend(name), torch.autocast("cpu", torch.bfloat16):
        loss = cross_entropy(problem.student, problem.targets, problem.pairs)
    assert loss.dtype == torch.float32
    assert relative_error(loss, exact) < 1e-6
    loss.backward()
    assert problem.leaves[0].grad.dtype == torch.bfloat16


@pytest.mark.parametrize("name", [*BACKENDS, "naive"])
def test_no_rows_give_zero(name):
    """An empty mask: loss 0, gradients 0."""
    z, w = torch.zeros(0, 8, requires_grad=True), unit(37, 8, dtype=torch.float32).requires_grad_()
    with backend(name):
        pairs = Pairs.masked(torch.zeros(4, 9, dtype=torch.bool))
        loss = cross_entropy(Assignments(z, w, 0.1), Assignments(torch.zeros(0, 8), w.detach(), 0.04), pairs)
    loss.backward()
    assert loss == 0
    assert torch.equal(w.grad, torch.zeros_like(w))


@pytest.mark.parametrize("name", [*BACKENDS, "naive"])
def test_one_prototype_gives_zero(name):
    problem = random_problem(prototypes=1)
    for value in evaluate(problem, name, 10**8, mean=False):
        assert value.abs().max() < 1e-14


@pytest.mark.parametrize("name", [*BACKENDS, "naive"])
def test_a_zero_row_is_assigned_uniformly(name):
    with backend(name):
        zero = Assignments(torch.zeros(1, 8), unit(37, 8, dtype=torch.float32), 0.1)
        torch.testing.assert_close(zero.mean(), torch.full((37,), 1 / 37))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", ["student", "targets"])
def test_non_finite_embeddings_are_refused(which, bad):
    problem = random_problem()
    broken = getattr(problem, which)
    z = broken.embeddings.detach().clone()
    z[3, 2] = bad
    with pytest.raises(ValueError, match="embeddings hold numbers that are not finite"):
        cross_entropy(**{**_arguments(problem), which: replace(broken, embeddings=z)})


def _arguments(problem: Problem) -> dict:
    return {"student": problem.student, "targets": problem.targets, "pairs": problem.pairs}


def test_what_does_not_fit_is_refused(unchecked):
    problem = random_problem()
    with pytest.raises(ValueError, match="do not divide into the 7 views"):
        cross_entropy(problem.student, problem.targets, Pairs.cross(2, 7))
    with pytest.raises(ValueError, match="5 rows per view but the targets have"):
        cross_entropy(problem.student, problem.targets, Pairs.cross(5, 3))
    with pytest.raises(ValueError, match="37 prototypes but the targets have 5"):
        cross_entropy(problem.student, dense(torch.zeros(10, 5)), problem.pairs)
    with pytest.raises(ValueError, match="temperature must be a positive number"):
        Assignments(torch.zeros(3, 4), torch.zeros(5, 4), 0.0)
    with pytest.raises(ValueError, match="offset per view"):
        cross_entropy(replace(problem.student, offset=torch.zeros(3, 37)), problem.targets, problem.pairs)
    with pytest.raises(ValueError, match="balanced in 5 views but are paired in 2"):
        cross_entropy(problem.student, replace(problem.targets, offset=torch.zeros(5, 37)), problem.pairs)
    with pytest.raises(ValueError, match="offset must be finite"):
        cross_entropy(problem.student.shift(torch.full((37,), -torch.inf)), problem.targets, problem.pairs)
    with pytest.raises(ValueError, match="targets must be Assignments, got Tensor"):
        cross_entropy(problem.student, problem.targets.probabilities(), problem.pairs)
    with pytest.raises(ValueError, match="pairs must be Pairs, got list"):
        cross_entropy(problem.student, problem.targets, [[1.0]])
    with pytest.raises(ValueError, match="embeddings must be a matrix, rows x dims"):
        Assignments(torch.zeros(2, 3, 4), torch.zeros(5, 4), 0.1)
    with pytest.raises(ValueError, match="positive number"):
        Assignments(torch.zeros(3, 4), torch.zeros(5, 4), torch.tensor(0.1))
    with pytest.raises(ValueError, match="unknown backend 'fast'"), backend("fast"):
        pass
    with pytest.raises(ValueError, match="scratch budget must be positive"), scratch_budget(0):
        pass


@pytest.mark.filterwarnings("ignore")  # dynamo's own
def test_inside_a_compiled_function(unchecked):
    """torch.compile leaves the backends alone; the step around them gives the same numbers."""
    problem = random_problem()

    @torch.compile(backend="eager")
    def step(weight):
        return 2 * weight * cross_entropy(problem.student, problem.targets, problem.pairs)

    expected = 2 * cross_entropy(problem.student, problem.targets, problem.pairs)
    torch.testing.assert_close(step(torch.ones((), dtype=torch.float64)), expected)


def test_other_dims_are_refused(unchecked):
    with pytest.raises(ValueError, match="embeddings have 4 dims but prototypes have 8"):
        Assignments(torch.zeros(3, 4), torch.zeros(5, 8), 0.1)
    with pytest.raises(ValueError, match="offset has 4 entries for 5 prototypes"):
        Assignments(torch.zeros(3, 4), torch.zeros(5, 4), 0.1, torch.zeros(4))


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*BACKENDS, "naive"])
@pytest.mark.parametrize("mean", [False, True])
def test_on_a_gpu(name, mean):
    problem = random_problem(images=6, dims=32, prototypes=20_000, student_views=4)
    z, w = (leaf.detach().cuda().requires_grad_() for leaf in problem.leaves)
    on_gpu = Problem(
        replace(problem.student, embeddings=z, prototypes=w),
        Assignments(problem.targets.embeddings.cuda(), problem.targets.prototypes.cuda(), 0.04),
        problem.pairs,
        [z, w],
    )
    exact = evaluate(problem, "naive", 10**8, mean=mean)
    for value, reference in zip(evaluate(on_gpu, name, 2_000_000, mean=mean), exact, strict=True):
        assert relative_error(value.cpu(), reference) < 1e-12
