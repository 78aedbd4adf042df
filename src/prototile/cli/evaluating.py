"""`prototile evaluate`, from Python: a checkpoint, images, protocols, and a record for each.

evaluate(path, ...)          runs protocols and adds their records to `evaluations.jsonl`
records_file(path, out)      which file that is
"""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch

from prototile import distributed
from prototile.checkpoints.imported import Choice
from prototile.cli.protocols import PROTOCOLS, Protocol
from prototile.cli.running import usual_test
from prototile.cli.subject import Part, Subject
from prototile.cli.tasks import Options, Outcome, Task
from prototile.data import Source, open_source
from prototile.data.catalog import did_you_mean
from prototile.evaluation.lowshot import official_lists
from prototile.evaluation.records import (
    FILE,
    Parts,
    Record,
    append,
    finished,
    key_of,
    now,
    packed,
    packed_classes,
    plain,
    versions,
)
from prototile.evaluation.scores import grouped
from prototile.evaluation.stored import fingerprint
from prototile.evaluation.transfer import AVERAGED, SUITE, average, transfer_parts

logger = logging.getLogger(__name__)

Groups = Literal["auto", "counts", "thirds", "no"]
USUAL = ("knn", "linear")
_TRANSFER = "transfer"
_R = TypeVar("_R")


@dataclass(frozen=True, eq=False)
class _Job:
    """A protocol, on images."""

    title: str
    protocol: Protocol
    name: str  # of the data set
    data: str  # as it was asked for
    train: Source
    test: Source
    validation: Source | None = None


def evaluate(
    path: str | Path,
    *,
    data: str | None = None,
    protocols: Sequence[str] | None = None,
    split: str | None = None,
    test: str | None = None,
    test_split: str | None = None,
    validation: str | None = None,
    validation_split: str | None = None,
    transfer: str | Path | None = None,
    datasets: Sequence[str] | None = None,
    out: str | Path | None = None,
    again: bool = False,
    groups: Groups = "auto",
    network: Choice = "evaluated",
    size: int | None = None,
    resize: int | None = None,
    batch: int = 256,
    workers: int | None = None,
    device: str = "auto",
    cache: str | Path | None = None,
    **options: Any,
) -> list[Record]:
    """What the features of a checkpoint are worth, by the protocols of the papers; the same as `prototile evaluate`.

    `path` is a checkpoint of any project that is known, or a run of one's own. `data` is learned from and named as for
    `pretrain`; it is tested on `test`, or on another split of `data`. `transfer` is the folder of the data sets of the
    transfer suite (or of those that are named). Records are added to the file `out`, by default the run's own
    `evaluations.jsonl`, or one here; what is in it of the same weights, images and options is not run `again`. Other
    options are those of `prototile.cli.tasks.Options`: ks, seeds, select_on, labels, augmented, epochs, shots ...
    """
    if groups not in get_args(Groups):
        raise ValueError(f"groups must be one of {', '.join(get_args(Groups))}, got {groups!r}")
    wished = _options(options)
    names = list(USUAL if protocols is None and transfer is None else protocols or ())
    if unknown := [name for name in names if name not in PROTOCOLS]:
        hint = did_you_mean(unknown[0], PROTOCOLS)
        raise ValueError(f"there is no protocol {unknown[0]!r}{hint}; there are {', '.join(PROTOCOLS)}")
    jobs = _on(data, names, split, test, test_split, validation, validation_split) if names else []
    if transfer is not None:
        jobs += _transfers(transfer, datasets)
    if not jobs:
        raise ValueError("there is nothing to evaluate on: name images (--data), or the folder of a transfer suite")
    subject = Subject.of(
        path, network=network, size=size, resize=resize, cache=cache, device=device, batch=batch, workers=workers
    )
    file = records_file(path, out)
    records = []
    for job in jobs:
        records += _recorded(subject, job, wished, groups, file, again)
    suite = {record.protocol.removeprefix("transfer "): record.value for record in records if _of_suite(record)}
    if (mean := average(suite)) is not None:
        records.append(_averaged(records, mean, file))
    return records


def _options(given: Mapping[str, Any]) -> Options:
    known = {field.name for field in fields(Options)}
    if unknown := sorted(given.keys() - known):
        hint = did_you_mean(unknown[0], known)
        raise ValueError(f"there is no option {unknown[0]!r}{hint}; there are {', '.join(sorted(known))}")
    values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in given.items()}
    if values.get("lists") is not None:
        values["lists"] = Path(values["lists"])
    return Options(**values)


def _on(
    data: str | None,
    names: Sequence[str],
    split: str | None,
    test: str | None,
    test_split: str | None,
    validation: str | None,
    validation_split: str | None,
) -> list[_Job]:
    """The protocols on these images."""
    if data is None:
        raise ValueError(f"{', '.join(names)} need images to learn from: say which (--data cifar10:ROOT)")
    name = data.partition(":")[0]
    if name == "voc07" and split is None and validation is None and validation_split is None:
        split = "trainval"
    train = open_source(data, split)
    tested = _tested(data, test, test_split, train if names == ["label-free"] else None)
    chosen_on = None
    if validation is not None or validation_split is not None:
        chosen_on = open_source(validation or data, validation_split)
    return [_Job(x, PROTOCOLS[x], name, data, train, tested, chosen_on) for x in names]


def _tested(data: str, test: str | None, test_split: str | None, otherwise: Source | None) -> Source:
    found = open_source(test, test_split) if test is not None else usual_test(data, test_split, False)
    found = otherwise if found is None else found
    if found is None:
        raise ValueError(f"{data} has no split to test on: name other images (--test), or a split (--test-split)")
    return found


def _transfers(root: str | Path, datasets: Sequence[str] | None) -> list[_Job]:
    """Logistic regression on each data set of the suite that is there, or that is asked for."""
    jobs, missing = [], []
    for name in datasets or SUITE:
        try:
            parts = transfer_parts(name, root)
        except ValueError as error:
            if datasets is not None:
                raise
            missing.append(name)
            logger.info("transfer: %s is left out: %s", name, error)
            continue
        data = f"{name}:{root}"
        if parts.drawn:
            logger.info("transfer: the images of %s to learn from are drawn, with seed 0", name)
        title, logistic = f"{_TRANSFER} {name}", PROTOCOLS["logistic"]
        jobs.append(_Job(title, logistic, name, data, parts.train, parts.test, parts.validation))
    if not jobs:
        raise ValueError(f"none of the data sets of the transfer suite ({', '.join(missing)}) is in {root}")
    return jobs


def _recorded(subject: Subject, job: _Job, options: Options, groups: Groups, file: Path, again: bool) -> list[Record]:
    """The records of a job: those of the file, where it has been finished."""
    heeded = {name: getattr(options, name) for name in job.protocol.heeds}
    if "lists" in heeded:
        heeded["lists"] = _content(options)
    squeeze, mirrored = job.protocol.squeezed(job.name), job.protocol.mirrored(options, job.name)
    if distributed.world_size() > 1 and options.augmented and "augmented" in job.protocol.heeds and not mirrored:
        raise ValueError("views are drawn by one process: leave out augmented, or start one rank")
    reads = job.protocol.reads(subject)
    hashes = {"train hash": fingerprint(job.train), "test hash": fingerprint(job.test)}
    if job.validation is not None:
        hashes["validation hash"] = fingerprint(job.validation)
    crop = plain(subject.crop.as_dict() | {"squeeze": squeeze})
    about = {
        "protocol": job.title, "options": heeded, "groups": groups, "name": job.name, "crop": crop,
        "reads": {name: repr(readout) for name, readout in reads.items()}, **subject.about, **hashes,
    }  # fmt: skip
    key = key_of(about)
    found = _by_first_rank(lambda: finished(file, key))
    if found and not again:
        logger.info("%s on %s was finished %s", job.title, job.data, found[0].finished)
        return found
    began = time.monotonic()
    options_of = {"squeeze": squeeze, "mirrored": mirrored}
    train, test = (subject.part(source, reads, **options_of) for source in (job.train, job.test))
    judged = None if job.validation is None else subject.part(job.validation, reads, **options_of)
    drawn = file.parent / "splits" / f"{job.name}-{hashes['train hash'][:8]}"

    def measured() -> list[Record]:
        parts = Parts(file.parent, key)
        if again:
            parts.clear()
        task = Task(subject, job.name, train, test, judged, options, parts, drawn)
        outcomes = job.protocol.measure(task)
        described = {
            "options": heeded,
            "checkpoint": {
                "name": subject.name, "layout": subject.imported.layout, "network": subject.imported.network,
                **subject.about,
            },
            "data": {"name": job.data, **hashes, "crop": crop, "train": len(train.labels), "test": len(test.labels)},
            "features": ", ".join(f"{name} {readout}" for name, readout in reads.items()),
            "seconds": time.monotonic() - began,
            "key": key,
        }  # fmt: skip
        records = [_record(job.title, outcome, task, groups, described) for outcome in outcomes]
        append(file, *records)
        parts.clear()
        return records

    records = _by_first_rank(measured)
    for record in records:
        logger.info("%s", record)
    return records


def _record(title: str, outcome: Outcome, task: Task, groups: Groups, described: Mapping[str, Any]) -> Record:
    labels = task.test.labels[task.test.labels >= 0] if task.test.labels.ndim == 1 else None
    details = dict(outcome.details)
    if outcome.right and labels is not None and (by := _grouping(task.train, groups)) is not None:
        counts = torch.bincount(task.train.labels[task.train.labels >= 0], minlength=int(labels.max()) + 1)
        details["groups"] = [grouped(right, labels, counts, by).as_dict() for right in outcome.right]
    by_class = outcome.metric == "mean per class" and labels is not None
    rest: dict[str, Any] = {
        name: value if isinstance(value, float) else plain(value) for name, value in described.items()
    }
    return Record(
        f"{title}, {outcome.suffix}" if outcome.suffix else title,
        outcome.metric,
        sum(outcome.values) / len(outcome.values),
        outcome.images,
        tuple(outcome.seeds),
        tuple(outcome.values),
        outcome.selected_on,
        tuple(outcome.chosen),
        details=plain(details),
        versions=versions(),
        finished=now(),
        right=tuple(packed(right) for right in outcome.right),
        classes=packed_classes(labels) if by_class and labels is not None else None,
        **rest,
    )


def _grouping(train: Part, groups: Groups) -> Literal["counts", "thirds"] | None:
    """By "auto", by counts where these tell classes apart."""
    if groups in ("counts", "thirds") or groups == "no" or train.labels.ndim != 1:
        return groups if groups in ("counts", "thirds") and train.labels.ndim == 1 else None  # type: ignore[return-value]
    counts = torch.bincount(train.labels[train.labels >= 0])
    there = [bool((counts > 100).any()), bool(((counts >= 20) & (counts <= 100)).any()), bool((counts < 20).any())]
    return "counts" if sum(there) > 1 else None


def _content(options: Options) -> str | None:
    """A hash of the official lists."""
    if options.lists is None:
        return None
    found = hashlib.sha256()
    for size in options.shots:
        for file in official_lists(options.lists, size):
            found.update(file.read_bytes())
    return found.hexdigest()[:16]


def _by_first_rank(function: Callable[[], _R]) -> _R:
    """What the first rank computes, on all; its error, too."""
    if distributed.world_size() == 1:
        return function()
    told: tuple[Any, str | None] = (None, None)
    failed: Exception | None = None
    if distributed.rank() == 0:
        try:
            told = function(), None
        except Exception as error:
            told, failed = (None, f"{type(error).__name__}: {error}"), error
    result, error_text = distributed.gather_objects(told)[0]
    if failed is not None:
        raise failed
    if error_text is not None:
        raise RuntimeError(f"the first rank failed: {error_text}")
    return result


def _of_suite(record: Record) -> bool:
    return record.protocol.startswith(f"{_TRANSFER} ") and record.protocol.removeprefix(f"{_TRANSFER} ") in AVERAGED


def _averaged(records: Sequence[Record], mean: float, file: Path) -> Record:
    """The mean of the suite, of records that are there."""
    parts = [record for record in records if _of_suite(record)]
    key = key_of({"average": [record.key for record in parts]})
    if found := _by_first_rank(lambda: finished(file, key)):
        return found[0]
    first = parts[0]
    record = Record(
        f"{_TRANSFER} average", "mean of eight", mean, sum(x.images for x in parts), values=(mean,),
        options=first.options, details={x.protocol: x.value for x in parts}, checkpoint=first.checkpoint,
        data={"name": _TRANSFER, "test hash": key_of({"tests": [x.data.get("test hash") for x in parts]})},
        features=first.features, versions=versions(), finished=now(), key=key, seconds=sum(x.seconds for x in parts),
    )  # fmt: skip
    if distributed.rank() == 0:
        append(file, record)
    return record


def records_file(path: str | Path, out: str | Path | None) -> Path:
    """Where records go: a file, or one in a folder; by default the run's own, or one here."""
    if out is not None:
        given = Path(out)
        return given if given.suffix == ".jsonl" else given / FILE
    return Path(path) / FILE if Path(path).is_dir() else Path(FILE)
