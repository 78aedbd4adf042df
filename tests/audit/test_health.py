"""Health: every number against an independent computation, windows, and two ranks."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from health_cases import health_numbers
from prototile.assignments import Assignments, dense
from prototile.audit import EmbeddingHealth, Health, Window, cluster_health, embedding_health, health
from prototile.balancing import ExplicitBalancing, Sinkhorn
from prototile.priors import PowerLaw, Uniform
from ranks import RankPool

K = 6


def of(p: list[list[float]]) -> Assignments:
    """Assignments with these very probabilities."""
    return dense(torch.tensor(p, dtype=torch.float64).log().clamp(min=-1000))


def test_exact_numbers():
    student = of([[0.5, 0.25, 0.25], [0.2, 0.6, 0.2]])
    targets = of([[0.9, 0.1, 0.0], [0.7, 0.2, 0.1]])
    prior = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    found = cluster_health(student, targets, prior, torch.eye(3))
    entropy = scipy.stats.entropy
    marginal, mean_target = [0.35, 0.425, 0.225], [0.8, 0.15, 0.05]
    assert found.student_entropy == pytest.approx((entropy([0.5, 0.25, 0.25]) + entropy([0.2, 0.6, 0.2])) / 2)
    assert found.target_entropy == pytest.approx((entropy([0.9, 0.1]) + entropy([0.7, 0.2, 0.1])) / 2)
    assert found.student_confidence == pytest.approx(0.55)
    assert found.target_confidence == pytest.approx(0.8)
    assert found.marginal_entropy == pytest.approx(entropy(marginal))
    assert found.marginal_divergence == pytest.approx(entropy(marginal, prior.numpy()))
    assert found.marginal_distance == pytest.approx(np.abs(np.subtract(marginal, prior.numpy())).sum() / 2)
    assert found.target_distance == pytest.approx(np.abs(np.subtract(mean_target, prior.numpy())).sum() / 2)
    assert (found.rows, found.used, found.largest, found.unique) == (2, 1, 1.0, 3)
    assert found.used_share == 0.5, "two rows could have used two"
    assert found.largest_prior == 0.5
    assert not found.representative


def test_norms_are_of_the_prototypes_that_are_used():
    z, w = F.normalize(torch.randn(8, 4), dim=1), torch.randn(K, 4)
    found = cluster_health(Assignments(z, w, 0.1), Assignments(z, w, 0.1), Uniform()(K), F.normalize(w, dim=1))
    norms = w.norm(dim=1)
    assert (found.smallest_norm, found.largest_norm) == pytest.approx((float(norms.min()), float(norms.max())))


def problem(rows: int = 24) -> Assignments:
    return Assignments(F.normalize(torch.randn(rows, 5), dim=1), F.normalize(torch.randn(K, 5), dim=1), 0.1)


def balanced(a: Assignments) -> dict[str, Assignments]:
    prior = PowerLaw(0.5)(K)
    return {
        "plain": a,
        "offset": Sinkhorn(prior)(a),
        "by view": Assignments(a.embeddings, a.prototypes, 0.1, torch.randn(3, K)),
        "adjusted": ExplicitBalancing(prior, momentum=0.0)(a),
        "boosted": ExplicitBalancing(prior, momentum=0.0, boost=1.5)(a),
        "held": a.hold(),
    }


@pytest.mark.parametrize("kind", ["plain", "offset", "by view", "adjusted", "boosted", "held"])
@pytest.mark.parametrize("numbers", [2**24, 5 * K, 1])
def test_blocks_see_what_the_dense_matrix_holds(monkeypatch, kind, numbers):
    monkeypatch.setattr(health, "_NUMBERS", numbers)
    targets = balanced(problem())[kind]
    p = targets.probabilities().double()
    window = Window(K)
    found = cluster_health(targets, targets, Uniform()(K), targets.prototypes, window)
    torch.testing.assert_close(window.marginal, p.mean(0), rtol=1e-5, atol=1e-7)
    assert window.counts.tolist() == torch.bincount(p.argmax(1), minlength=K).tolist()
    assert found.target_entropy == pytest.approx(float(-torch.xlogy(p, p).sum(1).mean()), rel=1e-5)
    assert found.student_confidence == pytest.approx(float(p.amax(1).mean()), rel=1e-5)


def test_a_closed_prototype_counts_nothing():
    found = cluster_health(of([[0.5, 0.5, 0.0]]), of([[1.0, 0.0, 0.0]]), torch.tensor([0.5, 0.5, 0.0]), torch.eye(3))
    assert found.student_entropy == pytest.approx(math.log(2))
    assert found.target_entropy == 0
    assert found.marginal_divergence == pytest.approx(0)
    closed = cluster_health(of([[0.5, 0.5, 0.0]]), of([[1.0, 0.0, 0.0]]), torch.tensor([1.0, 0.0, 0.0]), torch.eye(3))
    assert closed.marginal_divergence == math.inf, "mass where the prior has none"


def test_health_leaves_no_graph_and_changes_nothing():
    a = problem()
    z = a.embeddings.clone().requires_grad_()
    student = Assignments(z, a.prototypes, 0.1)
    before = torch.get_rng_state()
    cluster_health(student, a, Uniform()(K), a.prototypes)
    embedding_health(z)
    assert z.grad is None
    assert torch.equal(torch.get_rng_state(), before)


def test_a_window_holds_enough_rows_and_forgets():
    window = Window(4)  # 32 rows are enough
    for _ in range(7):
        window.add(torch.tensor([5, 0, 0, 0]), torch.tensor([5.0, 0, 0, 0]))
    assert window.counts.tolist() == [35, 0, 0, 0]
    for _ in range(14):
        window.add(torch.tensor([0, 5, 0, 0]), torch.tensor([0, 2.5, 2.5, 0]))
    assert window.counts.tolist() == [0, 70, 0, 0], "two sums of 35 rows"
    assert window.marginal.tolist() == [0, 0.5, 0.5, 0]
    window.add(torch.tensor([0, 0, 5, 0]), torch.tensor([0, 0.0, 5, 0]))
    assert window.counts.tolist() == [0, 35, 5, 0]


def test_a_window_goes_on_where_it_was():
    first, second = Window(4), Window(4)
    steps = [(torch.randint(20, (4,)), torch.rand(4)) for _ in range(9)]
    for step in steps[:5]:
        first.add(*step)
    second.load_state_dict(first.state_dict())
    for step in steps[5:]:
        first.add(*step)
        second.add(*step)
    assert first.counts.tolist() == second.counts.tolist()
    assert first.marginal.tolist() == second.marginal.tolist()
    with pytest.raises(ValueError, match="of 4 prototypes, and there are 5"):
        Window(5).load_state_dict(first.state_dict())


def test_usage_is_of_the_window():
    window, prior = Window(3), Uniform()(3)
    cluster_health(of([[0.8, 0.1, 0.1]]), of([[0.8, 0.1, 0.1]]), prior, torch.eye(3), window)
    found = cluster_health(of([[0.1, 0.8, 0.1]]), of([[0.1, 0.8, 0.1]]), prior, torch.eye(3), window)
    assert (found.rows, found.used, found.largest) == (2, 2, 0.5)
    assert found.target_distance == pytest.approx(1 / 3 - 0.1)
    assert found.marginal_distance == pytest.approx(0.8 - 1 / 3), "the student's is of the step"


def test_embeddings():
    x = torch.randn(50, 7, dtype=torch.float64) + 0.5
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    found = embedding_health(x)
    assert found.spread == pytest.approx(unit.std(0).mean() * 7**0.5)
    assert found.cosine == pytest.approx((unit @ unit.T)[~np.eye(50, dtype=bool)].mean())


def test_embeddings_at_both_ends():
    spread = embedding_health(torch.randn(4000, 16))
    assert spread.spread == pytest.approx(1, abs=0.02)
    assert spread.cosine == pytest.approx(0, abs=0.01)
    constant = embedding_health(torch.ones(10, 16) * torch.rand(10, 1).add(0.1))
    assert constant.spread == pytest.approx(0, abs=1e-6)
    assert constant.cosine == pytest.approx(1)
    assert math.isnan(embedding_health(torch.ones(1, 16)).spread)


def test_results_read_well_and_are_plain():
    a = problem()
    cls = cluster_health(a, a, Uniform()(K), a.prototypes)
    found = Health(7, 1.5, EmbeddingHealth(0.5, 0.75), {"cls": cls})
    numbers = found.numbers()
    assert numbers["health/spread"] == 0.5
    assert numbers["health/cls/used"] == cls.used
    assert numbers["health/cls/used_share"] == cls.used_share
    assert "health/cls/prototypes" not in numbers, "which does not change"
    assert all(isinstance(value, int | float) for value in numbers.values())
    assert found.as_dict()["clusters"]["cls"]["unique"] == cls.unique
    assert "step 7: loss 1.5" in str(found)
    assert f"of {K} prototypes used" in str(found)


def test_two_ranks_equal_one(two_ranks: RankPool):
    alone = health_numbers(0, 1)
    for together in two_ranks.run(health_numbers):
        assert together == pytest.approx(alone, rel=1e-6)
