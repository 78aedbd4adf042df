"""Records as drawings: values with their standard errors, groups of classes, differences with their intervals."""

import math
from collections.abc import Iterator, Sequence

from prototile.evaluation.comparing import Difference
from prototile.evaluation.records import Record, chosen_said, is_share
from prototile.reports import svg
from prototile.reports.evaluations.blocks import GROUPS, Block, percent_said
from prototile.reports.page import count, minus
from prototile.reports.svg import KINDS, Figure

SURE = 0.05  # differences that chance gives more rarely are told apart
_TICKS = 7  # about


def figures(block: Block, titles: Sequence[str]) -> Iterator[Figure]:
    """Of a data set: its protocols, and head, middle and tail where they are known."""
    if (drawn := _protocols(block, titles)) is not None:
        yield drawn
    if block.tails:
        yield _tails(block, titles)


def _protocols(block: Block, titles: Sequence[str]) -> Figure | None:
    """None of a single dot."""
    kinds = [KINDS[i % len(KINDS)] for i in range(len(titles))]
    rows = []
    for line in block.lines:
        marks = [
            _mark(title, kind, record)
            for title, kind, record in zip(titles, kinds, line.records, strict=True)
            if record is not None and is_share(record.metric) and not math.isnan(record.value)
        ]
        if marks:
            rows.append((f"{line.protocol} · {line.metric}", marks))
    if sum(len(marks) for _, marks in rows) < 2:
        return None
    return Figure(
        "Protocols",
        svg.ranges(rows, _axis(rows), title="the value of each protocol"),
        "A dot is a value; the line through it is its standard error on both sides, where there are several seeds or "
        "splits. Protocols differ in what they ask for: compare within a row.",
        tuple(zip(kinds, titles, strict=True)) if len(titles) > 1 else (),
    )


def _tails(block: Block, titles: Sequence[str]) -> Figure:
    rows = []
    for each in block.tails:
        marks = [
            svg.Range(100 * x, 100 * x, 100 * x, kind, f"{name}: {percent_said(x)}, {count(classes)} classes")
            for kind, (name, x, classes) in zip(KINDS, each.groups, strict=False)
            if x is not None
        ]
        rows.append((f"{each.protocol}, {each.title}" if len(titles) > 1 else each.protocol, marks))
    return Figure(
        "Head, middle and tail",
        svg.ranges(rows, _axis(rows), title="accuracy of head, middle and tail"),
        "Mean accuracy over the classes of each group; groups are made by numbers of training images.",
        tuple(zip(KINDS, GROUPS, strict=False)),
    )


def _mark(title: str, kind: str, record: Record) -> svg.Range:
    value, error = 100 * record.value, 100 * (record.standard_error or 0.0)
    spread = f" ± {error:.2f}" if error else ""
    flattered = "\nchosen on the test images" if record.selected_on == "test" else ""
    text = f"{title}: {percent_said(record.value)}{spread}\n{chosen_said(record)}".rstrip() + flattered
    return svg.Range(value, value - error, value + error, kind, text)


def _axis(rows: Sequence[tuple[str, Sequence[svg.Range]]], label: str = "%", *, also: Sequence[float] = ()) -> svg.Axis:
    """A little wider than what is shown, one point at least."""
    ends = [end for _, marks in rows for x in marks for end in (x.low, x.high)] + list(also)
    room = max(0.06 * (max(ends) - min(ends)), 0.5)
    low, high = min(ends) - room, max(ends) + room
    return svg.Axis(low, high, svg.round_ticks(low, high, _TICKS), label)


def forest(differences: Sequence[tuple[str, Difference]], titles: Sequence[str]) -> Figure | None:
    """Differences of shares that a test has judged."""
    rows = []
    for name, x in differences:
        if x.p is not None and x.low is not None and x.high is not None and is_share(x.metric):
            kind = "soft" if x.p >= SURE else "kind2" if x.difference > 0 else "kind1"
            text = f"{minus(100 * x.difference, 2)} points, p = {x.p:.2g}\n{x.test}"
            mark = svg.Range(100 * x.difference, 100 * x.low, 100 * x.high, kind, text)
            rows.append((f"{name} · {x.metric}", [mark]))
    if not rows:
        return None
    axis = _axis(rows, "points", also=(0.0,))
    return Figure(
        f"{titles[1]} minus {titles[0]}",
        svg.ranges(rows, axis, title="paired differences", rules=[svg.Rule(0.0, "no difference")]),
        "A dot is a difference, the line through it its 95 % interval. Images tell how sure it is between these two "
        "networks, not what another run of pre-training would give.",
        (("kind2", f"better, p < {SURE}"), ("kind1", f"worse, p < {SURE}"), ("soft", "may be chance")),
    )
