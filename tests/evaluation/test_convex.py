"""Fitted classifiers equal scikit-learn's, whatever the blocks, the path, the dtype or the number of rows."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import Tensor

from prototile.evaluation import convex
from prototile.evaluation.convex import Problem
from prototile.evaluation.lbfgs import minimum

ROWS, DIMS, CLASSES = 120, 7, 4


def problem(rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Overlapping classes, far from the origin, on scales from 0.1 to 10."""
    y = torch.arange(rows) % CLASSES
    centres = torch.randn(CLASSES, DIMS, dtype=torch.float64)
    x = centres[y] + 1.5 * torch.randn(rows, DIMS, dtype=torch.float64)
    return x * torch.logspace(-1, 1, DIMS, dtype=torch.float64) + 3, y


def reference(x: Tensor, y: Tensor, c: float, intercept: bool = True) -> LogisticRegression:
    return LogisticRegression(C=c, tol=1e-10, max_iter=20_000, fit_intercept=intercept).fit(x.numpy(), y.numpy())


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("c", [1e-3, 0.1, 10])
def test_logistic_regression(c, intercept):
    x, y = problem()
    wanted = reference(x, y, c, intercept)
    found = Problem(x, y, intercept=intercept).fit(1 / (c * ROWS), tolerance=1e-9, iterations=1000)
    np.testing.assert_allclose(found.weight, wanted.coef_, atol=2e-4)
    np.testing.assert_allclose(found.bias - found.bias.mean(), wanted.intercept_ - wanted.intercept_.mean(), atol=2e-3)
    assert found.slope <= 1e-9
    np.testing.assert_array_equal(found.predicted(x), wanted.predict(x.numpy()))
    if not intercept:
        assert not found.bias.any()


def test_fewer_rows_than_dims():
    x, y = problem()
    wide = torch.cat([x[:12], torch.randn(12, 60, dtype=torch.float64)], 1)
    wide[:, 9] = 5.0  # a constant one
    for intercept in (True, False):
        wanted = reference(wide, y[:12], 0.5, intercept)
        found = Problem(wide, y[:12], intercept=intercept).fit(1 / (0.5 * 12), tolerance=1e-10, iterations=2000)
        np.testing.assert_allclose(found.weight, wanted.coef_, atol=1e-5)


def test_a_class_for_each_column():
    """The sigmoid's problems are apart, and so may their penalties be."""
    x, y = problem()
    signs = torch.where(torch.nn.functional.one_hot(y) > 0, 1, -1)
    cs = torch.tensor([0.01, 0.1, 1.0, 10.0], dtype=torch.float64)
    found = Problem(x, signs, loss="sigmoid").fit(1 / (cs * ROWS), tolerance=1e-10, iterations=2000)
    for k in range(CLASSES):
        wanted = reference(x, signs[:, k], float(cs[k]))
        np.testing.assert_allclose(found.weight[k], wanted.coef_[0], atol=1e-5)
        np.testing.assert_allclose(found.bias[k], wanted.intercept_[0], atol=1e-4)


def test_support_vectors():
    """liblinear's squared hinge, whose intercept is penalised: a column of ones; images of two weights."""
    x, y = problem()
    signs = torch.where(torch.nn.functional.one_hot(y) > 0, 1, -1)
    weights = torch.where(signs > 0, 2.0, 1.0).double()
    ones = torch.cat([x, torch.ones(ROWS, 1, dtype=torch.float64)], 1)
    for c in (0.01, 1.0):
        fitted = Problem(ones, signs, loss="squared hinge", intercept=False, weights=weights)
        found = fitted.fit(1 / (c * ROWS), tolerance=1e-9, iterations=3000)
        for k in range(CLASSES):
            machine = LinearSVC(C=c, dual=False, tol=1e-10, max_iter=100_000, class_weight={1: 2, -1: 1})
            wanted = machine.fit(x.numpy(), signs[:, k].numpy())
            np.testing.assert_allclose(found.weight[k, :-1], wanted.coef_[0], atol=1e-6)
            np.testing.assert_allclose(found.weight[k, -1], wanted.intercept_, atol=1e-6)


def test_weights_of_zero_leave_images_out():
    x, y = problem()
    signs = torch.where(torch.nn.functional.one_hot(y) > 0, 1, -1)
    weights = torch.ones(ROWS, CLASSES, dtype=torch.float64)
    weights[:40, 1] = 0
    found = Problem(x, signs, loss="sigmoid", weights=weights).fit(1e-2, tolerance=1e-10, iterations=1000)
    alone = Problem(x[40:], signs[40:, 1:2], loss="sigmoid").fit(1e-2 * ROWS / 80, tolerance=1e-10, iterations=1000)
    np.testing.assert_allclose(found.weight[1], alone.weight[0], atol=1e-6)


@pytest.mark.parametrize("numbers", [1, 100, 2**21])
@pytest.mark.parametrize("resident", [0, 2**28])
def test_blocks_do_not_matter(monkeypatch, numbers, resident):
    x, y = problem()
    expected = Problem(x, y).fit(1e-2, tolerance=1e-9)
    monkeypatch.setitem(convex._BLOCK_NUMBERS, "cpu", numbers)
    monkeypatch.setattr(convex, "_RESIDENT_NUMBERS", resident)
    found = Problem(x, y).fit(1e-2, tolerance=1e-9)
    np.testing.assert_allclose(found.weight, expected.weight, atol=1e-7)
    np.testing.assert_array_equal(found.predicted(x), expected.predicted(x))
    np.testing.assert_allclose(found.scores(x), x @ expected.weight.T + expected.bias, atol=1e-5)


def test_rows_are_left_as_they_are():
    x, y = problem()
    before = x.clone()
    Problem(x, y).fit(1e-2)
    assert torch.equal(x, before)


def test_single_precision():
    x, y = problem()
    wanted = reference(x, y, 1.0)
    found = Problem(x.float(), y).fit(1 / ROWS, tolerance=1e-6, iterations=1000)
    assert found.weight.dtype == torch.float32
    np.testing.assert_allclose(found.weight, wanted.coef_, atol=2e-3)


def test_a_path_is_its_fits_and_quicker():
    x, y = problem()
    penalties = [0.5**i for i in range(1, 11)]
    for tolerance, atol, share in ((1e-8, 1e-4, 1.2), (1e-4, 0.1, 0.8)):
        along = list(Problem(x, y).path(penalties, tolerance=tolerance, iterations=500))
        alone = [Problem(x, y).fit(l2, tolerance=tolerance, iterations=500) for l2 in penalties]
        for a, b in zip(along, alone, strict=True):
            np.testing.assert_allclose(a.weight, b.weight, atol=atol)
        assert sum(x.passes for x in along) < share * sum(x.passes for x in alone)


def test_a_start_is_where_it_begins():
    x, y = problem()
    fitted = Problem(x, y)
    found = fitted.fit(1e-2, tolerance=1e-8)
    again = fitted.fit(1e-2, found, tolerance=1e-7)
    assert again.passes == 1
    np.testing.assert_allclose(again.weight, found.weight, atol=1e-9)
    np.testing.assert_allclose(again.bias, found.bias, atol=1e-9)


def test_it_ends_after_so_many_steps():
    x, y = problem()
    found = Problem(x, y).fit(1e-4, tolerance=0.0, iterations=3)
    assert 4 <= found.passes <= 3 * 12


def test_a_step_that_does_not_help_is_shortened():
    """With an inverse that is a hundred times too large the first step leads far away."""

    def objective(point):
        return float(point.square().sum()), 2 * point, float(2 * point.abs().max())

    start = torch.ones(1, 3, dtype=torch.float64)
    found = minimum(objective, start, torch.full_like(start, 50.0), tolerance=1e-8, iterations=50)
    np.testing.assert_allclose(found.point, 0, atol=1e-8)
    assert found.calls < 20


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0,), {}, "penalty must be positive"),
        ((1.0,), {"loss": "hinge"}, "loss must be one of softmax, sigmoid, squared hinge"),
        ((1.0,), {"loss": "sigmoid"}, "needs -1 or 1 for every class"),
        ((1.0,), {"weights": torch.ones(ROWS, CLASSES)}, "weights are factors"),
    ],
)
def test_what_is_refused(unchecked, arguments, options, message):
    x, y = problem()
    with pytest.raises(ValueError, match=message):
        Problem(x, y, **options).fit(*arguments)
