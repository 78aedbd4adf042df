"""Ranks share the encoding of images, and evaluations give the same numbers."""

import pytest
import torch

from evaluation_cli_cases import checkpoint
from evaluation_ranks import encoded, evaluated, failing, nothing_readable
from prototile.cli import main
from prototile.evaluation.records import read
from ranks import RankPool


@pytest.mark.parametrize("bad", [[], [1, 5], [0, 1, 2]])
def test_two_ranks_encode_what_one_does(two_ranks: RankPool, tmp_path, bad):
    alone = encoded(0, 1, tmp_path / "one", bad)
    together = two_ranks.run(encoded, tmp_path / "two", bad)
    for found in together:
        assert torch.equal(found["features"], alone["features"])
        assert [found[name] for name in ("numbers", "labels", "taken", "bad", "reused")] == [
            alone[name] for name in ("numbers", "labels", "taken", "bad", "reused")
        ]
        assert found["numbers"] == found["taken"]
    assert sum(found["own"] for found in together) == alone["own"], "each image once"
    assert len(list((tmp_path / "two").iterdir())) == 1
    again = two_ranks.run(encoded, tmp_path / "two", bad)
    assert all(found["reused"] and found["own"] == 0 for found in again)


def test_fewer_images_than_ranks(two_ranks: RankPool, tmp_path):
    found = two_ranks.run(encoded, tmp_path, [], 1)
    assert [x["taken"] for x in found] == [[0], [0]]


def test_all_ranks_hear_of_an_error(two_ranks: RankPool, tmp_path):
    for said in two_ranks.run(failing, tmp_path):
        assert "rank 1 could not encode its images" in said
        assert "out of memory" in said
    for said in two_ranks.run(nothing_readable, tmp_path):
        assert said == "none of the 7 images can be read; the first: cut off"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_evaluations_are_those_of_one_process(two_ranks: RankPool, tmp_path):

    words = [
        "evaluate",
        checkpoint(tmp_path),
        "--data",
        "handwriting",
        "--protocol",
        "knn",
        "logistic",
        "--workers",
        "0",
    ]
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    assert main([*words, "--cache", str(tmp_path / "a"), "--out", str(one)]) == 0
    assert two_ranks.run(evaluated, [*words, "--cache", str(tmp_path / "b"), "--out", str(two)]) == [
        0,
        0,
    ]
    for alone, together in zip(read(one), read(two), strict=True):
        assert together.value == pytest.approx(alone.value, abs=0.003)
        assert (together.key, together.images) == (alone.key, alone.images)
