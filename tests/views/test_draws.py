"""Draws: the law of boxes and looks, against torchvision's and in closed form.

Statistical tests are seeded; p-values of single tests must be above 0.001, z-scores below 4.
"""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from prototile.views.draws import (
    BLUR,
    BLUR_SLOT,
    BRIGHTNESS,
    CONTRAST,
    GRAY,
    GRAY_SLOT,
    HUE,
    JITTER_SLOTS,
    NOTHING,
    NUMBERS,
    SATURATION,
    SOLARIZE,
    SOLARIZE_SLOT,
    Boxes,
    Looks,
    draw_boxes,
    draw_looks,
)
from prototile.views.spec import Blur, Jitter, View

RATIO = (3 / 4, 4 / 3)
LEAST_P, LARGEST_Z = 1e-3, 4.0


def uniforms(count: int, views: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, views, NUMBERS))


def boxes(view: View, shape: tuple[int, int], uniform: np.ndarray) -> Boxes:
    return draw_boxes([view], uniform, *(np.full(len(uniform), side) for side in shape))


def places(drawn: Boxes) -> np.ndarray:
    """Rows of top, left, height, width, of the first view."""
    return np.stack([drawn.top, drawn.left, drawn.height, drawn.width], -1)[:, 0]


def theirs(shape: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], count: int) -> np.ndarray:
    image = torch.empty(1, device="meta").expand(3, *shape)
    return np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)])


def z_score(happened: np.ndarray, probability: float) -> float:
    return abs(happened.mean() - probability) / np.sqrt(probability * (1 - probability) / happened.size)


# --- boxes


@pytest.mark.parametrize(
    ("shape", "scale", "ratio"),
    [
        ((375, 500), (0.08, 1.0), RATIO),
        ((224, 224), (0.4, 1.0), RATIO),
        ((224, 224), (0.05, 0.14), RATIO),
        ((600, 200), (0.08, 1.0), RATIO),  # tall: many draws do not fit
        ((150, 700), (0.14, 1.0), RATIO),  # wide: many fallbacks
        ((32, 32), (0.3, 1.0), RATIO),
        ((5, 7), (0.1, 1.0), RATIO),
        ((2, 3), (0.05, 0.4), RATIO),  # tiny: draws that round to nothing
        ((300, 400), (0.5, 1.0), (0.2, 8.0)),
    ],
)
def test_boxes_have_the_law_of_torchvision(shape, scale, ratio):
    a = places(boxes(View(224, scale, ratio), shape, uniforms(20000))).T
    b = theirs(shape, scale, ratio, 8000).T

    def statistics(top, left, height, width):
        return (top, left, height, width, height * width, width / height, top + height, left + width)

    for ours, reference in zip(statistics(*a), statistics(*b), strict=True):
        assert stats.ks_2samp(ours, reference, method="asymp").pvalue > LEAST_P


@pytest.mark.parametrize("scale", [(0.08, 0.5), (0.3, 0.3)])
def test_boxes_that_always_fit(scale):
    """In a large square, of at most half of the area, the first draw counts: everything is uniform."""
    side = 10**6
    top, left, height, width = places(boxes(View(224, scale), (side, side), uniforms(20000))).T
    area, aspect = height * width / side**2, np.log(width / height)
    if scale[0] == scale[1]:
        np.testing.assert_allclose(area, scale[0], rtol=1e-5)
    else:
        assert stats.kstest(area, stats.uniform(scale[0], scale[1] - scale[0]).cdf).pvalue > LEAST_P
    bound = np.log(4 / 3)
    assert stats.kstest(aspect, stats.uniform(-bound, 2 * bound).cdf).pvalue > LEAST_P
    shares = top / (side - height), left / (side - width)
    for share in shares:
        assert stats.kstest(share, "uniform").pvalue > LEAST_P
    drawn = [aspect, *shares, *([area] if scale[0] < scale[1] else [])]
    for i, x in enumerate(drawn):
        for y in drawn[:i]:
            assert stats.spearmanr(x, y).pvalue > LEAST_P


def test_the_first_draw_that_fits_counts():
    """Nine draws of the whole area with an aspect that does not fit, then one of half of it with aspect one."""
    uniform = np.full((1, 1, NUMBERS), 0.5)
    uniform[..., :9], uniform[..., 10:19] = 1.0, 0.0
    uniform[..., 9], uniform[..., 19] = 0.0, 0.5
    view = View(224, (0.25, 1.0))
    np.testing.assert_array_equal(places(boxes(view, (100, 100), uniform)), [[25, 25, 50, 50]])
    uniform[..., 4], uniform[..., 14] = 0.0, 0.5
    uniform[..., 9] = 0.3
    np.testing.assert_array_equal(places(boxes(view, (100, 100), uniform)), [[25, 25, 50, 50]])


@pytest.mark.parametrize("gap", [(0, 0), (1, 0), (3, 5)])
def test_every_position_is_equally_likely(gap):
    """A box of 10 x 10, all of the area that the ratio 1 leaves, in an image that is `gap` larger."""
    h, w = 10 + gap[0], 10 + gap[1]
    share = 100 / (h * w)
    uniform = uniforms(12000)
    drawn = places(boxes(View(10, (share, share), (1.0, 1.0)), (h, w), uniform))
    assert (drawn[:, 2:] == 10).all()
    counts = np.bincount(drawn[:, 0] * (gap[1] + 1) + drawn[:, 1], minlength=(gap[0] + 1) * (gap[1] + 1))
    assert len(counts) == (gap[0] + 1) * (gap[1] + 1)
    assert len(counts) == 1 or stats.chisquare(counts).pvalue > LEAST_P


@pytest.mark.parametrize(
    ("shape", "ratio"),
    [
        ((500, 10), RATIO),
        ((10, 500), RATIO),
        ((501, 11), RATIO),
        ((11, 501), RATIO),
        ((1, 500), RATIO),
        ((500, 1), RATIO),
        ((100003, 120001), RATIO),  # the image's own aspect lies in the range: all of it
        ((90, 300), (2.0, 3.0)),
        ((300, 91), (0.4, 0.5)),
        ((200, 200), (2.5, 3.0)),
    ],
)
def test_fallbacks_are_those_of_torchvision(shape, ratio):
    scale = (1.0, 1.0)
    (expected,) = np.unique(theirs(shape, scale, ratio, 20), axis=0)
    drawn = places(boxes(View(224, scale, ratio), shape, uniforms(20)))
    np.testing.assert_array_equal(drawn, np.broadcast_to(expected, drawn.shape))


def test_a_fallback_keeps_a_pixel():
    """torchvision's would be empty here: a third of a pixel high."""
    drawn = places(boxes(View(8, (1.0, 1.0), (3.0, 4.0)), (9, 1), uniforms(3)))
    np.testing.assert_array_equal(drawn, [[4, 0, 1, 1]] * 3)


@given(
    shape=st.tuples(st.integers(1, 700), st.integers(1, 700)),
    scale=st.tuples(st.floats(1e-4, 1), st.floats(1e-4, 1)).map(sorted).map(tuple),
    ratio=st.tuples(st.floats(0.05, 20), st.floats(0.05, 20)).map(sorted).map(tuple),
    seed=st.integers(0, 2**32 - 1),
)
def test_boxes_lie_in_the_image(shape, scale, ratio, seed):
    uniform = uniforms(8, seed=seed)
    uniform[0], uniform[1] = 0.0, np.nextafter(1, 0)
    top, left, height, width = places(boxes(View(8, scale, ratio), shape, uniform)).T
    assert top.min() >= 0
    assert left.min() >= 0
    assert min(height.min(), width.min()) >= 1
    assert (top + height).max() <= shape[0]
    assert (left + width).max() <= shape[1]


def test_every_image_and_view_has_its_own_box():
    views = [View(224, (0.4, 1.0)), View(96, (0.05, 0.4), (0.5, 2.0), flip=0.0), View(96, (0.3, 0.3))]
    uniform = uniforms(50, views=3)
    heights, widths = np.random.default_rng(1).integers(1, 300, (2, 50))
    together = draw_boxes(views, uniform, heights, widths)
    for v, view in enumerate(views):
        for b in range(50):
            alone = boxes(view, (int(heights[b]), int(widths[b])), uniform[b : b + 1, v : v + 1])
            for field in dataclasses.fields(Boxes):
                assert getattr(together, field.name)[b, v] == getattr(alone, field.name)[0, 0]


@pytest.mark.parametrize("flip", [0.0, 0.2, 0.5, 1.0])
def test_flips(flip):
    drawn = boxes(View(224, (0.4, 1.0), flip=flip), (300, 200), uniforms(20000))
    if flip in (0.0, 1.0):
        assert (drawn.flip == bool(flip)).all()
    else:
        assert z_score(drawn.flip, flip) < LARGEST_Z
        assert stats.pointbiserialr(drawn.flip[:, 0], drawn.left[:, 0]).pvalue > LEAST_P


# --- looks

FULL = View(224, (0.4, 1.0), jitter=Jitter(0.4, 0.3, 1.5, 0.1), gray=0.2, blur=Blur(0.3, (0.5, 3.0)), solarize=0.1)


def looks(view: View, count: int = 24000) -> Looks:
    return draw_looks([view], uniforms(count))


def jittered(view: View) -> np.ndarray:
    """The orders of the rows that are jittered."""
    order = looks(view).order[:, JITTER_SLOTS]
    return order[(order != NOTHING).any(1)]


def test_orders_are_equally_likely():
    orders = jittered(FULL)
    assert (np.sort(orders, 1) == [BRIGHTNESS, CONTRAST, SATURATION, HUE]).all()
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > LEAST_P


def test_factors_are_uniform_and_independent():
    drawn = looks(FULL)
    ranges = {BRIGHTNESS: (0.6, 1.4), CONTRAST: (0.7, 1.3), SATURATION: (0.0, 2.5), HUE: (-0.1, 0.1), BLUR: (0.5, 3.0)}
    for operation, (low, high) in ranges.items():
        factor = drawn.factors[:, operation].astype(np.float64)
        assert stats.kstest(factor, stats.uniform(low, high - low).cdf).pvalue > LEAST_P
        for other in range(operation):
            assert stats.spearmanr(factor, drawn.factors[:, other]).pvalue > LEAST_P
        for slot in range(drawn.order.shape[1]):
            groups = [factor[drawn.order[:, slot] == value] for value in np.unique(drawn.order[:, slot])]
            assert stats.kruskal(*groups).pvalue > LEAST_P


def test_rates():
    order = looks(FULL).order
    happened = {
        "jitter": ((order[:, JITTER_SLOTS] != NOTHING).any(1), 0.8),
        "gray": (order[:, GRAY_SLOT] == GRAY, 0.2),
        "blur": (order[:, BLUR_SLOT] == BLUR, 0.3),
        "solarize": (order[:, SOLARIZE_SLOT] == SOLARIZE, 0.1),
    }
    for row, probability in happened.values():
        assert z_score(row, probability) < LARGEST_Z
    rows = [row for row, _ in happened.values()]
    for i, row in enumerate(rows):
        for other in rows[:i]:
            assert stats.fisher_exact(np.histogram2d(row, other, 2)[0]).pvalue > LEAST_P


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_never_and_always(probability):
    jitter = Jitter(0.4, 0.4, 0.4, 0.1, probability)
    view = View(8, (1.0, 1.0), jitter=jitter, gray=probability, blur=Blur(probability), solarize=probability)
    order = looks(view, 1000).order
    assert ((order != NOTHING) == bool(probability)).all()
    if probability:
        assert (order[:, GRAY_SLOT:] == [GRAY, BLUR, SOLARIZE]).all()


def test_nothing_is_asked_for():
    assert (looks(View(8, (1.0, 1.0)), 100).order == NOTHING).all()


@pytest.mark.parametrize("absent", [[HUE], [BRIGHTNESS, SATURATION], [BRIGHTNESS, CONTRAST, SATURATION, HUE]])
def test_operations_without_strength_are_absent(absent):
    """As in ColorJitter, and the others' order stays equally likely."""
    strengths = [0.0 if operation in absent else 0.1 for operation in (BRIGHTNESS, CONTRAST, SATURATION, HUE)]
    orders = jittered(dataclasses.replace(FULL, jitter=Jitter(*strengths, probability=1.0)))
    remaining = [operation for operation in (BRIGHTNESS, CONTRAST, SATURATION, HUE) if operation not in absent]
    if not remaining:
        assert len(orders) == 0
        return
    present = orders[orders != NOTHING].reshape(len(orders), -1)
    assert (np.sort(present, 1) == remaining).all()
    _, counts = np.unique(present, axis=0, return_counts=True)
    assert len(counts) == np.prod(range(1, len(remaining) + 1))
    assert stats.chisquare(counts).pvalue > LEAST_P


def test_settings_do_not_move_each_other():
    """Another jitter changes factors of jitter, nothing else; no jitter at all neither."""
    before = looks(FULL)
    for jitter in (Jitter(0.1, 0.1, 0.1, 0.0, 0.5), None):
        after = looks(dataclasses.replace(FULL, jitter=jitter))
        np.testing.assert_array_equal(after.order[:, GRAY_SLOT:], before.order[:, GRAY_SLOT:])
        np.testing.assert_array_equal(after.factors[:, BLUR], before.factors[:, BLUR])
        plain = boxes(dataclasses.replace(FULL, jitter=jitter), (300, 200), uniforms(100))
        np.testing.assert_array_equal(places(plain), places(boxes(FULL, (300, 200), uniforms(100))))
    after = looks(dataclasses.replace(FULL, gray=0.0, blur=None, solarize=1.0, scale=(0.1, 0.2), flip=0.0))
    np.testing.assert_array_equal(after.order[:, JITTER_SLOTS], before.order[:, JITTER_SLOTS])
    np.testing.assert_array_equal(after.factors[:, :BLUR], before.factors[:, :BLUR])


def test_rows_are_view_after_view():
    views = [FULL, View(8, (1.0, 1.0)), dataclasses.replace(FULL, gray=1.0)]
    uniform = uniforms(7, views=3)
    together = draw_looks(views, uniform)
    for v, view in enumerate(views):
        alone, rows = draw_looks([view], uniform[:, v : v + 1]), together[slice(7 * v, 7 * v + 7)]
        np.testing.assert_array_equal(rows.order, alone.order)
        np.testing.assert_array_equal(rows.factors, alone.factors)
