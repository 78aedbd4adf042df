"""Optimisation as data: groups, values, clipping, freezing."""

import math

import pytest
import torch
from torch import nn

from prototile.schedules import Constant, Cosine, Linear, Progress
from prototile.training.optimization import Optimization, Special
from prototile.training.optimizers import LARC, LARS
from training_cases import TinyMethod, dino_vit


def named(method: nn.Module, group: dict) -> set[str]:
    names = {p: name for name, p in method.named_parameters()}
    return {names[p].removeprefix("student.") for p in group["params"]}


def by_role(groups: list[dict]) -> dict[tuple[str, bool], dict]:
    return {(group["role"], group["decays"]): group for group in groups}


def test_every_trainable_parameter_is_in_exactly_one_group():
    method = dino_vit()
    special = {"prototypes": Special(weight_decay=Constant(20.0))}
    optimization = Optimization(lr=Constant(1.0), layer_decay=0.5, roles=special)
    found = [p for group in optimization.groups(method, 256) for p in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {p for p in method.parameters() if p.requires_grad}
    assert len(found) < len(list(method.parameters()))  # a teacher's are in none


def test_biases_and_vectors_do_not_decay_and_alike_groups_are_one():
    method = TinyMethod()
    groups = by_role(Optimization(lr=Constant(1.0)).groups(method, 256))
    assert set(groups) == {("", True), ("", False)}
    assert named(method, groups["", True]) == {
        "token",
        "backbone.stem.weight",
        "backbone.block.0.weight",
        "predictor.weight",
        "prototypes.vectors",
    }
    assert named(method, groups["", False]) == {
        "backbone.stem.bias",
        "backbone.block.0.bias",
        "backbone.block.1.weight",
        "backbone.block.1.bias",
        "predictor.bias",
    }


def test_all_decay_where_an_official_run_says_so():
    (group,) = Optimization(lr=Constant(1.0), decay_vectors=True).groups(TinyMethod(), 256)
    assert group["decays"]
    assert len(group["params"]) == 10


def test_special_parts_have_groups_of_their_own():
    method = TinyMethod()
    roles = {"prototypes": Special(weight_decay=Constant(0.0)), "predictor": Special(lr=Constant(0.05))}
    groups = by_role(Optimization(lr=Constant(1.0), roles=roles).groups(method, 256))
    assert named(method, groups["prototypes", True]) == {"prototypes.vectors"}
    assert named(method, groups["predictor", True]) == {"predictor.weight"}
    assert named(method, groups["predictor", False]) == {"predictor.bias"}


def test_parts_that_are_only_clipped_or_frozen_apart_share_groups():
    roles = {"prototypes": Special(clip=False, freeze_epochs=1), "predictor": Special(freeze_steps=2)}
    assert set(by_role(Optimization(lr=Constant(1.0), roles=roles).groups(TinyMethod(), 256))) == {
        ("", True),
        ("", False),
    }


def test_values_of_every_step():
    method = TinyMethod()
    lr, decay = Cosine(5e-4, 1e-6, warmup_epochs=1), Cosine(0.04, 0.4)
    roles = {"prototypes": Special(decay_factor=Linear(10.0, 1.0)), "predictor": Special(lr=Constant(0.05))}
    optimization = Optimization(lr=lr, weight_decay=decay, roles=roles)
    optimizer = optimization.build(method, batch=1024)
    assert isinstance(optimizer, torch.optim.AdamW)
    for step in range(0, 31, 5):
        progress = Progress(step, 30, 3)
        optimization.set_values_(optimizer, progress)
        groups = by_role(optimizer.param_groups)
        assert groups["", True]["lr"] == groups["prototypes", True]["lr"] == 4 * lr(progress)
        assert groups["predictor", True]["lr"] == 4 * 0.05
        assert groups["", True]["weight_decay"] == decay(progress)
        assert groups["", False]["weight_decay"] == groups["predictor", False]["weight_decay"] == 0
        assert groups["prototypes", True]["weight_decay"] == pytest.approx(decay(progress) * (10 - 9 * step / 30))


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1.0), ("linear", 2.0), ("sqrt", math.sqrt(0.5))])
def test_learning_rates_follow_the_batch(scaling, factor):
    groups = Optimization(lr=Constant(1.0), lr_scaling=scaling).groups(TinyMethod(), 512)
    assert [group["lr_scale"] for group in groups] == pytest.approx([factor, factor])


def test_layer_wise_decay():
    """DINOv2: powers of 0.9 from the patch embedding, whose rate is a fifth of that, to the heads with power 0."""
    method = dino_vit()
    options = {"lr_scaling": "none", "layer_decay": 0.9, "patch_embed_factor": 0.2}
    scales = {
        name: group["lr_scale"]
        for group in Optimization(lr=Constant(1.0), **options).groups(method, 256)
        for name in named(method, group)
    }
    expected = {
        "backbone.vit.patch_embed.proj.weight": 0.2 * 0.9**3,
        "backbone.vit.pos_embed": 0.9**3,
        "backbone.vit.cls_token": 0.9**3,
        "backbone.vit.blocks.0.attn.qkv.weight": 0.9**2,
        "backbone.vit.blocks.1.attn.qkv.weight": 0.9,
        "head.prototypes.vectors": 1.0,
    }
    assert {name: scales[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "kind", "setting"),
    [
        ({"optimizer": "sgd", "momentum": 0.8}, torch.optim.SGD, {"momentum": 0.8}),
        ({"optimizer": "lars", "eta": 0.02}, LARS, {"eta": 0.02, "exclude_vectors": True}),
        ({"optimizer": "lars", "decay_vectors": True}, LARS, {"exclude_vectors": False}),
        ({"optimizer": "larc"}, LARC, {"momentum": 0.9, "clip": False}),
        ({"betas": (0.9, 0.95)}, torch.optim.AdamW, {"betas": (0.9, 0.95)}),
    ],
)
def test_optimisers(options, kind, setting):
    optimizer = Optimization(lr=Constant(1.0), **options).build(TinyMethod(), 256)
    assert type(optimizer) is kind
    assert {name: optimizer.param_groups[0][name] for name in setting} == setting


def with_gradients() -> TinyMethod:
    method = TinyMethod()
    for i, p in enumerate(p for p in method.parameters() if p.requires_grad):
        p.grad = torch.full_like(p, float(i + 1))
    return method


def grads(method: TinyMethod) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in method.student.named_parameters() if p.grad is not None}


def test_clipping_all_together():
    method = with_gradients()
    before = grads(method)
    norm = math.sqrt(sum(float(g.square().sum()) for g in before.values()))
    Optimization(lr=Constant(1.0), clip=3.0).clip_(method)
    for name, g in grads(method).items():
        torch.testing.assert_close(g, before[name] * 3 / norm)


def test_clipping_leaves_out_prototypes_and_small_norms_alone():
    """MSN: neither are prototypes scaled, nor do they count."""
    method = with_gradients()
    before = grads(method)
    norm = math.sqrt(sum(float(g.square().sum()) for name, g in before.items() if "prototypes" not in name))
    Optimization(lr=Constant(1.0), clip=3.0, roles={"prototypes": Special(clip=False)}).clip_(method)
    after = grads(method)
    assert torch.equal(after["prototypes.vectors"], before["prototypes.vectors"])
    torch.testing.assert_close(after["token"], before["token"] * 3 / norm)
    Optimization(lr=Constant(1.0), clip=1e6).clip_(method)
    assert all(torch.equal(g, after[name]) for name, g in grads(method).items())


def test_clipping_each_by_itself():
    method = with_gradients()
    before = grads(method)
    Optimization(lr=Constant(1.0), clip=3.0, clip_by="tensor").clip_(method)
    for name, g in grads(method).items():
        expected = before[name] * min(1.0, 3.0 / (float(before[name].norm()) + 1e-6))
        torch.testing.assert_close(g, expected)


@pytest.mark.parametrize(
    ("special", "frozen"), [(Special(freeze_epochs=1), 10), (Special(freeze_steps=3), 3), (Special(), 0)]
)
def test_freezing(special, frozen):
    """For DINO's epochs and SwAV's steps the gradients are dropped: the optimiser leaves the part alone."""
    optimization = Optimization(lr=Constant(1.0), roles={"prototypes": special})
    for step in (0, 2, 3, 9, 10, 29):
        method = with_gradients()
        optimization.drop_frozen_(method, Progress(step, 30, 3))
        assert (method.student.prototypes.vectors.grad is None) is (step < frozen)
        assert method.student.predictor.weight.grad is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"roles": {"predictors": Special()}}, "treats predictors apart, .* it has: prototypes, predictor"),
        ({"optimizer": "adam"}, "optimizer must be 'adamw', 'sgd', 'lars' or 'larc', got 'adam'"),
        ({"clip": 0.0}, "norm to clip at must be positive"),
        ({"clip_by": "all"}, "clip_by must be"),
        ({"lr_scaling": "cubic"}, "lr_scaling must be one of none, linear, sqrt"),
        ({"layer_decay": 1.5}, r"layer_decay lies in \(0, 1\]"),
    ],
)
def test_bad_settings(options, said, unchecked):
    with pytest.raises(ValueError, match=said):
        Optimization(lr=Constant(1.0), **options).groups(TinyMethod(), 256)


def test_nothing_to_train():
    with pytest.raises(ValueError, match="nothing to train"):
        Optimization(lr=Constant(1.0)).groups(TinyMethod().requires_grad_(False), 256)
