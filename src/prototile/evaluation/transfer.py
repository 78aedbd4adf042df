"""The transfer suite (Ericsson et al. 2021): eight data sets, each with its splits and its metric.

    data set     metric           learned from                     validated with      tested on
    caltech101   mean per class   30 images of each class, drawn   a fifth of those    the others
    cifar10      top-1            train                            a fifth of it       test
    cifar100     top-1            train                            a fifth of it       test
    dtd          top-1            train, partition 1               val                 test
    flowers102   mean per class   train                            val                 test
    food101      top-1            train                            a fifth of it       test
    pets         mean per class   trainval                         a fifth of it       test
    sun397       top-1            Training_01.txt, or half drawn   a fifth of it       Testing_01.txt, or the other half
    voc07        mAP, 11 points   train                            val                 test

VOC 2007 is no part of the average of eight. Caltech101 goes without its background class, which the original counts as
one more.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prototile.data.catalog import torchvision_source
from prototile.data.files import PathLike
from prototile.data.source import Source, Subset
from prototile.evaluation.logistic import Metric
from prototile.evaluation.splits import held_out, read_ids, some_of_each

AVERAGED = ("caltech101", "cifar10", "cifar100", "dtd", "flowers102", "food101", "pets", "sun397")
_CALTECH = 30  # images of each class to learn from


@dataclass(frozen=True)
class TransferTask:
    """A data set of the suite: its metric, and its splits where it has them."""

    metric: Metric
    train: str | None = "train"
    validation: str | None = None
    test: str = "test"


SUITE: dict[str, TransferTask] = {
    "caltech101": TransferTask("mean per class", None),
    "cifar10": TransferTask("top1"),
    "cifar100": TransferTask("top1"),
    "dtd": TransferTask("top1", validation="val"),
    "flowers102": TransferTask("mean per class", validation="val"),
    "food101": TransferTask("top1"),
    "pets": TransferTask("mean per class", "trainval"),
    "sun397": TransferTask("top1", None),
    "voc07": TransferTask("mAP 11", validation="val"),
}


@dataclass(frozen=True, eq=False)
class TransferParts:
    """Sources to learn from, to choose on (or none: a part of the first), and to test on."""

    train: Source
    validation: Source | None
    test: Source
    drawn: bool = False  # by this package's seed, for want of official splits


def transfer_parts(name: str, root: PathLike, *, seed: int = 0) -> TransferParts:
    """The parts of a data set of the suite, below `root` in torchvision's folders."""
    if name not in SUITE:
        raise ValueError(f"the transfer suite has {', '.join(SUITE)}, not {name!r}")
    task = SUITE[name]
    if task.train is not None:
        validation = None if task.validation is None else torchvision_source(name, root, task.validation)
        return TransferParts(
            torchvision_source(name, root, task.train), validation, torchvision_source(name, root, task.test)
        )
    whole = torchvision_source(name, root)
    if name == "sun397" and (lists := _sun_lists(Path(root).expanduser() / "SUN397")):
        return TransferParts(_listed(whole, lists["Training_01"]), None, _listed(whole, lists["Testing_01"]))
    assert whole.labels is not None
    labels = torch.from_numpy(whole.labels)
    if name == "caltech101":
        train = some_of_each(labels, _CALTECH, seed=seed).numpy()
    else:
        train = held_out(labels, 0.5, seed=seed)[0].numpy()
    rest = np.setdiff1d(np.arange(len(whole)), train)
    return TransferParts(Subset(whole, train), None, Subset(whole, rest), drawn=True)


def average(values: Mapping[str, float]) -> float | None:
    """The plain mean of the eight; none where one is missing."""
    return float(np.mean([values[name] for name in AVERAGED])) if values.keys() >= set(AVERAGED) else None


def _sun_lists(folder: Path) -> dict[str, Path]:
    """The first partition's lists, which its authors publish beside the images; both, or none."""
    names = ("Training_01", "Testing_01")
    for place in (folder, folder / "Partitions"):
        if all((place / f"{name}.txt").is_file() for name in names):
            return {name: place / f"{name}.txt" for name in names}
    return {}


def _listed(whole: Source, file: Path) -> Subset:
    """The images that a list names as /a/abbey/sun_x.jpg, below SUN397."""
    ids = [whole.id(i).removeprefix("SUN397") for i in range(len(whole))]
    return Subset(whole, read_ids(file, ids).numpy())
