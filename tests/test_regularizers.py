"""Regularisers: known values, batching rules, and what they refuse."""

import math

import mpmath
import pytest
import torch

from problems import unit
from prototile.neighbors import nearest
from prototile.priors import PowerLaw, Uniform
from prototile.regularizers import (
    EffectiveEntropy,
    KoLeo,
    ManifoldCapacity,
    MatchPrior,
    Uniformity,
    VarianceCovariance,
    koleo,
    match_prior,
    spacings_entropy,
)


# ------------------------------------------------------------------------------------------------- MatchPrior
def test_match_prior_with_zeros():
    """Zero mass counts nothing; mass where the prior is zero costs infinitely much."""
    prior = torch.tensor([0.5, 0.5, 0.0])
    assert float(match_prior(torch.tensor([0.5, 0.5, 0.0]), prior)) == 0
    assert float(match_prior(torch.tensor([1.0, 0.0, 0.0]), prior)) == pytest.approx(math.log(2))
    assert float(match_prior(torch.tensor([0.5, 0.4, 0.1]), prior)) == math.inf


def test_match_prior_of_masses_that_underflow():
    """A prototype whose mean assignment is exactly zero in float32 leaves all gradients finite."""
    logits = torch.tensor([[0.0, 1.0, -200.0]], requires_grad=True)
    mean = logits.softmax(1).mean(0)
    assert mean[2] == 0
    match_prior(mean, torch.full((3,), 1 / 3)).backward()
    p = torch.tensor([0.0, 1.0]).double().softmax(0)
    slope = p.log() + 1
    expected = p * (slope - p @ slope)
    torch.testing.assert_close(logits.grad[0, :2].double(), expected, rtol=1e-5, atol=1e-7)
    assert logits.grad[0, 2] == 0


def test_match_prior_refuses_another_length(unchecked):
    with pytest.raises(ValueError, match="over 4 prototypes but the prior over 3"):
        MatchPrior(Uniform()(3))(torch.ones(4) / 4)


def test_match_prior_keeps_its_prior_in_the_state():
    other = MatchPrior(Uniform()(5))
    other.load_state_dict(MatchPrior(PowerLaw(1.0)(5)).state_dict())
    torch.testing.assert_close(other.prior, PowerLaw(1.0)(5))


# ------------------------------------------------------------------------------------------------------ KoLeo
def test_koleo_of_partitions_is_their_sum():
    """The published sum over random partitions; the mean has the scale of one partition."""
    x = unit(50, 6)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    parts = [koleo(x[part]) for part in order.split(10)]
    torch.testing.assert_close(KoLeo(partition=10)(x), torch.stack(parts).sum())
    torch.testing.assert_close(KoLeo(partition=10, reduction="mean")(x), torch.stack(parts).mean())
    torch.testing.assert_close(KoLeo(partition=50)(x), koleo(x))
    torch.testing.assert_close(KoLeo(partition=None)(x), koleo(x))


def test_koleo_draws_other_partitions_every_step_and_resumes():
    x, regularizer, resumed = unit(50, 6), KoLeo(partition=10), KoLeo(partition=10)
    values = [float(regularizer(x)) for _ in range(2)]
    resumed.load_state_dict(regularizer.state_dict())
    assert len({*values, third := float(regularizer(x))}) == 3
    assert float(resumed(x)) == third


def test_koleo_merges_a_last_partition_of_one():
    assert math.isfinite(float(KoLeo(partition=10)(unit(21, 6))))


def test_koleo_sees_directions_only():
    x = unit(20, 6)
    torch.testing.assert_close(koleo(x * torch.rand(20, 1, dtype=torch.float64)), koleo(x))


def test_koleo_spreads_rows():
    """Descending it lowers the largest similarity of any two rows."""
    x = (unit(1, 6) + 0.1 * torch.randn(12, 6, dtype=torch.float64)).requires_grad_()
    before = nearest(torch.nn.functional.normalize(x, dim=-1))[1].max()
    for _ in range(50):
        (gradient,) = torch.autograd.grad(koleo(x), x)
        x = (x - 0.1 * gradient).detach().requires_grad_()
    assert nearest(torch.nn.functional.normalize(x, dim=-1))[1].max() < before - 0.3


def test_exact_duplicates_separate():
    """Without noise the gradients of an exact pair cancel, and it stays a pair for ever."""
    x = torch.cat([unit(4, 6), unit(4, 6)])
    x[5] = x[1]
    x.requires_grad_()
    regularizer = KoLeo(partition=None)
    (gradient,) = torch.autograd.grad(regularizer(x), x)
    assert int(regularizer.duplicates) == 2
    assert bool(gradient.isfinite().all())
    moved = x.detach() - 1e-6 * gradient
    assert float((moved[1] - moved[5]).norm()) > 1e-6


@pytest.mark.parametrize("spread", [1e-8, 7e-7, 1e-6, 1e-5])
def test_collapsed_prototypes_separate(spread):
    """In float32 nearest neighbours of near duplicates are not mutual: a collapsed set must do no harm."""
    for seed in range(12):
        torch.manual_seed(seed)
        x = unit(20, 16, dtype=torch.float32).repeat(20, 1)
        x = (x + spread * torch.randn(400, 16)).requires_grad_()
        (gradient,) = torch.autograd.grad(KoLeo(partition=None)(x), x)
        assert bool(gradient.isfinite().all())


def test_duplicates_are_pushed_apart_from_each_other():
    """Descending, every copy leaves its own twin, not some other row's."""
    x = torch.cat([unit(6, 8), torch.zeros(6, 8, dtype=torch.float64)])
    x[6:] = x[torch.tensor([3, 5, 0, 2, 4, 1])]
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(koleo(x), x)
    moved = x.detach() - 1e-8 * gradient
    for copy, original in enumerate([3, 5, 0, 2, 4, 1], 6):
        along = torch.nn.functional.cosine_similarity(gradient[copy], gradient[original], dim=0)
        assert float(along) < -0.9
        assert float((moved[copy] - moved[original]).norm()) > 1e-7


def test_koleo_refuses_non_finite_rows():
    x = unit(5, 4)
    x[2, 1] = torch.nan
    with pytest.raises(ValueError, match="rows hold numbers that are not finite"):
        koleo(x)


def test_koleo_needs_two_rows():
    with pytest.raises(ValueError, match="at least two rows, got 1"):
        KoLeo()(unit(1, 4))


# ------------------------------------------------------------------------------------------------------- E2MC
@pytest.mark.parametrize("n", [64, 512, 2048])
def test_spacings_entropy_of_uniform_numbers(n):
    """E H = psi(m) - psi(n + 1) + log((n + 1) / m) for independent uniforms ."""
    m = round(math.sqrt(n))
    expected = float(mpmath.digamma(m) - mpmath.digamma(n + 1)) + math.log((n + 1) / m)
    entropies = spacings_entropy(torch.rand(n, 2000, dtype=torch.float64))
    error = float(entropies.std() / math.sqrt(2000))
    assert abs(float(entropies.mean()) - expected) < 5 * error


def test_equispaced_numbers_have_positive_spacings_entropy():
    """The supremum lies slightly above zero: a positive value is no bug."""
    u = (torch.arange(1, 513, dtype=torch.float64)[:, None] - 0.5) / 512
    assert float(spacings_entropy(u)) == pytest.approx(0.0019, abs=1e-3)


def test_effective_entropy_of_saturated_dims_is_finite():
    z = 100 * torch.ones(2, 16, 3)
    z.requires_grad_()
    loss = EffectiveEntropy(space="hypercube")(z)
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(z.grad.isfinite().all())


def test_effective_entropy_does_not_mind_the_order_of_rows():
    z = torch.randn(2, 20, 4, dtype=torch.float64)
    z[0, 3] = z[0, 9]  # a tie
    regularizer = EffectiveEntropy()
    torch.testing.assert_close(regularizer(z[:, torch.randperm(20)]), regularizer(z))


def test_effective_entropy_sums_or_averages_views():
    z = torch.randn(2, 20, 4)
    mean, total = (EffectiveEntropy(gamma=0, reduction=reduction)(z) for reduction in ("mean", "sum"))
    torch.testing.assert_close(total, 2 * mean)


# ----------------------------------------------------------------------------------------------------- others
def test_variance_covariance_vanishes_for_spread_uncorrelated_dims():
    z = torch.randn(16, 4, dtype=torch.float64)
    z = 8 * torch.linalg.qr(z - z.mean(0))[0]
    loss = VarianceCovariance(mu=1, nu=1, space="projector")(z[None])
    assert float(loss) < 1e-9


def test_uniformity_of_opposite_points():
    z = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert float(Uniformity(t=2.0)(z)) == pytest.approx(-8)


def test_manifold_capacity_of_orthogonal_centroids():
    """The nuclear norm of n orthonormal rows is n; rows with non-finite numbers are left out."""
    z = torch.eye(4)[None].repeat(3, 1, 1)
    assert float(ManifoldCapacity()(z)) == pytest.approx(-4)
    z[0, 1, 0] = torch.nan
    z.requires_grad_()
    loss = ManifoldCapacity()(z)
    assert loss.item() == pytest.approx(-3)
    (gradient,) = torch.autograd.grad(loss, z)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize(
    "regularizer", [EffectiveEntropy(), VarianceCovariance(), Uniformity()], ids=lambda r: type(r).__name__
)
def test_one_row_is_refused(regularizer):
    with pytest.raises(ValueError, match="at least two rows, got 1"):
        regularizer(torch.randn(2, 1, 4))


@pytest.mark.parametrize(
    "regularizer",
    [EffectiveEntropy(), VarianceCovariance(), Uniformity(), ManifoldCapacity()],
    ids=lambda r: type(r).__name__,
)
def test_autocast_changes_nothing(regularizer):
    z = torch.randn(2, 40, 8)
    with torch.autocast("cpu", torch.bfloat16):
        value = regularizer(z)
    assert torch.equal(value, regularizer(z))
    assert regularizer(z.bfloat16()).dtype == torch.float32


def test_koleo_under_autocast():
    x = torch.randn(40, 8)
    with torch.autocast("cpu", torch.bfloat16):
        value = koleo(x)
    assert torch.equal(value, koleo(x))


def test_bad_arguments(unchecked):
    for make, message in (
        (lambda: KoLeo(partition=1), "partition needs at least two rows"),
        (lambda: KoLeo(reduction="max"), "reduction must be 'sum' or 'mean'"),
        (lambda: EffectiveEntropy(space="cube"), "space must be 'hypersphere' or 'hypercube'"),
        (lambda: EffectiveEntropy(reduction="max"), "reduction must be"),
        (lambda: MatchPrior(Uniform()), "call the prior with the number of prototypes"),
        (lambda: MatchPrior(torch.ones(3)), "must sum to 1, not to 3"),
        (lambda: EffectiveEntropy()(torch.zeros(4, 3)), "views x rows x dims"),
        (lambda: Uniformity()([torch.zeros(4, 3)] * 2), "views x rows x dims, got list: stack the views"),
        (lambda: VarianceCovariance(space="cube"), "space must be 'hypersphere' or 'projector'"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
