"""Prototypes to browse: what the page's script is given."""

import time

import pytest
import torch

import report_cases
from prototile.audit.cover import Unique
from prototile.audit.prototypes import PrototypeAudit
from prototile.reports.audit import Pictures, browsing, render_audit
from prototile.reports.audit.browsing import Album, browser


def planted(prototypes: int, groups: int) -> PrototypeAudit:
    """Group i has the prototypes i, i + groups, ..."""
    labels = torch.arange(prototypes) % groups
    return PrototypeAudit(
        prototypes=prototypes,
        dims=256,
        unique=Unique(0.025, "degree", labels, torch.arange(groups), 0),
        in_order=groups,
        sweep=((0.001, groups), (0.025, groups), (0.5, groups // 2)),
        nearest=torch.rand(prototypes, generator=torch.Generator().manual_seed(0)),
        nearest_index=torch.arange(prototypes).roll(1),
        duplicates=0,
        effective_rank=200.0,
        norms=torch.ones(prototypes),
    )


def test_columns_are_those_of_the_audit():
    audit = report_cases.audit()
    found, clusters = audit.prototypes["cls"], audit.clusters["cls"]
    data = browser("cls", found, clusters, None, None).data
    assert data["redundancy"] == sorted(found.unique.redundancy.tolist(), reverse=True)
    for place, part in enumerate(data["parts"]):
        assert data["representative"][place] == int(found.unique.representatives[part])
        assert data["redundancy"][place] == data["owners"].count(part)
        assert data["size"][place] == int(clusters.merged_sizes[part])
    assert sum(data["size"]) == clusters.images


def test_members_are_of_their_group_and_the_surest_come_first():
    source, *_ = report_cases.digits(120)
    audit = report_cases.audit()
    clusters = audit.clusters["cls"]
    data = browser("cls", audit.prototypes["cls"], clusters, Pictures(source), Album(Pictures(source))).data
    assert data["members"]
    for place, rows in data["members"].items():
        part = data["parts"][int(place)]
        assert (clusters.merged_assigned[rows] == part).all()
        assert len(rows) == min(browsing.MEMBERS, int(clusters.merged_sizes[part]))
        half = rows[: (len(rows) + 1) // 2]
        scores = clusters.scores[half].tolist()
        assert scores == sorted(scores, reverse=True)


def test_images_of_another_number_are_not_taken_for_these():
    source, *_ = report_cases.digits(60)
    audit = report_cases.audit()
    pictures = Pictures(source)
    assert (
        "members" not in browser("cls", audit.prototypes["cls"], audit.clusters["cls"], pictures, Album(pictures)).data
    )


def test_what_is_left_out_is_said(monkeypatch):
    monkeypatch.setattr(browsing, "GROUPS", 5)
    monkeypatch.setattr(browsing, "OWNERS", 50)
    monkeypatch.setattr(browsing, "SHOWN", 3)
    source, *_ = report_cases.digits(120)
    audit = report_cases.audit()
    pictures = Pictures(source)
    made = browser("cls", audit.prototypes["cls"], audit.clusters["cls"], pictures, Album(pictures))
    count = audit.prototypes["cls"].count
    assert len(made.data["parts"]) == 5
    assert len(made.data["owners"]) == 50
    assert len(made.data["members"]) == 3
    assert made.left_out[0] == f"the {count - 5} groups with the fewest prototypes"
    assert made.left_out[1] == "the groups of prototypes 50 and above"
    assert made.left_out[2].startswith("images of ")


@pytest.mark.parametrize("groups", [1078, 65536])
def test_as_many_prototypes_as_models_have_make_a_page_of_bounded_size(groups):
    audit = report_cases.with_verdict(
        report_cases.Audit("dino", "DINO", network="teacher", prototypes={"cls": planted(65536, groups)}), ()
    )
    start = time.monotonic()
    page = render_audit(audit)
    assert time.monotonic() - start < 20  # takes one or two
    assert len(page) < 4e6
    assert page.count("data-tip") < 2000
