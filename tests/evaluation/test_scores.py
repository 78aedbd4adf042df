"""Metrics against scikit-learn and by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from prototile.evaluation.scores import (
    average_precision,
    class_accuracies,
    grouped,
    mean_average_precision,
    mean_per_class,
)


def test_mean_per_class():
    """Three of four of class 0, none of one of class 2; class 1 has no images."""
    labels, right = torch.tensor([0, 0, 0, 0, 2]), torch.tensor([True, True, False, True, False])
    assert class_accuracies(right, labels, 4).tolist()[::2] == [0.75, 0.0]
    assert class_accuracies(right, labels, 4)[1::2].isnan().all()
    assert mean_per_class(right, labels) == 0.375


def test_mean_per_class_is_scikit_learns_balanced_accuracy():
    labels, predicted = torch.randint(5, (200,)), torch.randint(5, (200,))
    found = mean_per_class(predicted == labels, labels)
    assert found == pytest.approx(balanced_accuracy_score(labels.numpy(), predicted.numpy()), abs=1e-12)


@pytest.mark.parametrize("levels", [3, 10, 10_000])
def test_steps_are_scikit_learns(levels):
    """With many equal scores, and with few."""
    scores, positive = torch.randint(levels, (300,)).float(), torch.rand(300) < 0.2
    found = average_precision(scores, positive)
    assert found == pytest.approx(average_precision_score(positive.numpy(), scores.numpy()), abs=1e-12)


# Ranked: right, wrong, right, wrong, wrong, right. Precision 1, 1/2, 2/3, 1/2, 2/5, 1/2 at recall 1/3, 1/3, 2/3, 2/3,
# 2/3, 1. The envelope is 1 up to recall 1/3, 2/3 up to 2/3, 1/2 up to 1. Of the eleven recalls 0, 0.1, 0.2, 0.3 see 1;
# 0.4, 0.5, 0.6 see 2/3; 0.7, 0.8, 0.9, 1 see 1/2.
RANKED = torch.tensor([6.0, 5, 4, 3, 2, 1]), torch.tensor([True, False, True, False, False, True])


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        ("steps", (1 + 2 / 3 + 1 / 2) / 3),
        ("envelope", (1 + 2 / 3 + 1 / 2) / 3),
        ("eleven", (4 * 1 + 3 * 2 / 3 + 4 * 1 / 2) / 11),
    ],
)
def test_by_hand(points, wanted):
    assert average_precision(*RANKED, points) == pytest.approx(wanted, abs=1e-12)


def test_the_envelope_looks_ahead():
    """Wrong, right, right: precision 1/2 and 2/3; the envelope is 2/3 throughout."""
    scores, positive = torch.tensor([3.0, 2, 1]), torch.tensor([False, True, True])
    assert average_precision(scores, positive, "steps") == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert average_precision(scores, positive, "envelope") == pytest.approx(2 / 3)
    assert average_precision(scores, positive, "eleven") == pytest.approx(2 / 3)


def test_recalls_of_tenths_are_reached():
    """Ten positive images: recall 0.3 is the third, which floating point would miss."""
    positive = torch.tensor([True, True, True, False] + [True] * 7)
    scores = -torch.arange(11.0)
    after = [10 / 11] * 7
    assert average_precision(scores, positive, "eleven") == pytest.approx((4 + sum(after)) / 11, abs=1e-12)


def test_without_positive_images():
    assert math.isnan(average_precision(torch.ones(3), torch.zeros(3, dtype=torch.bool)))


def test_mean_average_precision_leaves_difficult_images_out():
    """The first class is ranked perfectly but for a difficult image; the second has no positive one."""
    labels = torch.tensor([[0, -1], [1, -1], [-1, -1]])
    scores = torch.tensor([[9.0, 1], [5, 2], [1, 3]])
    value, each = mean_average_precision(scores, labels)
    assert value == each[0] == 1
    assert math.isnan(each[1])


def test_head_middle_and_tail_by_hand():
    """Counts 500, 101 | 100, 20 | 19, 1; class 3 has no test images."""
    counts = torch.tensor([500, 19, 100, 20, 101, 1])
    labels = torch.tensor([0, 0, 1, 2, 2, 2, 2, 4, 5])
    right = torch.tensor([True, False, True, True, False, False, False, True, False])
    found = grouped(right, labels, counts)
    head, middle, tail = (found.groups[name] for name in ("head", "middle", "tail"))
    assert (head.accuracy, head.classes, head.tested, head.images) == (0.75, 2, 2, 3)
    assert (middle.accuracy, middle.classes, middle.tested, middle.images) == (0.25, 2, 1, 4)
    assert (tail.accuracy, tail.classes, tail.tested, tail.images) == (0.5, 2, 2, 2)
    tested = list(found.groups.values())
    weighted = sum(x.accuracy * x.tested for x in tested) / sum(x.tested for x in tested)
    assert found.overall == pytest.approx(weighted) == pytest.approx(mean_per_class(right, labels))
    assert str(found) == "head 75.0% (2), middle 25.0% (2), tail 50.0% (2); all 55.0%"


def test_an_empty_group_is_nan():
    found = grouped(torch.tensor([True]), torch.tensor([0]), torch.tensor([1000]))
    assert found.groups["head"].accuracy == 1
    assert math.isnan(found.groups["tail"].accuracy)
    assert found.groups["tail"].classes == 0
    assert found.as_dict()["groups"]["middle"]["images"] == 0


def test_published_groups_add_up():
    """iNat18's 842, 3701 and 3599 classes with head 51.4, middle 43.9, tail 41.8: 43.8 over all, as is printed."""
    sizes = (842, 3701, 3599)
    counts = torch.tensor([101] * sizes[0] + [100] * sizes[1] + [19] * sizes[2])
    labels = torch.arange(sum(sizes)).repeat_interleave(10)
    hits = torch.from_numpy(np.repeat([5.14, 4.39, 4.18], sizes))
    exact = torch.diff((hits.cumsum(0) + 1e-6).floor(), prepend=torch.zeros(1))  # whole images, right in sum
    right = torch.arange(10).repeat(sum(sizes)) < exact.repeat_interleave(10)
    found = grouped(right, labels, counts)
    assert [round(100 * x.accuracy, 1) for x in found.groups.values()] == [51.4, 43.9, 41.8]
    assert round(100 * found.overall, 1) == 43.7  # 43.75 before rounding


def test_thirds():
    counts = torch.tensor([5000, 50, 500])
    found = grouped(torch.tensor([True, False, True]), torch.tensor([0, 1, 2]), counts, "thirds")
    assert [x.accuracy for x in found.groups.values()] == [1, 1, 0]


def test_what_is_refused():
    right, labels = torch.tensor([True]), torch.tensor([4])
    with pytest.raises(ValueError, match="class 4 has test images"):
        grouped(right, labels, torch.tensor([3, 3]))
