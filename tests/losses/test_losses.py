"""Losses on embeddings beyond parity: extremes, gradients, and what they refuse."""

import math

import pytest
import torch

from problems import unit
from prototile import losses


def test_nt_xent_of_one_image():
    """Two views of one image: the only candidate is the right one."""
    a, b = unit(1, 4).requires_grad_(), unit(1, 4)
    loss = losses.nt_xent(a, b)
    loss.backward()
    assert loss == 0
    assert bool((a.grad == 0).all())


def test_nt_xent_of_indistinguishable_images():
    z = unit(1, 4).expand(8, 4)
    assert float(losses.nt_xent(z, z)) == pytest.approx(math.log(15))


@pytest.mark.parametrize("loss", [lambda a, b: losses.vicreg(a, b).loss, losses.barlow_twins])
def test_one_row_is_refused(loss):
    with pytest.raises(ValueError, match="at least two rows, got 1"):
        loss(unit(1, 4), unit(1, 4))


def test_vicreg_parts_add_up():
    terms = losses.vicreg(unit(8, 4), unit(8, 4), invariance_weight=2, variance_weight=3, covariance_weight=4)
    total = 2 * terms.invariance + 3 * terms.variance + 4 * terms.covariance
    torch.testing.assert_close(terms.loss, total)


def test_barlow_twins_of_whitened_equal_views_is_zero():
    z = torch.linalg.qr(torch.randn(16, 4, dtype=torch.float64))[0]
    z = torch.linalg.qr(z - z.mean(0))[0] * 100
    assert float(losses.barlow_twins(z, z)) < 1e-7


def test_negative_cosine_stops_the_targets_gradient():
    p, z = unit(5, 4).requires_grad_(), unit(5, 4).requires_grad_()
    loss = losses.negative_cosine(p, z)
    loss.backward()
    assert z.grad is None
    assert losses.negative_cosine(z, z).item() == pytest.approx(-1)
    assert float(losses.negative_cosine(torch.zeros(2, 4), torch.ones(2, 4))) == 0  # a zero row


@pytest.mark.parametrize("loss", [losses.nt_xent, losses.barlow_twins, lambda a, b: losses.vicreg(a, b).loss])
def test_autocast_changes_nothing(loss):
    a, b = unit(8, 4, dtype=torch.float32), unit(8, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(a, b)
    assert torch.equal(value, loss(a, b))


def test_patchify_orders_patches_by_row():
    image = torch.arange(2 * 4 * 6).reshape(1, 2, 4, 6).float()
    patches = losses.patchify(image, 2)
    assert patches.shape == (1, 6, 8)
    first = image[0, :, 0:2, 2:4]  # the second patch: the first row, the second column
    assert torch.equal(patches[0, 1], first.permute(1, 2, 0).flatten())
    with pytest.raises(ValueError, match="4 x 6 do not divide into patches of 4 x 4"):
        losses.patchify(image, 4)


def test_masked_pixels():
    """The mean over hidden patches alone, of patches standardised by their own pixels."""
    target, prediction = torch.randn(2, 6, 12), torch.randn(2, 6, 12)
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 1] = mask[1, 3] = mask[1, 4] = True
    wished = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(losses.masked_pixels(wished, target, mask), torch.zeros(()))
    expected = (prediction - target)[mask].square().mean()
    torch.testing.assert_close(losses.masked_pixels(prediction, target, mask, normalize=False), expected)


def test_latent_regression():
    target = torch.zeros(1, 2, 1, requires_grad=True)
    prediction = torch.tensor([[[1.0], [5.0]]], requires_grad=True)
    mask = torch.tensor([[True, True]])
    loss = losses.latent_regression(prediction, target, mask, beta=2.0)
    assert loss.item() == pytest.approx((0.5 * 1 / 2 + (5 - 1)) / 2)
    loss.backward()
    assert target.grad is None


def test_latent_regression_turns_linear_at_beta():
    error = torch.tensor([[[3.0]]])
    mask = torch.tensor([[True]])
    for beta, expected in ((0.5, 3 - 0.25), (2.0, 3 - 1), (4.0, 0.5 * 9 / 4)):
        assert float(losses.latent_regression(error, torch.zeros(1, 1, 1), mask, beta=beta)) == pytest.approx(expected)


def test_keyword_arguments_are_widened():
    a, b = unit(8, 4).bfloat16(), unit(8, 4).bfloat16()
    assert losses.nt_xent(a=a, b=b).dtype == torch.float32
    assert (
        losses.masked_pixels(
            prediction=torch.randn(1, 2, 3).half(), target=torch.randn(1, 2, 3).half(), mask=torch.ones(1, 2).bool()
        ).dtype
        == torch.float32
    )


@pytest.mark.parametrize("loss", [losses.nt_xent, losses.barlow_twins, losses.vicreg, losses.negative_cosine])
def test_embeddings_that_do_not_belong_together(loss, unchecked):
    for other in (unit(4, 1), unit(1, 6), unit(4, 3)):
        with pytest.raises(ValueError, match="rows x dims of one shape"):
            loss(unit(4, 6), other)


@pytest.mark.parametrize("loss", [losses.masked_pixels, losses.latent_regression])
def test_masks_that_do_not_fit(loss, unchecked):
    x = torch.randn(2, 6, 12)
    for mask in (torch.ones(6).bool(), torch.ones(2, 1).bool(), torch.ones(2, 6)):
        with pytest.raises(ValueError, match=r"mask must be boolean of shape \(2, 6\)"):
            loss(x, x, mask)


@pytest.mark.parametrize("loss", [losses.masked_pixels, losses.latent_regression])
def test_an_empty_mask_gives_zero(loss):
    prediction = torch.randn(2, 6, 12, requires_grad=True)
    value = loss(prediction, torch.randn(2, 6, 12), torch.zeros(2, 6, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert bool((prediction.grad == 0).all())
