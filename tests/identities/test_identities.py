"""Identities between parts: what a repeated formula cannot catch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from problems import unit
from prototile.assignments import Assignments, Pairs, cross_entropy, dense
from prototile.balancing import (
    Centering,
    ExplicitBalancing,
    ProbabilityCentering,
    Sequential,
    Sharpen,
    Sinkhorn,
)
from prototile.heads import Prototypes
from prototile.priors import Explicit, FromCounts, PowerLaw, Uniform
from prototile.regularizers import match_prior

K = 16


def teacher(rows: int = 64, temperature: float = 0.05, prototypes: int = K) -> Assignments:
    return Assignments(unit(rows, 8), unit(prototypes, 8), temperature)


def test_matching_the_uniform_prior_is_me_max():
    """PMSN with a uniform prior is MSN: KL(p_bar || uniform) = log K - H(p_bar), value and gradient."""
    mean = torch.rand(K, dtype=torch.float64).softmax(0).requires_grad_()
    loss = match_prior(mean, Uniform()(K))
    me_max = math.log(K) + (mean * mean.log()).sum()
    torch.testing.assert_close(loss, me_max)
    (gradient,) = torch.autograd.grad(loss, mean)
    torch.testing.assert_close(gradient, (mean.detach() * K).log() + 1)


def test_matching_a_prior_is_kl_from_the_mean():
    """The mean comes first; the other direction is another number."""
    mean, prior = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    forward = sum(m * math.log(m / p) for m, p in zip(mean.tolist(), prior.tolist(), strict=True))
    backward = sum(p * math.log(p / m) for m, p in zip(mean.tolist(), prior.tolist(), strict=True))
    assert abs(float(match_prior(mean, prior)) - forward) < 1e-6
    assert abs(forward - backward) > 1e-3
    assert match_prior(prior, prior) == pytest.approx(0, abs=1e-7)


def test_priors_that_are_the_same():
    for same in (PowerLaw(0.0), FromCounts([3.0] * K), Explicit([1 / K] * K)):
        torch.testing.assert_close(same(K), Uniform()(K))


@pytest.mark.parametrize("prior", [Uniform(), PowerLaw(0.5), PowerLaw(2.0)])
@pytest.mark.parametrize("start", ["logits", "probabilities"])
def test_converged_sinkhorn_follows_the_prior(prior, start):
    """Rows sum to one after any number of iterations; the column error falls geometrically."""
    pi, a, errors = prior(K), teacher(), []
    for iterations in (1, 3, 10, 30, 300):
        balancer = Sinkhorn(pi, iterations=iterations, start=start)
        targets = balancer(a)
        torch.testing.assert_close(targets.probabilities().sum(1), torch.ones(64, dtype=torch.float64))
        errors.append(float(balancer.column_error(targets)))
    assert errors == sorted(errors, reverse=True)
    assert errors[1] > 1e-4  # three iterations have not converged, and say so
    assert errors[-1] < 1e-7


def test_sinkhorn_without_iterations_is_the_softmax():
    a = teacher()
    torch.testing.assert_close(Sinkhorn(Uniform()(K), iterations=0)(a).probabilities(), a.probabilities())


@pytest.mark.parametrize("prior", [Uniform(), PowerLaw(1.0)])
def test_one_sinkhorn_iteration_is_probability_centering_without_momentum(prior):
    a, pi = teacher(), prior(K)
    centering = ProbabilityCentering(pi, momentum=0.0, floor=None)
    centering(a)  # this batch's centre, which is used only afterwards
    one = Sinkhorn(pi, iterations=1, start="probabilities")(a)
    torch.testing.assert_close(one.probabilities(), centering.eval()(a).probabilities(), rtol=1e-12, atol=0)
    other = Sinkhorn(pi, iterations=1, start="logits")(a)
    assert (one.probabilities() - other.probabilities()).abs().max() > 1e-3


@settings(max_examples=30, deadline=None)
@given(factor=st.floats(0.05, 1.0), seed=st.integers(0, 10**6))
def test_sharpening_is_a_temperature(factor, seed):
    torch.manual_seed(seed)
    a = dense(torch.randn(5, K, dtype=torch.float64))
    powers = a.probabilities() ** (1 / factor)
    expected = powers / powers.sum(1, keepdim=True)
    torch.testing.assert_close(Sharpen(factor)(a).probabilities(), expected, rtol=1e-10, atol=1e-300)


def test_sharpening_where_powers_underflow():
    """p^(1/T) of probabilities around e^-300 is zero in float32; the temperature does not mind."""
    a = dense(torch.tensor([[0.0, -1.0, -300.0]]), temperature=1.0)
    sharp = Sharpen(0.25)(a).log_probabilities()
    torch.testing.assert_close(sharp[0, 2] - sharp[0, 0], torch.tensor(-1200.0))


def test_sharpening_keeps_offsets_in_the_logits():
    a = Assignments(unit(5, 8), unit(K, 8), 0.1, torch.randn(K, dtype=torch.float64))
    torch.testing.assert_close(Sharpen(0.25)(a).logits(), 4 * a.logits())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), exponent=st.floats(0, 2))
def test_explicit_balancing_of_balanced_clusters_changes_nothing(seed, exponent):
    """Sizes equal to the prior: r = 1 everywhere."""
    torch.manual_seed(seed)
    balancer = ExplicitBalancing(PowerLaw(exponent)(K), boost=1.0)
    a = teacher(rows=9, temperature=0.04)
    torch.testing.assert_close(balancer(a).probabilities(), a.probabilities(), rtol=1e-9, atol=1e-300)


def test_explicit_balancing_is_monotone_and_bounded():
    """The larger a cluster, the smaller its balanced similarity; all stay within [-1, 1]."""
    z = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None].expand(9, K).contiguous()
    balancer = ExplicitBalancing(Uniform()(K), boost=1.0)
    balancer.sizes.copy_(torch.linspace(0.01, 1, K))
    balanced = balancer.balance(dense(z)).logits()
    assert bool((balanced.diff(dim=1) <= 1e-12).all())
    assert balanced.abs().max() <= 1


def test_equal_concentrations_cancel():
    """vMF prototypes of one norm give the assignments of cosines at the corresponding temperature."""
    torch.manual_seed(0)
    vmf = Prototypes(8, K, gain="learned", vmf=True).double()
    cosine = Prototypes(8, K).double()
    cosine.vectors.data.copy_(vmf.vectors.data)
    z = torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(vmf(z, 0.1).probabilities(), cosine(z, 0.1).probabilities())
    assert vmf.gain is not None
    vmf.gain.data[3] = 3.0
    assert vmf(z, 0.1).probabilities()[:, 3].mean() != cosine(z, 0.1).probabilities()[:, 3].mean()


def test_centering_needs_no_scores():
    """The mean score is the score of the mean embedding."""
    a = teacher()
    balancer = Centering(Uniform()(K), momentum=0.0)
    balancer(a)
    torch.testing.assert_close(balancer.center, a.similarities().mean(0))


def test_cross_entropy_of_a_distribution_with_itself_is_its_entropy():
    a = teacher(rows=7)
    torch.testing.assert_close(cross_entropy(a, a, Pairs.same()), a.entropy())


def test_targets_that_underflow_do_not_spoil_the_loss():
    """Where a prediction is 0 to float32 and the target too, q log p counts as 0, not NaN."""
    scores = torch.tensor([[0.0, -500.0, 3.0]], requires_grad=True)
    loss = cross_entropy(dense(scores), dense(torch.tensor([[0.0, -900.0, 2.0]])), Pairs.same())
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(scores.grad.isfinite().all())


def test_a_prior_in_every_balancer_moves_the_marginal_towards_it():
    """Fed with the same rows again and again, each balancer brings the marginal closer to a skewed prior."""
    pi, a = PowerLaw(1.0)(K), teacher(rows=512, temperature=0.1)

    def distance(targets: Assignments) -> float:
        return float(match_prior(targets.mean(), pi))

    for balancer in (
        Sinkhorn(pi),
        Centering(pi, momentum=0.5),
        ProbabilityCentering(pi, momentum=0.5),
        ExplicitBalancing(pi, momentum=0.9),
        Sequential(Sharpen(0.5), Sinkhorn(pi, start="probabilities")),
    ):
        for _ in range(60):
            targets = balancer(a)
        assert distance(targets) < distance(a) / 2, type(balancer).__name__
