"""The protocols that `prototile evaluate` knows: what each reads from a backbone, and what it makes of it.

PROTOCOLS    by name, each a `Protocol`: it takes a `Task` and gives `Outcome`s (tasks.py)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prototile.audit.embeddings import audit_embeddings, lidar
from prototile.backbones import Readout
from prototile.cli.encoding import FEATURES, views_of
from prototile.cli.subject import Subject
from prototile.cli.tasks import Options, Outcome, Task, gathered
from prototile.evaluation import published
from prototile.evaluation.heads import StoredFeed
from prototile.evaluation.knn import knn
from prototile.evaluation.linear import linear
from prototile.evaluation.logistic import GRID, logistic
from prototile.evaluation.lowshot import low_shot, size_name, splits_of
from prototile.evaluation.published import LinearRecipe, published_linear
from prototile.evaluation.splits import held_out
from prototile.evaluation.svm import support_vectors
from prototile.evaluation.transfer import SUITE
from prototile.evaluation.viewed import ViewsFeed, random_crops

_VIEWED, _VIEWS = 1000, 10  # images and their views, for LiDAR
_JUDGED = 10_000  # training images that a number of neighbours is chosen on


@dataclass(frozen=True)
class Protocol:
    """What it is, what it reads from a backbone, which options decide its numbers, and how these are made."""

    about: str
    reads: Callable[[Subject], Mapping[str, Readout]]
    heeds: tuple[str, ...]
    measure: Callable[[Task], list[Outcome]]
    squeezed: Callable[[str], bool] = lambda data: False  # whether images are shown whole
    mirrored: Callable[[Options, str], bool] = lambda options, data: False


def _knn(task: Task) -> list[Outcome]:
    task.several("knn")
    train, test, labels, ks = task.train.features["knn"], task.test.features["knn"], task.hidden(), task.options.ks
    found = knn(train, labels, test, task.test.labels, ks, device=task.subject.device)
    k, on = found.best_k, "test"
    if len(found.top1) == 1:
        on = "nothing"
    elif task.options.select_on == "validation":
        k, on = _best_k(train, labels, list(found.top1), task.subject.device), "validation"
    details = {"top1": dict(found.top1), "top5": dict(found.top5), "best on test": found.best_k}
    right = [found.right[k]]
    return [Outcome("top1", [found.top1[k]], found.images, (0,), [{"k": k}], on, details, right)]


def _best_k(train: Tensor, labels: Tensor, ks: Sequence[int], device: torch.device) -> int:
    """For some of the training images, among the neighbours that the others are."""
    share = min(0.2, _JUDGED / int((labels >= 0).sum()))
    kept, held = held_out(labels, share)
    rest, judged = (torch.full_like(labels, -1) for _ in range(2))
    rest[kept], judged[held] = labels[kept], labels[held]
    return knn(train, rest, train, judged, [k for k in ks if k <= len(kept)] or ks[:1], device=device).best_k


def _probe(task: Task) -> list[Outcome]:
    task.several("probe")
    found = linear(task.train.features["pooled"], task.hidden(), task.test.features["pooled"], task.test.labels)
    details = {"train accuracy": found.train_accuracy}
    return [Outcome("top1", [found.accuracy], found.images, chosen=[{"l2": found.l2}], details=details)]


def _logistic(task: Task) -> list[Outcome]:
    several = task.train.labels.ndim == 2
    suite = SUITE.get(task.name)
    metric = task.options.metric or ("mAP 11" if several else "top1" if suite is None else suite.metric)
    validation = None
    if task.validation is not None:
        validation = (task.validation.features["pooled"], task.validation.labels)

    def measured(seed: int) -> dict[str, Any]:
        found = logistic(
            task.train.features["pooled"],
            task.train.labels if several else task.hidden(),
            task.test.features["pooled"],
            task.test.labels,
            metric=metric,
            validation=validation,
            seed=seed,
            select_on=task.options.select_on,
            standardise=task.options.standardise,
            device=task.subject.device,
        )
        told = found.as_dict() | {"chosen": {"C": found.c}}
        return told | {"right": found.right}

    seeds = task.options.seeds or (0,)
    found = list(task.each(seeds, measured))
    details = {"curve": found[0]["curve"], "passes": [x["passes"] for x in found]}
    if found[0]["each"] is not None:
        details["each class"] = found[0]["each"]
    return [gathered(metric, seeds, found, task.options.select_on, details)]


def _low_shot(task: Task) -> list[Outcome]:
    task.several("lowshot")
    outcomes, labels, ids = [], task.train.labels, task.train.ids
    for size in task.options.shots:
        count = task.options.shot_splits if size >= 1 else 1
        parts = splits_of(size, count, labels, ids, official=task.options.lists, kept=task.folder)
        rows = list(parts.values())

        def measured(number: int, rows: Sequence[Tensor] = rows) -> dict[str, Any]:
            found = low_shot(
                task.train.features["lowshot"],
                labels,
                task.test.features["lowshot"],
                task.test.labels,
                [rows[number]],
                penalty=task.options.penalty,
                device=task.subject.device,
            )
            return {"value": found.value, "images": found.images, "right": found.right[0], "chosen": {}}

        name = size_name(size)
        found = list(task.each(range(len(rows)), measured, f"{name}, "))
        details = {"splits": list(parts), "learned from": [len(part) for part in rows]}
        outcomes.append(replace(gathered("top1", range(len(rows)), found, "nothing", details), suffix=name))
    return outcomes


def _svm(task: Task) -> list[Outcome]:
    if task.train.labels.ndim != 2:
        raise ValueError(f"svm is for images of several classes each (voc07), and {task.name} gives them one: logistic")
    train, test = task.train.features["pooled"], task.test.features["pooled"]
    found = support_vectors(train, task.train.labels, test, task.test.labels, device=task.subject.device)
    details = {"each class": list(found.each), "costs": list(found.costs)}
    return [Outcome("mAP", [found.value], found.images, selected_on="validation", details=details)]


def _label_free(task: Task) -> list[Outcome]:
    """Of the training images, as they are; LiDAR of views of some of them."""
    found = audit_embeddings(task.train.features["pooled"], spaces=())
    seen = views_of(
        task.subject.imported, task.train.source, task.subject.crop, views=_VIEWS, images=_VIEWED,
        device=task.subject.device,
    )  # fmt: skip
    numbers = {"RankMe": found.rankme, "alpha-ReQ": found.alpha_req, "LiDAR": lidar(seen[FEATURES])}
    details = {"dims": found.dims, "uniformity": found.uniformity, "alpha range": found.alpha_range}
    return [
        Outcome(name, [value], found.images, details=details) for name, value in numbers.items() if value is not None
    ]


def _linear(
    about: str,
    reads: Callable[[Subject], Mapping[str, Readout]],
    recipe_of: Callable[[Task], LinearRecipe],
    *,
    heeds: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0,),
    squeezed: Callable[[str], bool] = lambda data: False,
    mirrored: Callable[[Options, str], bool] = lambda options, data: False,
) -> Protocol:
    """A published linear protocol."""

    def measure(task: Task) -> list[Outcome]:
        task.several("a linear protocol")
        recipe, options = recipe_of(task), task.options
        labels = task.hidden()
        feeds = _views(task, recipe, reads(task.subject)) if options.augmented else None
        places = {name: 4 for name in task.train.features if name == "map"}

        def measured(seed: int) -> dict[str, Any]:
            found = published_linear(
                recipe,
                task.train.features,
                labels,
                task.test.features,
                task.test.labels,
                feeds=feeds,
                places=places,
                select_on=options.select_on,
                seed=seed,
                epochs=options.epochs,
                device=task.subject.device,
            )
            return found.as_dict() | {"value": found.top1, "right": found.right}

        chosen_seeds = options.seeds or seeds
        found = list(task.each(chosen_seeds, measured))
        details = {
            "recipe": recipe.name,
            "augmented": options.augmented,
            "epochs": options.epochs or recipe.training.epochs,
            "top5": [x["top5"] for x in found],
            "mean per class": [x["per_class"] for x in found],
            "heads": found[0]["scores"],
        }
        return [gathered("top1", chosen_seeds, found, found[0]["selected_on"], details)]

    return Protocol(about, reads, (*_SWEEP, *heeds), measure, squeezed, mirrored)


def _views(task: Task, recipe: LinearRecipe, readouts: Mapping[str, Readout]) -> published.Feeds:
    """Another view of each image in every epoch."""
    train, subject = task.train, task.subject

    def of_flips(rows: Tensor, batch: int, seed: int) -> StoredFeed:
        return StoredFeed(
            train.features, task.hidden(), batch, rows=rows, mirrored=train.mirrored, seed=seed, device=subject.device
        )

    def of_crops(rows: Tensor, batch: int, seed: int) -> ViewsFeed:
        return ViewsFeed(
            subject.backbone, train.source, readouts, random_crops(subject.crop), batch,
            rows=train.taken[rows], seed=seed, workers=subject.workers,
        )  # fmt: skip

    return of_flips if recipe.crops == "flips" else of_crops


def vissl_name(data: str) -> str:
    """Which of VISSL's configurations is for this data set."""
    names = {"cifar10": "cifar100", "cifar100": "cifar100", "places365": "places", "inaturalist2018": "inaturalist"}
    return names.get(data, data if data in ("clevr-count", "clevr-dist", "kitti-dist") else "imagenet")


def _e2mc(task: Task) -> LinearRecipe:
    layout = (task.options.method or task.subject.imported.layout).lower()
    method = next((name for name in ("vicreg", "swav", "simsiam") if name in layout), None)
    if method is None:
        raise ValueError(f"linear-e2mc has rates for vicreg, swav and simsiam; {layout} is none: say which (--method)")
    share = task.options.labels if task.options.labels in (0.01, 0.1) else 1.0
    return published.e2mc(method, share)  # type: ignore[arg-type]


def _excb(task: Task) -> LinearRecipe:
    return published.excb("resnet" not in type(task.subject.backbone).__name__.lower())


def _pooled(subject: Subject) -> dict[str, Readout]:
    return {"pooled": Readout()}


def _map(subject: Subject) -> Mapping[str, Readout]:
    """What VISSL reads of a ResNet's last map."""
    readouts = subject.vissl_readouts()
    if "map" not in readouts:
        kind = type(subject.backbone).__name__
        raise ValueError(f"linear-e2mc-transfer reads the last map of a ResNet, and this is a {kind}: linear-vissl")
    return {"map": readouts["map"]}


def _for_linear(subject: Subject) -> dict[str, Readout]:
    return {"linear": subject.linear_readout()}


_LABELS = ("labels", "subset_seed")
_SWEEP = ("seeds", "select_on", *_LABELS, "augmented", "epochs")


def _whole(data: str) -> bool:
    return data.startswith("clevr")


def _flips(options: Options, data: str) -> bool:
    return options.augmented and published.vissl(vissl_name(data)).crops == "flips"


PROTOCOLS: dict[str, Protocol] = {
    "knn": Protocol(
        "weighted nearest neighbours (DINO), for several k",
        lambda subject: {"knn": subject.readout("knn")},
        ("ks", "select_on", *_LABELS),
        _knn,
    ),
    "probe": Protocol("a quick linear probe, to compare with itself only", _pooled, _LABELS, _probe),
    "linear": _linear(
        "linear classifiers with 45 rates (iBOT), the best of them", _for_linear, lambda _: published.ibot()
    ),
    "linear-dino": _linear("a linear classifier with DINO's rate", _for_linear, lambda _: published.dino()),
    "linear-excb": _linear("linear classifiers with 58 rates (ExCB); one for ResNets", _for_linear, _excb),
    "linear-e2mc": _linear(
        "a linear classifier with the rate of VICReg, SwAV or SimSiam (E2MC), three seeds",
        _pooled,
        _e2mc,
        heeds=("method",),
        seeds=(0, 1, 2),
    ),
    "linear-e2mc-transfer": _linear(
        "a linear classifier on a ResNet's last map, as E2MC has it on iNaturalist 2018",
        _map,
        lambda _: published.e2mc_transfer(),
    ),
    "linear-vissl": _linear(
        "two classifiers on two features (VISSL), by data set: CLEVR, KITTI, Places, iNaturalist ...",
        lambda subject: subject.vissl_readouts(),
        lambda task: published.vissl(vissl_name(task.name)),
        squeezed=_whole,
        mirrored=_flips,
    ),
    "lowshot": Protocol(
        "logistic regression from 1, 2, 5 images of each class and from 1% (MSN)",
        lambda subject: {"lowshot": subject.readout("lowshot")},
        ("shots", "shot_splits", "penalty", "lists"),
        _low_shot,
    ),
    "logistic": Protocol(
        f"logistic regression, the best of {len(GRID)} regularisations",
        _pooled,
        ("seeds", "select_on", "metric", *_LABELS, "standardise"),
        _logistic,
    ),
    "svm": Protocol(
        "support vector machines, for images of several classes: VOC 2007 (VISSL)",
        _pooled,
        (),
        _svm,
        squeezed=lambda data: data == "voc07",
    ),
    "label-free": Protocol("RankMe, alpha-ReQ and LiDAR of the training images", _pooled, (), _label_free),
}
