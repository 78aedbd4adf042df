"""The quick linear probe against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from prototile.evaluation import linear
from prototile.evaluation.linear import _fitted


def problem(classes: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    centres = torch.randn(classes, 7)
    y, wanted = torch.arange(120) % classes, torch.arange(80) % classes
    scale = torch.tensor([1.0, 10, 0.1, 1, 1, 1, 100])
    return (centres[y] + torch.randn(120, 7)) * scale, y, (centres[wanted] + torch.randn(80, 7)) * scale, wanted


@pytest.mark.parametrize("l2", [1e-3, 0.1])
def test_equals_scikit_learn(l2):
    train, y, test, wanted = problem()
    mean, std = train.mean(0), train.std(0, correction=0)
    x, queries = ((part - mean) / std for part in (train, test))
    reference = LogisticRegression(C=1 / (l2 * 120), tol=1e-8, max_iter=1000).fit(x.double().numpy(), y.numpy())
    found = linear(train, y, test, wanted, l2=l2)
    assert found.accuracy == pytest.approx(reference.score(queries.double().numpy(), wanted.numpy()), abs=1 / 80)
    assert found.train_accuracy == pytest.approx(reference.score(x.double().numpy(), y.numpy()), abs=1 / 120)
    weight, _ = _fitted(x.double(), y, 5, l2, 500)
    np.testing.assert_allclose(weight.T.numpy(), reference.coef_, atol=2e-3)
    assert 0.5 < found.accuracy < 1


def test_scales_and_shifts_of_features_do_not_matter():
    train, y, test, wanted = problem()
    found = linear(train, y, test, wanted)
    scale, shift = torch.rand(7) + 0.5, torch.randn(7)
    moved = linear(train * scale + shift, y, test * scale + shift, wanted)
    assert moved.accuracy == pytest.approx(found.accuracy, abs=1 / 80)


def test_a_constant_dim_says_nothing():
    train, y, test, wanted = problem()
    found = linear(train, y, test, wanted)
    more = [torch.cat([part, torch.full((len(part), 1), 3.0)], 1) for part in (train, test)]
    assert linear(more[0], y, more[1], wanted).accuracy == found.accuracy
    jumping = torch.cat([test, 1e6 * torch.ones(80, 1)], 1)
    assert np.isfinite(linear(more[0], y, jumping, wanted).accuracy)


def test_images_without_a_label_and_classes_without_images():
    train, y, test, wanted = problem()
    expected = linear(train[:100], y[:100], test[:60], wanted[:60])
    y[100:], wanted[60:] = -1, -1
    assert linear(train, y, test, wanted) == expected
    assert expected.images == 60
    only = linear(train, torch.where(y >= 0, 0, -1), test, torch.full((80,), 7))
    assert (only.accuracy, only.train_accuracy) == (0, 1)


def test_gradients_may_be_off_and_stay_so():
    train, y, test, wanted = problem()
    with torch.no_grad():
        assert linear(train, y, test, wanted).accuracy > 0.5
        assert not torch.is_grad_enabled()


def test_results_read_well_and_errors_tell():
    train, y, test, wanted = problem()
    found = linear(train, y, test, wanted, l2=0.01)
    assert str(found) == f"linear {found.accuracy:.1%} of 80 images (l2 = 0.01)"
    assert set(found.as_dict()) == {"accuracy", "train_accuracy", "images", "l2"}
    with pytest.raises(ValueError, match="l2 must not be negative"):
        linear(train, y, test, wanted, l2=-1.0)
    with pytest.raises(ValueError, match="no test image has a label"):
        linear(train, y, test, wanted * 0 - 1)
