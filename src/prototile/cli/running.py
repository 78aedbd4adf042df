"""A run from its settings: everything is looked at before anything starts."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from prototile.data import (
    CATALOG,
    ClassesPerBatch,
    ClassPower,
    Loader,
    Profile,
    Sampler,
    Shards,
    Shuffled,
    Source,
    long_tailed,
    open_data,
    open_source,
)
from prototile.data.samplers import nearest_multiples
from prototile.evaluation.features import evaluating
from prototile.methods import Method
from prototile.training.auditing import EpochAudits
from prototile.training.bar import Bar
from prototile.training.logs import GoOn, JsonLines, TensorBoard, weights_and_biases
from prototile.training.monitor import Monitor
from prototile.training.optimization import Optimization
from prototile.training.probe import Probe
from prototile.training.run import Run, fit
from prototile.views import Augmentation

logger = logging.getLogger(__name__)


def train(
    *,
    data: str,
    out: str,
    method: Method,
    views: Augmentation,
    optimization: Optimization,
    epochs: int,
    batch: int,
    split: str | None = None,
    download: bool = False,
    long_tail: Profile | None = None,
    tail_seed: int = 0,
    classes_per_batch: int | None = None,
    class_power: float | None = None,
    workers: int | None = None,
    bad_share: float = 0.1,
    accumulate: int = 1,
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
    accelerator: Literal["auto", "cpu", "gpu"] = "auto",
    devices: int | Literal["auto"] = "auto",
    nodes: int = 1,
    strategy: Literal["auto", "ddp", "fsdp"] = "auto",
    sync_batch_norm: bool = False,
    compile: bool = False,
    seed: int = 0,
    limit_steps: int | None = None,
    checkpoint_minutes: float = 30.0,
    checkpoint_steps: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    monitor_every: int = 50,
    audit_every: int = 1,
    print_every: int = 50,
    probe_every: int = 1,
    probe_data: str | None = None,
    probe_split: str | None = None,
    probe_limit: int = 5000,
    tensorboard: bool = True,
    wandb: bool = False,
    config: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> Run:
    """Trains a method and leaves a run in a folder.

    Args:
        data: what to train on: digits, cifar10:ROOT, folder:PATH, classes:PATH, list:FILE, tar files (docs/data.md)
        out: the folder of the run
        method: dino, ibot_vmf, pmsn, swav ... and its options
        views: the augmentation: dino, msn, ... or `small` around one of them, and its options
        optimization: learning rate, weight decay, clipping and so on
        epochs: passes over the data
        batch: images of a batch, over all ranks
        split: another split of the data than the one to train on
        download: fetch a data set that is not there
        long_tail: cut the data to a long tail: Exponential, Power, Step
        tail_seed: which images stay in a long tail
        classes_per_batch: fill each batch from so many classes
        class_power: draw classes by this power of their sizes: 1 as they are, 0.5 square root, 0 equally often
        workers: processes that read images (by default a core less than there are)
        bad_share: stop where more than this share of the images cannot be read
        accumulate: batches of an optimiser step
        precision: 32-true, bf16-mixed or 16-mixed
        accelerator: auto, cpu or gpu
        devices: how many devices of this machine, or auto
        nodes: how many machines
        strategy: auto, ddp or fsdp (which shares out backbones and prototypes)
        sync_batch_norm: batch norm over all ranks
        compile: compile the backbones with torch.compile
        seed: of weights, views and order
        limit_steps: end after so many optimiser steps, with the schedules of the whole run
        checkpoint_minutes: minutes between checkpoints, besides those at the ends of epochs
        checkpoint_steps: steps between checkpoints
        resume: go on where the run in this folder stopped
        overwrite: remove the run in this folder first
        monitor_every: steps between two looks at health; 0: never
        audit_every: epochs between two audits of the prototypes; 0: never
        print_every: steps between two lines of progress, where there is no terminal
        probe_every: epochs between two measurements of kNN, where there are labels; 0: never
        probe_data: labelled images to measure on instead of those to train on
        probe_split: the split to test on (by default `test` or `val`, or a fifth of the images to train on)
        probe_limit: images to learn from, and to test on, at most
        tensorboard: write events for TensorBoard
        wandb: send numbers to W&B (to be installed apart)
    """
    source = _opened(data, split, download, long_tail, tail_seed)
    sampler = _sampler(source, batch, classes_per_batch, class_power, seed)
    check_ranks(batch, accelerator, devices, nodes)
    check_views(method, views)
    optimization.groups(method, batch * accumulate)
    check_out(Path(out), resume, overwrite)
    _check_positive(epochs=epochs, accumulate=accumulate, print_every=print_every)
    probe = None
    if probe_every:
        probe = _probe(source, views, data, probe_every, probe_data, probe_split, probe_limit, download, seed)
    monitor = Monitor(monitor_every) if monitor_every else None
    audits = EpochAudits(Path(out), monitor, every=audit_every) if audit_every else None
    bar = Bar(monitor, probe, every=print_every)
    loggers = [JsonLines(out), *([TensorBoard(out)] if tensorboard else [])]
    loggers += [weights_and_biases(out)] if wandb else []
    on_gpu = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())

    def loader() -> Loader:
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else None
        return Loader(
            source, views, sampler, seed=seed, epochs=epochs, device=device, workers=workers, bad_share=bad_share
        )

    if first_rank():
        logger.info("%s", _summary(method, source, batch * accumulate, epochs, out))
    return fit(
        method,
        loader,
        optimization=optimization,
        epochs=epochs,
        out=out,
        callbacks=[GoOn(), *(callback for callback in (monitor, audits, probe, bar) if callback is not None)],
        loggers=loggers,
        precision=precision,
        accumulate=accumulate,
        accelerator=accelerator,
        devices=devices,
        nodes=nodes,
        strategy=strategy,
        sync_batch_norm=sync_batch_norm,
        compile=compile,
        resume=resume,
        overwrite=overwrite,
        checkpoint_minutes=checkpoint_minutes,
        checkpoint_steps=checkpoint_steps,
        seed=seed,
        limit_steps=limit_steps,
        config=config,
        files=files,
    )


def first_rank() -> bool:
    """Whether this process speaks for all, before there is a process group."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def _opened(data: str, split: str | None, download: bool, profile: Profile | None, seed: int) -> Source | Shards:
    source = open_data(data, split, download)
    if profile is None:
        return source
    if isinstance(source, Shards):
        raise ValueError("shards are read in order, so no long tail can be cut from them: leave out long_tail")
    return long_tailed(source, profile, seed=seed)


def _sampler(source: Source | Shards, batch: int, classes: int | None, power: float | None, seed: int) -> Sampler | int:
    """What says which images a batch holds; shards need the number only."""
    _check_positive(batch=batch)
    if classes is not None and power is not None:
        raise ValueError("classes_per_batch and class_power are two ways to draw images: give one of them")
    if isinstance(source, Shards):
        if classes is not None or power is not None:
            raise ValueError("shards are read in order: leave out classes_per_batch and class_power")
        if batch > source.num_images:
            raise ValueError(f"{source.num_images} images are less than one batch of {batch}: give a smaller batch")
        return batch
    if classes is not None or power is not None:
        if source.labels is None:
            raise ValueError("these images have no labels: leave out classes_per_batch and class_power")
        if classes is not None:
            return ClassesPerBatch(source.labels, batch, classes, seed=seed)
        assert power is not None
        return ClassPower(source.labels, batch, power, seed=seed)
    if batch > len(source):
        raise ValueError(f"{len(source)} images are less than one batch of {batch}: give batch={len(source)} or less")
    return Shuffled(len(source), batch, seed=seed)


def check_ranks(batch: int, accelerator: str, devices: int | str, nodes: int) -> None:
    launched = os.environ.get("WORLD_SIZE") if devices == "auto" else None  # by torchrun
    if launched is not None:
        ranks = int(launched)
    elif isinstance(devices, int):
        ranks = devices * nodes
    else:
        ranks = nodes * (1 if accelerator == "cpu" else max(torch.cuda.device_count(), 1))
    if ranks < 1:
        raise ValueError(f"a run needs at least one device on one node, got devices={devices} and nodes={nodes}")
    if batch % ranks:
        near = nearest_multiples(batch, ranks)
        raise ValueError(f"{ranks} ranks cannot share a batch of {batch} equally: give {near}")


def check_views(method: Method, views: Augmentation) -> None:
    """Whether the method can do with these views, and its backbone with their sizes and masks."""
    method.check(views)
    backbone = method.backbones[0]
    with evaluating(backbone):
        for group in views.groups:
            images = torch.zeros(1, 3, group.size, group.size)
            patches = (group.size // group.patch) ** 2
            keep = torch.arange(1)[None] if group.masks is not None and group.masks.drops else None
            mask = None
            if group.masks is not None and not group.masks.drops:
                mask = torch.zeros(1, patches, dtype=torch.bool)
            backbone(images, keep=keep, mask=mask)


def check_out(out: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise ValueError("a run is either resumed or overwritten: give one of resume and overwrite")
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise ValueError(f"{there} is a file, and the run needs a folder: give another --out")
    if not os.access(there, os.W_OK):
        raise ValueError(f"the run cannot be written to {out}: {there} is not yours to write to; give another --out")


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


def _probe(
    source: Source | Shards,
    views: Augmentation,
    data: str,
    every: int,
    probe_data: str | None,
    split: str | None,
    limit: int,
    download: bool,
    seed: int,
) -> Probe | None:
    """What measures kNN; none where there are no labels and nobody asked for it."""
    options: dict[str, Any] = {
        "every": every,
        "limit": limit,
        "size": views.groups[0].size,
        "normalization": views.normalization,
    }
    if probe_data is not None:
        return Probe(open_source(probe_data, None, download), usual_test(probe_data, split, download), **options)
    labels = None if isinstance(source, Shards) else source.labels
    if isinstance(source, Shards) or labels is None or labels.ndim != 1 or not (labels >= 0).any():
        if split is not None:
            raise ValueError(
                "a probe needs labels, and these images have none: leave out probe_split, or say probe_data"
            )
        return None
    return Probe(source, usual_test(data, split, download), **options)


def usual_test(data: str, split: str | None, download: bool) -> Source | None:
    """The split to test on: the one that is asked for, or the one that the data set has for it."""
    if split is not None:
        return open_source(data, split, download)
    name = data.partition(":")[0]
    splits = ("train", "test") if name in ("digits", "handwriting", "mnist-on-cifar") else ()
    splits = CATALOG[name].splits if name in CATALOG else splits
    usual = next((each for each in ("test", "val") if each in splits), None)
    return None if usual is None else open_source(data, usual, download)


def _summary(method: Method, source: Source | Shards, batch: int, epochs: int, out: str) -> str:
    images = source.num_images if isinstance(source, Shards) else len(source)
    parameters = sum(p.numel() for p in method.parameters() if p.requires_grad)
    backbone = sum(p.numel() for p in method.backbone.parameters())
    return (
        f"{images:,} images, {epochs:,} epochs of {images // batch:,} steps with {batch:,} images; "
        f"{parameters / 1e6:.1f} million parameters to train, {backbone / 1e6:.1f} of the backbone; into {out}"
    )
