"""Whole pages of audits: one as it is, one whose names are all markup."""

from dataclasses import replace

import report_cases
from prototile.audit.verdict import Statement
from prototile.data.source import BadImage, Source
from prototile.reports.audit import Epoch, Pictures, neighbor_sheets, render_audit

EVIL = "</script><script>alert(1)</script>\"><img src=x onerror=alert(1)>'&"


def whole() -> str:
    source, x, labels = report_cases.digits(120)
    first, second = report_cases.audit(heads=("cls", "patches")), report_cases.audit(name="other", seed=1)
    return render_audit(
        first,
        Pictures(source),
        [second],
        comparison=report_cases.comparison(first.name, second.name),
        epochs_of_run=[Epoch.of(0, first), Epoch.of(10, second)],
        sheets={"features": neighbor_sheets(x, labels, number=3)},
        facts={"size": "12 MB", "left out": ["optimizer", "epoch"]},
    )


class Hostile(Source):
    """Images whose ids and classes are markup; the first cannot be read."""

    def __init__(self, source: Source):
        self._source = source
        self.labels, self.classes = source.labels, tuple(f"{EVIL}{i}" for i in range(10))

    def __len__(self) -> int:
        return len(self._source)

    def image(self, index: int):
        if index == 0:
            raise BadImage("cut off")
        return self._source.image(index)

    def id(self, index: int) -> str:
        return f"{EVIL}/{index}.jpg"


def hostile() -> str:
    source, x, labels = report_cases.digits(200)
    statement = Statement("problem", EVIL, EVIL, EVIL, EVIL, EVIL, EVIL)
    audit = report_cases.audit(128, 60, 200, name=EVIL)
    heads = {
        "prototypes": {EVIL: audit.prototypes["cls"]},
        "clusters": {EVIL: audit.clusters["cls"]},
        "embeddings": {EVIL: audit.embeddings["features"]},
        "maps": {f"{EVIL} {name}": found for name, found in audit.maps.items()},
    }
    audit = replace(audit, layout=EVIL, evidence=(EVIL, EVIL), network=EVIL, **heads)
    audit = report_cases.with_verdict(audit, (statement, statement))
    return render_audit(
        audit,
        Pictures(Hostile(source)),
        [audit],
        comparison=report_cases.comparison(EVIL, EVIL),
        epochs_of_run=[Epoch.of(0, audit), Epoch.of(1, audit)],
        sheets={EVIL: neighbor_sheets(x, labels, number=4)},
        facts={EVIL: EVIL, "list": [EVIL, EVIL]},
    )
