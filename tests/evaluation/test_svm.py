"""VOC's support vector machines against scikit-learn's, with its cross-validation."""

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.svm import LinearSVC

from prototile.evaluation.scores import mean_average_precision
from prototile.evaluation.svm import COSTS, VISSL_COSTS, _folds, support_vectors

SOME = (0.01, 0.1, 1.0, 10.0)


def problem(rows: int = 90):
    x = torch.randn(rows + 60, 6) + 0.5
    scores = x @ torch.randn(6, 3) + torch.randn(rows + 60, 3)
    labels = torch.where(scores > scores.quantile(0.7, 0), 1, -1)
    labels[::9, 1] = 0
    return x[:rows], labels[:rows], x[rows:], labels[rows:]


def test_costs():
    assert len(COSTS) == 23
    assert COSTS[:3] == pytest.approx((1e-6, 3e-6, 1e-5))
    assert (COSTS[11], COSTS[12], COSTS[-1]) == (pytest.approx(0.3), 1, 1000)
    assert len(VISSL_COSTS) == 11


def test_folds_are_scikit_learns():
    _, labels, _, _ = problem(91)
    folds = _folds(labels == 1, 3)
    assert sorted(folds.unique().tolist()) == [0, 1, 2]
    for k in range(3):
        sizes = torch.bincount(folds[labels[:, k] == 1, k])
        assert sizes.max() - sizes.min() <= 1
        for fold, (_, held) in enumerate(StratifiedKFold(3).split(labels, labels[:, k] == 1)):
            mine = (folds[:, k] == fold).nonzero().flatten()
            assert abs(len(mine) - len(held)) <= 2


def test_equals_scikit_learn():
    train, labels, test, wanted = problem()
    found = support_vectors(train, labels, test, wanted, costs=SOME, tolerance=1e-7, iterations=5000)
    x, queries = (part.double() / (part.double().norm(dim=1, keepdim=True) + 1e-5) for part in (train, test))
    scores = []
    for k in range(3):
        positive = (labels[:, k] == 1).numpy()
        mine = _folds(labels == 1, 3)[:, k].numpy()
        splits = [(np.flatnonzero(mine != fold), np.flatnonzero(mine == fold)) for fold in range(3)]
        curve = []
        for c in SOME:
            machine = LinearSVC(C=c, dual=False, tol=1e-9, max_iter=100_000, class_weight={True: 2, False: 1})
            curve.append(cross_val_score(machine, x.numpy(), positive, cv=splits, scoring="average_precision").mean())
        assert found.validation[k] == pytest.approx(max(curve), abs=1e-3)
        best = SOME[int(np.argmax(np.round(curve, 6)))]
        assert found.costs[k] == best
        machine = LinearSVC(C=best, dual=False, tol=1e-9, max_iter=100_000, class_weight={True: 2, False: 1})
        scores.append(machine.fit(x.numpy(), positive).decision_function(queries.numpy()))
    value, each = mean_average_precision(torch.from_numpy(np.stack(scores, 1)), wanted, "envelope")
    assert found.value == pytest.approx(value, abs=1e-3)
    assert found.each == pytest.approx(each, abs=3e-3)
    assert str(found) == f"SVM {found.value:.1%} (mAP of 3 classes) of 60 images"
    assert set(found.as_dict()) == {"value", "images", "each", "costs", "selected_on", "validation"}


def test_what_is_refused(unchecked):
    train, labels, test, wanted = problem()
    with pytest.raises(ValueError, match="every class needs 3 images"):
        support_vectors(train, torch.full_like(labels, -1), test, wanted)
    with pytest.raises(ValueError, match="costs must be positive"):
        support_vectors(train, labels, test, wanted, costs=())
    with pytest.raises(ValueError, match="1, 0 or -1 for each class"):
        support_vectors(train, labels[:, 0], test, wanted)
