"""Nearest neighbours: brute force agrees, at any block size, in little memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from problems import unit
from prototile.neighbors import nearest


def brute_force(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    products = x @ x.T
    products.fill_diagonal_(-torch.inf)
    return products.argmax(1), products.amax(1)


@settings(max_examples=40, deadline=None)
@given(k=st.integers(2, 60), block=st.integers(1, 70), seed=st.integers(0, 10**6), scale=st.sampled_from([1.0, -5.0]))
def test_equals_brute_force(k, block, seed, scale):
    torch.manual_seed(seed)
    x = scale * torch.randn(k, 5, dtype=torch.float64)  # not unit vectors: maxima may be negative
    index, value = nearest(x, block=block)
    expected = brute_force(x)
    torch.testing.assert_close(value, expected[1])
    assert torch.equal(index, expected[0])


def test_rows_all_alike_find_another_row():
    """Never themselves, and always the first one."""
    x = torch.ones(7, 3)
    index, _ = nearest(x, block=3)
    assert index.tolist() == [1, 0, 0, 0, 0, 0, 0]


def test_two_rows_and_one():
    assert nearest(unit(2, 3))[0].tolist() == [1, 0]
    with pytest.raises(ValueError, match="at least two rows, got 1"):
        nearest(unit(1, 3))


def test_half_precision_is_searched_in_float32():
    x = unit(50, 8).bfloat16()
    assert nearest(x)[1].dtype == torch.float32
    torch.testing.assert_close(nearest(x)[1], brute_force(x.float())[1])
