"""The linear protocols: their published numbers, what is chosen on what, and that they learn."""

import pytest
import torch
from torch import Tensor

from prototile.evaluation.heads import Head, StoredFeed, train_heads
from prototile.evaluation.published import (
    LinearRecipe,
    dino,
    e2mc,
    e2mc_transfer,
    excb,
    ibot,
    published_linear,
    vissl,
)
from prototile.evaluation.splits import held_out


@pytest.mark.parametrize(
    ("data", "epochs", "schedule", "crops"),
    [
        ("imagenet", 28, (8, 16, 24), "random"),
        ("places", 14, (4, 8, 12), "random"),
        ("inaturalist", 84, (24, 48, 72), "random"),
        ("cifar100", 28, (8, 16, 24), "flips"),
        ("clevr-count", 50, "cosine", "flips"),
        ("clevr-dist", 100, "cosine", "flips"),
        ("kitti-dist", 28, (8, 16, 24), "random"),
    ],
)
def test_vissl(data, epochs, schedule, crops):
    recipe = vissl(data)
    training = recipe.training
    assert (training.epochs, training.schedule, recipe.crops) == (epochs, schedule, crops)
    assert (training.batch, training.momentum, training.nesterov, training.weight_decay) == (256, 0.9, True, 5e-4)
    assert recipe.rates == (0.01,)
    heads = recipe.heads(["cls", "cls of 4"], {"cls of 4": 4})
    assert heads == [
        Head("cls", 0.01),
        Head("cls", 0.01, True),
        Head("cls of 4", 0.01),
        Head("cls of 4", 0.01, True, 4),
    ]
    if schedule == "cosine":
        assert 0.01 * training.factor(epochs, 0, 1) == pytest.approx(1e-4)


def test_dino_and_ibot():
    assert dino().rates == (0.004,)
    rates = ibot().rates
    assert len(rates) == 45
    assert min(rates) == pytest.approx(1e-4)
    assert max(rates) == 9
    for recipe in (dino(), ibot(), excb()):
        training = recipe.training
        assert (training.epochs, training.batch, training.weight_decay) == (100, 1024, 0)
        assert training.factor(100, 0, 1) == pytest.approx(0)


def test_excb():
    """linspace(-0.021, 0.029, 101), of which 58 are positive."""
    wanted = torch.linspace(0.004 - 0.025, 0.004 + 0.025, 101, dtype=torch.float64)
    assert excb().rates == pytest.approx(wanted[wanted > 1e-9].tolist())
    training = excb(transformer=False).training
    assert (excb(False).rates, training.batch, training.weight_decay) == ((0.3,), 256, 1e-6)


@pytest.mark.parametrize(
    ("method", "share", "rate", "batch", "decay"),
    [
        ("vicreg", 0.01, 0.02, 256, 1e-4),
        ("vicreg", 1.0, 0.02, 256, 1e-6),
        ("swav", 0.1, 0.3, 256, 1e-6),
        ("simsiam", 0.01, 2.0, 256, 0.0),
        ("simsiam", 0.1, 0.2, 2048, 0.0),
        ("simsiam", 1.0, 0.1, 2048, 0.0),
    ],
)
def test_e2mc(method, share, rate, batch, decay):
    recipe = e2mc(method, share)
    assert (recipe.rates, recipe.training.batch, recipe.training.weight_decay) == ((rate,), batch, decay)
    assert recipe.training.optimizer == ("larc" if method == "simsiam" else "sgd")
    assert e2mc_transfer().normed == (True,)


def problem() -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor], Tensor]:
    centres = torch.randn(4, 6)
    found = []
    for n in (120, 60):
        y = torch.arange(n) % 4
        good = centres[y] + 0.8 * torch.randn(n, 6)
        found += [{"good": good, "bad": torch.randn(n, 3)}, y]
    return tuple(found)


RECIPE = LinearRecipe("small", ibot().training, (1e-6, 0.05, 0.5), (False, True))


def test_the_best_on_held_out_images_learns_from_all(monkeypatch):
    train, y, test, wanted = problem()
    found = published_linear(RECIPE, train, y, test, wanted, epochs=5, share=0.2)
    assert found.chosen["features"] == "good"
    assert len(found.scores) == 2 * 2 * 3
    assert found.selected_on == "validation"
    kept, held = held_out(y, 0.2)
    heads = RECIPE.heads(["good", "bad"], {})
    training = RECIPE.training.__class__(5, 1024)
    dims = {"good": 6, "bad": 3}
    every = train_heads(heads, StoredFeed(train, y, 1024, rows=kept), dims, 4, training)
    ranks = every.ranks({name: x[held] for name, x in train.items()}, y[held])
    best = int((ranks == 0).double().mean(1).argmax())
    again = train_heads([heads[best]], StoredFeed(train, y, 1024), dims, 4, training)
    ranks = again.ranks(test, wanted)[0]
    assert torch.equal(found.right, ranks == 0)
    assert found.top1 == pytest.approx(float((ranks == 0).double().mean()))
    assert found.top5 == 1
    assert found.top1 > 0.7
    assert not found.augmented


def test_the_best_on_the_test_images_is_not_worse():
    train, y, test, wanted = problem()
    found = published_linear(RECIPE, train, y, test, wanted, epochs=5, select_on="test")
    assert found.selected_on == "test"
    assert found.top1 == max(found.scores.values())


def test_one_head_chooses_nothing():
    train, y, test, wanted = problem()
    some = ({"good": train["good"]}, y, {"good": test["good"]}, wanted)
    found = published_linear(dino(), *some, epochs=3)
    assert (found.selected_on, found.scores) == ("nothing", {})
    assert str(found) == f"linear {found.top1:.1%} of 60 images (dino, features of the images as they are)"
    assert "right" not in found.as_dict()
    other = published_linear(dino(), *some, epochs=3, seed=1)
    assert torch.equal(published_linear(dino(), *some, epochs=3).right, found.right)
    assert other.chosen == found.chosen


def test_images_without_a_label_are_left_out():
    train, y, test, wanted = problem()
    expected = published_linear(RECIPE, {k: x[:100] for k, x in train.items()}, y[:100], test, wanted, epochs=2)
    y[100:] = -1
    found = published_linear(RECIPE, train, y, test, wanted, epochs=2)
    assert torch.equal(found.right, expected.right)
    wanted[30:] = -1
    assert published_linear(RECIPE, train, y, test, wanted, epochs=2).images == 30


def test_milestones_keep_their_places():
    seen = []

    class Watched(StoredFeed):
        def batches(self, epoch):
            seen.append(epoch)
            return super().batches(epoch)

    train, y, test, wanted = problem()
    published_linear(
        LinearRecipe("steps", vissl().training, (0.1,)),
        {"good": train["good"]},
        y,
        {"good": test["good"]},
        wanted,
        epochs=7,
        feeds=lambda rows, batch, seed: Watched({"good": train["good"]}, y, batch, rows=rows, seed=seed),
    )
    assert seen == list(range(7))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vissl("imagent"), "is for imagenet, places"),
        (lambda: e2mc("dino"), "is for vicreg, swav, simsiam"),
        (lambda: e2mc("swav", 0.5), "0.01, 0.1 or 1.0"),
        (lambda: published_linear(dino(), *problem(), select_on="train"), "select_on must be"),
        (lambda: published_linear(dino(), *problem()[:2], {}, problem()[3]), "the same features"),
    ],
)
def test_what_is_refused(unchecked, call, message):
    with pytest.raises(ValueError, match=message):
        call()
