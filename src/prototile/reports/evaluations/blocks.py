"""Records as tables: data set by data set, protocol by protocol, checkpoint by checkpoint."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from prototile.evaluation.records import Record, chosen_said, is_share, plain
from prototile.reports.page import count, minus, percent

Sets = Mapping[str, Sequence[Record]]

SUITE = "the transfer suite"
GROUPS = ("head", "middle", "tail")
_NAMED = 3  # options in the name of a protocol


@dataclass(frozen=True)
class Cell:
    """A value as it is read, what it was chosen by, and whether that was on the test images."""

    value: str
    spread: str
    chosen: str
    flattered: bool
    seeds: str


@dataclass(frozen=True)
class Line:
    """A protocol with the same options on the same images, and what each checkpoint has there."""

    protocol: str
    metric: str
    images: str
    records: tuple[Record | None, ...]

    @property
    def cells(self) -> list[Cell | None]:
        return [None if record is None else _cell(record) for record in self.records]


@dataclass(frozen=True)
class Tails:
    """Head, middle and tail of a line, of one checkpoint: their names, values and numbers of classes."""

    protocol: str
    title: str
    groups: tuple[tuple[str, float | None, int], ...]

    @property
    def cells(self) -> list[tuple[str, str]]:
        return [(percent_said(value), f"{count(classes)} classes") for _, value, classes in self.groups]


@dataclass(frozen=True)
class Block:
    """All that is known of one data set."""

    name: str
    lines: tuple[Line, ...]
    tails: tuple[Tails, ...]


def by_checkpoint(records: Sequence[Record]) -> dict[str, list[Record]]:
    """In the order in which they come; those of one name and several weights are told apart by the weights' hash."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((str(record.checkpoint.get("name")), str(record.checkpoint.get("weights"))), []).append(record)
    names = [name for name, _ in found]
    return {
        name if names.count(name) == 1 else f"{name} ({weights[:8]})": each for (name, weights), each in found.items()
    }


def latest(records: Sequence[Record]) -> list[Record]:
    """Of each protocol, metric, options and test images one."""
    return list({record.subject: record for record in records}.values())


def blocks(sets: Sets) -> Iterator[Block]:
    """Data sets in the order in which they come; the transfer suite is one."""
    grouped: dict[tuple[str, str], dict[tuple[str, ...], dict[str, Record]]] = {}
    for title, records in sets.items():
        for record in latest(records):
            grouped.setdefault(_place(record), {}).setdefault(record.subject, {})[title] = record
    names = [name for name, _ in grouped]
    for (name, images), found in grouped.items():
        labels = _labels([next(iter(each.values())) for each in found.values()])
        lines = []
        for label, each in zip(labels, found.values(), strict=True):
            first = next(iter(each.values()))
            lines.append(Line(label, first.metric, count(first.images), tuple(each.get(title) for title in sets)))
        title = name if names.count(name) == 1 else f"{name} ({images[:8]})"
        yield Block(title, tuple(lines), tuple(_tails(lines, list(sets))))


def _place(record: Record) -> tuple[str, str]:
    """The data set: its name, and which images of it."""
    if record.protocol.startswith("transfer "):
        return SUITE, ""
    return str(record.data.get("name")), str(record.data.get("test hash"))


def _labels(records: Sequence[Record]) -> list[str]:
    """Protocols, with the options in which those of the same protocol and metric differ."""
    options = [{name: str(x) for name, x in plain(record.options).items()} for record in records]
    labels = []
    for record, own in zip(records, options, strict=True):
        alike = [
            other
            for x, other in zip(records, options, strict=True)
            if (x.protocol, x.metric) == (record.protocol, record.metric)
        ]
        differing = [name for name in own if any(other.get(name) != own[name] for other in alike)]
        said = [f"{name.replace('_', ' ')} {own[name]}" for name in differing[:_NAMED]]
        labels.append(", ".join([record.protocol, *said]))
    return labels


def _cell(record: Record) -> Cell:
    error = record.standard_error
    scale = 100 if is_share(record.metric) else 1
    several = len(record.values) > 1
    each = ", ".join(minus(scale * value, 2) for value in record.values)
    return Cell(
        value_said(record.value, record.metric),
        "" if error is None else f"± {scale * error:.2f}",
        chosen_said(record),
        record.selected_on == "test",
        f"{len(record.values)} seeds or splits: {each}" if several else "",
    )


def value_said(value: float, metric: str) -> str:
    """Shares as per cent."""
    return percent_said(value) if is_share(metric) else minus(value, 2)


def percent_said(value: float | None) -> str:
    """A dash where there is none."""
    return "–" if value is None or math.isnan(value) else percent(value, 2)


def _tails(lines: Sequence[Line], titles: Sequence[str]) -> Iterator[Tails]:
    for line in lines:
        for title, record in zip(titles, line.records, strict=True):
            groups = () if record is None else _groups_of(record)
            if sum(classes > 0 for _, _, classes in groups) > 1:
                yield Tails(line.protocol, title, groups)


def _groups_of(record: Record) -> tuple[tuple[str, float | None, int], ...]:
    """Means over seeds; of frozen features, or of what was fine-tuned."""
    details = record.details
    if seeds := details.get("groups"):
        found = [[seed["groups"][name]["accuracy"] for seed in seeds] for name in GROUPS]
        classes = {name: seeds[0]["groups"][name]["classes"] for name in GROUPS}
    elif "classes" in details and "scores" in details:
        found, classes = [[details["scores"][name]["mean"]] for name in GROUPS], details["classes"]
    else:
        return ()
    known = [[x for x in values if x is not None and not math.isnan(x)] for values in found]
    return tuple(
        (name, sum(values) / len(values) if values else None, int(classes.get(name, 0)))
        for name, values in zip(GROUPS, known, strict=True)
    )
