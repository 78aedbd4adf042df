"""`prototile audit`, from Python and from a command line: checkpoints, perhaps images, and a page about them.

audit_checkpoint(path, ...)    an `Audited`: the audit, and what its page shows beside it
write(audited, out)            the page and the numbers of one, or of several beside each other
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from prototile.audit import (
    Audit,
    ClusterAudit,
    EmbeddingAudit,
    Map,
    PrototypeAudit,
    audit_clusters,
    audit_embeddings,
    audit_prototypes,
)
from prototile.audit.compare import Comparison, compare
from prototile.audit.cover import EPSILON
from prototile.audit.embeddings import alignment_of, lidar
from prototile.audit.maps import map_embeddings, map_prototypes
from prototile.checkpoints import Imported, ImportedHead, load, write_atomically
from prototile.checkpoints.imported import Choice
from prototile.cli.encoding import (
    FEATURES,
    PROJECTIONS,
    crop_of,
    default_cache,
    device_named,
    encoded,
    output_of,
    views_of,
)
from prototile.data import Source, open_source
from prototile.data.subsets import some_of
from prototile.evaluation import Stored
from prototile.evaluation.records import FILE, Record, read
from prototile.priors import FromCounts, PowerLaw, Prior, Uniform
from prototile.reports.audit import Epoch, Pictures, Sheet, neighbor_sheets, render_audit, table

TEMPERATURE = 0.1  # of most published students; where a file does not tell it
VIEWED = 1000  # images of which several views are looked at
EPOCHS = 12  # lines of a terminal
PAGE, NUMBERS = "report.html", "audit.json"


@dataclass(frozen=True, eq=False)
class Audited:
    """An audit, and what a page shows beside it."""

    audit: Audit
    pictures: Pictures | None = None
    sheets: Mapping[str, Sequence[Sheet]] = field(default_factory=dict)
    epochs: Sequence[Epoch] = ()
    facts: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    images: Tensor | None = None  # the numbers, in the data, of those that could be read
    records: Sequence[Record] = ()  # of the run's evaluations

    @property
    def page(self) -> str:
        """The page, as HTML that needs nothing else."""
        return _page([self], None)


def audit_checkpoint(
    path: str | Path,
    *,
    data: str | None = None,
    split: str | None = None,
    network: Choice = "evaluated",
    epsilon: float = EPSILON,
    prior: str | Prior | None = None,
    temperature: float | None = None,
    limit: int | None = None,
    views: int = 4,
    size: int | None = None,
    resize: int | None = None,
    batch: int = 256,
    workers: int | None = None,
    device: str = "auto",
    cache: str | Path | None = None,
    maps: bool = True,
    seed: int = 0,
) -> Audited:
    """What the prototypes of a checkpoint are like, and with `data` how images spread over them.

    `path` is a checkpoint of any project that is known, or a run of one's own. `data` is named as for `pretrain`;
    `limit` draws so many of its images, and `views` augmented views of some tell what needs them (0: none). `prior` is
    what clusters shall be compared with: a prior, or "uniform", "power-law:0.25", "counts:FILE". `temperature` is the
    student's, where the file does not tell it. Images are shown as the run has seen them, or in 224 pixels (`size`,
    `resize`), and encoded once: `cache` is where that is kept.
    """
    there, wished = device_named(device), prior_of(prior) if isinstance(prior, str) else prior
    imported = load(path, network=network)
    tau = imported.temperature or TEMPERATURE if temperature is None else temperature
    if not tau > 0:
        raise ValueError(f"a temperature must be positive, got {tau}")
    source = None if data is None else _images(data, split, limit, seed)
    prototypes = {
        kind: audit_prototypes(head.prototypes.weights().detach().to(there), epsilon, temperature=tau)
        for kind, head in imported.heads.items()
    }
    found = Audited(
        Audit(
            Path(path).resolve().name,
            imported.layout,
            imported.evidence,
            imported.network,
            prototypes,
            maps=_maps_of_prototypes(imported, prototypes, seed) if maps else {},
        ),
        epochs=epochs_of(Path(path)),
        records=read(Path(path) / FILE) if (Path(path) / FILE).is_file() else (),
        facts=_facts(imported, tau, told=temperature is not None or imported.temperature is not None),
    )
    if source is None:
        return found
    crop = crop_of(imported, size, resize)
    folder = default_cache() if cache is None else Path(cache)
    stored = encoded(imported, source, crop, cache=folder, device=there, batch=batch, workers=workers)
    looked = _Looked(imported, prototypes, stored, tau, seed)
    several = {}
    if views:
        several = views_of(imported, source, crop, views=views, images=VIEWED, device=there, seed=seed)
    audit = replace(
        found.audit,
        clusters=looked.clusters(wished),
        embeddings=looked.embeddings(several),
        maps={**found.audit.maps, **(looked.maps() if maps else {})},
    )
    features = stored.outputs[FEATURES]
    return replace(
        found,
        audit=audit,
        pictures=Pictures(source, rows=stored.taken.numpy()),
        sheets={FEATURES: neighbor_sheets(features, looked.labels, seed=seed)},
        facts={**found.facts, **_about_images(data or "", stored, crop.size)},
        images=stored.taken,
    )


@dataclass(frozen=True, eq=False)
class _Looked:
    """What a network has made of images, and how to measure it."""

    imported: Imported
    prototypes: Mapping[str, PrototypeAudit]
    stored: Stored
    temperature: float
    seed: int

    @property
    def labels(self) -> Tensor | None:
        """Of the images, one class each, where there are any."""
        labels = self.stored.labels
        return labels if labels.ndim == 1 and bool((labels >= 0).any()) else None

    def clusters(self, prior: Prior | None) -> dict[str, ClusterAudit]:
        return {
            kind: audit_clusters(
                self.stored.outputs[output_of(kind)],
                head.prototypes.weights().detach().cpu(),
                self.temperature,
                offset=_offset(head, self.temperature),
                unique=self.prototypes[kind].unique,
                prior=None if prior is None else prior(len(head.prototypes.vectors)),
                labels=self.labels,
            )
            for kind, head in self.imported.heads.items()
            if output_of(kind) in self.stored.outputs
        }

    def embeddings(self, views: Mapping[str, Tensor]) -> dict[str, EmbeddingAudit]:
        """Features and projections, with what needs several views of an image measured on those."""
        found = {}
        for name in (FEATURES, PROJECTIONS):
            if name in self.stored.outputs:
                measured = audit_embeddings(self.stored.outputs[name], labels=self.labels, seed=self.seed)
                if name in views:
                    measured = replace(measured, alignment=alignment_of(views[name]), lidar=lidar(views[name]))
                found[name] = measured
        return found

    def maps(self) -> dict[str, Map]:
        """Images and unique prototypes on one plane, of the first head; without heads, features alone."""
        if "cls" in self.imported.heads and PROJECTIONS in self.stored.outputs:
            weights = self.imported.heads["cls"].prototypes.weights().detach()
            embeddings = self.stored.outputs[PROJECTIONS]
            return {"cls, images": map_embeddings(embeddings, weights, self.prototypes["cls"].unique, seed=self.seed)}
        return {"images": map_embeddings(self.stored.outputs[FEATURES], seed=self.seed)}


def _offset(head: ImportedHead, temperature: float) -> Tensor | None:
    """What the head's softmax adds to its logits: a bias, vMF's normaliser."""
    offset = head.prototypes.offset(temperature)
    return None if offset is None else offset.detach().cpu()


def _page(audited: Sequence[Audited], comparison: Comparison | None) -> str:
    """The page about the first, with the others beside it."""
    first, *others = audited
    return render_audit(
        first.audit,
        first.pictures,
        [each.audit for each in others],
        comparison=comparison,
        epochs_of_run=first.epochs,
        sheets=first.sheets,
        facts=first.facts,
        evaluated=[each.records for each in audited],
    )


def write(audited: Sequence[Audited], out: Path) -> None:
    """The page and all numbers, into a folder."""
    told = [each.audit.as_dict() for each in audited]
    comparison = _compared(audited) if len(audited) > 1 else None
    numbers = told[0] if comparison is None else {"audits": told, "comparison": comparison.as_dict()}
    texts = {NUMBERS: json.dumps(numbers, allow_nan=False), PAGE: _page(audited, comparison)}
    for name, text in texts.items():
        write_atomically(out / name, lambda file, text=text: file.write(text.encode("utf-8", "replace")))


def _compared(audited: Sequence[Audited]) -> Comparison:
    """Side by side; where all have seen the same images, these tell which clusters correspond."""
    seen = [each.images for each in audited]
    first = seen[0]
    same = first is not None and all(rows is not None and torch.equal(rows, first) for rows in seen)
    return compare([each.audit for each in audited], same_images=same)


def prior_of(text: str) -> Prior:
    """A prior from a word: uniform, power-law:EXPONENT or counts:FILE."""
    name, _, rest = text.partition(":")
    if name == "uniform" and not rest:
        return Uniform()
    if name == "counts" and rest:
        return FromCounts.read(rest)
    if name == "power-law" and rest:
        try:
            return PowerLaw(float(rest))
        except ValueError as error:
            raise ValueError(f"the exponent of {text} is no number that a power law takes: {error}") from None
    raise ValueError(f"a prior is written uniform, power-law:0.25 or counts:FILE, got {text!r}")


def epochs_of(path: Path) -> tuple[Epoch, ...]:
    """The audits that a run has made of its epochs, where `path` is a run's folder."""
    found = []
    for file in sorted((path / "audit").glob("epoch-*.json")) if path.is_dir() else ():
        try:
            told = json.loads(file.read_text())
            found.append(Epoch.read(told["epoch"], told))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} is no audit of an epoch: remove it, or audit the checkpoint itself") from error
    return tuple(found)


# What an audit can be asked to reach: from 0 to 1, of the worst head.
MEASURES: dict[str, Callable[[Audit], list[float]]] = {
    "unique": lambda audit: [x.share for x in audit.prototypes.values()],
    "used": lambda audit: [1 - x.empty / x.prototypes for x in audit.clusters.values()],
    "effective": lambda audit: [x.effective / x.prototypes for x in audit.clusters.values()],
    "rankme": lambda audit: [x.rankme / min(x.dims, x.images) for x in audit.embeddings.values()],
}
_OF_PROTOTYPES = ("unique",)  # those that need no images


def below(audits: Sequence[Audit], wanted: Mapping[str, float]) -> list[str]:
    """What does not reach what is wanted, in words."""
    failed = []
    for name, level in wanted.items():
        for audit in audits:
            values = MEASURES[name](audit)
            if not values:
                raise ValueError(f"{audit.name} says nothing of {name!r}: it has no prototypes")
            if min(values) < level:
                failed.append(f"{audit.name}: {name} is {min(values):.4f}, below {level:g}")
    return failed


def _maps_of_prototypes(imported: Imported, prototypes: Mapping[str, PrototypeAudit], seed: int) -> dict[str, Map]:
    return {
        kind: map_prototypes(head.prototypes.weights().detach(), prototypes[kind].unique, seed=seed)
        for kind, head in imported.heads.items()
        if prototypes[kind].count > 2
    }


def _facts(imported: Imported, temperature: float, *, told: bool) -> dict[str, str | Sequence[str]]:
    found: dict[str, str | Sequence[str]] = {"holds": str(imported)}
    if imported.epoch is not None:
        found["epoch"] = f"{imported.epoch:,}"
    if imported.heads:
        found["temperature"] = f"{temperature:g}" + ("" if told else ", assumed: the file does not say it")
    return found | ({"left out": list(imported.ignored)} if imported.ignored else {})


def _about_images(data: str, stored: Stored, size: int) -> dict[str, str | Sequence[str]]:
    found: dict[str, str | Sequence[str]] = {"images": f"{len(stored):,} of {data}, {size} pixels, no augmentation"}
    if stored.bad:
        found["unreadable"] = [f"{id}: {reason}" for id, reason in stored.bad]
    return found


def _images(data: str, split: str | None, limit: int | None, seed: int) -> Source:
    source = open_source(data, split)
    if limit is not None and limit < min(2, len(source)):
        raise ValueError(f"an audit of images needs two of them at least, got a limit of {limit}")
    return some_of(source, limit, seed)


def command(words: Sequence[str]) -> int:
    """`prototile audit`; 1 where `--fail-under` is not reached."""
    given = _parser().parse_args(words)
    wanted = dict(map(_level, given.fail_under))
    if given.data is None and (blind := [name for name in wanted if name not in _OF_PROTOTYPES]):
        raise ValueError(f"--fail-under {blind[0]} needs images: give them, --data")
    options = {name: value for name, value in vars(given).items() if name not in ("checkpoint", "out", "fail_under")}
    audited = [audit_checkpoint(path, **options) for path in given.checkpoint]
    audits = [each.audit for each in audited]
    out = _out(given.checkpoint[0]) if given.out is None else Path(given.out)
    write(audited, out)
    print(table(audits), end="")
    for each in audited:
        print(_over_epochs(each.audit.name, each.epochs), end="")
    print(f"\nThe page: {out / PAGE}   (numbers: {out / NUMBERS})")
    failed = below(audits, wanted)
    for line in failed:
        print(line)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prototile audit",
        description="Says how many prototypes of a checkpoint are real, and with images how clusters are filled.",
        epilog="Exit codes: 0 done, 1 an audit is below --fail-under, 2 a file or an option is wrong.",
    )
    parser.add_argument(
        "checkpoint", nargs="+", help="a run, or a checkpoint of any project that is known; several are compared"
    )
    parser.add_argument(
        "--data", help="images: digits, cifar10:ROOT, folder:PATH, classes:PATH, list:FILE (docs/data.md)"
    )
    parser.add_argument("--split", help="another split of the data than the one to train on")
    parser.add_argument("--limit", type=int, help="draw so many of the images")
    parser.add_argument("--out", help="folder for report.html and audit.json (a run's own, or NAME-audit)")
    parser.add_argument("--network", choices=get_args(Choice), default="evaluated", help="which of those in the file")
    parser.add_argument("--epsilon", type=float, default=EPSILON, help=f"cosine distance of copies ({EPSILON:g})")
    parser.add_argument("--prior", help="compare clusters with uniform, power-law:0.25 or counts:FILE")
    parser.add_argument("--temperature", type=float, help="the student's, where the file does not tell it")
    parser.add_argument("--views", type=int, default=4, help="augmented views of some images, for alignment, LiDAR (4)")
    parser.add_argument("--size", type=int, help="pixels of the images shown (as the run has seen them, or 224)")
    parser.add_argument("--resize", type=int, help="pixels of the shorter side before that (256 for 224)")
    parser.add_argument("--batch", type=int, default=256, help="images that pass the network together (256)")
    parser.add_argument("--workers", type=int, help="processes that read images (a core less than there are)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--cache", help="where what networks make of images is kept (~/.cache/prototile/outputs)")
    parser.add_argument("--no-maps", dest="maps", action="store_false", help="leave out the t-SNE maps")
    parser.add_argument("--seed", type=int, default=0, help="of samples and maps (0)")
    parser.add_argument(
        "--fail-under",
        action="append",
        default=[],
        metavar="NAME=SHARE",
        help=f"exit with 1 where a share is below: {', '.join(MEASURES)}; may be given several times",
    )
    return parser


def _over_epochs(name: str, epochs: Sequence[Epoch]) -> str:
    """A run's epochs, one a line: at most the first ones, some between and the last ones."""
    if not epochs:
        return ""
    stride = -(-len(epochs) // EPOCHS)
    lines = [f"\n{name} over the epochs: unique prototypes; effective number, empty clusters of the latest targets"]
    for epoch in [*epochs[:-1:stride], epochs[-1]]:
        for head, x in epoch.heads.items():
            line = f"  epoch {epoch.number:g} ({head}): {x.unique:,} of {x.prototypes:,}"
            if x.effective is not None and x.empty is not None:
                line += f"; {x.effective:,.1f}, {x.empty:,}"
            lines.append(line)
    return "\n".join(lines) + "\n"


def _level(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        level = float(value)
    except ValueError:
        level = -1.0
    if name not in MEASURES or not 0 <= level <= 1:
        raise ValueError(f"--fail-under takes NAME=SHARE with {', '.join(MEASURES)} and a share up to 1, got {text!r}")
    return name, level


def _out(path: str) -> Path:
    """A run gets its page itself; what is audited of other files lies in a folder here."""
    there = Path(path)
    return there if there.is_dir() else Path(f"{there.name.partition('.')[0]}-audit")
