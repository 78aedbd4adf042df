"""Recipes: their facts, learning rates over a run, and what cannot be."""

import math
from dataclasses import replace

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from prototile.schedules import Progress
from prototile.training.finetuning import RECIPES, Mixing, RandAugment, Recipe, recipe

FACTS = {  # epochs, batch, rate of backbone and of head at the batch, layer decay, drop path, share of labels
    "semi-vicreg-1": (20, 256, 0.03, 0.08, 1.0, 0.0, 0.01),
    "semi-vicreg-10": (20, 256, 0.01, 0.1, 1.0, 0.0, 0.1),
    "semi-swav-1": (20, 256, 0.02, 5.0, 1.0, 0.0, 0.01),
    "semi-swav-10": (20, 256, 0.01, 0.2, 1.0, 0.0, 0.1),
    "semi-ibot-1": (1000, 1024, 1e-5, 1e-5, 1.0, 0.1, 0.01),
    "semi-ibot-10": (1000, 1024, 1e-5, 1e-5, 1.0, 0.1, 0.1),
    "imagenet-vits": (200, 1024, 8e-4, 8e-4, 0.75, 0.1, None),
    "imagenet-vitb": (100, 1024, 8e-4, 8e-4, 0.65, 0.2, None),
    "inat18-vits": (360, 1024, 1e-4, 1e-4, 1.0, 0.1, None),
    "inat18-vitb": (360, 1024, 1.5e-5, 1.5e-5, 1.0, 0.1, None),
    "plain": (20, 256, 0.01, 0.1, 1.0, 0.0, None),
}


@pytest.mark.parametrize("name", RECIPES)
def test_facts(name):
    found = recipe(name)
    scale = found.batch / found.per_batch
    rates = found.lrs[0] * scale, found.head_lr_of(found.lrs[0]) * scale
    said = found.epochs, found.batch, *rates, found.layer_decay, found.drop_path, found.share
    assert said == pytest.approx(FACTS[name])
    view = found.augmentation().groups[0].views[0]
    assert (view.size, view.scale, view.flip) == (224, (0.08, 1.0), 0.5)


@pytest.mark.parametrize("name", ["imagenet-vits", "imagenet-vitb", "inat18-vits", "inat18-vitb", "semi-ibot-1"])
def test_transformers_are_augmented(name):
    found = recipe(name)
    assert found.mixing() == Mixing(0.8, 1.0, 0.1, 0.1 if name.startswith("inat18") else 0.25)
    assert found.augmentation().groups[0].views[0].policy == RandAugment("rand-m9-mstd0.5-inc1")
    optimization = found.optimization(found.lrs[0])
    assert (optimization.optimizer, optimization.betas, optimization.eps) == ("adamw", (0.9, 0.999), 1e-8)
    assert optimization.weight_decay(Progress(3, 10)) == 0.05
    assert found.projection == name.startswith("semi")
    assert found.repeats == (1 if name.startswith("imagenet") else 3)


@pytest.mark.parametrize("name", ["semi-vicreg-1", "semi-swav-10"])
def test_residual_networks_are_not(name):
    found = recipe(name)
    assert found.mixing() is None
    view = found.augmentation().groups[0].views[0]
    assert (view.policy, view.interpolation) == (None, "bilinear")
    optimization = found.optimization(found.lrs[0])
    assert (optimization.optimizer, optimization.momentum) == ("sgd", 0.9)
    assert optimization.weight_decay(Progress(3, 10)) == 0


def by_epoch(schedule, epochs: int, steps: int = 5) -> list[float]:
    """At the first step of each epoch; every other step has the same."""
    values = [[schedule(Progress(e * steps + s, epochs * steps, epochs)) for s in range(steps)] for e in range(epochs)]
    assert all(len(set(one)) == 1 for one in values)
    return [one[0] for one in values]


@pytest.mark.parametrize("name", ["semi-vicreg-1", "semi-vicreg-10", "semi-swav-1", "semi-swav-10"])
def test_rates_of_sgd_are_torchs(name):
    found = recipe(name)
    optimizer = SGD([torch.zeros(1, requires_grad=True)], found.lrs[0])
    if "vicreg" in name:
        theirs = CosineAnnealingLR(optimizer, 20)
    else:
        theirs = MultiStepLR(optimizer, [12, 16], 0.2)
    wanted = []
    for _ in range(20):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert by_epoch(found.optimization(found.lrs[0]).lr, 20) == pytest.approx(wanted, rel=1e-6)
    head = found.optimization(found.lrs[0]).roles["head"].lr
    assert head is not None
    assert by_epoch(head, 20) == pytest.approx([x * found.head_lr / found.lrs[0] for x in wanted], rel=1e-6)


def test_rates_of_beit():
    """A line from 1e-6 that is at its end in the last step of 20 epochs, then a cosine to 1e-6."""
    lr = recipe("imagenet-vits").optimization(2e-3).lr
    steps = 200 * 10
    values = [lr(Progress(step, steps, 200)) for step in range(steps)]
    assert values[0] == 1e-6
    assert values[199] == pytest.approx(2e-3)
    assert values[100] == pytest.approx(1e-6 + (2e-3 - 1e-6) * 100 / 199)
    for step in (200, 1100, 1999):
        cosine = math.cos(math.pi * (step - 200) / 1800)
        assert values[step] == pytest.approx(1e-6 + (2e-3 - 1e-6) * (1 + cosine) / 2)


def test_rates_of_deit():
    found = recipe("inat18-vits")
    values = by_epoch(found.optimization(found.lrs[0]).lr, 360)
    assert values[0] == values[1] == 1e-6
    assert values[3] == pytest.approx(1e-6 + (1e-4 - 1e-6) * 2 / 5)
    assert values[6] == pytest.approx(1e-6 + (1e-4 - 1e-6) * (1 + math.cos(math.pi * 5 / 360)) / 2)
    assert values[181] == pytest.approx((1e-4 + 1e-6) / 2)
    assert values[359] == pytest.approx(1e-6 + (1e-4 - 1e-6) * (1 + math.cos(math.pi * 358 / 360)) / 2)


def test_rates_are_in_proportion_to_the_batch():
    found = recipe("semi-vicreg-1")
    half = replace(found, batch=128)
    now = Progress(0, 10)
    assert half.optimization(0.03).lr(now) == found.optimization(0.03).lr(now) / 2


def test_a_shorter_run_keeps_its_places():
    shorter = recipe("semi-swav-1").lasting(10)
    assert (shorter.epochs, shorter.milestones) == (10, (6, 8))
    assert recipe("imagenet-vits").lasting(100).warmup_epochs == 10
    assert recipe("semi-swav-1").lasting(20) == recipe("semi-swav-1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": 0}, "must be at least 1"),
        ({"lrs": ()}, "lrs are positive learning rates"),
        ({"lrs": (0.1, -1.0)}, "lrs are positive learning rates"),
        ({"decay": "linear"}, "decay must be one of cosine, cosine by epoch, steps, deit"),
        ({"final_lr": 1.0}, "above the learning rate of 0.1 per 256 images, for batches of 256: lower final_lr"),
        ({"share": 0.0}, r"share is the part of the labels that is learnt from, in \(0, 1\]"),
    ],
)
def test_what_cannot_be(options, said, unchecked):
    with pytest.raises(ValueError, match=said):
        Recipe(**({"epochs": 1, "lrs": (0.1,)} | options))


def test_names():
    with pytest.raises(ValueError, match="did you mean 'semi-vicreg-1'"):
        recipe("semi-vicregg-1")
