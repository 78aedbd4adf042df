"""Unit rows: as F.normalize, values and gradients, also where a norm vanishes."""

import pytest
import torch
import torch.nn.functional as F

from prototile.sphere import normalize


@pytest.mark.parametrize("eps", [1e-12, 1e-8, 0.5])
def test_equals_torch(eps):
    x = torch.randn(7, 5, dtype=torch.float64)
    x[2] = 0
    x[3] *= 1e-10
    x[4] *= 0.1
    x.requires_grad_()
    cotangent = torch.randn(7, 5, dtype=torch.float64)
    ours, theirs = normalize(x, eps), F.normalize(x, dim=-1, eps=eps)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad((y * cotangent).sum(), x)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_half_precision_becomes_float32():
    x = torch.randn(4, 3).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        unit = normalize(x)
    assert unit.dtype == torch.float32
    unit[0, 0].backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
