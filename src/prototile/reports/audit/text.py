"""An audit in a terminal: a short table and the verdict, plain text."""

import textwrap
from collections.abc import Sequence

from prototile.audit.result import Audit
from prototile.reports.audit.comparing import distinct

WIDTH = 100
NAME_WIDTH = 40
_SIGNS = {"problem": "!", "note": "-", "fine": "+"}


def table(audits: Sequence[Audit], *, width: int = WIDTH) -> str:
    """Numbers of one audit, or of several side by side, and under them what each verdict says."""
    if not audits:
        raise ValueError("a table needs at least one audit")
    names = [shown(name) for name in distinct([audit.name for audit in audits])]
    columns = [dict(audit.table()) for audit in audits]
    rows = list(dict.fromkeys(name for column in columns for name in column))
    cells = [["", *names], ["", *(_source(audit) for audit in audits)]] if len(audits) > 1 else []
    cells += [[shown(row), *(shown(column.get(row, "–")) for column in columns)] for row in rows]
    parts = [_title(audits[0])] if len(audits) == 1 else []
    parts.append(_aligned(cells))
    parts += [
        _verdict(audit, name if len(audits) > 1 else "", width) for audit, name in zip(audits, names, strict=True)
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def shown(text: str) -> str:
    """A text without what moves a terminal's cursor or changes its colours, on one line."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _title(audit: Audit) -> str:
    source = _source(audit)
    return shown(f"{audit.name}: {source}" if source else audit.name)


def _source(audit: Audit) -> str:
    return shown(f"{audit.layout} ({audit.network})" if audit.layout and audit.network else audit.layout)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    cut = [[textwrap.shorten(cell, NAME_WIDTH, placeholder="…") if cell else "" for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*cut, strict=True)]
    return "\n".join("  ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in cut)


def _verdict(audit: Audit, name: str, width: int) -> str:
    lines = [name] if name else []
    for statement in audit.verdict:
        said = f"{statement.part}: {statement.text}. {statement.evidence}. {statement.meaning}"
        said = said.replace("..", ".")
        said += f" Try: {statement.remedy}" if statement.remedy else ""
        sign = _SIGNS[statement.level]
        lines += textwrap.wrap(shown(said), width, initial_indent=f"{sign} ", subsequent_indent="  ")
    return "\n".join(lines or [audit.verdict.headline])
