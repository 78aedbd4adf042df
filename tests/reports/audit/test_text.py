"""An audit in a terminal."""

import pytest

import report_cases
from prototile.reports.audit import table


def test_one_audit():
    audit = report_cases.audit()
    lines = table([audit]).splitlines()
    assert lines[0] == "checkpoint.pth: DINO (teacher)"
    (unique,) = [line for line in lines if line.startswith("unique prototypes (cls)")]
    assert (
        unique.split("  ")[-1].strip() == f"{audit.prototypes['cls'].count} of 64 ({audit.prototypes['cls'].share:.1%})"
    )
    said = " ".join(line.strip() for line in lines)
    assert "! cls: Only one prototype in six is real" in said
    assert "Try: raise the weight of KoLeo-proto" in said
    assert "- cls: Many clusters" in said
    assert "+ features: Embeddings" in said
    assert max(map(len, lines)) <= 100


def test_several_are_columns():
    audits = [report_cases.audit(), report_cases.audit(images=0, seed=1)]
    lines = table(audits).splitlines()
    assert lines[0].split() == ["checkpoint.pth", "(1)", "checkpoint.pth", "(2)"]
    start = lines[0].index("checkpoint.pth (2)")
    (empty,) = [line for line in lines if line.startswith("empty clusters (cls)")]
    assert empty[start:] == "–"
    assert {line[start - 2 : start] for line in lines[:4]} == {"  "}


def test_nothing_moves_the_cursor():
    audit = report_cases.audit(name="\x1b[2Jgone\r\nnew line\x07")
    text = table([audit])
    assert text.startswith("?[2Jgone??new line?: DINO")
    assert all(sign.isprintable() or sign == "\n" for sign in text)


def test_no_audit_is_refused():
    with pytest.raises(ValueError, match="at least one audit"):
        table([])
