"""The page of an audit.

render_audit(audit, ...)    HTML, self-contained
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from markupsafe import Markup

from prototile.audit.clusters import ClusterAudit
from prototile.audit.compare import Comparison
from prototile.audit.prototypes import PrototypeAudit
from prototile.audit.result import Audit
from prototile.evaluation.records import Record
from prototile.reports import page
from prototile.reports.audit import browsing, clusters, comparing, embeddings, epochs, maps, prototypes
from prototile.reports.audit.browsing import Album, Browser
from prototile.reports.audit.epochs import Epoch
from prototile.reports.audit.pictures import Pictures, Sheet
from prototile.reports.audit.prototypes import Share
from prototile.reports.evaluations import Evaluations, by_checkpoint
from prototile.reports.svg import Figure

ANSWERS = {"problem": "needs attention", "note": "worth knowing", "fine": "fine"}


@dataclass(frozen=True)
class Head:
    """All that the page shows of one kind of token."""

    name: str
    number: int
    prototypes: PrototypeAudit | None
    clusters: ClusterAudit | None
    figures: tuple[Figure, ...]
    shares: tuple[Share, ...]
    tiles: Markup | None
    cluster_figures: tuple[Figure, ...]
    browser: Browser | None


@dataclass(frozen=True)
class Shown:
    """An image of a neighbour sheet."""

    source: str
    caption: str
    wrong: bool


def render_audit(
    audit: Audit,
    pictures: Pictures | None = None,
    others: Sequence[Audit] = (),
    *,
    comparison: Comparison | None = None,
    epochs_of_run: Sequence[Epoch] = (),
    sheets: Mapping[str, Sequence[Sheet]] | None = None,
    facts: Mapping[str, str | Sequence[str]] | None = None,
    evaluated: Sequence[Sequence[Record]] = (),
) -> str:
    """One page that needs nothing else: what was measured, with a verdict on top.

    Images are those that `pictures` gives; `sheets` are nearest neighbours by where embeddings were taken ("features");
    `others` and their `comparison` are shown beside; `epochs_of_run` is the same run over its epochs; `facts` are
    further lines about the file, each a text or a list of texts; `evaluated` are records of evaluations of each audit's
    run. What is not given has no section.
    """
    album = None if pictures is None else Album(pictures)
    names = [*dict.fromkeys([*audit.prototypes, *audit.clusters])]
    heads = [_head(number, name, audit, pictures, album) for number, name in enumerate(names, 1)]
    audits = [audit, *others]
    titles = comparing.distinct([each.name for each in audits])
    shown_sheets = _sheets(sheets or {}, pictures)
    return page.render(
        "audit.html",
        audit=audit,
        answers=ANSWERS,
        facts=facts or {},
        heads=heads,
        embeddings=[
            (name, each, list(embeddings.numbers(each)), list(embeddings.figures(each)), embeddings.pairs(each))
            for name, each in audit.embeddings.items()
        ],
        maps=list(maps.figures(audit, pictures)),
        sheets=shown_sheets,
        comparison=comparison if others else None,
        compared=list(comparing.figures(audits, titles)) if others else [],
        changes=[] if comparison is None else comparing.told(comparison),
        titles=titles,
        written=comparing.written,
        epochs=list(epochs.figures(epochs_of_run)),
        shown=_evaluations(titles, evaluated),
        data=_data(heads, album),
        skipped=0 if pictures is None else pictures.skipped,
        version=version("prototile"),
    )


def _head(number: int, name: str, audit: Audit, pictures: Pictures | None, album: Album | None) -> Head:
    found, spread = audit.prototypes.get(name), audit.clusters.get(name)
    return Head(
        name=name,
        number=number,
        prototypes=found,
        clusters=spread,
        figures=() if found is None else tuple(prototypes.figures(found)),
        shares=() if found is None else prototypes.shares(found),
        tiles=None if found is None else prototypes.tiles(found),
        cluster_figures=() if spread is None else tuple(clusters.figures(spread)),
        browser=None if found is None else browsing.browser(name, found, spread, pictures, album),
    )


def _evaluations(titles: Sequence[str], evaluated: Sequence[Sequence[Record]]) -> Evaluations | None:
    """Of each audit's run; where its weights have changed meanwhile, of each of them."""
    sets = {}
    for title, records in zip(titles, evaluated, strict=False):
        found = by_checkpoint(records)
        sets |= {title if len(found) == 1 else f"{title}: {name}": each for name, each in found.items()}
    return Evaluations.of(sets) if sets else None


def _data(heads: Sequence[Head], album: Album | None) -> dict[str, object]:
    return {
        "heads": {str(head.number): head.browser.data for head in heads if head.browser is not None},
        "pictures": {} if album is None else album.images,
    }


def _sheets(
    sheets: Mapping[str, Sequence[Sheet]], pictures: Pictures | None
) -> list[tuple[str, list[tuple[Shown, list[Shown]]]]]:
    """Images with their neighbours, those that can be read; a neighbour of another class is wrong."""
    if pictures is None:
        return []
    found = []
    for name, each in sheets.items():
        rows = []
        for sheet in each:
            query = _shown(sheet.query, None, pictures)
            label = pictures.label(sheet.query)
            neighbors = [x for row in sheet.nearest if (x := _shown(row, label, pictures)) is not None]
            if query is not None and neighbors:
                rows.append((query, neighbors))
        if rows:
            found.append((name, rows))
    return found


def _shown(row: int, label: str | None, pictures: Pictures) -> Shown | None:
    source = pictures[row]
    if source is None:
        return None
    own = pictures.label(row)
    return Shown(source, pictures.caption(row), label is not None and own is not None and own != label)
