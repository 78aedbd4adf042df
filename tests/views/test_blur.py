"""Blur against torchvision's gaussian_blur with a kernel of the same radius."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from prototile.views.blur import blur_

BOUND = 1e-5  # measured: 1e-6, 4e-6 with kernels wider than the image


def torchvisions(x: Tensor, sigma: Tensor) -> Tensor:
    """Image by image; the kernel reaches four deviations, and never past the image."""
    out = []
    for image, s in zip(x, sigma.tolist(), strict=True):
        radius = min(max(1, math.ceil(4 * s)), *(side - 1 for side in image.shape[1:]))
        out.append(tv.gaussian_blur(image, [2 * radius + 1] * 2, [s, s]))
    return torch.stack(out)


def blurred(x: Tensor, sigma: Tensor) -> Tensor:
    y = x.clone()
    blur_(y, sigma, float(sigma.max()))
    return y


@pytest.mark.parametrize(
    "shape",
    [(1, 1), (1, 40), (40, 3), (2, 2), (7, 7), (16, 16), (32, 32), (33, 33), (64, 31), (96, 96), (98, 98), (224, 224)],
)
def test_equals_torchvision(shape):
    x = torch.rand(7, 3, *shape)
    sigma = torch.tensor([0.1, 0.2, 0.5, 0.77, 1.24, 1.9, 2.0])
    torch.testing.assert_close(blurred(x, sigma), torchvisions(x, sigma), rtol=0, atol=BOUND)


@pytest.mark.parametrize("size", [5, 17, 50])
def test_wide_kernels(size):
    """Of a radius beyond the image, and beyond a block."""
    x, sigma = torch.rand(3, 3, size, size), torch.tensor([4.0, 9.0, 0.3])
    torch.testing.assert_close(blurred(x, sigma), torchvisions(x, sigma), rtol=0, atol=BOUND)


def test_images_do_not_see_each_other():
    """An image's kernel ends where its own deviation says, also beside one that is wider."""
    x, sigma = torch.zeros(5, 3, 40, 40), torch.tensor([1.0, 1.25, 1.5, 1.75, 2.0])
    x[..., 20:] = 1  # an edge shows every weight of the kernel
    together = blurred(x, sigma)
    for i in range(len(x)):
        alone = blurred(x[i : i + 1], sigma[i : i + 1])[0]
        torch.testing.assert_close(together[i], alone, rtol=0, atol=3e-7)


def test_a_point_becomes_a_gaussian():
    x = torch.zeros(1, 3, 65, 65)
    x[0, :, 32, 32] = 1
    offset = torch.arange(-32, 33, dtype=torch.float64)
    kernel = (-(offset**2) / (2 * 2.5**2)).exp() * (offset.abs() <= 10)
    kernel /= kernel.sum()
    expected = (kernel[:, None] * kernel).float().expand(1, 3, -1, -1)
    torch.testing.assert_close(blurred(x, torch.tensor([2.5])), expected, rtol=0, atol=1e-7)


def test_constants_stay():
    x = torch.full((3, 3, 50, 20), 0.7)
    torch.testing.assert_close(blurred(x, torch.tensor([0.1, 1.0, 3.0])), x, rtol=0, atol=1e-6)


def test_memory_format_does_not_matter():
    x, sigma = torch.rand(2, 3, 40, 40), torch.tensor([0.5, 2.0])
    last = x.clone(memory_format=torch.channels_last)
    blur_(last, sigma, float(sigma.max()))
    torch.testing.assert_close(last, blurred(x, sigma), rtol=0, atol=1e-6)
