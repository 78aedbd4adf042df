"""Sources in memory, and parts of sources."""

import multiprocessing

import numpy as np
import pytest
import torch

from prototile.data.source import Arrays, Subset

RNG = np.random.default_rng(0)
COLOURED = RNG.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (6, 4, 5), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def test_arrays_give_rgb_with_channels_last_in_memory():
    for images, shown in ((COLOURED, COLOURED[3]), (GREY, GREY[3, ..., None]), (GREY[..., None], GREY[3, ..., None])):
        image = Arrays(images).image(3)
        np.testing.assert_array_equal(image.permute(1, 2, 0), np.broadcast_to(shown, (4, 5, 3)))
        assert image.stride() == (1, 15, 3)


def test_changing_an_image_leaves_the_source_alone():
    images = COLOURED.copy()
    Arrays(images).image(0).zero_()
    np.testing.assert_array_equal(images, COLOURED)


def test_images_may_be_read_only():
    images = COLOURED.copy()
    images.flags.writeable = False
    assert len(Arrays(images)) == 6


def test_names():
    source = Arrays(GREY, LABELS, ("a", "b", "c"), name="noise")
    assert (len(source), source.id(2), source.classes) == (6, "noise/2", ("a", "b", "c"))


@pytest.mark.parametrize("images", [COLOURED / 255, COLOURED.transpose(0, 3, 1, 2), GREY[0]])
def test_what_are_no_images(unchecked, images):
    with pytest.raises(ValueError, match=f"images must be uint8, n x h x w or n x h x w x 3, got {images.dtype}"):
        Arrays(images)


@pytest.mark.parametrize(("labels", "said"), [(LABELS[1:], "6 images and 5 labels"), (LABELS + 0.5, "whole numbers")])
def test_wrong_labels(unchecked, labels, said):
    with pytest.raises(ValueError, match=said):
        Arrays(GREY, labels)


def test_labels_of_any_integer_type(unchecked):
    for labels in (LABELS.astype(np.uint8), LABELS.tolist(), torch.from_numpy(LABELS), LABELS.astype(float)):
        assert Arrays(GREY, labels).labels.dtype == np.int64


def test_a_subset():
    source = Subset(Arrays(COLOURED, LABELS, name="x"), np.array([4, 0, 4]))
    assert [source.id(i) for i in range(len(source))] == ["x/4", "x/0", "x/4"]
    assert source.labels.tolist() == [1, 0, 1]
    np.testing.assert_array_equal(source.image(1).permute(1, 2, 0), COLOURED[0])


def test_a_subset_by_a_condition():
    source = Arrays(COLOURED, LABELS, name="x")
    ones = Subset(source, source.labels == 1)
    assert [ones.id(i) for i in range(len(ones))] == ["x/1", "x/4"]
    assert len(Subset(source, source.labels > 5)) == len(Subset(source, np.array([], int))) == 0


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ([0.5], "float64"),
        ([[1]], r"shape \(1, 1\)"),
        ([True, False], "a boolean for each of the 6"),
        ([0, 6], "images 0 to 5, so there is none for 0 or 6"),
        ([-1], "none for -1"),
    ],
)
def test_wrong_subsets(unchecked, indices, said):
    with pytest.raises(ValueError, match=said):
        Subset(Arrays(GREY), np.array(indices))


def test_processes_share_the_pixels():
    """What is sent to a worker that is not forked are handles."""
    source = Arrays(np.zeros((1000, 64, 64, 3), np.uint8))
    assert len(multiprocessing.reduction.ForkingPickler.dumps(source)) < 10_000
