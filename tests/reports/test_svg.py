"""Drawings: places of lines, ticks, tiles."""

import re
from itertools import pairwise

import pytest

from prototile.reports import svg


@pytest.mark.parametrize(("high", "ticks"), [(1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]), (1.1, [0, 0.25, 0.5, 0.75, 1, 1.25])])
def test_even_ticks(high, ticks):
    assert svg.even_ticks(high) == pytest.approx(ticks)


def test_axes():
    assert svg.Axis(0, 10, (), "").place(5, 100, 0) == 50
    assert svg.Axis(1, 100, (), "", log=True).place(10, 0, 100) == pytest.approx(50)


def test_lines_end_at_the_corners():
    axis = svg.Axis(0, 1, (), "")
    drawn = svg.chart([svg.Line([(0, 0), (1, 1)], "kind1")], axis, axis, title="t")
    left, bottom = svg.LEFT, svg.HEIGHT - svg.BOTTOM
    assert f'd="M{left} {bottom}L{svg.WIDTH - svg.RIGHT} {svg.TOP}"' in drawn


def test_stairs():
    axis = svg.Axis(0, 2, (), "")
    drawn = svg.chart([svg.Line([(0, 2), (1, 1), (2, 0)], "kind1", steps=True)], axis, axis, title="t")
    x = [svg.LEFT + (svg.WIDTH - svg.RIGHT - svg.LEFT) * i // 2 for i in range(3)]
    y = [svg.TOP + (svg.HEIGHT - svg.BOTTOM - svg.TOP) * i // 2 for i in range(3)]
    assert f'd="M{x[0]} {y[0]}H{x[1]}V{y[1]}H{x[2]}V{y[2]}"' in drawn


def test_bands_touch_and_end_at_the_edge():
    axis = svg.Axis(0, 10, (), "")
    drawn = svg.chart([], axis, axis, title="t", tips=[svg.Tip(0, "a"), svg.Tip(2, "b"), svg.Tip(7, "c")])
    found = re.findall(r'class="band" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', drawn)
    bands = [(float(x), float(width)) for x, width in found]
    assert len(bands) == 3
    for (x, width), (following, _) in zip(bands, [*bands[1:], (svg.WIDTH - svg.RIGHT, 0)], strict=True):
        assert x + width == pytest.approx(following, abs=0.11)


def test_ranges_lie_where_the_axis_says():
    rows = [("first", [svg.Range(5, 0, 10, "kind1", "a"), svg.Range(10, 10, 10, "kind2", "b")]), ("x" * 80, [])]
    drawn = svg.ranges(rows, svg.Axis(0, 10, (0, 10), "%"), title="t", rules=[svg.Rule(5, "middle")])
    lines = re.findall(r'class="line (kind\d)" d="M([\d.]+) ([\d.]+)H([\d.]+)"', drawn)
    assert [(kind, float(start), float(end)) for kind, start, _, end in lines] == [
        ("kind1", 14, 446),
        ("kind2", 446, 446),
    ]
    points = re.findall(r'class="point (kind\d)" d="M([\d.]+) ([\d.]+)h0" data-tip="(\w)"', drawn)
    assert [(kind, float(x), tip) for kind, x, _, tip in points] == [("kind1", 230, "a"), ("kind2", 446, "b")]
    assert [y for _, _, y, _ in points] == [y for _, _, y, _ in lines]  # each dot on its line
    assert f"{'x' * 63}…<" in drawn
    assert '<line x1="230" ' in drawn


def test_text_is_escaped():
    axis = svg.Axis(0, 1, (), "<b>")
    drawn = svg.chart([], axis, axis, title='"<i>', rules=[svg.Rule(0.5, "<u>")], tips=[svg.Tip(0, '"<s>')])
    assert not re.search("<[bius]>", drawn)
    drawn = svg.ranges([("<b>", [svg.Range(1, 0, 1, "kind1", '"<i>')])], axis, title='"<u>', rules=[svg.Rule(1, "<s>")])
    assert not re.search("<[bius]>", drawn)


@pytest.mark.parametrize("number", [1, 2, 7, 16, 64, 128, 512, 600, 1024])
def test_every_item_has_a_tile(number):
    places = svg._curve(number)
    assert len(set(places)) == number
    side = 1 << (number.bit_length() - 1) // 2
    for i, ((a, b), (c, d)) in enumerate(pairwise(places), 1):
        assert i % side**2 == 0 or abs(a - c) + abs(b - d) == 1  # neighbours, but for the step to the next square


def test_tiling():
    drawn = svg.tiling([12, 3, 1], title="t")
    sizes = [len(re.findall("M", path)) for path in re.findall(r'class="patch shade\d" d="([^"]*)"', drawn)]
    assert sizes == [12, 3, 1]
    assert re.findall(r"shade(\d)", drawn) == ["3", "1", "0"]
    assert 'data-tip="12 prototypes, one direction"' in drawn
    assert 'viewBox="0 0 40 40"' in drawn


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1, 1000, [1, 10, 100, 1000]),
        (0.02, 3, [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2]),
        (1, 2, [1, 2]),
        (3, 4, [3, 4]),
        (1e-9, 1, [1e-9, 1e-7, 1e-5, 1e-3, 1e-1]),
    ],
)
def test_power_ticks(low, high, ticks):
    assert svg.power_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("tick", "written"),
    [(0.001, "0.001"), (1e-4, "10⁻⁴"), (12345, "12,345"), (1e5, "100k"), (2.5e6, "2.5M"), (-1, "−1")],
)
def test_ticks_are_written_short(tick, written):
    drawn = svg.chart([], svg.Axis(tick - 1, tick + 1, [tick], ""), svg.Axis(0, 1, (), ""), title="t")
    assert f">{written}</text>" in drawn


def test_what_lies_under_a_line_can_be_filled():
    axis = svg.Axis(0, 1, (), "")
    drawn = svg.chart([svg.Line([(0, 1), (1, 1)], "kind1", filled=True)], axis, axis, title="t")
    left, bottom, right = svg.LEFT, svg.HEIGHT - svg.BOTTOM, svg.WIDTH - svg.RIGHT
    assert f'class="area kind1" d="M{left} {svg.TOP}L{right} {svg.TOP}V{bottom}H{left}z"' in drawn


def test_uprights_and_points_are_at_their_places():
    x, y = svg.Axis(1, 100, (), "", log=True), svg.Axis(0, 1, (), "")
    point = svg.Point(10, 0, "kind1", "<b>")
    drawn = svg.chart([], x, y, title="t", uprights=[svg.Rule(10, "here")], points=[point])
    middle = (svg.LEFT + svg.WIDTH - svg.RIGHT) // 2
    assert f'<line x1="{middle}" y1="{svg.TOP}" x2="{middle}"' in drawn
    assert f'd="M{middle} {svg.HEIGHT - svg.BOTTOM}h0" data-tip="&lt;b&gt;"' in drawn


def test_a_cloud_has_one_scale_for_both_axes():
    points = [svg.Point(0, 0, "a"), svg.Point(10, 0, "b"), svg.Point(5, 1, "c", "", "cross")]
    drawn = svg.cloud(points, title="t", side=116)
    places = re.findall(r'class="point (\w)" d="M([\d.]+) ([\d.]+)h0"', drawn)
    assert places == [("a", "8", "63"), ("b", "108", "63")]
    assert 'class="cross c" d="M54 53h8M58 49v8"' in drawn
    assert svg.cloud(points[:1], title="t", side=116).count("M58 58") == 1
