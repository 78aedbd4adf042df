"""Embeddings: distances, marginals and ranks against plain computations, and cases whose answer is known."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare, kstest
from torch import Tensor

from prototile.audit import distances, embeddings
from prototile.audit.distances import nearest_images, neighbor_distances, rank_for
from prototile.audit.embeddings import audit_embeddings, lidar
from prototile.audit.health import embedding_health
from prototile.audit.marginals import audit_marginals, drawn_pairs
from prototile.regularizers import spacings_entropy, uniformity


@pytest.mark.parametrize("numbers", [2**24, 700])
@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_distances_equal_brute_force(monkeypatch, numbers, shift):
    monkeypatch.setattr(distances, "_NUMBERS", numbers)
    x = torch.randn(200, 6)
    x[7] = x[90] + 1e-4  # products would not see it
    x = x + shift
    found, index = neighbor_distances(x, 12)
    exact = torch.cdist(x.double(), x.double()).fill_diagonal_(math.inf).sort(1)
    torch.testing.assert_close(found.near.double(), exact.values[:, 0], rtol=1e-4, atol=1e-6 + shift * 1e-6)
    torch.testing.assert_close(found.far.double(), exact.values[:, 11], rtol=1e-4, atol=1e-6 + shift * 1e-6)
    assert torch.equal(index, exact.indices[:, 0])
    near, far = found.near.numpy(), found.far.numpy()
    assert found.auc == pytest.approx((far[:, None] > near).mean() + (far[:, None] == near).mean() / 2)
    assert found.within == pytest.approx((far < torch.tensor(near).median().item()).mean())
    one, two = found.histograms()
    assert one.edges == two.edges
    assert found.overlap == pytest.approx(np.minimum(one.counts, two.counts).sum() / 200)
    assert sum(one.counts) == sum(two.counts) == 200


def test_groups_overlap_less_than_one_cloud():
    cloud = torch.randn(400, 16)
    groups = torch.randn(40, 16).repeat_interleave(10, 0) + 0.05 * torch.randn(400, 16)
    together, apart = neighbor_distances(cloud)[0], neighbor_distances(groups)[0]
    assert together.rank == apart.rank == 10
    assert apart.overlap < 0.05 < together.overlap
    assert apart.auc > 0.99 > together.auc


def test_ranks_keep_their_proportion():
    assert [rank_for(n) for n in (50_000, 100_000, 10_000, 1000, 8)] == [100, 200, 20, 10, 7]


def test_equal_images_are_at_no_distance():
    found, _ = neighbor_distances(torch.ones(20, 4))
    assert (found.overlap, found.auc, found.within) == (1, 0.5, 0)


def test_sheets_show_the_nearest_directions():
    x = torch.randn(50, 8) * torch.rand(50, 1)
    unit = F.normalize(x, dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-2)
    queries = torch.tensor([3, 40])
    assert torch.equal(nearest_images(x, queries, 5), cosines[queries].argsort(1, descending=True)[:, :5])
    with pytest.raises(ValueError, match="1 to 49 neighbours"):
        nearest_images(x, queries, 50)


# ---------------------------------------------------------------------------------------------------- marginals
def logits_of(u: Tensor) -> Tensor:
    return (u / (1 - u)).log()


def test_marginals_equal_scipy():
    u = torch.rand(600, 5) ** 1.3
    found = audit_marginals(logits_of(u), "hypercube", seed=3)
    torch.testing.assert_close(found.entropy, spacings_entropy(u), rtol=1e-4, atol=1e-4)
    for j in range(5):
        assert float(found.distance[j]) == pytest.approx(kstest(u[:, j].numpy(), "uniform").statistic, abs=1e-5)
    for i, (a, b) in enumerate(found.pairs.tolist()):
        counts = np.histogram2d(u[:, a], u[:, b], 10, [[0, 1], [0, 1]])[0]
        assert np.abs(found.grids[i].numpy() - counts).sum() <= 4, "rounding at the edges of cells"
        assert float(found.chi_square[i]) == pytest.approx(chisquare(found.grids[i].flatten()).statistic / 99, rel=1e-5)
    assert len(found.pairs) == 10


def test_an_x_has_uniform_marginals_without_correlation_and_a_huge_chi_square():
    """Each dim by itself says nothing (E2MC, on its criterion being necessary only)."""
    u = torch.rand(4000)
    x = torch.stack([u, torch.where(torch.rand(4000) < 0.5, u, 1 - u)], 1)
    crossed, even = (audit_marginals(logits_of(y), "hypercube") for y in (x, torch.rand(4000, 2)))
    assert float(crossed.distance.max()) < 0.04
    assert abs(float(torch.corrcoef(x.T)[0, 1])) < 0.05
    assert float(crossed.chi_square[0]) > 50
    assert float(even.chi_square[0]) == pytest.approx(1, abs=0.5)


def test_pairs_are_different_and_the_same_every_time():
    pairs = drawn_pairs(40, 1)
    assert pairs.tolist() == drawn_pairs(40, 1).tolist() != drawn_pairs(40, 2).tolist()
    assert len({tuple(pair) for pair in pairs.tolist()}) == 10
    assert drawn_pairs(3, 0).shape == (3, 2)
    assert drawn_pairs(1, 0).shape == (0, 2)


# ---------------------------------------------------------------------------------------------------- the whole
def test_numbers_equal_plain_computations():
    x = torch.randn(300, 40) @ torch.diag(torch.linspace(0.1, 2, 40)) + 0.5
    found = audit_embeddings(x)
    p = torch.linalg.svdvals(x.double())
    p = p / p.sum() + 1e-7
    assert found.rankme == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-6)
    torch.testing.assert_close(found.eigenvalues, torch.linalg.eigvalsh(torch.cov(x.double().T)).flip(0))
    assert found.uniformity == pytest.approx(float(uniformity(x.double())), abs=1e-5)
    health = embedding_health(x)
    assert found.spread == pytest.approx(health.spread)
    assert found.cosine == pytest.approx(health.cosine)
    corr = torch.corrcoef(x.double().T)
    assert found.correlation == pytest.approx(float((corr.abs().sum() - 40) / (40 * 39)))
    torch.testing.assert_close(found.norms, x.norm(dim=1))
    assert list(found.neighbors) == ["raw", "unit", "sigmoid"]
    assert (found.alignment, found.lidar, found.agreement, found.sampled) == (None, None, None, None)


def test_a_planted_decay_of_eigenvalues_is_found():
    d, n = 120, 400
    basis = torch.linalg.qr(torch.randn(n, d + 1, dtype=torch.float64) - 0)[0]
    basis = basis - basis.mean(0)
    basis = torch.linalg.qr(basis)[0][:, :d]
    x = basis * torch.arange(1, d + 1).double() ** -0.6  # eigenvalues are squares
    found = audit_embeddings(x, spaces=())
    assert found.alpha_req == pytest.approx(1.2, abs=1e-6)
    assert found.alpha_range == (11, 100)
    few = audit_embeddings(torch.randn(50, 8))
    assert (few.alpha_req, few.alpha_range) == (None, None)


def test_ranks_of_few_directions():
    x = torch.randn(500, 3) @ torch.randn(3, 64)
    assert audit_embeddings(x, spaces=()).rankme < 3.01
    q = torch.linalg.qr(torch.randn(64, 64))[0]
    assert audit_embeddings(q, spaces=()).rankme == pytest.approx(64, rel=1e-4)


def test_alignment_and_lidar_of_views():
    views = torch.randn(3, 80, 6) * 0.1 + torch.randn(1, 80, 6)
    found = audit_embeddings(views[0], views=views)
    u = F.normalize(views.double(), dim=-1)
    pairs = [(u[a] - u[b]).square().sum(1).mean() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert found.alignment == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-6)
    z = views.double()
    mean = z.mean(0)
    between = torch.cov(mean.T)
    within = sum(torch.cov(z[:, i].T) for i in range(80)) / 80 + 1e-4 * torch.eye(6)
    values = torch.linalg.eigvals(torch.linalg.solve(within, between)).real.clamp(min=0)
    p = values / values.sum() + 1e-7
    assert found.lidar == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-6)


def test_lidar_counts_what_tells_images_apart():
    """Two dims do, ten others hold as much jitter as they spread."""
    signal = torch.zeros(1, 2000, 12)
    signal[..., :2] = 10 * torch.randn(1, 2000, 2)
    assert lidar(signal + torch.randn(4, 2000, 12)) == pytest.approx(2, abs=0.35)
    with pytest.raises(ValueError, match="at least two"):
        lidar(torch.randn(1, 5, 3))


def test_labels_of_nearest_neighbours():
    labels = torch.arange(5).repeat_interleave(20)
    x = 5 * torch.eye(5)[labels] + 0.1 * torch.randn(100, 5)
    assert audit_embeddings(x, labels=labels).agreement == 1
    assert audit_embeddings(x, labels=labels, spaces=()).agreement == 1
    labels[::4] = -1
    assert audit_embeddings(x, labels=labels).agreement == 1
    assert audit_embeddings(x, labels=torch.full((100,), -1)).agreement is None


def test_many_images_are_sampled_the_same_way_every_time(monkeypatch):
    x = torch.randn(500, 4)
    one, two = (audit_embeddings(x, at_most=100, labels=torch.arange(500) % 2, seed=1) for _ in range(2))
    assert (one.images, one.sampled, one.marginals.images) == (500, 100, 100)
    assert one.as_dict() == two.as_dict()
    assert one.rankme != audit_embeddings(x, at_most=100, seed=2).rankme
    monkeypatch.setattr(embeddings, "KERNEL", 200)
    assert audit_embeddings(x, spaces=()).uniformity == pytest.approx(float(uniformity(x)), abs=0.1)


def test_results_read_well_and_are_strict_json():
    found = audit_embeddings(torch.randn(60, 40), views=torch.randn(2, 60, 40))
    assert "60 images in 40 dims: RankMe" in str(found)
    written = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert written["neighbors"]["raw"]["rank"] == 10
    assert len(written["neighbors"]["unit"]["near"]) == 100
    constant = audit_embeddings(torch.ones(10, 4))
    assert constant.cosine == pytest.approx(1)
    assert constant.spread == pytest.approx(0, abs=1e-6)
    json.dumps(constant.as_dict(), allow_nan=False)
    json.dumps(audit_embeddings(torch.randn(2, 1)).as_dict(), allow_nan=False)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.randn(1, 3), {}, "at least two images"),
        (torch.tensor([[1.0], [math.nan]]), {}, "diverged"),
        (torch.randn(4, 3), {"labels": torch.zeros(3, dtype=torch.long)}, "labels of 3 images"),
        (torch.randn(4, 3), {"views": torch.randn(2, 3, 3)}, "views of 3 images"),
    ],
)
def test_what_is_refused(unchecked, x, options, message):
    with pytest.raises(ValueError, match=message):
        audit_embeddings(x, **options)
