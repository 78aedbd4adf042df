"""Figures: what is drawn, not how it looks."""

import io

import matplotlib
import numpy as np
import pytest

from prototile.data.longtail import ClassCounts, Exponential, Groups
from prototile.reports import class_counts


def counts_of(values) -> ClassCounts:
    return ClassCounts(np.asarray(values), tuple(f"class {k}" for k in range(len(values))))


@pytest.mark.parametrize("num_classes", [1, 10, 100, 8142])
def test_class_counts_draws_every_class(num_classes):
    counts = counts_of(np.random.default_rng(0).permutation(Exponential(100)(num_classes, 1000)))
    figure = class_counts(counts)
    figure.savefig(io.BytesIO(), format="png")  # warnings are errors
    heights = np.stack([patch.get_data().values for patch in figure.axes[0].patches])
    np.testing.assert_array_equal(np.nansum(heights, axis=0), np.sort(counts.counts)[::-1])
    assert (np.isfinite(heights).sum(axis=0) == 1).all()


def test_groups_are_named_in_the_legend():
    figure = class_counts(counts_of([7, 1000, 3, 50]))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "head: 1 classes\n1,000 images",
        "middle: 1 classes\n50 images",
        "tail: 2 classes\n10 images",
    ]


def test_groups_can_be_given():
    counts = np.array([600, 500, 400])
    default, thirds = class_counts(counts_of(counts)), class_counts(counts_of(counts), Groups.by_thirds(counts))
    assert [len(figure.axes[0].patches) for figure in (default, thirds)] == [1, 3]


@pytest.mark.parametrize(("values", "scale"), [([100, 10], "linear"), ([101, 10], "log"), ([100, 0], "log")])
def test_the_scale_follows_the_imbalance(values, scale):
    axes = class_counts(counts_of(values)).axes[0]
    assert axes.get_yscale() == scale
    assert axes.get_ylim()[0] < max(min(values), 1)


def test_few_classes_are_named_many_are_not():
    names = [label.get_text() for label in class_counts(counts_of([1, 30, 20])).axes[0].get_xticklabels()]
    assert names == ["class 1", "class 2", "class 0"]
    assert class_counts(counts_of(range(1, 40))).axes[0].get_xlabel() == "class, from the largest on"


def test_long_names_leave_room():
    figure = class_counts(ClassCounts(np.arange(1, 31), tuple(f"{k:065}" for k in range(30))))
    figure.savefig(io.BytesIO(), format="png")
    assert figure.axes[0].get_position().height > 0.3
    assert {len(label.get_text()) for label in figure.axes[0].get_xticklabels()} == {28}


def test_pyplot_stays_out_of_it():
    backend = matplotlib.get_backend(auto_select=False)
    class_counts(counts_of([3, 2]))
    assert matplotlib.get_backend(auto_select=False) == backend
