"""Figures of an audit: what they draw is what was measured."""

import math
import re

import pytest
import torch

import report_cases
from prototile.audit.clusters import PowerFit
from prototile.audit.plain import Histogram
from prototile.reports import svg
from prototile.reports.audit import clusters, comparing, embeddings, figure, maps, prototypes
from prototile.reports.audit.pictures import Pictures


@pytest.fixture(scope="module")
def audit():
    return report_cases.audit()


@pytest.fixture
def drawn(monkeypatch):
    """The lines, rules and points of each chart that is drawn, instead of its drawing."""
    charts = []
    chart = svg.chart

    def note(lines, x, y, **others):
        charts.append({"lines": lines, "x": x, "y": y} | others)
        return chart(lines, x, y, **others)

    monkeypatch.setattr(svg, "chart", note)
    return charts


def line(chart, kind):
    return next(each.points for each in chart["lines"] if each.kind == kind)


def inside(chart) -> bool:
    """Whether all that is drawn lies between the ends of the axes."""
    places = [place for each in chart["lines"] for place in each.points]
    places += [(point.x, point.y) for point in chart.get("points", ())]
    return all(
        chart["x"].low - 1e-9 <= a <= chart["x"].high * (1 + 1e-9) + 1e-9
        and chart["y"].low * (1 - 1e-9) - 1e-9 <= b <= chart["y"].high * (1 + 1e-9)
        for a, b in places
    )


def test_all_stays_within_the_axes(audit, drawn):
    list(prototypes.figures(report_cases.audit(norms=True).prototypes["cls"]))
    list(clusters.figures(audit.clusters["cls"]))
    list(embeddings.figures(audit.embeddings["features"]))
    assert len(drawn) == 4 + 4 + 4
    for chart in drawn:
        assert inside(chart), chart["title"]


def test_the_bar_is_as_long_as_there_are_prototypes(audit):
    shares = prototypes.shares(audit.prototypes["cls"])
    assert sum(share.prototypes for share in shares) == 64
    assert sum(share.groups for share in shares) == audit.prototypes["cls"].count


@pytest.mark.parametrize(("redundancy", "shade"), [(1, 0), (2, 1), (3, 1), (4, 2), (31, 4), (32, 5), (4000, 5)])
def test_shades_double(redundancy, shade):
    assert prototypes.shade(redundancy) == shade


def test_the_sweep(audit, drawn):
    found = audit.prototypes["cls"]
    made = prototypes.sweep([found], ["kind2"], [""])
    assert line(drawn[0], "kind2") == [(e, pytest.approx(100 * m / 64)) for e, m in found.sweep]
    assert [rule.level for rule in drawn[0]["uprights"]] == [0.025]
    assert made.legend == ()


def test_redundancies_fall(audit, drawn):
    made = prototypes.redundancies(audit.prototypes["cls"])
    curve = line(drawn[0], "kind1")
    assert sum(redundancy for _, redundancy in curve) == 64
    assert [redundancy for _, redundancy in curve] == sorted((r for _, r in curve), reverse=True)
    assert "sum to K = 64" in made.caption


def test_sizes_count_the_empty_and_the_merged(audit, drawn):
    found = audit.clusters["cls"]
    made = clusters.sizes(found)
    every, merged = line(drawn[0], "kind2"), line(drawn[0], "kind3")
    assert every[-1][0] == 64 - found.empty
    assert merged[-1][0] == len(found.merged_sizes) - found.merged_empty
    assert every[0][1] == pytest.approx(found.largest)
    assert sum(size for _, size in every[:-1]) == pytest.approx(64)
    assert f"{found.empty} of 64 clusters are empty" in made.caption


def test_sizes_by_chance_are_those_of_images_thrown_at_random(audit):
    curve = clusters._by_chance(3000, 500, 0.01)
    thrown = torch.stack([
        torch.bincount(torch.randint(500, (3000,), generator=torch.Generator().manual_seed(seed)), minlength=500)
        for seed in range(50)
    ])  # fmt: skip
    for rank, relative in curve[:-1]:
        size = relative * 6
        assert rank == pytest.approx(float((thrown >= round(size)).sum(1).double().mean()), abs=3)
    assert curve[-1] == (pytest.approx(500, abs=2), pytest.approx(1 / 6, abs=0.2))


def test_the_marginal_beside_law_and_prior(audit, drawn):
    found = audit.clusters["cls"]
    clusters.marginal(found)
    shares = [share for _, share in line(drawn[0], "kind2")]
    assert sum(shares) / 64 == pytest.approx(1, abs=1e-6)
    assert shares == sorted(shares, reverse=True)
    assert [share for _, share in line(drawn[0], "kind6")] == pytest.approx((64 * found.prior).tolist())


def test_a_law_sums_to_one():
    law = clusters._law(PowerFit(0.5, None, None, None, 0.0, None), 100)
    assert sum(share for _, share in law) == pytest.approx(100)
    assert law[3][1] / law[0][1] == pytest.approx(0.5)


def test_mass_over_redundancy(audit, drawn):
    found = audit.clusters["cls"]
    made = clusters.mass(found)
    hard = line(drawn[0], "kind2")
    assert hard[0] == (1, pytest.approx(float(found.mass.mean[0])))
    assert [x for x, _ in hard] == [math.sqrt(a * b) for a, b in zip(found.mass.low, found.mass.high, strict=True)]
    assert drawn[0]["rules"][0].level == pytest.approx(1 / len(found.merged_sizes))
    assert "0.62" in made.caption
    assert "0.55" in made.caption


def test_histograms_are_shares(drawn):
    figure.histogram([Histogram((0, 1, 2), (1, 3))], ["kind1"], ["x"], "x", title="t")
    assert line(drawn[0], "kind1") == [(0, 25), (1, 75), (2, 75)]
    figure.histogram([Histogram((-2, -1, 0), (0, 0))], ["kind1"], ["x"], "x", title="t", powers=True)
    assert line(drawn[1], "kind1") == [(pytest.approx(0.01), 0), (pytest.approx(0.1), 0), (1, 0)]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("number", [1, 5, 160, 161, 65536])
def test_a_curve_has_few_places_and_both_ends(number, log):
    places = figure.ranks(number, log=log)
    assert places == sorted(set(places))
    assert (places[0], places[-1]) == (0, number - 1)
    assert len(places) <= 160


def test_pairs_of_dims_show_where_images_are(audit):
    (title, panel), *rest = embeddings.pairs(audit.embeddings["features"])
    assert len(rest) == 9
    assert title.startswith("dims ")
    told = [int(number) for number in re.findall(r'data-tip="(\d+) images', panel)]
    assert sum(told) == 120


def test_a_grid_is_drawn_with_the_second_dim_up():
    drawn = embeddings._grid([[0, 4], [2, 0]], "t")
    cells = re.findall(r'x="(\d+)" y="(\d+)" width="20" height="20" fill-opacity="([\d.]+)"', drawn)
    assert cells == [("0", "0", "1.00"), ("20", "20", "0.50")]


@pytest.mark.parametrize(("number", "suffix"), [(1, "st"), (2, "nd"), (10, "th"), (11, "th"), (100, "th"), (103, "rd")])
def test_suffixes(number, suffix):
    assert embeddings._suffix(number) == suffix


def test_maps(audit):
    source, *_ = report_cases.digits(120)
    of_prototypes, of_images = maps.figures(audit, Pictures(source))
    assert of_prototypes.drawing.count('class="point shade') == audit.prototypes["cls"].count
    assert "coloured by class" in of_images.caption
    assert of_images.drawing.count('class="point hue') == 120
    assert of_images.drawing.count('class="cross ink"') == 20
    assert {name for _, name in of_images.legend} == set(source.classes)
    *_, by_cluster = maps.figures(audit, None)
    assert "coloured by cluster" in by_cluster.caption


def test_comparison_of_heads_that_several_have(audit):
    other = report_cases.audit(heads=("cls", "patches"), seed=1)
    found = [(head, made.title, made.legend) for head, made in comparing.figures([audit, other], ["a", "b"])]
    legend = (("kind2", "a"), ("kind1", "b"))
    assert found == [
        ("cls", "Unique prototypes at any distance", legend),
        ("cls", "Sizes of clusters", legend),
    ]


def test_comparison_in_words():
    comparison = report_cases.comparison("a", "b")
    assert comparing.written(comparison.rows[1]) == ["–", "1100.0%"]
    (told,) = comparing.told(comparison)
    assert told.merges == (("1, 5, 7", "2", "12"),)
    assert told.splits == (("3", "4, 9", "8"),)
    assert comparing._numbers(range(11)) == "0, 1, 2, 3, 4, 5, 6, 7 and 3 more"
    assert comparing.distinct(["a", "b", "a"]) == ["a (1)", "b", "a (2)"]
