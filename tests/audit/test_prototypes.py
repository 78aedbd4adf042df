"""The audit of prototypes: exact against brute force, a planted truth recovered, whatever the order of rows."""

import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prototile.audit import triangle
from prototile.audit.cover import EPSILON, unique
from prototile.audit.prototypes import DUPLICATE, SWEEP, PrototypeAudit, audit_prototypes


def planted(sizes: Tensor, radii: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Groups of known sizes, all members but the first at a known cosine distance to the first; which is whose."""
    group = torch.arange(len(sizes)).repeat_interleave(sizes)
    centres = F.normalize(torch.randn(len(sizes), dims), dim=1)
    side = torch.randn(len(group), dims)
    side = F.normalize(side - (side * centres[group]).sum(1, keepdim=True) * centres[group], dim=1)
    cosine = 1 - radii[group][:, None]
    x = cosine * centres[group] + (1 - cosine.square()).sqrt() * side
    first = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)[:-1]])
    x[first] = centres
    return x, group


def known_sizes(groups: int, total: int) -> Tensor:
    """From a few hundred down to 1, summing to `total`."""
    shares = torch.arange(1, groups + 1).double() ** -1.1
    sizes = (shares / shares.sum() * (total - groups)).floor().long() + 1
    sizes[0] += total - int(sizes.sum())
    return sizes


def test_a_planted_collapse_is_recovered_whatever_the_order_of_rows():
    """8,192 prototypes in 1,000 groups of known sizes, at radii just inside epsilon and far below it."""
    sizes = known_sizes(1000, 8192)
    assert int(sizes.sum()) == 8192
    radii = torch.linspace(0.0005, 0.0245, 1000)[torch.randperm(1000)]
    x, group = planted(sizes, radii, 256)
    norms = torch.rand(8192, 1) + 0.5
    for order in (torch.arange(8192), torch.arange(8192).flip(0), torch.randperm(8192)):
        cover = unique((x * norms)[order])
        assert cover.count == 1000
        assert cover.redundancy.sort(descending=True).values.tolist() == sizes.sort(descending=True).values.tolist()
        whose = torch.full((1000,), -1)
        whose[cover.labels] = group[order]
        assert torch.equal(whose[cover.labels], group[order]), "each part is a planted group"
    found = audit_prototypes((x * norms)[order])
    assert found.unique.labels.tolist() == cover.labels.tolist()
    assert dict(found.sweep)[EPSILON] == found.count == 1000
    assert found.in_order > 1000, "in the order of indices, members of wide groups do not cover each other"
    torch.testing.assert_close(found.norms, torch.linalg.vector_norm((x * norms)[order], dim=1))
    far = sizes == 1
    alone = far[group[order]]
    assert float(found.nearest[alone].min()) > 0.4, "lonely ones have no neighbour"


def brute_force(x: Tensor) -> dict:
    unit = F.normalize(x.double(), dim=1)
    cosines = unit @ unit.T
    cosines.fill_diagonal_(-2)
    p = torch.linalg.svdvals(unit)
    p = p / p.sum()
    return {
        "nearest": 1 - cosines.amax(1),
        "duplicates": int((1 - cosines < DUPLICATE).sum()) // 2,
        "effective_rank": float((-(p * p.log()).sum()).exp()),
    }


@pytest.mark.parametrize("block", [1024, 50, 7])
def test_equals_brute_force(monkeypatch, block):
    monkeypatch.setattr(triangle, "_BLOCK", block)
    x = torch.randn(60, 12).repeat(3, 1) + 0.05 * torch.randn(180, 12)
    x[20], x[150] = x[100] * 3, x[100]
    x = x * (torch.rand(180, 1) + 0.1)
    found, wanted = audit_prototypes(x, epsilons=(0.01, 0.3)), brute_force(x)
    torch.testing.assert_close(found.nearest.double(), wanted["nearest"], rtol=1e-5, atol=1e-9)
    assert found.duplicates == wanted["duplicates"] == 3
    assert found.effective_rank == pytest.approx(wanted["effective_rank"], rel=1e-6)
    assert found.sweep == tuple((epsilon, unique(x, epsilon).count) for epsilon in (0.01, 0.3))
    assert found.in_order == unique(x, mode="index").count
    unit = F.normalize(x.double(), dim=1)
    theirs = 1 - (unit * unit[found.nearest_index]).sum(1)
    torch.testing.assert_close(theirs, wanted["nearest"], rtol=1e-4, atol=1e-6)


def test_permutations_change_nothing_but_names():
    """Up to ties: these have none."""
    x = torch.randn(80, 6)
    order = torch.randperm(80)
    one, two = audit_prototypes(x), audit_prototypes(x[order])
    assert one.sweep == two.sweep
    torch.testing.assert_close(one.nearest[order], two.nearest)
    assert torch.equal(order[two.nearest_index], one.nearest_index[order])
    assert one.effective_rank == pytest.approx(two.effective_rank)


def test_tiny_distances_are_exact():
    """Where 1 - cos would be rounding."""
    a = torch.zeros(2, 300)
    a[:, 0] = 1
    a[1, 1] = 1e-5
    assert float(audit_prototypes(a).nearest[0]) == pytest.approx(5e-11, rel=1e-4)


def test_the_sweep_spans_the_scales_and_counts_fall_from_k_to_one():
    found = audit_prototypes(F.normalize(torch.randn(1, 32), dim=1) + 0.08 * torch.randn(300, 32))
    assert tuple(epsilon for epsilon, _ in found.sweep) == SWEEP
    counts = [count for _, count in found.sweep]
    assert counts[0] == 300
    assert counts[-1] < 10


def example() -> PrototypeAudit:
    x, _ = planted(torch.tensor([9, 4, 2, 1, 1, 1]), torch.full((6,), 0.01), 16)
    return audit_prototypes(x * 2, temperature=0.1)


def test_results_read_well_and_are_strict_json():
    found = example()
    assert str(found).startswith("6 of 18 prototypes are unique (33.3%)")
    assert found.redundancies() == ((1, 1, 3), (2, 3, 1), (4, 7, 1), (8, 15, 1))
    assert [group.size for group in found.largest(3)] == [9, 4, 2]
    assert found.largest(1, members=4)[0].members == (0, 1, 2, 3)
    assert found.alike
    assert found.concentrations is not None
    torch.testing.assert_close(found.concentrations, torch.full((18,), 20.0))
    assert sum(found.distances().counts) == 18
    written = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert written["unique"] == 6
    assert written["sweep"][3] == {"epsilon": EPSILON, "unique": 6}
    assert written["cover"]["redundancy"] == [9, 4, 2, 1, 1, 1]


def test_edges():
    one = audit_prototypes(torch.randn(1, 4))
    assert (one.count, one.duplicates) == (1, 0)
    assert math.isinf(float(one.nearest[0]))
    json.dumps(one.as_dict(), allow_nan=False)
    zeros = audit_prototypes(torch.zeros(3, 4))
    assert zeros.count == 3
    assert zeros.effective_rank == 0
    assert zeros.nearest.tolist() == [1, 1, 1]
    same = audit_prototypes(torch.ones(50, 4).bfloat16())
    assert (same.count, same.duplicates) == (1, 50 * 49 // 2)
    assert same.effective_rank == pytest.approx(1)


def test_what_is_refused():
    with pytest.raises(ValueError, match="between 0 and 2"):
        audit_prototypes(torch.randn(3, 3), epsilons=(0.1, -1.0))
    with pytest.raises(ValueError, match="cannot be told apart"):
        audit_prototypes(torch.randn(3, 3), epsilons=(0.1, 0.100001))
    with pytest.raises(ValueError, match="prototype 1 is not finite"):
        audit_prototypes(torch.tensor([[1.0], [math.inf]]))


def test_the_stars_of_every_order_agree():
    """Three tips around a centre: the centre covers all, in whatever order."""
    tips = [[0.2 * math.cos(2 * math.pi * i / 3), 0.2 * math.sin(2 * math.pi * i / 3), 1.0] for i in range(3)]
    rows = torch.tensor([*tips, [0.0, 0, 1]])
    found = [audit_prototypes(rows[list(order)]) for order in itertools.permutations(range(4))]
    assert {x.count for x in found} == {1}
    assert {x.in_order for x in found} == {1, 3}


@pytest.mark.gpu
def test_a_gpu_finds_the_same():
    x, _ = planted(known_sizes(300, 3000), torch.full((300,), 0.01), 64)
    assert audit_prototypes(x.cuda()).as_dict() == audit_prototypes(x).as_dict()
