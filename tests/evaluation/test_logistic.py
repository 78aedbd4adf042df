"""The transfer protocol against scikit-learn's logistic regression, run along the same grid."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

from prototile.evaluation.logistic import GRID, logistic
from prototile.evaluation.scores import mean_average_precision
from prototile.evaluation.splits import held_out

CLASSES = 4
CS = tuple(10.0**k for k in range(-4, 4))


def problem(rows: int = 150, noise: float = 1.5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    centres = torch.randn(CLASSES, 6)
    parts = []
    for n in (rows, 100):
        y = torch.randint(CLASSES, (n,))
        parts += [centres[y] + noise * torch.randn(n, 6), y]
    return tuple(parts)


def along_the_grid(x, y, queries, wanted, cs, score) -> tuple[float, dict[float, float]]:
    """scikit-learn's, from the weakest regularisation on; a better one must be strictly better."""
    curve, best = {}, None
    for c in sorted(cs, reverse=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = LogisticRegression(C=c, tol=1e-7, max_iter=2000).fit(x.numpy(), y.numpy())
        curve[c] = score(wanted.numpy(), fitted.predict(queries.numpy()))
        if best is None or curve[c] > curve[best]:
            best = c
    return best, curve


def top1(wanted: np.ndarray, found: np.ndarray) -> float:
    return float((wanted == found).mean())


def test_the_grid():
    assert len(GRID) == 45
    assert GRID[0] == pytest.approx(1e-5)
    assert GRID[-1] == pytest.approx(1e6)
    assert np.diff(np.log10(GRID)) == pytest.approx(np.full(44, 0.25))


@pytest.mark.parametrize(("metric", "score"), [("top1", top1), ("mean per class", balanced_accuracy_score)])
def test_equals_scikit_learn(metric, score):
    train, y, test, wanted = problem()
    found = logistic(train, y, test, wanted, metric=metric, cs=CS, tolerance=1e-6, iterations=1000)
    kept, held = held_out(y, 0.2)
    best, curve = along_the_grid(train[kept], y[kept], train[held], y[held], CS, score)
    assert found.c == best
    assert found.curve == pytest.approx(curve, abs=1e-9)
    refitted = LogisticRegression(C=best, tol=1e-7, max_iter=2000).fit(train.numpy(), y.numpy())
    predicted = refitted.predict(test.numpy())
    assert found.value == pytest.approx(score(wanted.numpy(), predicted))
    np.testing.assert_array_equal(found.right, predicted == wanted.numpy())
    assert (found.selected_on, found.images) == ("validation", 100)


def test_choosing_on_the_test_images():
    train, y, test, wanted = problem()
    found = logistic(train, y, test, wanted, select_on="test", cs=CS, tolerance=1e-6, iterations=1000)
    best, curve = along_the_grid(train, y, test, wanted, CS, top1)
    assert (found.c, found.selected_on) == (best, "test")
    assert found.curve == pytest.approx(curve, abs=1e-9)
    assert found.value == max(curve.values())


def test_a_validation_split_joins_the_training_images():
    train, y, test, wanted = problem()
    kept, held = held_out(y, 0.2)
    split = logistic(train[kept], y[kept], test, wanted, validation=(train[held], y[held]), cs=CS, tolerance=1e-6)
    drawn = logistic(train, y, test, wanted, cs=CS, tolerance=1e-6)
    assert split.curve == drawn.curve
    assert split.value == drawn.value


def test_of_equal_ones_the_largest():
    x = torch.tensor([[-1.0], [1.0]]).repeat(10, 1)
    y = torch.tensor([0, 1]).repeat(10)
    assert logistic(x, y, x, y, cs=(1.0, 10.0, 100.0)).c == 100


def test_several_classes_of_an_image():
    """One regression each; difficult images are negative in training and left out of the test."""
    x = torch.randn(120, 5)
    truth = (x @ torch.randn(5, 3) + 0.3 * torch.randn(120, 3)) > 0.5
    labels = torch.where(truth, 1, -1)
    labels[::7, 1] = 0
    found = logistic(
        x[:80], labels[:80], x[80:], labels[80:], metric="mAP 11", cs=(1.0,), select_on="test", tolerance=1e-7,
        iterations=1000,
    )  # fmt: skip
    scores = np.stack([
        LogisticRegression(C=1.0, tol=1e-9, max_iter=5000)
        .fit(x[:80].numpy(), (labels[:80, k] == 1).numpy())
        .decision_function(x[80:].numpy())
        for k in range(3)
    ], 1)  # fmt: skip
    value, each = mean_average_precision(torch.from_numpy(scores), labels[80:], "eleven")
    assert found.value == pytest.approx(value, abs=1e-9)
    assert found.each == pytest.approx(each, abs=1e-9)
    assert found.right is None
    chosen = logistic(x[:80], labels[:80], x[80:], labels[80:], metric="mAP 11", cs=CS)
    assert chosen.c in CS


def test_standardised_features():
    train, y, test, wanted = problem()
    expected = logistic(train, y, test, wanted, cs=CS, standardise=True)
    scale = torch.tensor([1.0, 10, 100, 0.1, 1, 1])
    moved = logistic(train * scale + 3, y, test * scale + 3, wanted, cs=CS, standardise=True)
    assert moved.value == pytest.approx(expected.value, abs=0.011)


def test_images_without_a_label_are_left_out():
    train, y, test, wanted = problem()
    expected = logistic(train[:120], y[:120], test[:80], wanted[:80], cs=CS)
    y[120:], wanted[80:] = -1, -1
    assert logistic(train, y, test, wanted, cs=CS).as_dict() == expected.as_dict()


def test_results_read_well():
    train, y, test, wanted = problem()
    found = logistic(train, y, test, wanted, cs=(1.0,))
    assert str(found) == f"logistic {found.value:.1%} (top1) of 100 images (C = 1)"
    assert set(found.as_dict()) == {"metric", "value", "images", "c", "curve", "selected_on", "passes", "each"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cs": ()}, "C must be positive"),
        ({"cs": (0.0,)}, "C must be positive"),
        ({"select_on": "train"}, "select_on must be"),
        ({"metric": "mAP 11"}, "mAP is for several"),
    ],
)
def test_what_is_refused(unchecked, options, message):
    with pytest.raises(ValueError, match=message):
        logistic(*problem(), **options)
