r"""The linear protocols of the papers: which heads on which features, trained how, and the best of them reported.

    recipe                      heads                                          training
    vissl(data)                 two on each of two features: plain, batch norm 28 epochs of 256, steps; by data set
    dino(), ibot()              one; 45 rates n 10^k, n = 1..9, k = -4..0      100 epochs of 1024, cosine
    e2mc(method, share)         one on pooled features; on the map: batch norm 100 epochs of 256 or 2048, cosine
    excb(transformer)           58 rates from 0.0005 to 0.029; one for ResNets 100 epochs of 1024 or 256, cosine

Sources: VISSL's defaults (as in PMSN, arXiv 2210.07277, appendix D), and the official code of DINO, iBOT, E2MC and
ExCB. ExCB's 101 rates reach below zero; those that do are left out there, too.

n images, m of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prototile.evaluation.heads import Feed, Head, StoredFeed, Trained, Training, train_heads
from prototile.evaluation.scores import mean_per_class
from prototile.evaluation.splits import held_out

SelectOn = Literal["validation", "test"]
Feeds = Callable[[Int[Tensor, " m"], int, int], Feed]  # from rows, the batch and a seed

# epochs and schedule of VISSL's configurations; batches of 256 at 0.01
_VISSL: dict[str, tuple[int, tuple[int, ...] | Literal["cosine"]]] = {
    "imagenet": (28, (8, 16, 24)),
    "places": (14, (4, 8, 12)),
    "inaturalist": (84, (24, 48, 72)),
    "cifar100": (28, (8, 16, 24)),
    "clevr-count": (50, "cosine"),
    "clevr-dist": (100, "cosine"),
    "kitti-dist": (28, (8, 16, 24)),
}
_E2MC: dict[str, dict[float, tuple[float, int, float]]] = {  # by share of labels: rate, batch, weight decay
    "vicreg": {0.01: (0.02, 256, 1e-4), 0.1: (0.02, 256, 1e-4), 1.0: (0.02, 256, 1e-6)},
    "swav": {0.01: (0.3, 256, 1e-6), 0.1: (0.3, 256, 1e-6), 1.0: (0.3, 256, 1e-6)},
    "simsiam": {0.01: (2.0, 256, 0.0), 0.1: (0.2, 2048, 0.0), 1.0: (0.1, 2048, 0.0)},
}


@dataclass(frozen=True)
class LinearRecipe:
    """A published protocol; a head of every rate stands on each of the features that are given to it."""

    name: str
    training: Training
    rates: tuple[float, ...]
    normed: tuple[bool, ...] = (False,)  # without and with a batch norm before it
    crops: Literal["random", "flips"] = "random"  # of training images: random resized crops, or whole ones turned

    def heads(self, features: Sequence[str], places: Mapping[str, int]) -> list[Head]:
        return [
            Head(name, rate, normed, places.get(name, 1) if normed else 1)
            for name in features
            for normed in self.normed
            for rate in self.rates
        ]


def vissl(data: str = "imagenet") -> LinearRecipe:
    """A plain head and one behind a batch norm on each of the features; nothing else is tried (Goyal et al. 2021)."""
    if data not in _VISSL:
        raise ValueError(f"VISSL's linear protocol is for {', '.join(_VISSL)}, got {data!r}")
    epochs, schedule = _VISSL[data]
    cosine = schedule == "cosine"
    training = Training(
        epochs,
        256,
        nesterov=True,
        weight_decay=5e-4,
        schedule=schedule,
        final=0.01 if cosine else 0.0,
        every_step=cosine,
    )
    crops = "flips" if data.startswith(("cifar", "clevr")) else "random"
    return LinearRecipe(f"vissl {data}", training, (0.01,), (False, True), crops)


def dino() -> LinearRecipe:
    """One rate, 0.001 for 256 images (Caron et al. 2021)."""
    return LinearRecipe("dino", Training(), (0.001 * 1024 / 256,))


def ibot() -> LinearRecipe:
    """45 rates in one pass (Zhou et al. 2022)."""
    return LinearRecipe("ibot", Training(), tuple(n * 10.0**k for k in range(-4, 1) for n in range(1, 10)))


def e2mc(method: Literal["vicreg", "swav", "simsiam"] = "vicreg", share: float = 1.0) -> LinearRecipe:
    """The rate of each method and share of labels: 0.01, 0.1 or all (Chakraborty et al. 2025, appendix A.2)."""
    if method not in _E2MC:
        raise ValueError(f"E2MC's linear protocol is for {', '.join(_E2MC)}, got {method!r}")
    if share not in _E2MC[method]:
        raise ValueError(f"E2MC's linear protocol learns from 0.01, 0.1 or 1.0 of the labels, got {share:g}")
    rate, batch, decay = _E2MC[method][share]
    optimizer: Literal["sgd", "larc"] = "larc" if method == "simsiam" else "sgd"
    training = Training(100, batch, weight_decay=decay, optimizer=optimizer)
    return LinearRecipe(f"e2mc {method} {share:g}", training, (rate,))


def e2mc_transfer() -> LinearRecipe:
    """iNaturalist 2018 on the map of 2 x 2 means, behind a batch norm."""
    training = Training(84, 256, weight_decay=1e-4, schedule=(24, 48, 72))
    return LinearRecipe("e2mc transfer", training, (0.01,), (True,))


def excb(transformer: bool = True) -> LinearRecipe:
    """Rates around 0.004 in steps of 0.0005 in one pass; 0.3 for a ResNet."""
    if not transformer:
        return LinearRecipe("excb", Training(100, 256, weight_decay=1e-6), (0.3,))
    return LinearRecipe("excb", Training(), tuple(0.0005 * n for n in range(1, 59)))


@dataclass(frozen=True, eq=False)
class LinearResult:
    """The share of test images that the chosen head has right, and of the images that heads were chosen on."""

    recipe: str
    top1: float
    top5: float
    per_class: float
    images: int
    chosen: Mapping[str, Any]
    selected_on: Literal["nothing", "validation", "test"]
    scores: Mapping[str, float] = field(repr=False)  # of all heads, on those images
    augmented: bool
    right: Bool[Tensor, " n"] = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "right"}

    def __str__(self) -> str:
        how = "" if self.augmented else ", features of the images as they are"
        return f"linear {self.top1:.1%} of {self.images:,} images ({self.recipe}{how})"


def published_linear(
    recipe: LinearRecipe,
    train: Mapping[str, Float[Tensor, "_t _d"]],
    train_labels: Int[Tensor, " t"],
    test: Mapping[str, Float[Tensor, "_n _d"]],
    test_labels: Int[Tensor, " n"],
    *,
    feeds: Feeds | None = None,
    places: Mapping[str, int] | None = None,
    select_on: SelectOn = "validation",
    share: float = 0.1,
    seed: int = 0,
    epochs: int | None = None,
    device: torch.device | str = "cpu",
) -> LinearResult:
    """A published protocol on named features of the same images, one or several (`Readout`).

    Training images are seen as `train` has them, one view of each: quick, and not what papers do, which draw another
    view in each epoch; `feeds` draws such (`ViewsFeed`). The head is chosen on a tenth of the training images, which
    then are learned from too, by that head alone; the papers' codes choose on the test images. `places` are the values
    that each channel of some features has, one after the other.
    """
    if select_on not in ("validation", "test"):
        raise ValueError(f"select_on must be 'validation' or 'test', got {select_on!r}")
    if train.keys() != test.keys() or not train:
        raise ValueError(f"training and test images need the same features, got {[*train]} and {[*test]}")
    training = _shortened(recipe.training, epochs)
    heads = recipe.heads(list(train), places or {})
    known = (train_labels >= 0).nonzero().flatten()
    tested = (test_labels >= 0).nonzero().flatten()
    if len(known) == 0 or len(tested) == 0:
        raise ValueError("training and test images need labels, one class each (-1 is none)")
    dims = {name: x.shape[1] for name, x in train.items()}
    classes = int(max(train_labels.max(), test_labels.max())) + 1

    def fitted(some: Sequence[Head], rows: Tensor) -> Trained:
        feed = (
            StoredFeed(train, train_labels, training.batch, rows=rows, seed=seed, device=device)
            if feeds is None
            else feeds(rows, training.batch, seed)
        )
        return train_heads(some, feed, dims, classes, training, seed=seed, device=device)

    scores: dict[str, float] = {}
    if len(heads) == 1:
        ranks, best, on = fitted(heads, known).ranks(_rows(test, tested), test_labels[tested]), 0, "nothing"
        ranks = ranks[0]
    elif select_on == "test":
        every, on = fitted(heads, known).ranks(_rows(test, tested), test_labels[tested]), "test"
        best = _best(every, heads, scores)
        ranks = every[best]
    else:
        kept, held = (known[rows] for rows in held_out(train_labels[known], share, seed=seed))
        best, on = _best(fitted(heads, kept).ranks(_rows(train, held), train_labels[held]), heads, scores), "validation"
        ranks = fitted([heads[best]], known).ranks(_rows(test, tested), test_labels[tested])[0]
    right = ranks == 0
    return LinearResult(
        recipe.name,
        float(right.double().mean()),
        float((ranks < 5).double().mean()),
        mean_per_class(right, test_labels[tested]),
        len(tested),
        _said(heads[best]),
        on,  # type: ignore[arg-type]
        scores,
        feeds is not None,
        right,
    )


def _best(ranks: Int[Tensor, "h n"], heads: Sequence[Head], scores: dict[str, float]) -> int:
    """The head with most images right, the first of equal ones; notes how many each has."""
    shares = (ranks == 0).double().mean(1)
    for head, value in zip(heads, shares.tolist(), strict=True):
        scores[", ".join(f"{name} {x}" for name, x in _said(head).items())] = value
    return int(shares.argmax())


def _said(head: Head) -> dict[str, Any]:
    found: dict[str, Any] = {"features": head.features, "rate": float(f"{head.rate:.6g}")}
    return found | ({"batch norm": True} if head.normed else {})


def _rows(features: Mapping[str, Tensor], rows: Tensor) -> Mapping[str, Tensor]:
    """All of them as they are, for they may lie on disk."""
    return {name: x if len(rows) == len(x) else x[rows] for name, x in features.items()}


def _shortened(training: Training, epochs: int | None) -> Training:
    """Fewer epochs, or more; milestones keep their places."""
    if epochs is None or epochs == training.epochs:
        return training
    schedule = training.schedule
    if schedule != "cosine":
        schedule = tuple(round(milestone * epochs / training.epochs) for milestone in schedule)
    return replace(training, epochs=epochs, schedule=schedule)
