"""Unique prototypes: the rule as a few plain lines, invariances, and what it refuses."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prototile.audit import cover as covering
from prototile.audit import triangle
from prototile.audit.cover import EPSILON, unique
from prototile.audit.triangle import closeness
from prototile.sphere import normalize

EPSILONS = (1e-6, 0.005, 0.01, EPSILON, 0.1, 0.5)


def collapsed(centres: int, k: int, dims: int, jitter: float) -> Tensor:
    centre = F.normalize(torch.randn(centres, dims), dim=1)
    which = torch.cat([torch.arange(centres), torch.randint(centres, (k - centres,))])
    return centre[which] + jitter / dims**0.5 * torch.randn(k, dims)


def plain(x: Tensor, epsilon: float, mode: str) -> tuple[list[int], list[int]]:
    """Representatives and labels, one prototype after the other, in float64."""
    cosines = F.normalize(x.double(), dim=1) @ F.normalize(x.double(), dim=1).T
    covers = (1 - cosines < epsilon) | torch.eye(len(x), dtype=torch.bool)
    order = list(range(len(x)))
    if mode == "degree":
        order.sort(key=lambda i: (-int(covers[i].sum()), i))
    labels, found = [-1] * len(x), []
    for i in order:
        if labels[i] < 0:
            for j in range(len(x)):
                if labels[j] < 0 and covers[i, j]:
                    labels[j] = len(found)
            found.append(i)
    return found, labels


WAYS = (  # to look at the same pairs: sizes of tiles, of what is kept, of what is done at once
    (triangle, {}),
    (triangle, {"_BLOCK": 64, "_PAIRS": 200, "_LEAST": 4}),
    (triangle, {"_BLOCK": 7, "_PAIRS": 8, "_LEAST": 1, "_FEW": 0.0}),
    (triangle, {"_BLOCK": 33, "_FEW": 0.0, "_FEW_IN_A_ROW": 2}),
    (triangle, {"_BLOCK": 33, "_FEW": 1.0, "_PAIRS": 8, "_LEAST": 2}),
    (covering, {"_LEAST": 1, "_CANDIDATES": 3}),
    (covering, {"_ROUNDS": 0}),
    (covering, {"_ROUNDS": 1}),
)


@pytest.mark.parametrize("mode", ["degree", "index"])
@pytest.mark.parametrize("jitter", [0.05, 0.11, 0.14, 0.2])
def test_equals_the_plain_rule_whatever_the_way(monkeypatch, mode, jitter):
    x = collapsed(30, 150, 16, jitter) * torch.rand(150, 1).add(0.1)  # norms do not count
    rules = {epsilon: plain(x, epsilon, mode) for epsilon in EPSILONS}
    unit = normalize(x)
    for module, settings in WAYS:
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setattr(module, name, value)
            close = closeness(unit, EPSILONS)
            for level, epsilon in enumerate(EPSILONS):
                cover = covering.cover(unit, close, level, mode)
                assert (cover.representatives.tolist(), cover.labels.tolist()) == rules[epsilon]
            if mode == "index":  # from the tiles of candidates alone
                cover = unique(x, EPSILON, mode=mode)
                assert (cover.representatives.tolist(), cover.labels.tolist()) == rules[EPSILON]


def test_a_few_huge_groups_and_many_small_ones(monkeypatch):
    """Whose pairs are kept, and whose are not, decides nothing."""
    monkeypatch.setattr(triangle, "_BLOCK", 100)
    monkeypatch.setattr(triangle, "_PAIRS", 1)
    monkeypatch.setattr(triangle, "_LEAST", 5)
    shares = torch.arange(1, 80).double() ** -1.5
    centres = F.normalize(torch.randn(79, 24), dim=1)
    x = centres[torch.multinomial(shares, 700, True)] + 0.12 / 24**0.5 * torch.randn(700, 24)
    unit = normalize(x)
    close = closeness(unit, EPSILONS)
    heavy = (close.pairs.complete <= EPSILONS.index(EPSILON)).double().mean()
    assert 0.2 < heavy < 0.9, "both kinds are there"
    for mode in ("degree", "index"):
        for level, epsilon in enumerate(EPSILONS):
            cover = covering.cover(unit, close, level, mode)
            assert (cover.representatives.tolist(), cover.labels.tolist()) == plain(x, epsilon, mode)


def test_a_chain_is_walked_from_its_first():
    """Each covers the next alone: the order of indices decides, one after the other."""
    angle = torch.arange(500) * 0.2  # 1 - cos .2 = .0199, 1 - cos .4 = .079
    x = torch.stack([angle.cos(), angle.sin()], 1)[:31]
    found, labels = plain(x, EPSILON, "index")
    cover = unique(x, mode="index")
    assert (cover.representatives.tolist(), cover.labels.tolist()) == (found, labels)
    assert unique(x).representatives.tolist() == plain(x, EPSILON, "degree")[0]


@pytest.mark.parametrize("mode", ["degree", "index"])
def test_a_cover_is_one(mode):
    x = collapsed(40, 300, 8, 0.2)
    cover = unique(x, mode=mode)
    assert 1 < cover.count < 300
    unit = F.normalize(x, dim=1)
    cosines = (unit * unit[cover.representatives[cover.labels]]).sum(1)
    assert bool((1 - cosines < EPSILON + 1e-6).all()), "every prototype is covered by its representative"
    assert cover.labels[cover.representatives].tolist() == list(range(cover.count)), "which are in their own part"
    assert int(cover.redundancy.sum()) == 300


def test_tight_clusters_are_counted_exactly():
    assert unique(collapsed(150, 2048, 256, 0.1)).count == 150


@pytest.mark.parametrize("mode", ["degree", "index"])
def test_spread_prototypes_are_all_unique(mode):
    cover = unique(torch.randn(64, 32), mode=mode)
    assert cover.count == 64
    assert sorted(cover.representatives.tolist()) == list(range(64))
    assert cover.redundancy.tolist() == [1] * 64


def test_the_order_of_rows_matters_to_index_only():
    """A star: its centre covers all three tips, no tip covers another."""
    tips = [0.0, 2 * torch.pi / 3, 4 * torch.pi / 3]
    angle = 0.2  # 1 - cos .2 = .0199 < .025; two tips are 1 - (1 + ...) = .059 apart
    star = torch.tensor([[angle * float(torch.tensor(t).cos()), angle * float(torch.tensor(t).sin()), 1] for t in tips])
    rows = torch.cat([star, torch.tensor([[0.0, 0, 1]])])
    counts = {mode: set() for mode in ("degree", "index")}
    for order, mode in itertools.product(itertools.permutations(range(4)), counts):
        counts[mode].add(unique(rows[list(order)], mode=mode).count)
    assert counts == {"degree": {1}, "index": {1, 3}}


def test_borderline_pairs_are_counted():
    def at(distance: float) -> list[float]:
        return [1 - distance, (1 - (1 - distance) ** 2) ** 0.5, 0.0]

    x = torch.tensor([[1.0, 0, 0], at(EPSILON + 1e-7), [0, 0, 1.0], at(0.5)])
    assert unique(x).borderline == 1
    assert unique(x, 0.1).borderline == 0
    assert unique(x, mode="index").borderline is None, "where not all pairs are looked at, nobody knows"


def test_a_row_of_zeros_stands_for_itself():
    cover = unique(torch.tensor([[0.0, 0], [1, 0], [1, 0], [0, 0]]))
    assert cover.count == 3
    assert cover.labels.unique(return_counts=True)[1].tolist() == [2, 1, 1]


def test_half_precision_and_results_that_read_well():
    x = collapsed(5, 20, 16, 0.01).bfloat16()
    cover = unique(x)
    assert cover.count == unique(x.float()).count
    assert "of 20 prototypes are unique" in str(cover)
    found = cover.as_dict()
    assert found["unique"] == cover.count
    assert found["prototypes"] == 20
    assert sum(found["redundancy"]) == 20
    assert len(found["labels"]) == 20


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.randn(3), {}, "must be a matrix"),
        (torch.randn(0, 3), {}, "at least one"),
        (torch.randn(3, 3), {"epsilon": 0.0}, "between 0 and 2"),
        (torch.randn(3, 3), {"mode": "best"}, "'degree' or 'index'"),
        (torch.tensor([[1.0], [float("nan")]]), {}, "prototype 1 is not finite"),
    ],
)
def test_what_is_refused(unchecked, x, options, message):
    with pytest.raises(ValueError, match=message):
        unique(x, **options)


@pytest.mark.slow
def test_many_prototypes_take_bounded_time_and_memory():
    """K x K float32 would be 1 GiB."""
    assert unique(collapsed(1000, 16384, 64, 0.1)).count == 1000


@pytest.mark.gpu
def test_a_gpu_finds_the_same():
    x = collapsed(100, 3000, 64, 0.1)
    assert unique(x.cuda()).labels.tolist() == unique(x).labels.tolist()
