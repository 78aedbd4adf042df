"""The two passes over tiles, beside the same sums over dense logits."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from interpreter import needs_triton
from prototile.assignments import Adjustment, Assignments, backend, passes, tiles
from prototile.assignments.passes import over_prototypes, over_rows

VIEWS, IMAGES, DIMS, K = 3, 7, 5, 23
N = VIEWS * IMAGES


def assignments(kind: str) -> Assignments:
    z, w = (F.normalize(torch.randn(n, DIMS, dtype=torch.float64), dim=1) for n in (N, K))
    a = Assignments(z, w, 0.1)
    if kind == "offset":
        return replace(a, offset=torch.randn(K, dtype=torch.float64))
    if kind == "offset per view":
        return replace(a, offset=torch.randn(VIEWS, K, dtype=torch.float64))
    if kind == "adjusted":
        scale, winner = torch.rand(K, dtype=torch.float64), torch.randint(K, (N,))
        return replace(a, offset=scale.clone(), adjustment=Adjustment(scale, 10.0, winner, 1.01))
    if kind == "wide":
        return replace(a, prototypes=200 * w)
    return a


KINDS = ["plain", "offset", "offset per view", "adjusted", "wide"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles, and several blocks of rows."""
    monkeypatch.setattr(tiles, "tile_size", lambda device: 8)
    monkeypatch.setattr(passes, "_TILE_NUMBERS", 3 * 8 * VIEWS)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_gain", [False, True])
def test_over_rows(kind, with_gain):
    a = assignments(kind)
    logits, subtract = a.logits(), a.row_logsumexp() + torch.rand(N, dtype=torch.float64)
    values, extra, gain = (torch.randn(*shape, dtype=torch.float64) for shape in ((K, 4), (K,), (K,)))
    weights = (logits - subtract[:, None]).exp() * (gain if with_gain else 1)
    found = over_rows(a.tiled(VIEWS), subtract=subtract, values=values, extra=extra, gain=gain if with_gain else None)
    torch.testing.assert_close(found.total, weights.sum(1))
    torch.testing.assert_close(found.products, weights @ values)
    torch.testing.assert_close(found.extra, weights @ extra)
    alone = over_rows(a.tiled(VIEWS), subtract=subtract)
    assert alone.products is None
    assert alone.extra is None


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_gain", [False, True])
@pytest.mark.parametrize("with_alpha", [False, True])
def test_over_prototypes(kind, with_gain, with_alpha):
    a = assignments(kind)
    logits, subtract = a.logits(), a.row_logsumexp() + torch.rand(N, dtype=torch.float64)
    values, extra, alpha, gain = (torch.randn(*shape, dtype=torch.float64) for shape in ((N, 4), (N,), (N,), (K,)))
    weights = (logits - subtract[:, None]).exp()
    if with_gain or with_alpha:
        weights = weights * (alpha[:, None] * with_alpha + gain * with_gain)
    found = over_prototypes(
        a.tiled(VIEWS),
        subtract=subtract,
        values=values,
        extra=extra,
        gain=gain if with_gain else None,
        alpha=alpha if with_alpha else None,
    )
    torch.testing.assert_close(found.total, weights.sum(0))
    torch.testing.assert_close(found.products, weights.T @ values)
    torch.testing.assert_close(found.extra, weights.T @ extra)
    alone = over_prototypes(a.tiled(VIEWS), subtract=subtract)
    assert alone.products is None
    assert alone.extra is None


@needs_triton
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_make_the_same_passes(kind):
    exact = assignments(kind)
    adjustment = exact.adjustment and replace(exact.adjustment, scale=exact.adjustment.scale.float())
    offset = None if exact.offset is None else exact.offset.float()
    z, w = exact.embeddings.float(), exact.prototypes.float()
    logits = Assignments(z, w, 0.1, offset, adjustment).tiled(VIEWS)
    subtract, gain, alpha = (
        exact.row_logsumexp(),
        torch.rand(K, dtype=torch.float64),
        torch.rand(N, dtype=torch.float64),
    )
    expected = [
        over_rows(exact.tiled(VIEWS), subtract=subtract, values=exact.prototypes, gain=gain, extra=gain),
        over_prototypes(
            exact.tiled(VIEWS), subtract=subtract, values=exact.embeddings, gain=gain, alpha=alpha, extra=alpha
        ),
    ]
    with backend("fused"):
        found = [
            over_rows(logits, subtract=subtract.float(), values=w, gain=gain.float(), extra=gain.float()),
            over_prototypes(
                logits, subtract=subtract.float(), values=z, gain=gain.float(), alpha=alpha.float(), extra=alpha.float()
            ),
        ]
    tolerance = 1e-3 if kind == "wide" else 1e-5  # logits of 2,000 are rounded to 1e-4
    for ours, theirs in zip(found, expected, strict=True):
        for x, y in zip(ours, theirs, strict=True):
            torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance)


def test_no_rows():
    a = Assignments(torch.zeros(0, DIMS), torch.randn(K, DIMS), 0.1)
    found = over_prototypes(a.tiled(), subtract=torch.zeros(0), values=torch.zeros(0, 4))
    assert torch.equal(found.total, torch.zeros(K))
    assert torch.equal(found.products, torch.zeros(K, 4))
    assert over_rows(a.tiled(), subtract=torch.zeros(0)).total.shape == (0,)
