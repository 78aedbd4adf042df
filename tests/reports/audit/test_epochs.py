"""A run over its epochs."""

import json

import report_cases
from prototile.reports.audit import Epoch, render_audit
from prototile.reports.audit.epochs import figures


def run() -> list[Epoch]:
    return [Epoch.of(10 * i, report_cases.audit(64, 60 - 20 * i, 120, seed=i)) for i in range(3)]


def test_what_was_written_reads_the_same():
    audit = report_cases.audit()
    epoch = Epoch.read(3, json.loads(json.dumps(audit.as_dict(), allow_nan=False)))
    assert epoch == Epoch.of(3, audit)
    moment, clusters = epoch.heads["cls"], audit.clusters["cls"]
    assert (moment.prototypes, moment.unique, moment.empty) == (64, audit.prototypes["cls"].count, clusters.empty)
    assert sum(moment.sizes) == 120
    assert list(moment.sizes) == sorted(moment.sizes, reverse=True)


def test_figures_of_each_head():
    found = [(head, figure.title) for head, figure in figures(run())]
    assert found == [
        ("cls", "Prototypes over the epochs"),
        ("cls", "Empty clusters over the epochs"),
        ("cls", "Sizes over the epochs"),
    ]


def test_order_does_not_matter():
    assert list(figures(run())) == list(figures(run()[::-1]))
    caption = next(figures(run()[::-1]))[1].caption
    assert caption.startswith("M went from 60 to 20")


def test_without_images_unique_ones_alone():
    bare = [Epoch.of(i, report_cases.audit(images=0, seed=i)) for i in range(2)]
    assert [figure.title for _, figure in figures(bare)] == ["Prototypes over the epochs"]


def test_one_epoch_is_no_course():
    assert list(figures(run()[:1])) == []
    assert 'id="epochs"' not in render_audit(report_cases.audit(), epochs_of_run=run()[:1])
