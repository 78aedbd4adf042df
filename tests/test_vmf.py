"""The vMF normaliser against mpmath at many digits, at any dimension and concentration."""

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prototile import vmf


def exact(kappa: float, dims: int) -> float:
    with mpmath.workdps(50):
        p, k = mpmath.mpf(dims), mpmath.mpf(kappa)
        nu = p / 2 - 1
        return float(nu * mpmath.log(k) - p / 2 * mpmath.log(2 * mpmath.pi) - mpmath.log(mpmath.besseli(nu, k)))


@settings(max_examples=80, deadline=None)
@given(dims=st.integers(2, 600), kappa=st.floats(1e-3, 5e3))
def test_equals_mpmath(dims, kappa):
    value = vmf.log_normalizer(torch.tensor(kappa, dtype=torch.float64), dims)
    assert float(value) == pytest.approx(exact(kappa, dims), rel=1e-12, abs=1e-9)


@pytest.mark.parametrize("dims", [2, 3, 8, 64, 256])
def test_at_zero(dims):
    """The inverse of the sphere's area, with slope zero."""
    kappa = torch.zeros((), dtype=torch.float64, requires_grad=True)
    value = vmf.log_normalizer(kappa, dims)
    value.backward()
    assert value.item() == pytest.approx(vmf.log_normalizer_at_zero(dims), abs=1e-9)
    assert float(kappa.grad) == 0


@pytest.mark.parametrize("dims", [3, 64, 256])
def test_gradient(dims):
    kappa = torch.tensor([0.1, 5.0, 100.0, 2000.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: vmf.log_normalizer(k, dims), kappa, eps=1e-4, atol=1e-7)


def test_float32_input_is_computed_in_float64():
    kappa = torch.tensor([10.0, 25.0])
    value = vmf.log_normalizer(kappa, 256)
    assert value.dtype == torch.float64
    assert float(value[0] - value[1]) == pytest.approx(1.02, abs=0.005)  # nats between two DINO-vMF concentrations


def test_one_dim_is_refused():
    with pytest.raises(ValueError, match="at least two dims, got 1"):
        vmf.log_normalizer(torch.ones(1), 1)
