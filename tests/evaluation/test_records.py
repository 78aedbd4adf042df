"""Records on disk: written whole, read back, found by their key; what is finished of parts; tables."""

import json
import logging
import math
import threading

import numpy as np
import pytest
import torch

from prototile.evaluation.records import (
    Parts,
    Record,
    append,
    finished,
    key_of,
    packed,
    packed_classes,
    plain,
    read,
    table,
    unpacked,
    unpacked_classes,
)

RIGHT = torch.rand(1000, generator=torch.Generator().manual_seed(0)) < 0.7
RECORD = Record(
    "knn", "top1", 0.7, 1000, (0, 1), (0.69, 0.71), "validation", ({"k": 10}, {"k": 20}),
    options={"ks": [10, 20]}, details={"top1": {"10": 0.7}}, seconds=1.5, checkpoint={"name": "a"},
    data={"test hash": "t"}, key="k1", right=(packed(RIGHT), packed(~RIGHT)),
)  # fmt: skip


def test_there_and_back(tmp_path):
    file = tmp_path / "a" / "evaluations.jsonl"
    append(file, RECORD)
    append(file, RECORD, RECORD)
    assert read(file) == [RECORD] * 3
    assert RECORD.standard_error == pytest.approx(0.01)
    assert json.loads(file.read_text().splitlines()[0])["standard_error"] == pytest.approx(0.01)
    assert Record("a", "b", 1.0, 2, values=(1.0,)).standard_error is None


def test_what_is_no_number_is_null(tmp_path):
    file = tmp_path / "x.jsonl"
    append(file, Record("svm", "mAP", math.nan, 2, values=(math.nan,), details={"a": plain({0.5: np.float64("inf")})}))
    assert "NaN" not in file.read_text()
    found = read(file)[0]
    assert math.isnan(found.value)
    assert math.isnan(found.values[0])
    assert found.details == {"a": {"0.5": None}}


def test_a_line_that_was_cut_off(tmp_path, caplog):
    file = tmp_path / "x.jsonl"
    append(file, RECORD)
    with open(file, "ab") as opened:
        opened.write(b'{"protocol": "kn')
    append(file, RECORD)
    with caplog.at_level(logging.WARNING):
        assert read(file) == [RECORD, RECORD]
    assert "line 2 is no record of an evaluation" in caplog.text


def test_many_writers(tmp_path):
    file = tmp_path / "x.jsonl"
    threads = [threading.Thread(target=append, args=(file, RECORD, RECORD)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(file) == [RECORD] * 16


def test_the_latest_of_a_key(tmp_path):
    file = tmp_path / "x.jsonl"
    assert finished(file, "k1") == []
    old, other = Record("knn", "top1", 0.1, 3, key="k1"), Record("knn", "top1", 0.2, 3, key="k2")
    part = Record("lowshot", "top1", 0.3, 3, key="k1")
    append(file, old, other, RECORD, part)
    assert finished(file, "k1") == [RECORD, part]
    assert finished(file, "k3") == []


def test_keys():
    assert key_of({"a": 1, "b": (1, 2)}) == key_of({"b": [1, 2], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_later_versions_are_read():
    told = RECORD.as_dict() | {"novel": 3}
    assert Record.of(told) == RECORD


@pytest.mark.parametrize("images", [1, 7, 8, 1000])
def test_bits(images):
    assert unpacked(packed(RIGHT[:images]), images).tolist() == RIGHT[:images].tolist()
    assert len(packed(RIGHT)) < 250
    labels = torch.arange(images) % 7
    assert unpacked_classes(packed_classes(labels)).tolist() == labels.tolist()


def test_parts(tmp_path):
    parts = Parts(tmp_path, "key")
    assert "seed 0" not in parts
    parts["seed 0"] = {"value": 0.5, "right": None}
    with open(tmp_path / ".key.parts.jsonl", "a") as file:
        file.write('["seed 1", {"val')
    again = Parts(tmp_path, "key")
    assert again["seed 0"] == {"value": 0.5, "right": None}
    assert "seed 1" not in again
    again["seed 1"] = 3
    assert Parts(tmp_path, "key")["seed 1"] == 3
    assert "seed 0" not in Parts(tmp_path, "other")
    again.clear()
    assert list(tmp_path.iterdir()) == []


def test_tables_and_words():
    test = Record("linear", "top1", 0.5, 10, values=(0.5,), selected_on="test", chosen=({"rate": 0.1},), seconds=2)
    rank = Record("label-free", "RankMe", 12.345, 10)
    lines = table([RECORD, test, rank]).splitlines()
    assert lines[0].split() == ["protocol", "metric", "value", "images", "chosen", "seconds"]
    assert lines[2].split() == ["knn", "top1", "70.00%", "±", "1.00", "1,000", "k", "10", "...", "1.5"]
    assert "rate 0.1 (on test)" in lines[3]
    assert "12.35" in lines[4] or "12.34" in lines[4]
    assert str(RECORD) == "knn: 70.00% ± 1.00% (top1)"
    assert str(test) == "linear: 50.00% (top1, chosen on the test images)"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no file of evaluations"):
        read(tmp_path / "x.jsonl")
