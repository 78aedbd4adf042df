"""The page of evaluations: each number with what it takes to judge it, and no text is markup."""

import re
from dataclasses import replace

import pytest

from browser import look
from markup import Tree
from prototile.evaluation.comparing import compare_all
from prototile.evaluation.records import Record
from prototile.reports.evaluations import by_checkpoint, render_evaluations
from record_cases import groups, record, several
from report_pages import EVIL


def compared() -> str:
    sets = {"runs/a": several("a"), "runs/b": several("b", better=0.1)}
    return render_evaluations(sets, compared=True)


def hostile() -> str:
    """Every text of a record is markup."""
    evil = record("knn", 0.5, 0.6, name=EVIL, metric=EVIL, selected_on="test", chosen=({EVIL: EVIL}, {}))
    evil = replace(
        evil, protocol=EVIL, features=EVIL, finished=EVIL, versions={EVIL: EVIL}, options={EVIL: EVIL},
        checkpoint={"name": EVIL, "layout": EVIL, "network": EVIL, "weights": EVIL},
        data={"name": EVIL, "test hash": EVIL}, details={"groups": [groups(0.9, 0.6, 0.2)]},
    )  # fmt: skip
    sets = {EVIL: [evil, replace(evil, options={EVIL: 0})], f"{EVIL} 2": [evil]}
    return render_evaluations(sets, compared=True)


def sections(page: str) -> list[str]:
    return re.findall(r'<section id="([^"]*)"', page)


def rows(page: str) -> dict[str, str]:
    """The tables' rows, by what they begin with."""
    found = [Tree(row).text for row in re.findall(r"<tr><th scope.*?</tr>", page, re.S)]
    return {re.split(r" \d| –", text)[0]: text for text in found}


@pytest.mark.parametrize("page", [compared(), hostile()], ids=["plain", "hostile"])
def test_the_page_is_whole_and_by_itself(page):
    tree = Tree(page)
    tree.assert_alone()
    assert "default-src 'none'" in page
    drawn = "".join(re.findall(r' (?:d|x|y|x1|x2|cx|width)="([^"]*)"', page)).lower()
    assert "nan" not in drawn
    assert "inf" not in drawn
    assert "<script>alert" not in page
    assert "<img" not in page


def test_a_value_has_its_error_its_seeds_and_what_was_chosen():
    page = render_evaluations({"a": several()})
    found = rows(page)
    assert found["knn top1 400"[:8]] == "knn top1 400 60.00 % k 20"
    assert found["lowshot,"].startswith("lowshot, 1 per class top1 400 32.33 % ± 1.45")
    assert 'data-tip="3 seeds or splits: 30.00, 32.00, 35.00"' in page
    assert "label-free RankMe 400 41.50" in Tree(page).text


def test_what_was_chosen_on_test_images_is_marked():
    page = render_evaluations({"a": several()})
    text = Tree(page).text
    assert "1 of these numbers was chosen on the test images" in text
    assert "70.00 % features linear, rate 0.01 chosen on the test images" in text
    assert page.count('class="flattered"') == 1
    assert "chosen on the test images" not in Tree(render_evaluations({"a": [record("knn", 0.5)]})).text


def test_head_middle_and_tail():
    text = Tree(render_evaluations({"a": several()})).text
    told = "80.00 % 4 classes 60.00 % 12 classes 20.00 % 84 classes"  # means over seeds that have classes there
    assert f"checkpoint head middle tail logistic a {told} Protocols" in text
    of_scores = {name: {"mean": x} for name, x in (("head", 0.75), ("middle", 0.5), ("tail", None))}
    tuned = record("finetune", 0.6, details={"scores": of_scores, "classes": {"head": 3, "middle": 2, "tail": 0}})
    assert "75.00 % 3 classes 50.00 % 2 classes – 0 classes" in Tree(render_evaluations({"a": [tuned]})).text
    of_scores = {"scores": of_scores, "classes": {"head": 5, "middle": 0, "tail": 0}}
    assert "middle" not in Tree(render_evaluations({"a": [record("finetune", 0.6, details=of_scores)]})).text


def test_data_sets_have_sections_and_the_transfer_suite_one():
    page = render_evaluations({"a": several()})
    assert sections(page) == ["data-1", "data-2", "data-3", "how"]
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == ["cifar10", "the transfer suite", "inat18", "How it was measured"]
    twice = [record("knn", 0.5), record("knn", 0.5, data={"name": "cifar10", "test hash": "other images"})]
    assert re.findall(r"<h2>(.*?)</h2>", render_evaluations({"a": twice}))[:2] == ["cifar10 (t)", "cifar10 (other im)"]


def test_protocols_are_told_apart_by_what_differs_and_the_latest_counts():
    options = [{"labels": 1.0, "epochs": 5}, {"labels": 0.01, "epochs": 5}]
    found = [record("linear", 0.1 + i / 10, options=x) for i, x in enumerate([*options, options[0]])]
    text = Tree(render_evaluations({"a": found})).text
    assert "linear, labels 1.0 top1 400 30.00 %" in text
    assert "linear, labels 0.01 top1 400 20.00 %" in text
    assert "10.00 %" not in text


def test_checkpoints_stand_beside_each_other():
    page = render_evaluations({"a": [record("knn", 0.5), record("linear", 0.6)], "b": [record("knn", 0.55, name="b")]})
    text = Tree(page).text
    assert "knn top1 400 50.00 % 55.00 %" in text
    assert "linear top1 400 60.00 % –" in text
    assert "What the features of 2 checkpoints are worth" in text


def test_records_are_parted_by_weights():
    first, second = record("knn", 0.5), record("knn", 0.6, name="b")
    other = replace(first, checkpoint={"name": "a", "weights": "fedcba9876543210"})
    assert by_checkpoint([first, second, first]) == {"a": [first, first], "b": [second]}
    assert by_checkpoint([first, other]) == {"a (a0123456)": [first], "a (fedcba98)": [other]}


def test_differences_are_tested():
    page = compared()
    text = Tree(page).text
    assert sections(page)[0] == "differences"
    differences = compare_all(several("a"), several("b", better=0.1))
    first = differences[0]
    told = f"60.00 % 70.00 % +10.00 {100 * first.low:.2f} to {100 * first.high:.2f} {first.p:.2g} McNemar, exact"
    assert f"knn, cifar10 top1 {told}" in text
    assert "logistic, labels 0.01, cifar10 top1 50.00 % 50.00 % 0.00" in text.replace("−", "-")
    assert "transfer dtd top1 55.00 % 55.00 % 0.00" in text
    assert "label-free, cifar10 RankMe 41.50 41.50 0.00 – – no test" in text
    assert "linear, inat18 top1" not in text  # which has no value
    sure = sum(x.p < 0.05 for x in differences if x.p is not None)
    wanted = (
        f"runs/b is better than runs/a in 3 of 7 numbers and worse in 0; {sure} of the differences are beyond chance"
    )
    assert re.search("<h1>(.*?)</h1>", page)[1] == wanted
    same = {"a": [record("knn", 0.5)], "b": [record("knn", 0.5)]}
    text = Tree(render_evaluations(same, compared=True)).text
    assert "b is better than a in 0 of 1 numbers and worse in 0; none of the differences is beyond chance" in text
    with pytest.raises(ValueError, match="two sets of records are compared, got 1"):
        render_evaluations({"a": several()}, compared=True)


def test_nothing_is_no_page():
    with pytest.raises(ValueError, match="there is nothing to show"):
        render_evaluations({"a": []})


def test_conditions_are_told():
    text = Tree(render_evaluations({"a": [replace(record("knn", 0.5), options={"ks": [10, 20], "labels": 0.5})]})).text
    for part in ("recognised as DINO", "learned from 1,300 images", "tested on 400 images", "pixels 32", "labels 0.5"):
        assert part in text
    bare = Record("svm", "mAP", 0.5, 3, checkpoint={"name": "c"})
    assert "mAP 3 50.00 %" in Tree(render_evaluations({"c": [bare]})).text


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_the_page_in_a_browser(tmp_path, width, dark):
    script = """
      seen.hacked = document.querySelectorAll("main img, main script").length;
      const mark = document.querySelector("main svg .point"), box = mark.getBoundingClientRect();
      mark.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: box.x + 1, clientY: box.y + 1 }));
      seen.tip = document.getElementById("tip").textContent;
    """
    for page in (hostile(), compared()):
        seen = look(page, tmp_path, width=width, script=script, dark=dark)
        assert (seen["errors"], seen["flat"], seen["wide"], seen["hacked"]) == ([], 0, 0, 0)
        assert seen["figures"] > 2
        assert seen["tip"]
        assert seen["dark"] == dark
