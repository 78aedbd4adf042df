"""Clusters of images: against dense softmax, a planted spread recovered, and what it reads like."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import linregress, spearmanr
from torch import Tensor

from prototile.audit import counting
from prototile.audit.clusters import ClusterAudit
from prototile.audit.counting import ClusterCounter, audit_clusters
from prototile.audit.cover import unique
from prototile.audit.mass import mass_by_redundancy
from prototile.priors import PowerLaw, Uniform


def prototypes_with_twins() -> Tensor:
    """20 directions, the first five of them four times over, with norms."""
    directions = F.normalize(torch.randn(20, 8), dim=1)
    rows = torch.cat([directions, *(directions[:5] + 0.01 * torch.randn(5, 8) for _ in range(3))])
    return F.normalize(rows, dim=1) * (0.8 + 0.4 * torch.rand(35, 1))


@pytest.mark.parametrize("numbers", [2**22, 100])
@pytest.mark.parametrize("collapsed", [True, False])
def test_equals_dense_softmax_whatever_the_blocks(monkeypatch, numbers, collapsed):
    monkeypatch.setattr(counting, "_NUMBERS", numbers)
    weights = prototypes_with_twins() if collapsed else torch.randn(12, 8)
    z, offset = torch.randn(300, 8) * 5, torch.randn(len(weights))
    cover = unique(weights)
    assert cover.count == (20 if collapsed else 12)
    found = audit_clusters(z, weights, 0.1, offset=offset, unique=cover)

    logits = F.normalize(z.double(), dim=1) @ weights.double().T / 0.1 + offset.double()
    p = logits.softmax(1)
    torch.testing.assert_close(found.marginal, p.mean(0), rtol=1e-5, atol=1e-9)
    assert found.marginal.dtype == torch.float64
    assert torch.equal(found.assigned, p.argmax(1))
    assert found.sizes.tolist() == torch.bincount(p.argmax(1), minlength=len(weights)).tolist()
    torch.testing.assert_close(found.scores.double(), p.amax(1), rtol=1e-5, atol=1e-7)
    assert found.entropy == pytest.approx(float(-(p * p.log()).sum(1).mean()), rel=1e-5)
    assert found.confidence == pytest.approx(float(p.amax(1).mean()), rel=1e-6)
    few = logits[:, cover.representatives]
    assert torch.equal(found.merged_assigned, few.argmax(1))
    torch.testing.assert_close(found.merged_marginal, few.softmax(1).mean(0), rtol=1e-5, atol=1e-9)
    assert found.merged_sizes.tolist() == torch.bincount(few.argmax(1), minlength=cover.count).tolist()
    assert (found.images, found.prototypes) == (300, len(weights))


def test_as_they_come_or_all_at_once():
    weights, z = prototypes_with_twins(), torch.randn(100, 8)
    counter = ClusterCounter(weights, 0.2)
    for part in z.split(7):
        counter.add(part.half().float())
    one, two = counter.result(), audit_clusters(z.half(), weights, 0.2)
    assert torch.equal(one.assigned, two.assigned)
    torch.testing.assert_close(one.marginal, two.marginal)
    assert one.redundancy.sort().values.tolist() == [1] * 15 + [4] * 5, "the cover is found where none is given"


def test_a_closed_prototype_gets_nothing_and_breaks_nothing():
    offset = torch.tensor([0.0, -math.inf, 0.0])
    found = audit_clusters(torch.randn(50, 4), torch.randn(3, 4), 0.1, offset=offset)
    assert found.marginal[1] == 0
    assert math.isfinite(found.entropy)


def spread(sizes: list[int], k: int | None = None, **options) -> ClusterAudit:
    """So many images exactly on each of k orthogonal prototypes."""
    k = k or len(sizes)
    z = torch.eye(k)[torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))]
    return audit_clusters(z, torch.eye(k), 0.01, **options)


def test_sizes_marginal_and_what_is_said_of_them():
    found = spread([60, 30, 10, 0])
    assert found.sizes.tolist() == [60, 30, 10, 0]
    assert (found.empty, found.merged_empty) == (1, 1)
    assert found.largest == pytest.approx(2.4)
    assert found.relative_sizes.tolist() == pytest.approx([2.4, 1.2, 0.4, 0])
    assert found.empty_by_chance == pytest.approx(4 * 0.75**100)
    assert found.gini == pytest.approx(1 - 2 * (0 + 10 / 2 + 10 + 30 / 2 + 40 + 60 / 2) / 400, abs=1e-9)
    p = np.array([0.6, 0.3, 0.1])
    entropy = -(p * np.log(p)).sum()
    assert found.marginal_entropy == pytest.approx(entropy)
    assert found.effective == pytest.approx(math.exp(entropy))
    assert found.to_uniform == pytest.approx(math.log(4) - entropy)
    assert found.distance_to_uniform == pytest.approx((0.35 + 0.05 + 0.15 + 0.25) / 2)
    assert found.faint == 1
    assert (found.to_prior, found.distance_to_prior, found.sorted_distance_to_prior) == (None, None, None)


def test_a_prior_is_compared_by_index_and_by_shape():
    prior = PowerLaw(1.0)(4)
    sizes = [120, 240, 80, 60]  # 1, 1/2, 1/3, 1/4, but the second is the largest
    found = spread(sizes, prior=prior)
    assert found.sorted_distance_to_prior == pytest.approx(0, abs=1e-9)
    assert found.distance_to_prior == pytest.approx(0.24)
    p, q = torch.tensor(sizes).double() / 500, prior
    assert found.to_prior == pytest.approx(float((p * (p / q).log()).sum()))
    same = spread([50] * 4, prior=Uniform()(4))
    assert same.to_prior == pytest.approx(same.to_uniform, abs=1e-12)


def test_duplicates_look_empty_until_they_are_merged():
    """The first of exact twins takes all their images."""
    weights = torch.eye(6).repeat_interleave(3, 0)
    found = audit_clusters(torch.eye(6).repeat(10, 1), weights, 0.1)
    assert found.empty == 12
    assert found.merged_empty == 0
    assert found.merged_sizes.tolist() == [10] * 6
    torch.testing.assert_close(found.merged_marginal, torch.full((6,), 1 / 6, dtype=torch.float64))


def test_mass_grows_with_redundancy_where_it_was_planted():
    """Shares of r to the power 0.8, over redundancy factors of which the small ones are frequent."""
    redundancy = torch.tensor([1] * 50 + [2] * 20 + [3] * 8 + [4, 5, 7, 9, 9, 15, 30, 64])
    shares = redundancy.double() ** 0.8
    found = mass_by_redundancy(shares / shares.sum(), redundancy)
    assert found.slope == pytest.approx(0.8)
    assert found.spearman == pytest.approx(1)
    assert found.low.tolist() == [1, 2, 3, 4, 9, 30, 64]
    assert found.high.tolist() == [1, 2, 3, 7, 15, 30, 64]
    assert found.prototypes.tolist() == [50, 20, 8, 3, 3, 1, 1]
    assert float(found.mean[0]) == pytest.approx(float(1 / shares.sum()))
    noisy = shares * torch.rand(86)
    noisy[:3] = 0
    found = mass_by_redundancy(noisy / noisy.sum(), redundancy)
    assert found.spearman == pytest.approx(spearmanr(redundancy, noisy).statistic)
    used = noisy > 0
    assert found.slope == pytest.approx(linregress(redundancy[used].double().log(), noisy[used].log()).slope)
    flat = mass_by_redundancy(torch.full((7,), 1 / 7), torch.ones(7, dtype=torch.long))
    assert (flat.spearman, flat.slope) == (None, None)


def test_a_planted_law_of_sizes_is_found_through_the_whole_path():
    k = 200
    shares = torch.arange(1, k + 1).double() ** -0.6
    which = torch.multinomial(shares, 6000, True)
    centres = F.normalize(torch.randn(k, 64), dim=1)
    found = audit_clusters(centres[which] + 0.02 * torch.randn(6000, 64), centres, 0.05, labels=which)
    assert found.power is not None
    assert found.power.error is not None
    assert found.power.exponent == pytest.approx(0.6, abs=4 * found.power.error)
    assert found.labels is not None
    assert found.labels.nmi > 0.999


def test_members_are_half_the_best_and_half_any():
    weights = torch.eye(3)
    z = torch.cat([torch.eye(3)[[0]] + 0.02 * i * torch.eye(3)[[1]] for i in range(20)])
    found = audit_clusters(z, weights, 0.5)
    shown = found.members(0, 6)
    assert shown[:3].tolist() == [0, 1, 2]
    assert len(shown.unique()) == 6
    assert shown.tolist() == found.members(0, 6).tolist() != found.members(0, 6, seed=1).tolist()
    assert found.members(2, 6).tolist() == []
    assert len(found.members(0, 100)) == 20


def test_results_read_well_and_are_strict_json():
    labels = torch.tensor([0] * 60 + [1] * 40)
    found = spread([60, 30, 10, 0], labels=labels, groups={"tail": torch.tensor([1])})
    assert str(found) == ("100 images over 4 prototypes: 1 empty, the largest 2.4 times the mean, effectively 2 in use")
    written = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert written["sizes"] == [60, 30, 10, 0]
    assert written["labels"]["purity"] == 1
    assert written["labels"]["groups"]["tail"]["images"] == 40
    assert written["to_prior"] is None
    assert sum(written["confidences"]["counts"]) == 100
    one = audit_clusters(torch.randn(5, 3), torch.randn(1, 3), 0.1)
    assert one.power is None
    json.dumps(one.as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: audit_clusters(torch.randn(5, 3), torch.randn(4, 3), 0.0), "temperature must be a positive"),
        (lambda: audit_clusters(torch.randn(5, 2), torch.randn(4, 3), 0.1), "rows of 3 dims"),
        (lambda: audit_clusters(torch.randn(0, 3), torch.randn(4, 3), 0.1), "no images"),
        (lambda: audit_clusters(torch.tensor([[1.0, math.nan]]), torch.randn(4, 2), 0.1), "image 0 is not finite"),
        (
            lambda: audit_clusters(torch.randn(5, 3), torch.randn(4, 3), 0.1, prior=Uniform()(3)),
            "4 prototypes but the prior is of 3",
        ),
    ],
)
def test_what_is_refused(unchecked, build, message):
    with pytest.raises(ValueError, match=message):
        build()
