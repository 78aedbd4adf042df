"""Low-shot classification against scikit-learn; its splits, drawn, kept and official."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from prototile.evaluation.lowshot import LAMBDA, Split, low_shot, official_lists, rows_by_themselves, splits_of
from prototile.evaluation.splits import read_ids

CLASSES = 5


def problem(rows: int = 100, dims: int = 12):
    centres = torch.randn(CLASSES, dims)
    found = []
    for n in (rows, 80):
        y = torch.arange(n) % CLASSES
        found += [centres[y] + torch.randn(n, dims), y]
    return found


def test_rows_lose_their_own_mean():
    x = torch.tensor([[3.0, 1.0, 2.0], [4.0, 4.0, 10.0]])
    found = rows_by_themselves(x)
    torch.testing.assert_close(found[0], torch.tensor([1.0, -1.0, 0.0]) / 2**0.5)
    torch.testing.assert_close(found[1], torch.tensor([-1.0, -1.0, 2.0]) / 6**0.5)


@pytest.mark.parametrize("penalty", [LAMBDA, 0.0025, 0.1])
@pytest.mark.parametrize("images", [1, 5])
def test_equals_scikit_learn(penalty, images):
    """C = 1 / lambda: cyanure divides the penalty by n, scikit-learn sums the losses."""
    train, y, test, wanted = problem()
    part = Split(images).drawn(y)
    found = low_shot(train, y, test, wanted, [part], penalty=penalty, tolerance=1e-7, iterations=1000)
    x = rows_by_themselves(train.double())
    regression = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-10, max_iter=20_000)
    regression.fit(x[part].numpy(), y[part].numpy())
    predicted = regression.predict(rows_by_themselves(test.double()).numpy())
    assert found.values[0] == pytest.approx((predicted == wanted.numpy()).mean(), abs=1.01 / 80)
    np.testing.assert_array_less((found.right[0].numpy() != (predicted == wanted.numpy())).sum(), 2)
    assert found.learned == [images * CLASSES]


def test_the_mean_of_splits():
    train, y, test, wanted = problem()
    parts = list(splits_of(2, 3, y, []).values())
    assert len({tuple(part.tolist()) for part in parts}) == 3
    found = low_shot(train, y, test, wanted, parts, name="2 per class")
    alone = [low_shot(train, y, test, wanted, [part]).value for part in parts]
    assert found.values == alone
    assert found.value == pytest.approx(np.mean(alone))
    assert found.standard_error == pytest.approx(np.std(alone, ddof=1) / 3**0.5)
    assert str(found).startswith(f"low-shot {found.value:.1%} ± ")
    assert found.as_dict()["learned"] == [10, 10, 10]


def test_splits_are_kept(tmp_path):
    y = torch.arange(40) % 4
    ids = [f"class{k}/{i}.png" for i, k in enumerate(y.tolist())]
    found = splits_of(2, 3, y, ids, kept=tmp_path)
    assert list(found) == ["2-per-class-0.txt", "2-per-class-1.txt", "2-per-class-2.txt"]
    for name, part in found.items():
        assert torch.equal(read_ids(tmp_path / name, ids), part)
        assert torch.bincount(y[part]).tolist() == [2] * 4
    assert list(splits_of(0.1, 1, y, ids, kept=tmp_path)) == ["10percent-0.txt"]
    assert (tmp_path / "10percent-0.txt").read_text().count("\n") == 4


def test_official_lists(tmp_path):
    """Three folders; the third's five images are called after three; 1% is in the first one only."""
    ids = [f"n{k}/n{k}_{i}.JPEG" for k in range(2) for i in range(4)]
    for folder, name, content in (
        ("imagenet_subsets1", "5imgs_class.txt", "n0_1.JPEG\n"),
        ("imagenet_subsets2", "5imgs_class.txt", "n0_2.JPEG\n"),
        ("imagenet_subsets3", "3imgs_class.txt", "n1_3.JPEG\n"),
        ("imagenet_subsets1", "1percent.txt", "n1_0.JPEG\n"),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(content)
    y = torch.tensor([0] * 4 + [1] * 4)
    assert [x.tolist() for x in splits_of(5, 3, y, ids, official=tmp_path).values()] == [[1], [2], [7]]
    assert [x.tolist() for x in splits_of(0.01, 1, y, ids, official=tmp_path).values()] == [[4]]
    assert official_lists(tmp_path, 1) == []
    assert official_lists(tmp_path, 0.1) == []


def test_what_is_refused(unchecked):
    train, y, test, wanted = problem()
    with pytest.raises(ValueError, match="a split at least"):
        low_shot(train, y, test, wanted, [])
    with pytest.raises(ValueError, match="penalty must be positive"):
        low_shot(train, y, test, wanted, [torch.arange(5)], penalty=0.0)
    with pytest.raises(ValueError, match="one of both"):
        Split(None)
