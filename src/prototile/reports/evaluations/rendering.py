"""The page of evaluations.

render_evaluations(sets, compared=True)    HTML, self-contained
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from prototile.evaluation.comparing import Difference, compare
from prototile.evaluation.records import Record, is_share
from prototile.reports import page
from prototile.reports.evaluations.blocks import SUITE, Block, Sets, blocks, latest, value_said
from prototile.reports.evaluations.figures import SURE, figures, forest
from prototile.reports.page import count, minus
from prototile.reports.svg import Figure


@dataclass(frozen=True)
class Evaluations:
    """What a page shows of evaluations."""

    titles: tuple[str, ...]
    blocks: tuple[tuple[Block, tuple[Figure, ...]], ...]
    differences: tuple[tuple[str, Difference], ...]  # what was compared, in words
    compared: Figure | None
    flattered: int  # numbers that were chosen on test images

    @classmethod
    def of(cls, sets: Sets, *, compared: bool = False) -> "Evaluations":
        found, titles = list(blocks(sets)), list(sets)
        records = [x for block in found for line in block.lines for x in line.records if x is not None]
        differences = tuple(_differences(found)) if compared else ()
        return cls(
            tuple(titles),
            tuple((block, tuple(figures(block, titles))) for block in found),
            differences,
            forest(differences, titles) if compared else None,
            sum(x.selected_on == "test" for x in records),
        )


def render_evaluations(sets: Sets, *, compared: bool = False) -> str:
    """One page that needs nothing else; `compared` tests what the second of two sets differs in from the first."""
    if not any(sets.values()):
        raise ValueError("there is nothing to show: no record of an evaluation")
    if compared and len(sets) != 2:
        raise ValueError(f"two sets of records are compared, got {len(sets)}")
    shown = Evaluations.of(sets, compared=compared)
    return page.render(
        "evaluations.html",
        shown=shown,
        told=_told,
        headline=_headline(shown),
        facts={title: _facts(records) for title, records in sets.items() if records},
        how=[(title, _how(record)) for title, records in sets.items() for record in latest(records)],
        version=version("prototile"),
    )


def _differences(found: Sequence[Block]) -> Iterator[tuple[str, Difference]]:
    """Of all that both have, under names that tell protocols, their options and data sets apart."""
    for block in found:
        for line in block.lines:
            first, second = line.records
            if first is not None and second is not None and not math.isnan(second.value - first.value):
                of_one = len(found) == 1 or block.name == SUITE
                name = line.protocol if of_one else f"{line.protocol}, {block.name}"
                yield name, compare(first, second)


def _told(x: Difference) -> tuple[str, ...]:
    """Both values, the difference, its interval and p, as they are read."""
    scale = 100 if is_share(x.metric) else 1
    between = "–" if x.low is None or x.high is None else f"{minus(scale * x.low, 2)} to {minus(scale * x.high, 2)}"
    plus = "+" if x.difference > 0 else ""
    return (
        value_said(x.first, x.metric),
        value_said(x.second, x.metric),
        f"{plus}{minus(scale * x.difference, 2)}",
        between,
        "–" if x.p is None else f"{x.p:.2g}",
    )


def _headline(shown: Evaluations) -> str:
    """Which of two is better, in how many of the numbers; without a comparison what the page is about."""
    titles = shown.titles
    judged = [x for _, x in shown.differences if is_share(x.metric)]
    if not judged:
        what = titles[0] if len(titles) == 1 else f"{len(titles)} checkpoints"
        return f"What the features of {what} are worth"
    better, worse = sum(x.difference > 0 for x in judged), sum(x.difference < 0 for x in judged)
    sure = sum(x.p is not None and x.p < SURE for x in judged)
    said = f"{titles[1]} is better than {titles[0]} in {better} of {len(judged)} numbers and worse in {worse}"
    return f"{said}; {sure or 'none'} of the differences {'are' if sure > 1 else 'is'} beyond chance"


def _facts(records: Sequence[Record]) -> dict[str, str]:
    last = records[-1]
    about = last.checkpoint
    found = {
        "recognised as": about.get("layout"),
        "network": about.get("network"),
        "weights": str(about.get("weights") or "")[:16],
        "computed by": ", ".join(f"{name} {x}" for name, x in last.versions.items()),
    }
    return {name: str(x) for name, x in found.items() if x}


def _how(record: Record) -> list[tuple[str, str]]:
    """A record's conditions."""
    data = record.data
    learned, tested = data.get("train"), data.get("test")
    crop = data.get("crop")
    size = crop.get("size") if isinstance(crop, Mapping) else None
    options = ", ".join(f"{name} {_short(x)}" for name, x in record.options.items() if x is not None)
    found: list[tuple[str, Any]] = [
        ("protocol", f"{record.protocol} ({record.metric})"),
        ("data", data.get("name")),
        ("learned from", f"{count(learned)} images" if isinstance(learned, int) else None),
        ("tested on", f"{count(tested)} images" if isinstance(tested, int) else None),
        ("pixels", size),
        ("features", record.features),
        ("options", options),
        ("chosen on", {"nothing": "nothing", "test": "the test images"}.get(record.selected_on, "held-out images")),
        ("took", f"{record.seconds:,.1f} seconds"),
        ("finished", record.finished),
    ]
    return [(name, str(x)) for name, x in found if x not in (None, "")]


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
