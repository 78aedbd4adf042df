"""Balancers: state, its order, its persistence, and what they refuse."""

import math
from dataclasses import replace

import pytest
import torch

from problems import unit
from prototile.assignments import Assignments, dense, scratch_budget
from prototile.balancing import (
    Balancer,
    Centering,
    ExplicitBalancing,
    ProbabilityCentering,
    Queue,
    Sequential,
    Sharpen,
    Sinkhorn,
)
from prototile.priors import PowerLaw, Uniform

K = 12


def batch(rows: int = 20, temperature: float = 0.05) -> Assignments:
    return Assignments(unit(rows, 6), unit(K, 6), temperature)


STATEFUL = [
    pytest.param(lambda: Centering(PowerLaw(0.5)(K)), id="centering"),
    pytest.param(lambda: ProbabilityCentering(PowerLaw(0.5)(K)), id="probability centering"),
    pytest.param(lambda: ExplicitBalancing(PowerLaw(0.5)(K), momentum=0.5), id="explicit balancing"),
    pytest.param(
        lambda: ExplicitBalancing(PowerLaw(0.5)(K), momentum=0.0), id="explicit balancing with empty clusters"
    ),
]
ALL = [
    *STATEFUL,
    pytest.param(lambda: Sharpen(), id="sharpen"),
    pytest.param(lambda: Sinkhorn(PowerLaw(0.5)(K)), id="sinkhorn"),
    pytest.param(lambda: Sequential(Sharpen(), Sinkhorn(Uniform()(K), start="probabilities")), id="sequential"),
]


@pytest.mark.parametrize("make", ALL)
def test_targets_are_distributions_and_constants(make):
    a = batch()
    targets = make()(replace(a, embeddings=a.embeddings.requires_grad_()))
    assert not targets.probabilities().requires_grad
    torch.testing.assert_close(targets.probabilities().sum(1), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("make", STATEFUL)
def test_state_is_used_before_it_is_updated(make):
    """The targets of a batch do not depend on that batch's own statistics."""
    balancer: Balancer = make()
    balancer(batch())
    a = batch()
    state = {name: x.clone() for name, x in balancer.state_dict().items()}
    targets = balancer(a).probabilities()
    changed = {name for name, x in balancer.state_dict().items() if not torch.equal(x, state[name])}
    assert changed, "training updates the state"
    balancer.load_state_dict(state)
    torch.testing.assert_close(balancer.eval()(a).probabilities(), targets, rtol=0, atol=0)
    assert all(torch.equal(x, state[name]) for name, x in balancer.state_dict().items()), "evaluation does not"


@pytest.mark.parametrize("make", ALL)
def test_resumed_equals_uninterrupted(make):
    batches = [batch() for _ in range(4)]
    straight, first, second = make(), make(), make()
    for a in batches[:2]:
        straight(a)
        first(a)
    second.load_state_dict(first.state_dict())
    for a in batches[2:]:
        assert torch.equal(straight(a).probabilities(), second(a).probabilities())


@pytest.mark.parametrize("make", ALL)
def test_autocast_changes_nothing(make):
    a, first, second = batch(), make(), make()
    a = replace(a, embeddings=a.embeddings.float(), prototypes=a.prototypes.float())
    with torch.autocast("cpu", torch.bfloat16):
        targets = first(a)
        values = statistics(targets, a)
    expected = second(a)
    assert torch.equal(targets.probabilities(), expected.probabilities())
    for name, x in first.state_dict().items():
        assert torch.equal(x, second.state_dict()[name]), name
    for value, reference in zip(values, statistics(expected, a), strict=True):
        assert torch.equal(value, reference)


def statistics(targets: Assignments, teacher: Assignments) -> list[torch.Tensor]:
    held = teacher.hold()
    return [targets.mean(), targets.counts(), targets.confidence(), targets.log_mean(), held.mean(), teacher.entropy()]


@pytest.mark.parametrize("make", STATEFUL)
def test_observed_rows_update_the_state(make):
    a, others = batch(), batch(30)
    first, second = make(), make()
    first(a, observed=replace(a, embeddings=others.embeddings))
    second(replace(a, embeddings=others.embeddings))
    for name, x in first.state_dict().items():
        torch.testing.assert_close(x, second.state_dict()[name])


def test_sinkhorn_balances_the_observed_rows():
    """A queue takes part in the balancing; only the batch's rows come back."""
    a, pi = batch(), PowerLaw(0.5)(K)
    union = replace(a, embeddings=torch.cat([unit(40, 6), a.embeddings]))
    joint = Sinkhorn(pi)(union).probabilities()[40:]
    torch.testing.assert_close(Sinkhorn(pi)(a, observed=union).probabilities(), joint, rtol=1e-12, atol=0)


def test_sinkhorn_per_view_is_sinkhorn_of_each_view():
    a, pi = batch(), PowerLaw(0.5)(K)
    apart = torch.cat([Sinkhorn(pi)(a.view(i, 2)).probabilities() for i in range(2)])
    torch.testing.assert_close(Sinkhorn(pi, views=2)(a).probabilities(), apart, rtol=1e-12, atol=0)
    assert (Sinkhorn(pi)(a).probabilities() - apart).abs().max() > 1e-4


@pytest.mark.parametrize("start", ["logits", "probabilities"])
def test_sinkhorn_streamed_equals_held(start):
    a, pi = batch(), PowerLaw(0.5)(K)
    held = Sinkhorn(pi, start=start)(a)
    assert held.held is not None
    with scratch_budget(1):
        streamed = Sinkhorn(pi, start=start)(a)
    assert streamed.held is None
    torch.testing.assert_close(streamed.offset, held.offset, rtol=1e-12, atol=1e-12)


def test_sinkhorn_keeps_what_fits():
    """Of three tiles of prototypes none, one or all are kept between the iterations: the same numbers."""
    a, pi = Assignments(unit(20, 6), unit(2500, 6), 0.05), PowerLaw(0.5)(2500)
    dense_offset = Sinkhorn(pi)(dense(a.similarities(), 0.05)).offset
    for tiles in (0, 1, 3):
        with scratch_budget(20 * 8 * 1024 * tiles + 1):
            torch.testing.assert_close(Sinkhorn(pi)(a).offset, dense_offset, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("start", ["logits", "probabilities"])
def test_sinkhorn_of_wide_logits_stays_finite(start):
    """Rows thousands of nats below the others, in float32: still distributions, still the prior."""
    scores = 3 * torch.randn(30, K)
    scores[3] -= 5000
    scores[4] *= 300
    targets = Sinkhorn(Uniform()(K), iterations=5, start=start)(dense(scores)).probabilities()
    log_q = scores.double().log_softmax(1) if start == "probabilities" else scores.double()
    for _ in range(5):
        log_q = log_q - log_q.logsumexp(0) + math.log(30 / K)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    torch.testing.assert_close(targets, log_q.exp(), rtol=1e-3, atol=1e-5, check_dtype=False)


def test_sinkhorn_closes_prototypes_with_prior_zero():
    prior = Uniform()(K)
    prior[2] = 0
    prior /= prior.sum()
    balancer = Sinkhorn(prior, iterations=300)
    targets = balancer(batch())
    assert targets.mean()[2] == 0
    assert balancer.column_error(targets) < 1e-6


@pytest.mark.parametrize("mass", [0.0, 1 / K])
def test_sinkhorn_leaves_closed_prototypes_closed(mass):
    """Whose offset is minus infinity already: whatever the prior wants for it."""
    prior, offset = Uniform()(K), torch.zeros(K, dtype=torch.float64)
    prior[2], offset[2] = mass, -torch.inf
    targets = Sinkhorn(prior / prior.sum(), iterations=5)(replace(batch(), offset=offset))
    assert targets.mean()[2] == 0
    assert bool(targets.probabilities().isfinite().all())


def test_every_balancer_closes_prototypes_with_prior_zero():
    prior = Uniform()(K)
    prior[2] = 0
    prior /= prior.sum()
    for balancer in (Centering(prior), ProbabilityCentering(prior), Sequential(Sharpen(), Sinkhorn(prior))):
        assert balancer(batch()).mean()[2] == 0
    balanced = ExplicitBalancing(prior)(batch())  # an infinitely large cluster: cosine -1
    torch.testing.assert_close(balanced.logits()[:, 2] * 0.05, -torch.ones(20, dtype=torch.float64))


def test_probability_centering_floor():
    """Without a floor a prototype that nobody uses drags its centre to minus infinity; with one it does not."""
    scores = torch.zeros(4, 3, dtype=torch.float64)
    scores[:, 2] = -1e4
    literal = ProbabilityCentering(Uniform()(3), momentum=0.0, floor=None)
    literal(dense(scores))
    assert literal.center[2] < -9000
    floored = ProbabilityCentering(Uniform()(3), momentum=0.0, floor=1e-6)
    floored(dense(scores))
    torch.testing.assert_close(floored.center[2].exp(), torch.tensor(1e-6, dtype=torch.float64))


def test_explicit_balancing_counts():
    """Official: after balancing. The paper's pseudo-code: before. A large cluster loses rows only in the first."""
    a = batch(200, 0.04)
    after, raw = (ExplicitBalancing(Uniform()(K), momentum=0.0, count=count) for count in ("balanced", "raw"))
    for balancer in (after, raw):
        balancer.sizes.copy_(torch.linspace(0.001, 1, K))
    targets = after(a)
    raw(a)
    torch.testing.assert_close(after.sizes, targets.counts() / 200.0, check_dtype=False)
    torch.testing.assert_close(raw.sizes, a.counts() / 200.0, check_dtype=False)
    assert not torch.equal(after.sizes, raw.sizes)


def test_explicit_balancing_comes_last():
    for observed in (None, batch()):
        with pytest.raises(ValueError, match="must come last in a sequence"):
            Sequential(ExplicitBalancing(Uniform()(K)), Sinkhorn(Uniform()(K)))(batch(), observed)
    with pytest.raises(ValueError, match="cannot be shifted"):
        Centering(Uniform()(K))(ExplicitBalancing(Uniform()(K))(batch()))


@pytest.mark.parametrize("make", ALL)
def test_state_keeps_its_dtype_when_a_model_is_cast(make):
    model = torch.nn.ModuleDict({"balancer": make(), "head": torch.nn.Linear(2, 2)}).to(torch.bfloat16)
    assert model["head"].weight.dtype == torch.bfloat16
    for name, x in make().state_dict().items():
        assert torch.equal(model["balancer"].state_dict()[name], x)
        assert model["balancer"].state_dict()[name].dtype == x.dtype


def test_explicit_balancing_refuses_offsets():
    with pytest.raises(ValueError, match="must not have an offset"):
        ExplicitBalancing(Uniform()(K))(batch().shift(torch.zeros(K, dtype=torch.float64)))


@pytest.mark.parametrize("make", ALL)
def test_no_rows_leave_targets_empty(make):
    a = replace(batch(), embeddings=torch.zeros(0, 6, dtype=torch.float64))
    balancer = make()
    before = {name: x.clone() for name, x in balancer.state_dict().items() if name != "calls"}
    assert len(balancer(a)) == 0
    for name, x in before.items():
        assert torch.equal(balancer.state_dict()[name], x), f"{name} moved without a row to see"


def test_a_sequence_hands_its_changes_to_the_observed_rows():
    a, pi = batch(), PowerLaw(0.5)(K)
    union = replace(a, embeddings=torch.cat([unit(40, 6), a.embeddings]))
    sequence = Sequential(Sharpen(0.5), Sinkhorn(pi, start="probabilities"))
    joint = sequence(union).probabilities()[40:]
    torch.testing.assert_close(sequence(a, observed=union).probabilities(), joint, rtol=1e-12, atol=0)
    assert not Sequential()(replace(a, embeddings=a.embeddings.requires_grad_())).embeddings.requires_grad


def test_column_error_is_the_largest_of_any_view():
    a, pi = batch(), PowerLaw(0.5)(K)
    balancer = Sinkhorn(pi, views=2)
    targets = balancer(a)
    means = targets.probabilities().unflatten(0, (2, -1)).mean(1)
    torch.testing.assert_close(balancer.column_error(targets), (means / pi - 1).abs().max())


def test_a_resumed_queue():
    first, second = Queue(5, 6), Queue(5, 6)
    first.push(batch(8))
    first.push(batch(8))
    second.load_state_dict(first.state_dict())
    assert second.full
    assert torch.equal(first.embeddings, second.embeddings)


@pytest.mark.parametrize("make", ALL)
def test_made_on_the_meta_device(make):
    """As large models are: their state comes from a checkpoint."""
    with torch.device("meta"):
        balancer = make()
    balancer.to_empty(device="cpu")
    balancer.load_state_dict(make().state_dict())
    assert len(balancer(batch())) == 20


def test_queue():
    queue = Queue(5, 6, views=2).double()
    batches = [replace(batch(8), embeddings=unit(8, 6)) for _ in range(3)]  # 4 rows per view
    assert queue.observe(batches[0]) is batches[0]
    queue.push(batches[0])
    assert not queue.full
    queue.push(batches[1])
    assert queue.full
    by_view = [b.embeddings.unflatten(0, (2, 4)) for b in batches]
    torch.testing.assert_close(queue.embeddings, torch.cat([by_view[1], by_view[0][:, :1]], 1))
    observed = queue.observe(batches[2])
    torch.testing.assert_close(observed.embeddings.unflatten(0, (2, 9)), torch.cat([queue.embeddings, by_view[2]], 1))


def test_bad_arguments(unchecked):
    for make, message in (
        (lambda: Sharpen(0), "sharpening factor must be positive"),
        (lambda: Sinkhorn(Uniform()(K), iterations=-1), "iterations must be at least 0"),
        (lambda: Sinkhorn(Uniform()(K), start="exp"), "start must be 'logits' or 'probabilities'"),
        (lambda: Centering(Uniform()(K), momentum=1.5), "momentum lies in"),
        (lambda: ExplicitBalancing(Uniform()(K), count="soft"), "count must be"),
        (lambda: Queue(0, 6), "length and the views of a queue must be positive"),
        (lambda: Sinkhorn(Uniform()), r"call the prior with the number of prototypes first: Uniform\(\)\(K\)"),
        (lambda: Centering([0.5, 0.5]), "must be a vector of probabilities, got list"),
        (lambda: Centering(torch.ones(K)), "must sum to 1, not to 12"),
        (lambda: Sinkhorn(torch.tensor([0.5, float("nan")])), "must be finite"),
        (lambda: ProbabilityCentering(Uniform()(K), floor=0.0), "floor of a mean must be positive"),
        (lambda: Sinkhorn(Uniform()(5))(batch()), "made for 5 prototypes, the assignments have 12"),
        (lambda: Centering(Uniform()(5))(batch()), "made for 5 prototypes, the assignments have 12"),
        (lambda: ExplicitBalancing(Uniform()(5))(batch()), "made for 5 prototypes, the assignments have 12"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
