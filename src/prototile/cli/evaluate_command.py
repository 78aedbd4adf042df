"""`prototile evaluate`, from a command line: protocols on images, or two sets of records beside each other.

compare_files(a, b)       by how much one set of records is better than another
write_page(file, sets)    records as a page
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from prototile import distributed
from prototile.checkpoints import write_atomically
from prototile.checkpoints.imported import Choice
from prototile.cli.evaluating import USUAL, Groups, evaluate, records_file
from prototile.cli.protocols import PROTOCOLS
from prototile.cli.tasks import SHOTS, SelectOn
from prototile.evaluation.comparing import Difference, compare_all
from prototile.evaluation.logistic import Metric
from prototile.evaluation.lowshot import LAMBDA
from prototile.evaluation.records import FILE, Record, read, table
from prototile.evaluation.transfer import SUITE
from prototile.reports.audit.comparing import distinct
from prototile.reports.evaluations import by_checkpoint, render_evaluations
from prototile.reports.evaluations.blocks import Sets


def compare_files(first: str | Path, second: str | Path, report: str | Path | None = None) -> list[Difference]:
    """All that two sets of records share; each is a file, a folder that has one, or either with `:CHECKPOINT`.

    `report` is a page to write.
    """
    a, b = (_one_checkpoint(str(x)) for x in (first, second))
    found = compare_all(a, b)
    if not found:
        said = [", ".join(sorted({record.protocol for record in records})) for records in (a, b)]
        raise ValueError(
            f"{first} and {second} share no protocol with the same options and test images: one has {said[0]}, the "
            f"other {said[1]}"
        )
    if report is not None:
        write_page(report, dict(zip(distinct([str(first), str(second)]), (a, b), strict=True)), compared=True)
    return found


def write_page(file: str | Path, sets: Sets, *, compared: bool = False) -> None:
    """The page of these records; `compared` with the differences of the second set from the first."""
    text = render_evaluations(sets, compared=compared)
    write_atomically(Path(file), lambda written: written.write(text.encode("utf-8", "replace")))


def _one_checkpoint(text: str) -> list[Record]:
    path, name = Path(text), None
    if not path.exists() and ":" in text:
        left, _, name = text.rpartition(":")
        path = Path(left)
    records = read(path / FILE if path.is_dir() else path)
    names = sorted({str(record.checkpoint.get("name")) for record in records})
    if name is not None:
        records = [record for record in records if record.checkpoint.get("name") == name]
        if not records:
            raise ValueError(f"{path} has no records of {name}; it has those of {', '.join(names)}")
    elif len(names) > 1:
        raise ValueError(f"{path} has records of {', '.join(names)}: say of which, {path}:{names[0]}")
    if not records:
        raise ValueError(f"{path} has no records")
    return records


def command(words: Sequence[str]) -> None:
    """`prototile evaluate`."""
    given = vars(_parser().parse_args(words))
    compared, checkpoint, report = (given.pop(name) for name in ("compare", "checkpoint", "report"))
    if report is not None:
        _check_page(Path(report))
    if compared is not None:
        if checkpoint is not None:
            raise ValueError("--compare takes two sets of records and no checkpoint")
        for difference in compare_files(compared[0], compared[1], report):
            print(difference)
        if report is not None:
            print(f"\nThe page: {report}")
        return
    if checkpoint is None:
        raise ValueError("which checkpoint? `prototile evaluate CHECKPOINT --data ...`; --help says more")
    given["shots"] = tuple(int(x) if x >= 1 and x == int(x) else x for x in given["shots"])
    with distributed.launched():
        records = evaluate(checkpoint, protocols=given.pop("protocol"), **given)
        if distributed.rank() == 0:
            print(table(records))
            for record in records:
                for each in record.details.get("groups", [])[:1]:
                    print(f"{record.protocol}, by {each['by']}: {_groups_said(each)}")
            print(f"\nThe records: {records_file(checkpoint, given['out'])}")
            if report is not None:
                write_page(report, by_checkpoint(records))
                print(f"The page: {report}")


def _check_page(file: Path) -> None:
    """Before anything is computed: can a page be written there?"""
    if file.is_dir():
        raise ValueError(f"{file} is a folder: name the page to write, --report {file / 'evaluations.html'}")
    file.parent.mkdir(parents=True, exist_ok=True)


def _groups_said(told: Mapping[str, Any]) -> str:
    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}%"

    return ", ".join(f"{name} {share(x['accuracy'])} ({x['classes']:,} classes)" for name, x in told["groups"].items())


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:20} {protocol.about}" for name, protocol in PROTOCOLS.items())
    parser = argparse.ArgumentParser(
        prog="prototile evaluate",
        description="Says what the features of a checkpoint are worth, by the protocols of the papers.",
        epilog=f"Protocols:\n{listed}\n\nThe transfer suite: {', '.join(SUITE)}.\n"
        "Fine-tuning, with some of the labels or all, is `prototile finetune`.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", nargs="?", help="a run, or a checkpoint of any project that is known")
    add("--protocol", nargs="+", metavar="NAME", help=f"which protocols ({' '.join(USUAL)})")
    add("--data", help="labelled images to learn from: cifar10:ROOT, classes:PATH, handwriting ... (docs/data.md)")
    add("--split", help="another split of the data than the one to train on")
    add("--test", help="images to test on (by default the test or val split of the data)")
    add("--test-split", help="their split")
    add("--validation", help="images to choose on (by default a part of those to learn from)")
    add("--validation-split", help="their split")
    add("--transfer", metavar="ROOT", help="run the transfer suite on the data sets in this folder")
    add("--datasets", nargs="+", choices=tuple(SUITE), metavar="NAME", help="these of the suite (all that are there)")
    add("--out", help=f"file of records, or a folder for {FILE} (the run's own, or here)")
    add("--report", metavar="PAGE", help="write these records, or what is compared, as a page (HTML)")
    add("--again", action="store_true", help="run what has been finished already")
    add("--compare", nargs=2, metavar=("A", "B"), help="compare two files of records, or runs, and nothing else")
    add("--groups", choices=get_args(Groups), default="auto", help="head, middle, tail: by 100 and 20 images (auto)")
    add("--select-on", choices=get_args(SelectOn), default="validation", help="test flatters, and is recorded")
    add("--metric", choices=get_args(Metric), help="of logistic regression (by data set, else top1)")
    add("--seeds", type=int, nargs="+", help="of splits and of training, in place of the protocol's")
    add("--labels", type=float, default=1.0, help="share of the labels to learn from, the same of each class (1)")
    add("--subset-seed", type=int, default=0, help="which images such a share holds (0)")
    add("--augmented", action="store_true", help="linear protocols: another view of each image in every epoch")
    add("--epochs", type=int, help="of linear protocols, in place of the published")
    add("--method", choices=("vicreg", "swav", "simsiam"), help="whose rates linear-e2mc takes")
    add("--standardise", action="store_true", help="logistic: features of mean 0 and deviation 1")
    add("--ks", type=int, nargs="+", default=[10, 20, 100, 200], help="numbers of nearest neighbours")
    add("--shots", type=float, nargs="+", default=list(SHOTS), help="images per class, or shares below 1 (1 2 5 0.01)")
    add("--shot-splits", type=int, default=3, help="drawn splits of each (3)")
    add("--penalty", type=float, default=LAMBDA, help=f"of low-shot classifiers ({LAMBDA:g})")
    add("--lists", help="folder of ImageNet's official low-shot lists (imagenet_subsets1, 2, 3)")
    add("--network", choices=get_args(Choice), default="evaluated", help="which of those in the file")
    add("--size", type=int, help="pixels of the images shown (as the run has seen them, or 224)")
    add("--resize", type=int, help="pixels of the shorter side before that (256 for 224)")
    add("--batch", type=int, default=256, help="images that pass the network together (256)")
    add("--workers", type=int, help="processes that read images (a core less than there are)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    add("--cache", help="where what networks make of images is kept (~/.cache/prototile/outputs)")
    return parser
