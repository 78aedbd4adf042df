"""`finetune`: a backbone and labelled images in; runs on disk, and a record of what they are worth, out.

    out/  finetuned.json            the record
          select/lr-0.001/          a run for each learning rate, where there is a choice
          seed-0/ ...               a run for each seed: config, metrics.jsonl, checkpoints, model

A rate is chosen before any seed is run, by the last epoch, as is what the record holds.
"""

import copy
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from safetensors.torch import save
from torch import nn

from prototile import distributed
from prototile.backbones import Backbone
from prototile.checkpoints import write_atomically
from prototile.data import ClassCounts, Groups, Loader, Repeated, Sampler, Shuffled, Source, held_out
from prototile.data.longtail import class_labels
from prototile.evaluation import Crop
from prototile.training.bar import Bar
from prototile.training.finetuning.classifier import Classifier, freeze_unused_
from prototile.training.finetuning.recipe import Recipe
from prototile.training.finetuning.result import FineTuned
from prototile.training.finetuning.scores import METRICS, Scores, Scoring
from prototile.training.logs import GoOn, JsonLines
from prototile.training.run import fit
from prototile.views import IMAGENET, Normalization

logger = logging.getLogger(__name__)

RECORD, HEAD = "finetuned.json", "head.safetensors"


@dataclass(frozen=True, kw_only=True)
class _Machine:
    """Where and how runs are made: nothing that decides what they are."""

    every: int
    workers: int | None
    eval_batch: int
    print_every: int
    options: Mapping[str, Any]  # of `fit`


def finetune(
    backbone: Backbone,
    train: Source,
    test: Source,
    *,
    recipe: Recipe,
    out: str | Path,
    name: str = "recipe",
    projection: nn.Module | None = None,
    validation: Source | None = None,
    held: float = 0.1,
    select_on: Literal["validation", "test"] = "validation",
    metric: str = "top1",
    seeds: Sequence[int] = (0,),
    groups: Literal["counts", "thirds"] = "counts",
    normalization: Normalization = IMAGENET,
    resize: int | None = None,
    every: int = 1,
    eval_batch: int = 256,
    workers: int | None = None,
    print_every: int = 50,
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
    accumulate: int = 1,
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    devices: int | str = "auto",
    nodes: int = 1,
    strategy: Literal["auto", "ddp"] = "auto",
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_minutes: float = 30.0,
    config: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> FineTuned:
    """Trains backbone and linear head on `train` by the recipe, and scores each epoch on `test`.

    The record has the scores after the last epoch, of `seeds`, which decide head, order and views. Where the recipe has
    several learning rates, each is tried with the first seed: on `validation`, or on the share `held` of every class of
    `train` where none is given; with `select_on="test"` on the test images, which is said in the record. The backbone
    given stays as it is. `groups` are head, middle and tail by the counts of `train` (more than 100 images, fewer than
    20), or in thirds of classes. A batch is that of all ranks and of `accumulate` parts.

    `config` are plain values that decide the numbers, such as the checkpoint's hash, and are compared when a run goes
    on (`config["method"]` as `fit` has it); `about` are others that the record shall hold.

    `resume` goes on where an interrupted call with the same settings stopped; what it had finished is not run again.
    """
    began, out = time.monotonic(), Path(out)
    _check(train, test, validation, recipe, metric, seeds, accumulate)
    classes = _classes(train, test, validation)
    crop = Crop(recipe.size, resize, normalization)
    counts = np.bincount(class_labels(train.labels), minlength=classes)
    parts = Groups.by_count(counts) if groups == "counts" else Groups.by_thirds(counts)
    if len(parts._asdict().get(metric, (0,))) == 0:
        raise ValueError(f"no class is in the {metric} of these images, so it cannot be the metric: take another")
    given = {"accumulate": accumulate, "precision": precision, "accelerator": accelerator, "devices": devices}
    given |= {"nodes": nodes, "strategy": strategy, "resume": resume, "overwrite": overwrite}
    given |= {"checkpoint_minutes": checkpoint_minutes}
    machine = _Machine(every=every, workers=workers, eval_batch=eval_batch, print_every=print_every, options=given)
    described = {"recipe": asdict(recipe), "finetune": dict(config or {}), "method": (config or {}).get("method")}

    def run(folder: Path, lr: float, seed: int, images: Source, scored: Source, label: str) -> Scores:
        torch.manual_seed(seed)
        classifier = _classifier(backbone, projection, recipe, classes)
        scoring = _scoring(scored, crop, parts, label, machine)
        return _one(classifier, images, scoring, recipe, lr, seed, normalization, folder, machine, described)

    lr, tried, finished = recipe.lrs[0], {}, {}
    chosen_on = "given" if len(recipe.lrs) == 1 else select_on
    if len(recipe.lrs) > 1:
        part, judge = (train, test) if select_on == "test" else _sides(train, validation, held)
        for rate in recipe.lrs:
            found = run(out / "select" / f"lr-{rate:g}", rate, seeds[0], part, judge, select_on)
            tried[f"{rate:g}"] = float(vars(found)[metric])
            finished[rate] = found
        lr = max(recipe.lrs, key=lambda rate: tried[f"{rate:g}"])  # of equal ones the first
        logger.info("learning rate %g, by %s of %s: %s", lr, metric, select_on, tried)
    scores = tuple(
        finished[lr]
        if chosen_on == "test" and seed == seeds[0]
        else run(out / f"seed-{seed}", lr, seed, train, test, "test")
        for seed in seeds
    )
    record = FineTuned(
        recipe=name,
        metric=metric,
        seeds=tuple(seeds),
        scores=scores,
        chosen={"lr": lr, "head_lr": recipe.head_lr_of(lr)},
        select_on=chosen_on,
        tried=tried,
        settings={"recipe": asdict(recipe), "crop": asdict(crop), **dict(config or {}), **dict(about or {})},
        train_images=len(train),
        classes={name: len(ids) for name, ids in parts._asdict().items()},
        seconds=time.monotonic() - began,
    )
    if distributed.rank() == 0:
        text = json.dumps(record.as_dict(), indent=2) + "\n"
        write_atomically(out / RECORD, lambda file: file.write(text.encode()))
    return record


def _one(
    classifier: Classifier,
    images: Source,
    scoring: Scoring,
    recipe: Recipe,
    lr: float,
    seed: int,
    normalization: Normalization,
    folder: Path,
    machine: _Machine,
    described: Mapping[str, Any],
) -> Scores:
    """One run, from its beginning or from where it was stopped; its last scores."""
    views = recipe.augmentation(normalization)
    classifier.check(views)
    sampler = _sampler(recipe, len(images), recipe.batch // machine.options["accumulate"], seed)
    on_gpu = machine.options["accelerator"] != "cpu" and torch.cuda.is_available()

    def loader() -> Loader:
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else None
        return Loader(images, views, sampler, seed=seed, epochs=recipe.epochs, device=device, workers=machine.workers)

    config = {**described, "lr": lr, "images": len(images)}
    done = fit(
        classifier,
        loader,
        optimization=recipe.optimization(lr),
        epochs=recipe.epochs,
        out=folder,
        callbacks=[GoOn(), scoring, Bar(every=machine.print_every)],
        loggers=[JsonLines(folder)],
        sync_batch_norm=recipe.sync_batch_norm,
        seed=seed,
        config=config,
        files={"config.yaml": yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False)},
        **machine.options,
    )
    _write_head(classifier, done.model)
    return scoring.latest


def _classifier(backbone: Backbone, projection: nn.Module | None, recipe: Recipe, classes: int) -> Classifier:
    """A classifier on a copy of the backbone."""
    classifier = Classifier(
        copy.deepcopy(backbone),
        classes,
        projection=copy.deepcopy(projection),
        pooling=recipe.pooling,
        head_std=recipe.head_std,
        drop_path=recipe.drop_path,
        mixing=recipe.mixing(),
    )
    if unused := freeze_unused_(classifier, recipe.size):
        logger.info("frozen, as logits do not depend on it: %s", ", ".join(unused))
    return classifier


def _scoring(source: Source, crop: Crop, groups: Groups, name: str, machine: _Machine) -> Scoring:
    workers = 0 if machine.workers is None else machine.workers
    return Scoring(source, crop, groups, name=name, every=machine.every, batch=machine.eval_batch, workers=workers)


def _sampler(recipe: Recipe, images: int, batch: int, seed: int) -> Sampler:
    make: Callable[[], Sampler] = lambda: Shuffled(images, batch, seed=seed)  # noqa: E731
    return make() if recipe.repeats == 1 else Repeated(images, batch, recipe.repeats, seed=seed)


def _write_head(classifier: Classifier, model: Path) -> None:
    """Beside the backbone that a run exports: the projection and the linear layer."""
    if distributed.rank() == 0:
        weights = {**_named("projection", classifier.projection), **_named("head", classifier.head)}
        write_atomically(model / HEAD, lambda file: file.write(save(weights)))


def _named(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{name}": x.detach().cpu().contiguous().clone() for name, x in module.state_dict().items()}


def _sides(train: Source, validation: Source | None, held: float) -> tuple[Source, Source]:
    """What a learning rate is tried and judged on."""
    return held_out(train, held) if validation is None else (train, validation)


def _classes(*sources: Source | None) -> int:
    """The number of classes: as many as are named, or as labels go up to."""
    return max(len(ClassCounts.of(source).counts) for source in sources if source is not None)


def _check(
    train: Source,
    test: Source,
    validation: Source | None,
    recipe: Recipe,
    metric: str,
    seeds: Sequence[int],
    accumulate: int,
) -> None:
    for source in (train, test, validation):
        if source is not None:
            class_labels(source.labels)
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be different whole numbers, one at least, got {tuple(seeds)}")
    if accumulate < 1 or recipe.batch % accumulate:
        raise ValueError(f"a batch of {recipe.batch} cannot be parted into {accumulate}: give a divisor")
    if recipe.batch // accumulate > len(train):
        raise ValueError(f"{len(train)} images are less than one batch of {recipe.batch}: give a smaller batch")
    mixing = recipe.mixing()
    if mixing is not None and mixing.mixes and recipe.batch // accumulate % 2:
        raise ValueError(f"images are mixed in pairs: the batch must be even, got {recipe.batch // accumulate}")
