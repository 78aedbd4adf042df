"""The online probe: beside the untrained network's number, which a resumed run still has."""

import logging

import numpy as np
import pytest
import torch

from prototile.data.source import Arrays
from prototile.training.logs import GoOn, JsonLines
from prototile.training.probe import Probe, parts
from training_cases import SIDE, TinyBackbone
from watched import lines, run, source, without_times


def probe(**options) -> Probe:
    return Probe(source(90), size=SIDE, ks=(3, 5), **options)


def test_every_epochs_and_at_the_end_beside_the_untrained_network(tmp_path, caplog):
    watched = probe(every=2)
    with caplog.at_level(logging.INFO, "prototile.training.probe"):
        run(tmp_path, callbacks=[watched], loggers=[JsonLines(tmp_path)], epochs=5)
    found = lines(tmp_path)
    assert [(line["step"], line["epoch"]) for line in found] == [(8, 1), (16, 3), (20, 4)]
    torch.manual_seed(0)
    untrained = probe().measured(TinyBackbone())
    for line in found:
        assert line["probe/knn_untrained"] == untrained.knn
        assert line["probe/linear_untrained"] == untrained.linear
    assert untrained.knn > 0.9, "brightness is seen without training"
    assert watched.latest is not None
    assert found[-1]["probe/knn"] == watched.latest.knn
    assert found[-1]["probe/linear"] == watched.latest.linear
    said = [record.getMessage() for record in caplog.records if "kNN" in record.getMessage()]
    assert said[0] == f"before training: kNN {untrained.knn:.1%}, linear {untrained.linear:.1%}"
    assert len(said) == 4
    for text in said[1:]:
        assert f"(untrained: kNN {untrained.knn:.1%}" in text, "beside every number"


def test_a_resumed_run_knows_the_untrained_network(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole, callbacks=[probe()], loggers=[JsonLines(whole)], epochs=3)
    run(cut, callbacks=[probe()], loggers=[JsonLines(cut)], epochs=3, limit_steps=6)
    resumed = probe()
    run(cut, callbacks=[GoOn(), resumed], loggers=[JsonLines(cut)], epochs=3, resume=True)
    assert without_times(lines(cut)) == without_times(lines(whole))
    assert resumed.untrained is not None


def test_a_probe_that_came_later_does_not_measure_a_trained_network_as_untrained(tmp_path):
    run(tmp_path, epochs=3, limit_steps=6)
    late = probe()
    run(tmp_path, callbacks=[late], loggers=[JsonLines(tmp_path)], epochs=3, resume=True)
    assert late.untrained is None
    assert "probe/knn_untrained" not in lines(tmp_path)[-1]
    assert "untrained: not measured" in str(late)


def test_probing_does_not_change_a_run(tmp_path):
    probed = run(tmp_path / "a", callbacks=[probe()], epochs=2).method.state_dict()
    alone = run(tmp_path / "b", epochs=2).method.state_dict()
    assert all((alone[name] == x).all() for name, x in probed.items())


def numbered(count: int, unlabelled: int = 0) -> Arrays:
    """Image i shows i."""
    labels = np.arange(count) % 3
    labels[:unlabelled] = -1
    return Arrays(np.arange(count, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2), labels)


def shown(part) -> set[int]:
    return {int(part.image(i)[0, 0, 0]) for i in range(len(part))}


def test_a_fifth_is_held_out():
    train, test = parts(numbered(50, unlabelled=10), None, 1000)
    assert (len(train), len(test)) == (32, 8)
    assert shown(train) | shown(test) == set(range(10, 50)), "the labelled ones, each once"
    again = parts(numbered(50, unlabelled=10), None, 1000)
    assert [shown(part) for part in again] == [shown(train), shown(test)]
    assert shown(test) != set(range(10, 18)), "drawn, not the first ones"


def test_both_sides_are_limited():
    train, test = parts(numbered(50), numbered(60), 7)
    assert (len(train), len(test)) == (7, 7)
    train, test = parts(numbered(50), None, 7)
    assert (len(train), len(test)) == (7, 7)
    assert not shown(train) & shown(test)


def test_few_images_make_few_neighbours(recwarn):
    found = Probe(numbered(8), size=4, ks=(10, 20))
    found.measured(TinyBackbone())
    assert found._ks == (6,)
    assert not recwarn.list


def test_without_the_linear_probe():
    score = probe(with_linear=False).measured(TinyBackbone())
    assert score.linear is None
    assert str(score) == f"kNN {score.knn:.1%}"
    assert str(probe()) == "not measured yet"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Probe(source(labels=False)), "training images of a probe need one class each"),
        (lambda: Probe(source(), source(labels=False)), "test images of a probe need one class each"),
        (lambda: Probe(numbered(9, unlabelled=9)), "leave the probe out"),
        (lambda: Probe(numbered(9, unlabelled=8)), "at least two labelled images"),
        (lambda: Probe(source(), every=0), "every >= 1"),
        (lambda: Probe(source(), limit=1), "limit of at least two"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
