"""Weighted nearest neighbours against plain loops; ties, clipping, leaving one out."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prototile.evaluation import knn

MODULE = sys.modules["prototile.evaluation.knn"]  # the function has the module's name


def plain(train: Tensor, y: Tensor, test: Tensor, k: int, temperature: float, classes: int) -> list[list[int]]:
    """For each test row the classes from the most to the least voted, by sorting."""
    order = []
    for row in F.normalize(test.double(), dim=1):
        cosines = [float(row @ other) for other in F.normalize(train.double(), dim=1)]
        nearest = sorted(range(len(train)), key=lambda j: (-cosines[j], j))[:k]
        votes = [sum(math.exp(cosines[j] / temperature) for j in nearest if y[j] == c) for c in range(classes)]
        order.append(sorted((c for c in range(classes) if votes[c]), key=lambda c: (-votes[c], c)))
    return order


def problem(classes: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    centres = torch.randn(classes, 6)
    y, wanted = torch.randint(classes, (60,)), torch.randint(classes, (25,))
    return centres[y] + torch.randn(60, 6), y, centres[wanted] + torch.randn(25, 6), wanted


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equals_plain_loops(temperature):
    train, y, test, wanted = problem()
    found = knn(train, y, test, wanted, (1, 5, 20, 60), temperature=temperature)
    for k in (1, 5, 20, 60):
        order = plain(train, y, test, k, temperature, 8)
        assert found.top1[k] == sum(int(w) in o[:1] for w, o in zip(wanted, order, strict=True)) / 25
        assert found.top5[k] == sum(int(w) in o[:5] for w, o in zip(wanted, order, strict=True)) / 25
    assert 0.3 < found.accuracy < 1
    assert found.images == 25
    assert found.accuracy == max(found.top1.values()) == found.top1[found.best_k]


@pytest.mark.parametrize("numbers", [1, 60 * 7, 2**24])
def test_blocks_do_not_matter(monkeypatch, numbers):
    train, y, test, wanted = problem()
    expected = knn(train, y, test, wanted, (3, 10))
    monkeypatch.setattr(MODULE, "_BLOCK_NUMBERS", numbers)
    assert knn(train, y, test, wanted, (3, 10)) == expected


@pytest.mark.parametrize("numbers", [1, 7, 2**24])
def test_equally_near_ones_vote_in_order(monkeypatch, numbers):
    """Of 40 copies of one image the first vote, whatever `topk` prefers, in whatever blocks they come."""
    monkeypatch.setattr(MODULE, "_BLOCK_NUMBERS", numbers)
    y = torch.tensor([2] * 3 + [1] * 37)
    train, test = torch.ones(40, 4), torch.ones(1, 4)
    found = knn(train, y, test, torch.tensor([2]), (1, 3, 5, 7))
    assert found.top1 == {1: 1, 3: 1, 5: 1, 7: 0}
    assert found.top5[7] == 1
    assert found.best_k == 1, "the smallest among equals"


@pytest.mark.parametrize("few", [0, 8])
def test_later_blocks_hold_nearer_ones(monkeypatch, few):
    """Training images come nearer and nearer: all that was found before is replaced, one by one or all at once."""
    monkeypatch.setattr(MODULE, "_BLOCK_NUMBERS", 8)
    monkeypatch.setattr(MODULE, "_FEW", few)
    angle = torch.linspace(3, 0.01, 64).repeat_interleave(2)  # in pairs: the first of both votes first
    train = torch.stack([angle.cos(), angle.sin()], 1)
    y, query = torch.arange(128), torch.tensor([[1.0, 0.0]])
    assert knn(train, y, query, torch.tensor([126]), (1, 3)).top1 == {1: 1, 3: 1}
    assert knn(train, y // 2, query, torch.tensor([63]), (1, 2)).top1 == {1: 1, 2: 1}


def test_equally_voted_classes_come_in_order():
    train, test = torch.eye(3), torch.tensor([[1.0, 1, 0]])
    for wanted, right in ((0, 1), (1, 0)):
        assert knn(train, torch.tensor([1, 0, 2]), test, torch.tensor([wanted]), (2,)).top1 == {2: right}


def test_a_class_without_votes_is_never_right():
    found = knn(torch.eye(3), torch.tensor([1, 1, 1]), torch.eye(3), torch.tensor([0, 1, 4]), (1,))
    assert found.top1 == {1: pytest.approx(1 / 3)}
    assert found.top5 == {1: pytest.approx(1 / 3)}


def test_leaving_one_out():
    """Pairs of neighbours: with itself every image is right, without it its twin decides."""
    x = torch.tensor([[1.0, 0], [1, 0.01], [0, 1], [0.01, 1]])
    y = torch.tensor([0, 1, 2, 2])
    assert knn(x, y, x, y, (1,)).accuracy == 1
    assert knn(x, y, x, y, (1,), leave_one_out=True).accuracy == 0.5


def test_leaving_one_out_equals_plain_loops(monkeypatch):
    monkeypatch.setattr(MODULE, "_BLOCK_NUMBERS", 60 * 7)
    x, y, _, _ = problem()
    rest = [[j for j in range(60) if j != i] for i in range(60)]
    right = sum(plain(x[rest[i]], y[rest[i]], x[i : i + 1], 5, 0.07, 8)[0][0] == y[i] for i in range(60))
    assert knn(x, y, x, y, (5,), leave_one_out=True).top1 == {5: right / 60}


def test_images_without_a_label_are_left_out():
    train, y, test, wanted = problem()
    expected = knn(train[:50], y[:50], test[:20], wanted[:20])
    y[50:], wanted[20:] = -1, -1
    assert knn(train, y, test, wanted) == expected
    assert expected.images == 20


def test_more_neighbours_than_there_are():
    train, y, test, wanted = problem()
    with pytest.warns(UserWarning, match="k = 200 of 60 neighbours"):
        found = knn(train, y, test, wanted, (10, 100, 200))
    assert list(found.top1) == [10, 60]


def test_far_vectors_vote_in_any_temperature():
    found = knn(-torch.eye(2), torch.tensor([0, 1]), torch.eye(2), torch.tensor([1, 0]), (1,), temperature=1e-4)
    assert found.accuracy == 1


def test_results_read_well():
    found = knn(torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3), (1, 2))
    assert str(found) == "kNN 100.0% (k = 1) of 3 images"
    assert found.as_dict() == {
        "top1": {1: 1.0, 2: 1.0},
        "top5": {1: 1.0, 2: 1.0},
        "images": 3,
        "best_k": 1,
        "accuracy": 1.0,
    }


X, Y = torch.eye(3), torch.arange(3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((X, Y[:2], X, Y), {}, "training images need one class each"),
        ((X, Y, X, X.long()), {}, "test images need one class each"),
        ((X, Y - 9, X, Y), {}, "no training image has a label"),
        ((X, Y, X, Y - 9), {}, "no test image has a label"),
        ((X, Y, X[:, :2], Y), {}, "3 and of 2 dims"),
        ((X / 0, Y, X, Y), {}, "training features hold NaN"),
        ((X, Y, X, Y), {"ks": ()}, "at least 1"),
        ((X, Y, X, Y), {"ks": (0,)}, "at least 1"),
        ((X, Y, X, Y), {"temperature": 0.0}, "must be positive"),
        ((X, Y, X + 1, Y), {"leave_one_out": True}, "same features"),
        ((X[:1], Y[:1], X[:1], Y[:1]), {"leave_one_out": True}, "at least two"),
    ],
)
def test_what_is_refused(unchecked, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        knn(*arguments, **options)
