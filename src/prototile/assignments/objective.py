"""Cross-entropy between assignments: the checks, and the choice of a backend."""

from jaxtyping import Float
from torch import Tensor

from prototile import distributed
from prototile.assignments import fused, naive, sharded
from prototile.assignments.coupled import CrossEntropy, CrossEntropyAndColumnSums, Problem
from prototile.assignments.decoupled import CrossEntropyByRows
from prototile.assignments.lazy import Assignments
from prototile.assignments.pairs import Pairs
from prototile.assignments.plan import choose, forced_backend, fuses
from prototile.assignments.tiles import widest_logit
from prototile.autograd import uncompiled
from prototile.precision import no_autocast


def cross_entropy(student: Assignments, targets: Assignments, pairs: Pairs) -> Float[Tensor, ""]:
    r"""$\sum_{t,s,b} M_{ts}\, r_b\, H(q_{tb}, p_{sb})$ with $H(q, p) = -\sum_k q_k \log p_k$, without n x k numbers.

    The targets are constants. Gradients reach the student's embeddings, prototypes and offset. Each rank
    returns its own rows' loss; averaging gradients over ranks gives the gradient of the whole batch. No rows (an
    empty mask) give 0, with zero gradients. Equals `naive.cross_entropy`; memory is the scratch budget's
    (`scratch_budget`), beside the gradients themselves.
    """
    _check(student, targets, pairs)
    if student.shard is not None:
        return _sharded(student, targets, pairs, marginal=False)[0]
    if fuses(student.embeddings):
        return fused.cross_entropy(student, targets, pairs)
    return _cross_entropy(student, targets, pairs)


@uncompiled
@no_autocast
def _cross_entropy(student: Assignments, targets: Assignments, pairs: Pairs) -> Float[Tensor, ""]:
    _check_offset(student)
    if forced_backend() == "naive":
        return naive.cross_entropy(student, targets, pairs)
    problem = _problem(student, targets, pairs, mean=False)
    backend = CrossEntropyByRows if problem.plan.backend == "row" else CrossEntropy
    return backend.apply(*student.differentiable(), problem)  # type: ignore[return-value]


def cross_entropy_and_mean(
    student: Assignments, targets: Assignments, pairs: Pairs
) -> tuple[Float[Tensor, ""], Float[Tensor, " k"]]:
    """`cross_entropy` and `student.mean()` in one pass, for methods that penalise the marginal (MSN, PMSN)."""
    _check(student, targets, pairs)
    if student.shard is not None:
        return _sharded(student, targets, pairs, marginal=True)
    compute = fused.cross_entropy_and_sums if fuses(student.embeddings) else _cross_entropy_and_sums
    loss, sums = compute(student, targets, pairs)
    return loss, distributed.mean_rows(sums, len(student))


@uncompiled
def _sharded(
    student: Assignments, targets: Assignments, pairs: Pairs, *, marginal: bool
) -> tuple[Float[Tensor, ""], Float[Tensor, " k"]]:
    """The cross-entropy and, where it is wanted, the mean assignment over the rows of all ranks."""
    _check_offset(student)
    if forced_backend() == "naive":
        loss = naive.cross_entropy(student, targets, pairs)
        return loss, student.mean() if marginal else loss.new_zeros(0)
    problem = _sharded_problem(student, targets, pairs, marginal=marginal)
    loss, sums = sharded.cross_entropy_and_column_sums(*student.differentiable(), problem)
    return loss, sums / (problem.student.views * problem.student.images)


@uncompiled
@no_autocast
def _cross_entropy_and_sums(
    student: Assignments, targets: Assignments, pairs: Pairs
) -> tuple[Float[Tensor, ""], Float[Tensor, " k"]]:
    _check_offset(student)
    if forced_backend() == "naive":
        return naive.cross_entropy(student, targets, pairs), student.probabilities().sum(0)
    problem = _problem(student, targets, pairs, mean=True)
    return CrossEntropyAndColumnSums.apply(*student.differentiable(), problem)  # type: ignore[return-value]


def _problem(student: Assignments, targets: Assignments, pairs: Pairs, *, mean: bool) -> Problem:
    teacher_views, student_views = len(pairs.views), len(pairs.views[0])
    logits, teacher = student.tiled(student_views), targets.tiled(teacher_views, student.dtype)
    if logits.widest + teacher.widest > widest_logit(student.num_prototypes, student.dtype):
        logits, teacher = logits.shifted_by_maximum(), teacher.shifted_by_maximum()  # their normalisers are divided
    rows = pairs.row_weights(logits.rows)
    return Problem(
        student=logits,
        teacher=teacher,
        weights=pairs.table(rows),
        rows=rows,
        plan=choose(logits, teacher_views, mean=mean),
    )


def _sharded_problem(student: Assignments, targets: Assignments, pairs: Pairs, *, marginal: bool) -> sharded.Problem:
    assert student.shard is not None
    logits, layout = student.everywhere(len(pairs.views[0]))
    teacher, _ = targets.everywhere(len(pairs.views), student.dtype)
    rows = pairs.row_weights(student.embeddings.detach().to(student.dtype))
    return sharded.Problem(
        student=logits,
        teacher=teacher,
        weights=pairs.table(rows),
        rows=distributed.concatenate(rows, layout.counts),
        layout=layout,
        shard=student.shard,
        marginal=marginal,
    )


def _check(student: Assignments, targets: Assignments, pairs: Pairs) -> None:
    for name, x, kind in (
        ("student", student, Assignments),
        ("targets", targets, Assignments),
        ("pairs", pairs, Pairs),
    ):
        if not isinstance(x, kind):
            raise ValueError(f"{name} must be {kind.__name__}, got {type(x).__name__}")
    teacher_views, student_views = len(pairs.views), len(pairs.views[0])
    if student.num_prototypes != targets.num_prototypes:
        raise ValueError(
            f"the student has {student.num_prototypes} prototypes but the targets have {targets.num_prototypes}"
        )
    if student.shard != targets.shard:
        raise ValueError(
            "the student's and the targets' prototypes must be shared out over ranks alike, or neither of them: "
            "see `Assignments.unsharded`"
        )
    for name, a, views in (("student", student, student_views), ("targets", targets, teacher_views)):
        if len(a) % views:
            raise ValueError(f"the {name}'s {len(a)} rows do not divide into the {views} views of the pairs")
    if len(student) // student_views != len(targets) // teacher_views:
        raise ValueError(
            f"the student has {len(student) // student_views} rows per view but the targets have "
            f"{len(targets) // teacher_views}; the pairs are for {teacher_views} x {student_views} views"
        )
    if student.adjustment is not None or (student.offset is not None and student.offset.ndim == 2):
        raise ValueError("only targets may be adjusted or have an offset per view, not the student")
    if targets.offset is not None and targets.offset.ndim == 2 and targets.offset.shape[0] != teacher_views:
        raise ValueError(
            f"the targets were balanced in {targets.offset.shape[0]} views but are paired in {teacher_views}"
        )


def _check_offset(student: Assignments) -> None:
    if student.offset is not None and not bool(student.offset.isfinite().all()):
        raise ValueError("the student's offset must be finite: close prototypes in the targets alone")
