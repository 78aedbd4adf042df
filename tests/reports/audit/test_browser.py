"""The page of an audit in a browser: hostile names in all places, phone and desktop, light and dark."""

import pytest

import report_cases
from browser import look
from prototile.reports.audit import render_audit
from report_pages import hostile

SCRIPT = """
const $ = (selector, inside = document) => inside.querySelector(selector);
const wait = (time) => new Promise((done) => setTimeout(done, time));
const type = async (field, value) => {
  field.value = value;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  await wait(0);
};
const section = $(".browser"), form = $("form", section), output = $("output", section);
const cards = () => [...section.querySelectorAll(".group")];
const first = () => $("h3", section)?.textContent;
const b = JSON.parse($("#data").textContent).heads[1];

const band = $(".band"), tip = $("#tip"), box = band.getBoundingClientRect();
band.dispatchEvent(new PointerEvent("pointermove", { bubbles: true, clientX: box.x + 1, clientY: box.y + 1 }));
seen.tip = tip.textContent;

seen.start = { cards: cards().length, said: output.textContent, pictures: section.querySelectorAll("img").length };
const numbers = () => cards().map((card) => $("h3", card).textContent);
const before = numbers();
$("[data-go='1']", section).click();
seen.second = { page: $(".pager span", section).textContent, other: !numbers().some((name) => before.includes(name)) };
seen.ends = [$("[data-go='-1']", section).disabled, $("[data-go='1']", section).disabled];

const twin = b.owners.findIndex((part, prototype) => b.representative[b.parts.indexOf(part)] !== prototype);
await type(form.elements.find, String(twin));
const details = $("details", cards()[0]);
details.open = true;
await new Promise((done) => details.addEventListener("toggle", done, { once: true }));
seen.twin = { found: first(), wanted: `prototype ${b.representative[b.parts.indexOf(b.owners[twin])]}`,
  listed: $("p", details).textContent.split(", ").includes(String(twin)) };
await type(form.elements.find, b.classes[0]);
seen.classes = { cards: cards().length > 0, right: cards().every((card) => card.textContent.includes(b.classes[0])) };
await type(form.elements.find, "nothing is called so");
seen.none = { cards: cards().length, said: output.textContent };
await type(form.elements.find, "");
await type(form.elements.order, "size");
seen.largest = first() === `prototype ${b.representative[b.size.indexOf(Math.max(...b.size))]}`;
await type(form.elements.order, "-representative");
seen.lowest = first() === `prototype ${Math.min(...b.representative)}`;
await type(form.elements.show, "unique");
seen.unique = [output.textContent.split(" ")[0], String(b.redundancy.filter((copies) => copies === 1).length)];

const large = $("#large"), enlarge = $(".enlarge");
enlarge.click();
const stage = $(".stage", large), width = () => $("svg", stage).viewBox.baseVal.width;
const key = (name) => stage.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
const widths = [width()];
key("+"); widths.push(width());
const left = $("svg", stage).viewBox.baseVal.x;
key("ArrowRight");
seen.moved = $("svg", stage).viewBox.baseVal.x > left;
const middle = stage.getBoundingClientRect();
const at = { clientX: middle.x + 50, clientY: middle.y + 50 };
stage.dispatchEvent(new WheelEvent("wheel", { deltaY: -200, cancelable: true, ...at }));
widths.push(width());
key("0"); widths.push(width());
seen.zoom = { open: large.open, focus: document.activeElement === stage, widths, inside: large.contains(tip),
  fits: large.scrollWidth <= large.clientWidth && large.getBoundingClientRect().right <= innerWidth };
const closed = new Promise((done) => large.addEventListener("close", done, { once: true }));
large.close();
await closed;
seen.closed = tip.parentElement === document.body;
seen.enlarged = document.querySelectorAll(".enlarge").length === document.querySelectorAll("figure.plot").length;
seen.hacked = [...document.querySelectorAll("main img")].some((image) => image.src.endsWith("/x"));
"""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_works(tmp_path, width, dark):
    seen = look(hostile(), tmp_path, width=width, script=SCRIPT, dark=dark)
    assert seen["errors"] == []
    assert (seen["flat"], seen["wide"], seen["broken"], seen["hacked"]) == (0, 0, 0, False)
    assert seen["figures"] > 20
    assert seen["dark"] == dark
    assert seen["tip"]
    assert seen["start"]["cards"] == 24
    assert seen["start"]["said"] == "60 of 60 groups"
    assert seen["start"]["pictures"] > 24
    assert seen["second"] == {"page": "page 2 of 3", "other": True}
    assert seen["ends"] == [False, False]
    assert seen["twin"]["found"] == seen["twin"]["wanted"]
    assert seen["twin"]["listed"]
    assert seen["classes"] == {"cards": True, "right": True}
    assert seen["none"] == {"cards": 0, "said": "0 of 60 groups"}
    assert seen["largest"]
    assert seen["lowest"]
    assert seen["unique"][0] == seen["unique"][1]
    whole, nearer, nearest, again = seen["zoom"]["widths"]
    assert whole == again > nearer > nearest
    assert seen["zoom"] | {"widths": 0} == {"open": True, "focus": True, "widths": 0, "inside": True, "fits": True}
    assert seen["moved"]
    assert seen["closed"]
    assert seen["enlarged"]


@pytest.mark.slow
def test_prototypes_alone_work_too(tmp_path):
    page = render_audit(report_cases.audit(images=0, groups=64))
    script = """
      seen.cards = document.querySelectorAll(".group").length;
      seen.details = document.querySelectorAll(".group details").length;
    """
    seen = look(page, tmp_path, width=390, script=script)
    assert (seen["errors"], seen["wide"], seen["flat"]) == ([], 0, 0)
    assert (seen["cards"], seen["details"]) == (24, 0)
