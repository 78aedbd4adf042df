"""The page of an audit: what is measured is shown, what is not is absent, and no text is markup."""

import html
import json
import math
import re
from dataclasses import replace

import pytest
import torch

import report_cases
from markup import Tree
from prototile.reports.audit import Pictures, render_audit
from report_pages import EVIL, Hostile, hostile, whole


def data_of(page: str) -> dict:
    (written,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return json.loads(written)


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="([^"]*)"', page)


def test_the_page_is_whole_and_by_itself():
    page = whole()
    tree = Tree(page)
    assert sections(page) == [
        "verdict", "prototypes-1", "clusters-1", "prototypes-2", "clusters-2", "embeddings-1", "maps", "neighbors",
        "comparison", "epochs", "browse-1", "browse-2", "file",
    ]  # fmt: skip
    tree.assert_alone()
    assert "default-src 'none'" in page
    paths = "".join(re.findall(r' (?:d|x|y|cx|cy|width|height)="([^"]*)"', page)).lower()
    assert "nan" not in paths
    assert "inf" not in paths


def test_the_verdict_comes_first_with_evidence_and_remedy():
    text = Tree(whole()).text
    first, second, _ = report_cases.STATEMENTS
    places = [text.index(part) for part in (first.text, first.evidence, first.meaning, first.remedy, second.text)]
    assert places == sorted(places)
    assert text.index(first.remedy) < text.index("are unique")


def test_numbers_are_those_of_the_audit():
    audit = report_cases.audit()
    found, clusters = audit.prototypes["cls"], audit.clusters["cls"]
    text = Tree(render_audit(audit)).text
    assert f"{found.count} of 64" in text
    assert f"{clusters.empty} of 64 clusters are empty" in text
    assert f"{found.share:.1%}".replace("%", " %") in text
    assert "NMI" in text
    assert "80.0 % 35.0 %" in text  # majority labels, the best matching
    assert "5,000" not in text


def test_what_was_not_measured_has_no_section():
    page = render_audit(report_cases.audit(images=0))
    assert sections(page) == ["verdict", "prototypes-1", "browse-1", "file"]
    text = Tree(page).text
    for word in ("Clusters", "images assigned", "Nearest neighbours", "Embeddings features", "NMI", "Side by side"):
        assert word not in text
    data = data_of(page)
    assert data["pictures"] == {}
    assert not {"size", "members", "classes", "norm"} & set(data["heads"]["1"])
    for option in ("most images", "largest norm", "purest", "with pictures"):
        assert option not in text


def test_an_audit_of_nothing_is_a_page_too():
    audit = report_cases.with_verdict(replace(report_cases.audit(images=0), prototypes={}, evidence=(), layout=""), ())
    page = render_audit(audit)
    assert sections(page) == ["file"]
    assert "There is nothing to judge" in Tree(page).text


def test_without_labels_there_is_no_table_of_labels():
    source, *_ = report_cases.digits(120, classes=False)
    page = render_audit(report_cases.audit(labels=False), Pictures(source))
    assert "Clusters against labels" not in page
    assert "coloured by cluster" in page
    assert "majority" not in data_of(page)["heads"]["1"]
    assert "members" in data_of(page)["heads"]["1"]


def test_all_prototypes_unique_and_all_the_same():
    for groups in (64, 1):
        page = render_audit(report_cases.audit(groups=groups))
        assert f"{groups} of 64" in Tree(page).text
        assert ("The largest groups" in page) == (groups == 1)
        assert ("Images against redundancy" in page) is False


def test_what_cannot_be_told_is_left_out():
    audit = report_cases.audit()
    clusters = replace(audit.clusters["cls"], power=None, marginal_power=None, prior=None)
    x = audit.embeddings["features"]
    marginals = replace(x.marginals, entropy=torch.full((32,), -torch.inf))
    x = replace(x, alpha_req=None, alpha_range=None, lidar=None, alignment=None, agreement=None, marginals=marginals)
    x = replace(x, norms=torch.ones(120), eigenvalues=torch.zeros(32), rankme=math.nan)
    page = render_audit(
        report_cases.with_verdict(replace(audit, clusters={"cls": clusters}, embeddings={"features": x}))
    )
    text = Tree(page).text
    for word in (
        "power law",
        "the prior",
        "α-ReQ",
        "LiDAR",
        "alignment",
        "neighbours agree",
        "Norms of embeddings",
        "nan",
    ):
        assert word not in text
    assert "– of 32" in text
    whole = Tree(render_audit(audit)).text
    for word in ("power law", "the prior", "α-ReQ", "LiDAR", "alignment", "neighbours agree", "Norms of embeddings"):
        assert word in whole


def test_one_prototype_has_no_neighbour():
    audit = report_cases.audit(1, 1, images=0)
    lonely = replace(audit.prototypes["cls"], nearest=torch.tensor([torch.inf]))
    page = render_audit(report_cases.with_verdict(replace(audit, prototypes={"cls": lonely})))
    assert data_of(page)["heads"]["1"]["nearest"] == [None]


@pytest.mark.parametrize("prototypes", [1, 2, 3])
def test_few_prototypes(prototypes):
    page = render_audit(report_cases.audit(prototypes, prototypes, images=30))
    assert f"{prototypes} of {prototypes} are unique" in Tree(page).text
    assert ("Distance to the nearest other prototype" in page) == (prototypes > 1)


def test_no_text_is_markup():
    page = hostile()
    assert page.count("<script") == whole().count("<script") == 2
    assert page.count("</script") == 2
    assert "<img src=x" not in page
    assert EVIL in html.unescape(page)
    assert data_of(page)["heads"]["1"]["classes"][0].startswith(EVIL)
    Tree(page)


def test_images_that_cannot_be_read_are_counted_and_left_out():
    source, *_ = report_cases.digits(120)
    audit = report_cases.audit()
    pictures = Pictures(Hostile(source))
    page = render_audit(audit, pictures)
    shown = {row for rows in data_of(page)["heads"]["1"]["members"].values() for row in rows}
    assert shown
    assert 0 not in shown
    assert set(map(str, shown)) == set(data_of(page)["pictures"])
    assert pictures.skipped == 1
    assert "1 image could not be read and is not shown" in Tree(page).text
