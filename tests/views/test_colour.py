"""Colour: exact operations against torchvision's on floats, the linear form against an independent reference."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from prototile.views import IMAGENET, colour
from prototile.views.draws import (
    BRIGHTNESS,
    CONTRAST,
    GRAY,
    GRAY_SLOT,
    HUE,
    JITTER_SLOTS,
    NOTHING,
    SATURATION,
    SLOTS,
    Looks,
)
from prototile.views.finish import finish

BOUND = 1e-5  # measured: 1e-6 for single operations
JITTER = (BRIGHTNESS, CONTRAST, SATURATION, HUE)
TORCHVISION = {
    BRIGHTNESS: tv.adjust_brightness,
    CONTRAST: tv.adjust_contrast,
    SATURATION: tv.adjust_saturation,
    HUE: tv.adjust_hue,
}
OURS = {
    BRIGHTNESS: colour.brightness_,
    CONTRAST: colour.contrast_,
    SATURATION: colour.saturation_,
    HUE: colour.hue_,
}


def hard_images() -> Tensor:
    """uint8, 3 x 12 x 12 each: noise, greys, black, white, primaries and their mixtures, ties, one level apart."""
    noise = torch.randint(0, 256, (4, 3, 12, 12), dtype=torch.uint8)
    greys = torch.randint(0, 256, (1, 1, 12, 12), dtype=torch.uint8).expand(-1, 3, -1, -1)
    corners = torch.tensor(list(itertools.product((0, 255), repeat=3)), dtype=torch.uint8)
    flat = corners[:, :, None, None].expand(-1, -1, 12, 12)
    mixed = corners[torch.randint(0, 8, (2, 12, 12))].permute(0, 3, 1, 2)
    ties = [noise[:1, [a, b, c]] for a, b, c in ((0, 0, 1), (0, 1, 0), (1, 0, 0))]
    levels = torch.randint(127, 130, (2, 3, 12, 12), dtype=torch.uint8)
    return torch.cat([noise, greys, flat, mixed, *ties, levels])


def floats(images: Tensor) -> Tensor:
    return images.float().div_(255)


def factors(count: int, value: float) -> Tensor:
    return torch.full((count, 1, 1, 1), value)


def assert_near(ours: Tensor, theirs: Tensor, bound: float = BOUND) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=bound)


# --- one operation at a time


@pytest.mark.parametrize(
    ("operation", "factor"),
    [
        *itertools.product((BRIGHTNESS, CONTRAST, SATURATION), (0.0, 0.2, 0.6, 1.0, 1.4, 1.8)),
        *itertools.product((HUE,), (-0.5, -0.2, -1 / 6, -0.1, 0.0, 0.05, 1 / 6, 0.2, 1 / 3, 0.5)),
    ],
)
def test_single_operations(operation, factor):
    images = hard_images()
    x = floats(images)
    OURS[operation](x, factors(len(x), factor))
    theirs = torch.stack([TORCHVISION[operation](image, factor) for image in floats(images)])
    assert_near(x, theirs)


@pytest.mark.parametrize("operation", JITTER)
def test_every_image_has_its_own_factor(operation):
    images = hard_images()
    x, own = floats(images), torch.linspace(-0.5, 0.5, len(images)) + (operation != HUE)
    OURS[operation](x, own.view(-1, 1, 1, 1))
    pairs = zip(floats(images), own.tolist(), strict=True)
    assert_near(x, torch.stack([TORCHVISION[operation](image, factor) for image, factor in pairs]))


def test_every_colour_turns_as_in_torchvision():
    """A grid over all of RGB, 18 levels a channel, turned by 41 angles."""
    levels = torch.arange(0, 256, 15, dtype=torch.float32) / 255
    grid = torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).reshape(1, 3, -1, 1)
    for turns in torch.linspace(-0.5, 0.5, 41).tolist():
        x = grid.clone()
        colour.hue_(x, factors(1, turns))
        assert_near(x, tv.adjust_hue(grid, turns))


def test_gray():
    images = hard_images()
    x = floats(images)
    colour.gray_(x)
    assert_near(x, tv.rgb_to_grayscale(floats(images), num_output_channels=3))


def test_solarize_every_level():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(-1, 3, -1, -1)
    x = floats(levels)
    colour.solarize_(x)
    assert_near(x, tv.solarize(floats(levels), 128 / 255), 1e-7)
    assert_near(x, floats(tv.solarize(levels, 128)), 1e-7)


# --- jitter in every order, through `finish`


def jitter_looks(orders: list[tuple[int, ...]], values: np.ndarray, gray: np.ndarray) -> Looks:
    order = np.full((len(orders), SLOTS), NOTHING, np.int8)
    order[:, JITTER_SLOTS] = orders
    order[gray, GRAY_SLOT] = GRAY
    return Looks(order, values.astype(np.float32))


def random_values(count: int, strength: float, hue: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.uniform(1 - strength, 1 + strength, (count, 5))
    values[:, HUE] = rng.uniform(-hue, hue, count)
    return values


def test_jitter_in_every_order():
    """24 orders of each hard image, some of them grey afterwards, against torchvision's calls in sequence."""
    images = hard_images().repeat_interleave(24, 0)
    orders = list(itertools.permutations(JITTER)) * (len(images) // 24)
    looks = jitter_looks(orders, random_values(len(images), 0.8, 0.2), np.arange(len(images)) % 5 == 0)
    theirs = []
    for image, order, values in zip(images, looks.order, looks.factors, strict=True):
        x = tv.to_dtype(image, torch.float32, scale=True)
        for operation in order[JITTER_SLOTS].tolist():
            x = TORCHVISION[operation](x, float(values[operation]))
        if order[GRAY_SLOT] == GRAY:
            x = tv.rgb_to_grayscale(x, num_output_channels=3)
        theirs.append(tv.normalize(x, list(IMAGENET.mean), list(IMAGENET.std)))
    assert_near(finish(images, looks, IMAGENET), torch.stack(theirs), 4 * BOUND)  # normalising multiplies by four


# --- the linear form

Y = np.array([0.299, 0.587, 0.114])
I = np.array([0.596, -0.274, -0.322])  # noqa: E741
Q = np.array([0.211, -0.523, 0.312])


def composed(pixels: np.ndarray, order: tuple[int, ...], values: np.ndarray, gray: bool) -> np.ndarray:
    """One operation after another on float64 pixels (n x 3), without clamps; chrominance turns as a number I + iQ."""
    luma = np.array([0.2989, 0.587, 0.114])
    for operation in order:
        f = float(values[operation])
        if operation == BRIGHTNESS:
            pixels = pixels * f
        elif operation == CONTRAST:
            pixels = f * pixels + (1 - f) * (pixels @ luma).mean()
        elif operation == SATURATION:
            pixels = f * pixels + (1 - f) * (pixels @ luma)[:, None]
        else:
            turned = (pixels @ I + 1j * (pixels @ Q)) * np.exp(-2j * math.pi * f)
            yiq = np.stack([pixels @ Y, turned.real, turned.imag], -1)
            pixels = np.linalg.solve(np.stack([Y, I, Q]), yiq.T).T
    if gray:
        pixels = np.repeat((pixels @ luma)[:, None], 3, 1)
    return pixels


def linear(images: Tensor, looks: Looks) -> Tensor:
    x = images.clone()
    order, factors = torch.from_numpy(looks.order[:, : GRAY_SLOT + 1]), torch.from_numpy(looks.factors)
    colour.affine_(x, *colour.composed(order, factors))
    return x


def test_the_linear_form_composes():
    images = floats(hard_images().repeat_interleave(24, 0))
    orders = list(itertools.permutations(JITTER)) * (len(images) // 24)
    looks = jitter_looks(orders, random_values(len(images), 0.4, 0.1), np.arange(len(images)) % 5 == 0)
    expected = [
        composed(image.double().flatten(1).T.numpy(), order, values, looks.order[i, GRAY_SLOT] == GRAY)
        for i, (image, order, values) in enumerate(zip(images, orders, looks.factors, strict=True))
    ]
    expected = torch.from_numpy(np.stack(expected).clip(0, 1)).float().transpose(1, 2).view_as(images)
    assert_near(linear(images, looks), expected)


def mild_images(count: int) -> Tensor:
    return 0.4 + 0.2 * torch.rand(count, 3, 12, 12)


@pytest.mark.parametrize("gray", [False, True])
def test_both_forms_agree_where_nothing_clamps_and_no_hue_turns(gray):
    orders = list(itertools.permutations(JITTER))
    values = random_values(24, 0.2, 0.0)
    looks = jitter_looks(orders, values, np.full(24, gray))
    images = mild_images(24)
    assert_near(linear(images, looks), exact(images, looks))


def exact(images: Tensor, looks: Looks) -> Tensor:
    x = images.clone()
    for i, (order, values) in enumerate(zip(looks.order, looks.factors, strict=True)):
        for operation in order[order != NOTHING].tolist():
            if operation == GRAY:
                colour.gray_(x[i : i + 1])
            else:
                OURS[operation](x[i : i + 1], factors(1, float(values[operation])))
    return x


def only(operation: int, values: list[float]) -> Looks:
    table = np.ones((len(values), 5))
    table[:, operation] = values
    return jitter_looks([(operation, NOTHING, NOTHING, NOTHING)] * len(values), table, np.zeros(len(values), bool))


def test_the_linear_hue_keeps_the_luma():
    images, turns = mild_images(11), np.linspace(-0.5, 0.5, 11).tolist()
    turned = linear(images, only(HUE, turns))
    weights = torch.tensor(Y, dtype=torch.float32).view(1, 3, 1, 1)
    assert_near((turned * weights).sum(1), (images * weights).sum(1))
    assert_near(turned[5], images[5])  # no turn
    assert (turned[0] - images[0]).abs().max() > 0.05


@pytest.mark.parametrize(("turns", "leading"), [(0.0, 0), (1 / 3, 1), (-1 / 3, 2)])
def test_both_hues_turn_the_same_way(turns, leading):
    """Red becomes green a third of a turn ahead, blue a third behind."""
    red = torch.tensor([0.6, 0.45, 0.45]).view(1, 3, 1, 1)
    assert int(linear(red, only(HUE, [turns])).argmax(1)) == leading
    assert int(exact(red, only(HUE, [turns])).argmax(1)) == leading


def test_finish_takes_the_linear_form():
    images = hard_images()
    looks = jitter_looks([JITTER] * len(images), random_values(len(images), 0.4, 0.1), np.zeros(len(images), bool))
    expected = tv.normalize(linear(floats(images), looks), list(IMAGENET.mean), list(IMAGENET.std))
    assert_near(finish(images, looks, IMAGENET, "linear"), expected)
    assert (finish(images, looks, IMAGENET) - expected).abs().max() > 0.1
