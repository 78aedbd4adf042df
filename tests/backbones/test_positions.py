"""Position embeddings against the published formulas, written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from prototile.backbones.positions import resized, sincos


@pytest.fixture
def positions():
    return torch.randn(1, 14 * 14 + 1, 8)


def test_fixed_positions_entry_by_entry():
    table = sincos(8, 3)[0]
    assert (table[0] == 0).all()
    for row in range(3):
        for column in range(3):
            expected = []
            for place in (column, row):
                angles = [place / 10000 ** (i / 2) for i in range(2)]
                expected += [*map(math.sin, angles), *map(math.cos, angles)]
            torch.testing.assert_close(table[1 + 3 * row + column], torch.tensor(expected), rtol=1e-6, atol=1e-7)


def test_fixed_positions_need_four_parts():
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        sincos(6, 2)


@pytest.mark.parametrize("how", ["dino", "msn", "timm"])
def test_their_own_size_is_left_alone(positions, how):
    assert resized(positions, 14, 14, how) is positions


def cubic(t: float) -> float:
    """The kernel of bicubic interpolation, a = -0.75."""
    t, a = abs(t), -0.75
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def sampling(grid: int, count: int, step: float) -> torch.Tensor:
    """count x grid: how much of each stored position a new one takes, its centre at (i + 1/2) step - 1/2."""
    matrix = torch.zeros(count, grid, dtype=torch.float64)
    for i in range(count):
        centre = (i + 0.5) * step - 0.5
        first = math.floor(centre) - 1
        for j in range(first, first + 4):
            matrix[i, min(max(j, 0), grid - 1)] += cubic(centre - j)
    return matrix


@pytest.mark.parametrize(("height", "width"), [(6, 6), (8, 12), (20, 20), (7, 28)])
def test_dino_is_off_by_a_tenth_of_a_patch(positions, height, width):
    rows, columns = (sampling(14, n, 14 / (n + 0.1)) for n in (height, width))
    grid = positions[0, 1:].double().unflatten(0, (14, 14))
    expected = torch.einsum("ir,jc,rcd->ijd", rows, columns, grid).flatten(0, 1)
    actual = resized(positions, height, width, "dino")
    torch.testing.assert_close(actual[0, 1:], expected.float(), rtol=2e-5, atol=2e-5)
    assert torch.equal(actual[:, 0], positions[:, 0])


@pytest.mark.parametrize("side", [6, 4, 28])
def test_msn_is_not(positions, side):
    matrix = sampling(14, side, 14 / side)
    grid = positions[0, 1:].double().unflatten(0, (14, 14))
    expected = torch.einsum("ir,jc,rcd->ijd", matrix, matrix, grid).flatten(0, 1)
    torch.testing.assert_close(resized(positions, side, side, "msn")[0, 1:], expected.float(), rtol=2e-5, atol=2e-5)


def test_msn_has_square_views_only(positions):
    with pytest.raises(ValueError, match="square views, got 6 x 7 patches"):
        resized(positions, 6, 7, "msn")


def test_timm_smooths_before_it_samples(positions):
    stored = positions[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
    expected = F.interpolate(stored, size=(5, 9), mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    assert torch.equal(resized(positions, 5, 9, "timm")[:, 1:], expected)


@pytest.mark.parametrize("how", ["dino", "msn", "timm"])
def test_constant_positions_stay_constant(how):
    torch.testing.assert_close(resized(torch.full((1, 17, 4), 3.0), 7, 7, how), torch.full((1, 50, 4), 3.0))


def test_sizes_differ_between_the_three(positions):
    new = [resized(positions, 6, 6, how) for how in ("dino", "msn", "timm")]
    assert all((a - b).abs().max() > 0.1 for i, a in enumerate(new) for b in new[:i])


def test_half_precision_is_resized_in_single(positions):
    half = positions.bfloat16()
    expected = resized(half.float(), 6, 6, "dino").bfloat16()
    assert torch.equal(resized(half, 6, 6, "dino"), expected)
