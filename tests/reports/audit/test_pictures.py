"""Images of an audit: thumbnails, and nearest neighbours."""

import numpy as np
import pytest
import torch

import report_cases
from prototile.audit import distances as module
from prototile.data.source import BadImage, Source
from prototile.reports.audit import Pictures, neighbor_sheets


class Counted(Source):
    labels = classes = None

    def __init__(self):
        self.read = []

    def __len__(self):
        return 3

    def image(self, index):
        self.read.append(index)
        if index == 1:
            raise BadImage("cut off")
        return torch.full((3, 40, 40), 80 * index, dtype=torch.uint8)

    def id(self, index):
        return f"{index}.png"


def test_each_image_is_read_once_and_bad_ones_are_none():
    source = Counted()
    pictures = Pictures(source)
    assert pictures[0] == pictures[0]
    assert pictures[0] != pictures[2]
    assert pictures[1] is None
    assert pictures[1] is None
    assert source.read == [0, 2, 1]
    assert pictures.skipped == 1
    assert pictures.caption(2) == "2.png"


def test_rows_name_images():
    pictures = Pictures(Counted(), rows=np.array([2, 0]))
    assert len(pictures) == 2
    assert pictures.id(0) == "2.png"
    assert pictures[1] == Pictures(Counted())[0]
    with pytest.raises(ValueError, match="there are images 0 to 2, but the rows speak of 0 to 3"):
        Pictures(Counted(), rows=np.array([0, 3]))


def test_labels_have_names():
    source, _, labels = report_cases.digits(120)
    pictures = Pictures(source)
    assert pictures.label(5) == source.classes[labels[5]]
    assert pictures.caption(5) == f"{source.classes[labels[5]]}\nimage/5"
    assert pictures.class_name(12) == "class 12"


@pytest.mark.parametrize("block", [7, 1000])
def test_neighbours_are_the_nearest(monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    _, x, labels = report_cases.digits(120)
    x = 3 * x  # lengths do not count
    cosines = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1).fill_diagonal_(-2)
    for sheet in neighbor_sheets(x, labels, number=4, neighbors=5):
        values, rows = cosines[sheet.query].topk(5)
        assert sheet.nearest == tuple(rows.tolist())
        assert sheet.cosines == pytest.approx(values.tolist(), abs=1e-5)


def test_queries_are_of_different_classes_and_seeded():
    _, x, labels = report_cases.digits(120)
    queries = [sheet.query for sheet in neighbor_sheets(x, labels, number=10)]
    assert sorted(labels[queries].tolist()) == list(range(10))
    assert queries == [sheet.query for sheet in neighbor_sheets(x, labels, number=10)]
    assert queries != [sheet.query for sheet in neighbor_sheets(x, labels, number=10, seed=1)]
    more = [sheet.query for sheet in neighbor_sheets(x, labels, number=14)]
    assert len(set(more)) == 14
    assert len({sheet.query for sheet in neighbor_sheets(x, number=14)}) == 14


def test_few_images():
    x = torch.eye(3)
    assert [len(sheet.nearest) for sheet in neighbor_sheets(x)] == [2, 2, 2]
    assert neighbor_sheets(x[:1]) == ()
