"""Published coefficients, spaces and learning rates."""

import math

import pytest
import torch

from continuing_cases import END, saved
from foreign_cases import CASES
from prototile.regularizers import EffectiveEntropy
from prototile.schedules import Constant, Cosine, Progress
from prototile.sphere import normalize
from prototile.training.continuing import (
    E2MC,
    add_ons,
    planned,
    restore,
)
from prototile.training.continuing.criteria import add_
from prototile.training.continuing.recipe import continued, optimization_for, warmed
from prototile.training.optimization import Optimization


@pytest.mark.parametrize(
    ("method", "beta", "gamma", "space"),
    [("vicreg", 1000, 100, "hypercube"), ("swav", 1, 25, "hypersphere"), ("simsiam", 0.001, 0.01, "hypersphere")],
)
def test_e2mc_is_the_published_one(method, beta, gamma, space):
    (added,) = add_ons("e2mc", method)
    x = 3 * torch.randn(2, 40, 5, dtype=torch.float64)
    u = 0.5 * (1 + torch.erf(x / math.sqrt(2))) if space == "hypersphere" else 1 / (1 + (-x).exp())
    loss = 0.0
    for view in u:  # appendix B, and the entropies' mean as in the code
        ordered, m = view.sort(0).values, round(math.sqrt(40))
        entropy = (41 / m * (ordered[m:] - ordered[:-m]) + 2**-23).log().mean()
        k = torch.cov(view.T)
        loss += -beta * entropy / 2 + gamma * (k.square().sum() - k.diagonal().square().sum()) / 5
    assert added.of == "projections"
    assert added([], torch.zeros(2, 40, 3), x) * added.weight == pytest.approx(float(loss), rel=1e-9)


def test_rivals_have_the_published_weights():
    x = torch.randn(8, 30, 6, dtype=torch.float64)
    unit = normalize(x.flatten(0, 1)).view(x.shape)
    first = unit[:2]
    (vcreg,), (auh,), (mmcr,), (koleo,) = (add_ons(name, "swav") for name in ("vcreg", "auh", "mmcr", "koleo-proto"))
    covariances = [torch.cov(view.T) for view in first]
    hinge = sum((6**-0.5 - (k.diagonal() + 1e-4).sqrt()).relu().mean() for k in covariances) / 2
    off = sum((k.square().sum() - k.diagonal().square().sum()) / 6 for k in covariances)
    features = torch.zeros(2, 30, 3)
    assert vcreg.weight * vcreg([], features, x) == pytest.approx(float(0.1 * hinge + 0.001 * off), rel=1e-6)
    pairs = [torch.pdist(view).square() for view in first]
    wanted = 0.5 * sum((-2 * d).exp().mean().log() for d in pairs) / 2
    assert auh.weight * auh([], features, x) == pytest.approx(float(wanted), rel=1e-6)
    nuclear = torch.linalg.matrix_norm(unit.mean(0), "nuc")  # over all views
    assert mmcr.weight * mmcr([], features, x) == pytest.approx(float(-0.005 * nuclear), rel=1e-6)
    assert (koleo.weight, koleo.of, koleo.regularizer.partition) == (0.1, "prototypes", 2048)


def test_coefficients_can_be_others():
    (added,) = add_ons("e2mc", "vicreg", {"beta": 5, "space": "hypersphere"})
    assert isinstance(added.regularizer, EffectiveEntropy)
    assert (added.regularizer.beta, added.regularizer.gamma) == (5, E2MC["vicreg"][1])
    assert add_ons("none", "swav") == []


def test_a_criterion_takes_the_place_of_the_same_one(swav_run):
    method = restore(swav_run.folder).method
    add_(method, "koleo-proto", "swav", {"weight": 3})
    add_(method, "koleo-proto", "swav", {"weight": 5})
    add_(method, "e2mc", "swav")
    assert [(each.name, each.weight) for each in method.add_ons.each] == [("koleo_proto", 5), ("e2mc", 1.0)]


@pytest.mark.parametrize(
    ("case", "rate", "kind"), [("vicreg", 0.003, "lars"), ("swav", 0.001, "larc"), ("simsiam", 0.001, "sgd")]
)
def test_learning_rates_are_the_published_ones(case, rate, kind, tmp_path):
    plan = planned(restore(saved(tmp_path, CASES[case][0]())))
    restored = restore(tmp_path / "file.pth")
    optimizer = plan.build(restored.method, 512)
    assert plan.optimizer == kind
    for step in (0, 5, 10):
        plan.set_values_(optimizer, Progress(step, 10, 10))
        rates = {group["role"]: group["lr"] for group in optimizer.param_groups}
        assert rates.pop("predictor", 0.1) == pytest.approx(0.1)  # SimSiam's is fixed
        assert list(rates.values()) == pytest.approx([rate])
        assert {group["weight_decay"] for group in optimizer.param_groups} <= {0.0, 1e-6, 1e-4}


def test_other_rates_are_a_hundredth_of_the_base_rate(tmp_path):
    dino = planned(restore(saved(tmp_path, CASES["dino vit"][0]())))
    assert (dino.lr(END), dino.lr_scaling, dino.weight_decay(END)) == (pytest.approx(5e-6), "linear", 0.4)
    assert planned(restore(tmp_path / "file.pth"), lr=0.3).lr(END) == 0.3
    convolutional = optimization_for("dino", restore(saved(tmp_path, CASES["swav"][0]())).method.backbones[0])
    assert (convolutional.optimizer, convolutional.lr(END)) == ("lars", pytest.approx(0.003))


def test_a_continued_rate_is_not_reduced_again():
    own = Optimization(lr=Cosine(0.2, 0.0), weight_decay=Cosine(0.04, 0.4))
    once = continued(own, 30)
    assert (once.lr(END), once.weight_decay(END)) == pytest.approx((0.002, 0.4))
    assert isinstance(once.lr, Constant)
    assert continued(once, 10, again=True).lr == once.lr
    assert warmed(once, 2).lr(Progress(19, 100, 10)) == pytest.approx(0.2)
    assert warmed(once, 2).lr(Progress(20, 100, 10)) == pytest.approx(0.002)


def test_a_criterion_of_prototypes_needs_some(tmp_path):
    restored = restore(saved(tmp_path, CASES["vicreg"][0]()))
    with pytest.raises(ValueError, match="koleo-proto spreads prototypes, and vicreg has none"):
        add_(restored.method, "koleo-proto", "vicreg")
