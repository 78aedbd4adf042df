"""The demo's page and words: they say what the numbers say."""

import html
import json
import re
from dataclasses import replace

import pytest

import demo_cases
from browser import look
from markup import Tree
from prototile.reports import demo_words
from prototile.reports.demo import page
from prototile.reports.demo_result import Spread, thrown

SECTIONS = {"verdict", "curves", "tiles", "watch", "sizes", "numbers", "clusters", "neighbors", "prices", "limits"}


def finding(result, name):
    return next(x for x in demo_words.findings(result) if x.name == name)


def with_after(result, arm, **changes):
    """The result with other numbers after training, of one arm."""
    runs = tuple(replace(r, after=replace(r.after, **changes)) if r.arm == arm else r for r in result.runs)
    return replace(result, runs=runs)


def test_the_page_is_whole_and_by_itself():
    tree = Tree(page(demo_cases.result()))
    assert set(tree.ids) >= SECTIONS
    tree.assert_alone()


def test_a_drawing_for_every_figure():
    source = page(demo_cases.result())
    # the mark, M over training, three tilings, sizes, prices
    assert source.count("<svg") == 7
    assert "nan" not in "".join(re.findall(r'd="([^"]*)"', source)).lower()


def test_numbers_in_the_text_are_those_of_the_result():
    text = Tree(page(demo_cases.result())).text
    assert "Of 16 prototypes 5 stayed unique; KoLeo-proto kept 16." in text
    assert "Centering left 81 % of the clusters empty, explicit balancing 9 %." in text
    assert "5.0 ± 1.4" in text  # of 4 and 6
    assert "81.2 % ± 8.8" in text or "81.2 ± 8.8 %" in text  # of 14 and 12 empty ones in 16
    assert "in 2 of 2 seeds" in text
    assert "95.0 ± 0.0 %" in text
    assert "90.0 ± 0.0 %" in text  # untrained
    assert "merging prototypes. 3 are one. So it goes." in text
    assert "1.5 minutes" in text
    assert "from 2.00 to 1.00 without KoLeo-proto" in text
    assert "with it 16.0 ± 0.0 of 16 stay unique" in text
    assert "leave 7.6 % of the clusters empty" in text
    assert "A quick run" not in text


def test_markup_in_a_name_stays_text():
    evil = "<script>alert(1)</script>\"'&"
    result = demo_cases.result()
    arms = tuple(replace(arm, label=evil) for arm in result.arms)
    warning = replace(demo_cases.run("forgetting", 0).warnings[0], name=evil, seen=evil, advice=evil)
    runs = tuple(replace(run, warnings=(warning,)) for run in result.runs)
    picture = replace(demo_cases.picture("3"), label=evil)
    queries = tuple(replace(query, picture=picture, before=(picture,), after=(picture,)) for query in result.queries)
    machine = replace(result.machine, processor=evil, versions={evil: evil})
    source = page(replace(result, arms=arms, runs=runs, queries=queries, machine=machine, when=evil))
    assert source.count("<script") == page(result).count("<script") == 1
    assert "<script>alert" not in source
    assert evil in html.unescape(source)


def test_a_quick_run_says_so():
    result = demo_cases.result(quick=True, seeds=(0,), runs=demo_cases.result().runs[:4])
    text = Tree(page(result)).text
    assert "its numbers mean little" in text
    assert "yes, with one seed" in text
    assert "±" not in text


def test_what_a_warning_means_is_said_once():
    first, second = (demo_cases.run(arm, 0) for arm in ("forgetting", "koleo"))
    runs = (first, replace(second, warnings=first.warnings), *demo_cases.result().runs[2:4])
    text = Tree(page(demo_cases.result(runs=runs, seeds=(0,)))).text
    assert text.count("3 are one.") == 2
    assert text.count("So it goes.") == 1


def test_no_warning_is_said_too():
    result = demo_cases.result()
    quiet = replace(result, runs=tuple(replace(run, warnings=()) for run in result.runs))
    assert "Here it had nothing to warn of" in Tree(page(quiet)).text


def test_what_did_not_show_is_said_not_to():
    result = with_after(demo_cases.result(), "forgetting", unique=15)
    assert not finding(result, "collapse").shown
    assert finding(result, "collapse").answer == "no, in 0 of 2 seeds"
    assert "does not show the collapse" in finding(result, "collapse").text
    assert "no collapse to speak of" in demo_words.headline(result)
    assert not any("collapse" in text for text in demo_words.shows(result))
    assert any("collapse" in text for text in demo_words.shows(demo_cases.result()))
    assert "does not show the collapse" in Tree(page(result)).text

    result = with_after(demo_cases.result(), "koleo", unique=5)
    assert not finding(result, "repair").shown
    assert "no repair to speak of" in demo_words.headline(result)

    full = (3,) * 8 + (2,) * 8
    result = with_after(demo_cases.result(), "centering", sizes=full)
    assert not finding(result, "balance").shown
    assert "no clear difference" in demo_words.headline(result)

    result = with_after(demo_cases.result(), "koleo", sizes=full)
    assert not finding(result, "two").shown


def test_some_seeds_are_not_all():
    result = demo_cases.result()
    runs = tuple(
        replace(run, after=replace(run.after, unique=12)) if (run.arm, run.seed) == ("forgetting", 1) else run
        for run in result.runs
    )
    assert finding(replace(result, runs=runs), "collapse").answer == "not always, in 1 of 2 seeds"


@pytest.mark.parametrize(
    ("knn", "shown", "said"), [(0.955, False, "+0.5 points"), (0.99, True, "better"), (0.9, False, "worse")]
)
def test_accuracy_is_compared(knn, shown, said):
    found = finding(with_after(demo_cases.result(), "koleo", knn=knn), "accuracy")
    assert found.shown == shown
    assert said in found.text


def test_spread():
    assert Spread.of([1, 2, 6]).text(1) == "3.0 ± 2.6"
    assert Spread.of([5]).text(1) == "5.0"
    assert Spread.of([0.5, 0.5]).text(1, percent=True) == "50.0 ± 0.0 %"


def test_thrown():
    assert thrown(512, 1300) == pytest.approx((511 / 512) ** 1300)
    assert thrown(2, 1) == pytest.approx(0.5)


def test_the_result_is_json():
    read = json.loads(demo_cases.result().to_json())
    assert read["runs"][0]["after"]["unique"] == 4
    assert read["settings"]["num_prototypes"] == 16
    assert len(read["runs"]) == 8


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(tmp_path, width):
    """No errors, nothing wider than the screen, all figures have a size, one can be hovered."""
    hover = """
      const band = document.querySelector(".band"), tip = document.getElementById("tip");
      const box = band.getBoundingClientRect();
      band.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: box.x + 1, clientY: box.y + 1 }));
      seen.tip = tip.hidden ? "" : tip.textContent;
    """
    seen = look(page(demo_cases.result()), tmp_path, width=width, script=hover)
    assert seen["errors"] == []
    assert seen["tip"].startswith("step 0")
    assert (seen["flat"], seen["wide"], seen["broken"]) == (0, 0, 0)
