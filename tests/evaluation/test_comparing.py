"""Paired tests against scipy and by hand."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch

from prototile.evaluation.comparing import compare, compare_all, mcnemar, paired_t
from prototile.evaluation.records import Record, packed, packed_classes

IMAGES = 400


def record(*right: torch.Tensor, **changes) -> Record:
    values = tuple(float(x.double().mean()) for x in right)
    made = Record(
        "knn", "top1", float(np.mean(values)), IMAGES, tuple(range(len(right))), values,
        right=tuple(packed(x) for x in right), data={"test hash": "t"},
    )  # fmt: skip
    return replace(made, **changes)


def answers(share: float, seed: int) -> torch.Tensor:
    return torch.rand(IMAGES, generator=torch.Generator().manual_seed(seed)) < share


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 5), (12, 3), (3, 12), (300, 200), (40, 41)])
def test_mcnemar_is_the_binomial_test(better, worse):
    wanted = scipy.stats.binomtest(better, better + worse).pvalue if better + worse else 1
    assert mcnemar(better, worse) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("size", [2, 3, 5, 20])
def test_t_is_scipys(size):
    x = np.random.default_rng(size).normal(0.3, 1, size)
    p, low, high = paired_t(x)
    wanted = scipy.stats.ttest_1samp(x, 0)
    assert p == pytest.approx(wanted.pvalue, rel=1e-6)
    interval = wanted.confidence_interval()
    assert (low, high) == pytest.approx((interval.low, interval.high), rel=1e-6)
    assert paired_t(np.zeros(3))[0] == 1
    assert paired_t(np.ones(3))[0] == 0


def test_by_images():
    a, b = answers(0.6, 0), answers(0.75, 1)
    found = compare(record(a), record(b))
    assert (found.better, found.worse) == (int((b & ~a).sum()), int((a & ~b).sum()))
    assert found.p == mcnemar(found.better, found.worse)
    assert found.difference == pytest.approx(float(b.double().mean() - a.double().mean()))
    assert found.low < found.difference < found.high
    assert (found.test, found.pairs) == ("McNemar, exact", IMAGES)
    assert str(found).startswith(f"knn (top1): {100 * found.first:.2f}% -> {100 * found.second:.2f}%, +")
    assert found.as_dict()["difference"] == found.difference


def test_of_several_seeds_by_bootstrap():
    a, b = [answers(0.6, i) for i in range(3)], [answers(0.7, 10 + i) for i in range(3)]
    found = compare(record(*a), record(*b))
    assert found.test == "bootstrap of 400 images"
    gain = np.mean([x.double().numpy() for x in b], 0) - np.mean([x.double().numpy() for x in a], 0)
    random = np.random.default_rng(1)
    drawn = np.array([gain[random.integers(IMAGES, size=IMAGES)].mean() for _ in range(4000)])
    assert found.low == pytest.approx(np.quantile(drawn, 0.025), abs=0.01)
    assert found.high == pytest.approx(np.quantile(drawn, 0.975), abs=0.01)
    assert found.p < 0.01
    assert compare(record(*a), record(*a)).p == 1
    assert compare(record(*a), record(*b)) == found, "the same each time"


def test_means_over_classes_are_drawn_within_classes():
    """A small class weighs as much as a large one."""
    labels = torch.tensor([0] * 390 + [1] * 10)
    a, b = answers(0.5, 0), answers(0.5, 0)
    b[390:] = True
    changes = {"metric": "mean per class", "classes": packed_classes(labels)}
    first, second = (
        record(x, value=float((x[:390].double().mean() + x[390:].double().mean()) / 2), **changes) for x in (a, b)
    )
    found = compare(first, second)
    assert found.test == "bootstrap of 400 images"
    assert found.better == 4
    ends = scipy.stats.binom(10, 0.4).ppf([0.025, 0.975]) / 10 / 2  # of the small class; the large one has no change
    assert (found.low, found.high) == pytest.approx(tuple(ends))
    assert found.difference == pytest.approx(float(1 - a[390:].double().mean()) / 2)


def test_by_seeds_where_images_are_unknown():
    first = Record("svm", "mAP", 0.5, 10, (0, 1, 2), (0.5, 0.6, 0.4))
    second = replace(first, value=0.6, values=(0.6, 0.68, 0.52))
    found = compare(first, second)
    assert found.test == "t over 3 seeds"
    assert found.p == pytest.approx(scipy.stats.ttest_rel(second.values, first.values).pvalue, rel=1e-6)
    assert (found.better, found.worse) == (3, 0)
    alone = compare(replace(first, seeds=(0,), values=(0.5,)), replace(second, seeds=(0,), values=(0.6,)))
    assert alone.p is None
    assert str(alone).endswith("no test: one seed each, and no record of which images were right")


def test_what_cannot_be_compared():
    a = record(answers(0.5, 0))
    for changes in ({"metric": "top5"}, {"data": {"test hash": "u"}}, {"options": {"ks": [1]}}):
        with pytest.raises(ValueError, match="not of the same protocol, options and test images"):
            compare(a, replace(a, **changes))


def test_all_that_is_shared():
    a = record(answers(0.5, 0))
    newer, other = replace(a, value=0.9), replace(a, protocol="linear")
    found = compare_all([a, other, newer], [a, replace(a, protocol="svm")])
    assert [(x.protocol, x.first) for x in found] == [("knn", 0.9)]
