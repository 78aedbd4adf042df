"""What views are made of: what is refused, and what follows the run."""

import dataclasses
import math
import pickle

import pytest

from prototile.schedules import Constant, Linear, Progress
from prototile.views import IMAGENET, Augmentation, Blur, Group, Jitter, Normalization, RandomDrop, View

VIEW = View(32, (0.3, 1.0))


@pytest.mark.parametrize("probability", [-0.1, 1.1, math.nan])
def test_probabilities(probability):
    for name in ("flip", "gray", "solarize"):
        with pytest.raises(ValueError, match=rf"a view's {name} must lie in \[0, 1\], got {probability}"):
            dataclasses.replace(VIEW, **{name: probability})
    with pytest.raises(ValueError, match=rf"a jitter's probability must lie in \[0, 1\], got {probability}"):
        Jitter(0.4, 0.4, 0.4, 0.1, probability)
    with pytest.raises(ValueError, match=rf"a blur's probability must lie in \[0, 1\], got {probability}"):
        Blur(probability)


@pytest.mark.parametrize("place", range(4))
def test_negative_jitter(place):
    strengths = [0.4, 0.4, 0.4, 0.1]
    strengths[place] = -0.1
    with pytest.raises(ValueError, match="jitter must not be negative"):
        Jitter(*strengths)


def test_hue_turns_at_most_half_a_turn():
    assert Jitter(0.0, 0.0, 0.0, 0.5).hue == 0.5
    with pytest.raises(ValueError, match=r"hue at most 0\.5 \(half a turn\), got .*hue=0\.51"):
        Jitter(0.4, 0.4, 0.4, 0.51)


@pytest.mark.parametrize("sigma", [(0.0, 2.0), (2.0, 1.0), (-1.0, 1.0)])
def test_sigma(sigma):
    with pytest.raises(ValueError, match=r"sigma must be \(low, high\) with 0 < low <= high"):
        Blur(0.5, sigma)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1), (-0.2, 0.5)])
def test_scale(scale):
    with pytest.raises(ValueError, match=r"scale must be \(low, high\) with 0 < low <= high <= 1"):
        View(32, scale)


@pytest.mark.parametrize("ratio", [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_ratio(ratio):
    with pytest.raises(ValueError, match=r"ratio must be \(low, high\) with 0 < low <= high"):
        View(32, (0.3, 1.0), ratio)


def test_a_view_has_pixels():
    with pytest.raises(ValueError, match="at least one pixel, got size 0"):
        View(0, (0.3, 1.0))


def test_a_scheduled_scale_is_checked_when_it_has_a_value():
    view = View(32, (Linear(0.25, 0.75), 0.5))
    assert view.at(Progress(0, 10)).scale == (0.25, 0.5)
    with pytest.raises(ValueError, match=r"scale must be .* got \(0\.75, 0\.5\)"):
        view.at(Progress(10, 10))


def test_groups():
    with pytest.raises(ValueError, match=r"views of one size, got sizes \[32, 16\]"):
        Group((VIEW, dataclasses.replace(VIEW, size=16)))
    with pytest.raises(ValueError, match="at least one view"):
        Group(())
    with pytest.raises(ValueError, match="a patch must have at least one pixel, got 0"):
        Group((VIEW,), RandomDrop(), patch=0)
    with pytest.raises(ValueError, match="patches of 5 do not tile views of 32 pixels: choose a divisor"):
        Group((VIEW,), RandomDrop(), patch=5)
    assert Group((VIEW,), patch=5).size == 32  # nothing is masked, nothing needs tiling


def test_interpolation(unchecked):
    with pytest.raises(ValueError, match="'bicubic' or 'bilinear', got 'nearest'"):
        View(32, (0.3, 1.0), interpolation="nearest")


def test_normalization():
    with pytest.raises(ValueError, match="std must be positive"):
        Normalization((0.5, 0.5, 0.5), (0.2, 0.0, 0.2))


def test_augmentations(unchecked):
    with pytest.raises(ValueError, match="at least one group of views"):
        Augmentation(())
    with pytest.raises(ValueError, match="colour must be 'exact' or 'linear', got 'fast'"):
        Augmentation((Group((VIEW,)),), colour="fast")


def test_following_the_run():
    moving = View(32, (0.1, Linear(0.25, 0.75)))
    augmentation = Augmentation((Group((VIEW,)), Group((VIEW, moving))), IMAGENET, "linear")
    assert [view.follows_the_run for view in augmentation.views] == [False, False, True]
    assert augmentation.follows_the_run
    now = augmentation.at(Progress(5, 10))
    assert not now.follows_the_run
    assert now.views == (VIEW, VIEW, View(32, (0.1, 0.5)))
    assert (now.normalization, now.colour) == (augmentation.normalization, "linear")
    assert not Augmentation((Group((VIEW,)),)).follows_the_run
    assert View(32, (Constant(0.1), 0.2)).at(Progress(0, 1)) == View(32, (0.1, 0.2))


def test_specs_are_values():
    augmentation = Augmentation((Group((VIEW,), RandomDrop(), 4),))
    copy = pickle.loads(pickle.dumps(augmentation))
    assert copy == augmentation
    assert hash(copy) == hash(augmentation)
