"""Long tails: profiles against known numbers, cuts from a source, and the groups of head, middle and tail."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prototile.data.longtail import (
    ClassCounts,
    Exponential,
    Groups,
    Power,
    Step,
    class_labels,
    group_means,
    long_tailed,
)
from prototile.data.source import Arrays


def source(sizes, classes=None) -> Arrays:
    """Images of one pixel, each of its own shade, with classes in a mixed order."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    images = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1)
    return Arrays(images, labels, classes)


def shades(subset) -> list[int]:
    return [int(subset.image(i)[0, 0, 0]) for i in range(len(subset))]


# --- profiles


def test_cifar_lt():
    """The class counts of CIFAR-10-LT, and the sizes of both, at their usual imbalances."""
    counts = Exponential(100)(10, 5000)
    assert counts.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert [int(Exponential(x)(10, 5000).sum()) for x in (100, 50, 10)] == [12406, 13996, 20431]
    assert int(Exponential(100)(100, 500).sum()) == 10847


def test_step_and_power():
    assert Step(10)(5, 100).tolist() == [100, 100, 100, 10, 10]
    assert Step(10, minority=0.8)(5, 100).tolist() == [100, 10, 10, 10, 10]
    assert Step(10, minority=0)(3, 100).tolist() == [100] * 3
    assert Power(1)(4, 12).tolist() == [12, 6, 4, 3]
    assert Power(0)(3, 5).tolist() == [5, 5, 5]


@given(
    profile=st.one_of(
        st.builds(Exponential, st.floats(1, 500)),
        st.builds(Power, st.floats(0, 1)),
        st.builds(Step, st.floats(1, 500), st.floats(0, 0.99)),
    ),
    num_classes=st.integers(1, 500),
    largest=st.integers(500, 10_000),
)
def test_profiles_fall_from_the_largest(profile, num_classes, largest):
    counts = profile(num_classes, largest)
    assert len(counts) == num_classes
    assert counts[0] == largest
    assert counts[-1] >= 1
    assert (np.diff(counts) <= 0).all()


@pytest.mark.parametrize(("profile", "largest"), [(Exponential(100), 100), (Power(2), 100), (Step(7), 7)])
def test_a_class_without_images_is_refused(profile, largest):
    assert profile(10, largest)[-1] == 1
    with pytest.raises(ValueError, match=rf"last of 10 classes without images .* largest class of at least {largest},"):
        profile(10, largest - 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Exponential(0.01), "imbalance is largest over smallest class, finite and at least 1, got 0.01"),
        (lambda: Step(float("inf")), "imbalance"),
        (lambda: Step(10, 1), "share of the classes, at least 0 and below 1, got 1"),
        (lambda: Power(-1), "exponent of a power law must be finite and at least 0, got -1"),
        (lambda: Power(1)(0, 5), "at least one class, got 0"),
    ],
)
def test_bad_profiles(unchecked, make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- cuts


def test_long_tailed_follows_the_profile():
    """The largest class is as large as all classes allow, its images are in the order of the source."""
    full = source([40, 50, 30, 60])
    cut = long_tailed(full, Power(1), order=[3, 1, 0, 2])
    assert np.bincount(cut.labels).tolist() == [20, 30, 15, 60]
    cut = long_tailed(full, Power(1), order=[2, 0, 1, 3], largest=12)
    assert np.bincount(cut.labels).tolist() == [6, 4, 12, 3]
    drawn = shades(cut)
    assert drawn == sorted(set(drawn))
    np.testing.assert_array_equal(full.labels[drawn], cut.labels)


@given(
    sizes=st.lists(st.integers(3, 30), min_size=1, max_size=6),
    profile=st.sampled_from([Power(0), Power(0.5), Exponential(1), Step(1)]),
    seed=st.integers(-5, 5),
)
def test_largest_is_the_most_that_fits(sizes, profile, seed):
    full = source(sizes)
    largest = np.bincount(long_tailed(full, profile, seed=seed).labels).max()
    with pytest.raises(ValueError, match=f"largest can be at most {largest}"):
        long_tailed(full, profile, seed=seed, largest=int(largest) + 1)


def test_seeds():
    full = source([30] * 8)
    one = long_tailed(full, Exponential(10), seed=3)
    assert shades(one) == shades(long_tailed(full, Exponential(10), seed=3))
    other = long_tailed(full, Exponential(10), seed=4)
    assert np.bincount(one.labels).tolist() != np.bincount(other.labels).tolist()
    ordered = [long_tailed(full, Exponential(10), seed=seed, order=range(8)) for seed in (3, 4)]
    assert np.bincount(ordered[0].labels).tolist() == np.bincount(ordered[1].labels).tolist()
    assert shades(ordered[0]) != shades(ordered[1])


def test_a_larger_cut_has_the_images_of_a_smaller_one():
    full = source([30] * 8)
    small, large = (set(shades(long_tailed(full, Exponential(10), largest=n))) for n in (15, 30))
    assert small < large
    flat = set(shades(long_tailed(full, Exponential(5))))
    assert large < flat


def test_images_are_drawn_uniformly():
    """Each of 20 images in 5 of them, 400 times: the largest z-score is below 4 (chance 0.1%)."""
    times = np.zeros(20)
    for seed in range(400):
        times[shades(long_tailed(source([20]), Power(0), seed=seed, largest=5))] += 1
    assert np.abs(times - 100).max() / np.sqrt(400 * 0.25 * 0.75) < 4


@pytest.mark.parametrize(
    ("sizes", "arguments", "message"),
    [
        ([9, 9], {"largest": 10}, r"asks for 10 images of class 1 \(b\), which has 9; largest can be at most 9"),
        ([9, 3], {"largest": 9}, r"asks for 9 images of class 1 \(b\), which has 3; largest can be at most 3"),
        ([9, 9], {"order": [1, 1]}, r"order must name each of the classes 0\.\.1 once, got \[1 1\]"),
        ([9, 9], {"order": [0]}, "order must name each"),
        ([9, 0], {}, r"class 1 \(b\) has no images"),
        ([9, 9], {"largest": 0}, "without images when the largest has 0; it takes a largest class of at least 2"),
    ],
)
def test_what_cannot_be_cut(sizes, arguments, message):
    with pytest.raises(ValueError, match=message):
        long_tailed(source(sizes, ("a", "b")), Power(1), **{"order": [1, 0], **arguments})


def test_labels_that_are_no_classes():
    images = np.zeros((3, 1, 1), np.uint8)
    with pytest.raises(ValueError, match="there are no labels"):
        long_tailed(Arrays(images), Power(1))
    with pytest.raises(ValueError, match="image 1 has label -1"):
        ClassCounts.of(Arrays(images, np.array([0, -1, 1])))
    with pytest.raises(ValueError, match="image 2 has label 5, but the source names 2 classes only"):
        ClassCounts.of(Arrays(images, np.array([0, 1, 5]), ("a", "b")))
    with pytest.raises(ValueError, match=r"labels of shape \(3, 20\) give each image several"):
        class_labels(np.ones((3, 20), int))


# --- counts and groups


def test_class_counts():
    counts = ClassCounts.of(source([3, 12, 6], ("cat", "dog", "cow with a name that is far too long")))
    assert counts.imbalance == 4
    assert str(counts).splitlines() == [
        "3 classes, 21 images, imbalance 4",
        "dog                           12  " + 40 * "#",
        "cow with a name that is f...   6  " + 20 * "#",
        "cat                            3  " + 10 * "#",
    ]
    assert ClassCounts.of(source([1, 2])).names == ("0", "1")
    unseen = ClassCounts.of(Arrays(np.zeros((2, 1, 1), np.uint8), np.array([0, 0]), ("a", "b")))
    assert unseen.imbalance == float("inf")
    assert str(unseen).splitlines()[-1] == "b  0"


def test_counts_that_are_all_zero():
    assert str(ClassCounts(np.zeros(2, np.int64), ("a", "b"))).splitlines()[1:] == ["a  0", "b  0"]


@pytest.mark.parametrize(("num_classes", "rows"), [(20, 20), (21, 21), (22, 21), (8142, 21)])
def test_long_tables_are_cut(num_classes, rows):
    counts = ClassCounts(np.arange(num_classes) + 1, tuple(str(k) for k in range(num_classes)))
    lines = str(counts).splitlines()[1:]
    assert len(lines) == rows
    assert lines[0].split()[:2] == [str(num_classes - 1), str(num_classes)]
    assert lines[-1].split()[:2] == ["0", "1"]
    assert (f"... {num_classes - 20} more" in lines) == (num_classes > 21)


def test_groups_by_count():
    groups = Groups.by_count(np.array([101, 100, 20, 19, 500, 0]))
    assert [ids.tolist() for ids in groups] == [[0, 4], [1, 2], [3, 5]]
    assert [len(ids) for ids in Groups.by_count(np.array([5, 4]), head=4, tail=5)] == [1, 0, 1]
    with pytest.raises(ValueError, match="overlap: tail can be at most 101"):
        Groups.by_count(np.array([5]), tail=102)


def test_groups_by_thirds():
    groups = Groups.by_thirds(np.array([5, 50, 7, 6, 60, 8, 9, 10]))
    assert [ids.tolist() for ids in groups] == [[1, 4, 7], [2, 5, 6], [0, 3]]
    assert [ids.tolist() for ids in Groups.by_thirds(np.array([5, 5, 5]))] == [[0], [1], [2]]


def test_inat_overall_is_the_mean_over_classes():
    """iNat18 has 842, 3,701 and 3,599 classes; a published overall accuracy is their weighted mean.

    All six rows (overall, head, middle, tail) of table 8 of the paper on partial prototype collapse.
    """
    sizes = np.repeat([500, 50, 5], [842, 3701, 3599])
    groups = Groups.by_count(np.random.default_rng(0).permutation(sizes))
    assert [len(ids) for ids in groups] == [842, 3701, 3599]
    for overall, *means in [
        (43.8, 51.4, 43.9, 41.8),
        (42.3, 49.6, 42.5, 40.4),
        (40.9, 49.5, 40.6, 39.1),
        (41.4, 48.9, 41.3, 39.7),
        (41.8, 50.2, 41.9, 39.7),
        (41.0, 49.1, 41.4, 38.7),
    ]:
        values = np.empty(8142)
        for ids, mean in zip(groups, means, strict=True):
            noise = np.random.default_rng(1).normal(size=len(ids))
            values[ids] = mean + noise - noise.mean()
        assert group_means(values, groups) == pytest.approx(means)
        assert values.mean() == pytest.approx(overall, abs=0.06)  # rounded to one digit, from rounded ones


def test_an_empty_group_has_no_mean():
    means = group_means(np.array([0.5, 0.25]), Groups.by_count(np.array([300, 30])))
    assert (means.head, means.middle) == (0.5, 0.25)
    assert np.isnan(means.tail)
    means = group_means(np.array([0.5, np.nan, np.nan]), Groups.by_count(np.array([300, 200, 5])))
    assert means.head == 0.5  # of the class that has a value
    assert np.isnan(means.tail)
