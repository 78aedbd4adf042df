"""What assignments tell about themselves, against the dense matrix."""

import math
from dataclasses import replace

import pytest
import torch

from problems import random_problem, unit
from prototile.assignments import Adjustment, Assignments, backend, dense, scratch_budget, smooth


def assignments(**sizes) -> Assignments:
    return random_problem(**sizes).student


@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("offset", ["none", "shared", "per view"])
def test_reductions_equal_the_dense_ones(scale, offset):
    a = random_problem(prototypes=1500, scale=scale, teacher_offset=offset).targets
    logits, p = a.logits(), a.probabilities()
    potential = torch.randn(len(a), dtype=torch.float64)
    torch.testing.assert_close(a.row_logsumexp(), logits.logsumexp(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.column_logsumexp(), logits.logsumexp(0), rtol=1e-12, atol=1e-12)
    expected = (logits + potential[:, None]).logsumexp(0)
    torch.testing.assert_close(a.column_logsumexp(potential), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(a.mean(), p.mean(0), rtol=1e-11, atol=1e-300)
    torch.testing.assert_close(a.log_mean().exp(), p.mean(0), rtol=1e-11, atol=1e-300)
    torch.testing.assert_close(a.confidence(), p.amax(1).mean(), rtol=1e-12, atol=0)
    assert torch.equal(a.hard(), logits.argmax(1))
    assert torch.equal(a.counts(), torch.bincount(logits.argmax(1), minlength=1500))


@pytest.mark.parametrize("budget", [1, 10**8])
def test_mean_and_entropy_are_differentiable(budget):
    a = assignments(student_offset=True)
    leaves = [a.embeddings, a.prototypes, a.offset]
    penalty = torch.randn(37, dtype=torch.float64)
    p = a.probabilities()
    with scratch_budget(budget):
        values = a.mean() @ penalty, a.entropy()
    for value, reference in zip(values, (p.mean(0) @ penalty, -(p * p.log()).sum(1).mean()), strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-12, atol=0)
        gradients = torch.autograd.grad(value, leaves, retain_graph=True)
        for gradient, expected in zip(
            gradients, torch.autograd.grad(reference, leaves, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-14)


def test_log_mean_where_the_mean_underflows():
    """In float32 a column mean of e^-200 is zero; its logarithm is not minus infinity."""
    a = dense(torch.tensor([[0.0, -200.0], [0.0, -202.0]]))
    assert a.mean()[1] == 0
    torch.testing.assert_close(a.log_mean()[1], torch.tensor(-200 + math.log((1 + math.exp(-2)) / 2)))


def test_adjusted_logits():
    """Scale, offset, boost of one winner per row, clamp: tiles equal the formula."""
    a = random_problem(prototypes=1500).targets
    adjustment = Adjustment(torch.rand(1500, dtype=torch.float64), bound=5.0, winner=a.hard(), boost=1.5)
    offset = torch.randn(1500, dtype=torch.float64)
    adjusted = replace(a, adjustment=adjustment, offset=offset)
    logits = a.similarities() / a.temperature * adjustment.scale + offset
    rows = torch.arange(len(a))
    logits[rows, a.hard()] *= 1.5
    logits = logits.clamp(-5, 5)
    torch.testing.assert_close(adjusted.logits(), logits, rtol=1e-13, atol=0)
    torch.testing.assert_close(adjusted.mean(), logits.softmax(1).mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(adjusted.row_logsumexp(), logits.logsumexp(1), rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match="cannot be split"):
        adjusted.view(0, 2)
    with pytest.raises(ValueError, match="not defined"):
        adjusted.entropy()


def test_views():
    a = random_problem(teacher_views=3, student_views=3, teacher_offset="per view").targets.hold()
    for i in range(3):
        part = a.view(i, 3)
        assert part.held is not None
        torch.testing.assert_close(part.probabilities(), a.probabilities()[5 * i : 5 * i + 5], rtol=1e-13, atol=0)
        torch.testing.assert_close(part.row_logsumexp(), a.row_logsumexp()[5 * i : 5 * i + 5], rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match="15 rows do not divide into 4 views"):
        a.view(0, 4)


def test_views_that_are_none(unchecked):
    a = random_problem(teacher_views=2, teacher_offset="per view").targets
    torch.testing.assert_close(a.view(0, 1).probabilities(), a.probabilities())
    for index in (-1, 2):
        with pytest.raises(ValueError, match="there is no view"):
            a.view(index, 2)
    with pytest.raises(ValueError, match="offset of 2 views cannot be split into 5"):
        a.view(0, 5)
    with pytest.raises(ValueError, match="have no 2 leading views of 3"):
        replace(a, offset=None).leading(2, 3)


def test_entropy_with_closed_prototypes_and_views():
    a = random_problem(teacher_offset="per view").targets
    offset = a.offset.clone()
    offset[:, 3] = -torch.inf
    a = replace(a, offset=offset, embeddings=a.embeddings.requires_grad_())
    p = a.probabilities()
    entropy = a.entropy()
    torch.testing.assert_close(entropy, -torch.xlogy(p, p).sum(1).mean())
    (gradient,) = torch.autograd.grad(entropy, a.embeddings)
    assert bool(gradient.isfinite().all())


def test_half_precision_offsets_stay_exact():
    """What a balancer adds is not rounded to the embeddings' dtype."""
    a = Assignments(unit(4, 8).bfloat16(), unit(9, 8).bfloat16(), 0.1)
    assert a.shift(torch.rand(9)).offset.dtype == torch.float32
    assert replace(a, offset=torch.zeros(9).bfloat16()).shift(torch.rand(9)).offset.dtype == torch.float32


def test_no_rows_have_no_mean():
    a = Assignments(torch.zeros(0, 8), unit(9, 8, dtype=torch.float32), 0.1)
    for statistic in (a.mean, a.log_mean, a.entropy, a.confidence):
        with pytest.raises(ValueError, match="no rows to take a mean of"):
            statistic()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_offsets_that_close_everything_are_refused(value):
    with pytest.raises(ValueError, match="the offset holds NaN or infinity, or closes every prototype"):
        replace(assignments(), offset=torch.full((37,), value, dtype=torch.float64)).mean()


def test_adjusted_assignments_are_constants():
    a = random_problem().student
    adjusted = replace(a, adjustment=Adjustment(torch.ones(37, dtype=torch.float64), bound=1.0))
    assert not adjusted.mean().requires_grad


def test_dense_scores_are_assignments():
    scores = torch.randn(6, 9, requires_grad=True)
    a = dense(scores, 0.5)
    torch.testing.assert_close(a.probabilities(), (scores / 0.5).softmax(1))
    a.mean()[0].backward()
    assert scores.grad.abs().sum() > 0


def test_smoothing_mixes_with_uniform():
    a = assignments()
    p = smooth(a, 0.1).probabilities()
    torch.testing.assert_close(p, 0.9 * a.probabilities() + 0.1 / 37, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="amount of smoothing"):
        smooth(a, 1.0)


def test_naive_mean_is_the_same():
    a = assignments()
    with backend("naive"):
        expected = a.mean()
    torch.testing.assert_close(a.mean(), expected, rtol=1e-13, atol=0)


def test_minus_infinity_closes_a_prototype():
    """An offset of minus infinity, a prior of zero: no mass, nothing else changes."""
    a = replace(random_problem().targets, offset=torch.zeros(37, dtype=torch.float64))
    offset = torch.zeros(37, dtype=torch.float64)
    offset[4] = -torch.inf
    closed = replace(a, offset=offset)
    assert closed.mean()[4] == 0
    rest = torch.arange(37) != 4
    without = replace(a, prototypes=a.prototypes[rest], offset=None)
    torch.testing.assert_close(closed.mean()[rest], without.mean(), rtol=1e-12, atol=0)


def test_large_batches_use_narrow_tiles():
    """Column sums over many rows stay within scratch memory; rows go in blocks."""
    a = Assignments(unit(20_000, 4, dtype=torch.float32), unit(300, 4, dtype=torch.float32), 0.1)
    p = a.probabilities()
    torch.testing.assert_close(a.mean(), p.mean(0), rtol=1e-4, atol=0)
    torch.testing.assert_close(a.column_logsumexp(), a.logits().logsumexp(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(a.row_logsumexp(), a.logits().logsumexp(1), rtol=1e-5, atol=0)
