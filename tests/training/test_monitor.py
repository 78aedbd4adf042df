"""The monitor: what it logs and when, what it says, and that a resumed run finds the same."""

import logging

import pytest

from health_cases import looked_at
from prototile.audit.diagnosis import PATIENCE
from prototile.training.logs import GoOn, JsonLines
from prototile.training.monitor import Monitor
from watched import K, lines, run, without_times


def test_every_so_many_steps_numbers_are_logged(tmp_path):
    monitor = Monitor(3)
    run(tmp_path, callbacks=[monitor], loggers=[JsonLines(tmp_path)], epochs=2)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [3, 6]
    assert [line["epoch"] for line in found] == [0, 1]
    line = found[-1]
    assert line["loss"] == line["loss/mean"] > 0
    assert line["lr"] == 0.01
    assert line["weight_decay"] == 0
    assert line["time/images_per_second"] > 0
    assert 0 <= line["time/waiting"] <= 1
    assert line["health/cls/used"] == line["health/cls/unique"] == K
    assert line["health/cls/rows"] == 32, "two views of eight images, twice"
    assert line["health/cls/largest"] == 0.25
    assert line["health/cls/target_distance"] == pytest.approx(0)
    assert 0 < line["health/spread"] < 1
    assert monitor.latest is not None
    assert monitor.latest.step == 6
    assert monitor.latest.clusters["cls"].used == K
    assert monitor.findings == []


def test_steps_are_optimiser_steps_under_accumulation(tmp_path):
    run(tmp_path, callbacks=[Monitor(1)], loggers=[JsonLines(tmp_path)], epochs=3, accumulate=3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6], "four batches an epoch: two steps"


def test_a_finding_is_said_once_and_once_when_it_ends(tmp_path, caplog):
    monitor = Monitor(1)
    with caplog.at_level(logging.INFO, "prototile.training.monitor"):
        run(tmp_path, sick=10, well=20, callbacks=[monitor], loggers=[JsonLines(tmp_path)])
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    said = [(level, text) for level, text in said if "one prototype" in text]
    assert [level for level, _ in said] == ["WARNING", "INFO"]
    assert "One prototype takes all" in said[0][1]
    assert "Try: a balancer" in said[0][1]
    assert "no longer seen" in said[1][1]
    events = {
        line["step"]: line["finding/cls/one_prototype"]
        for line in lines(tmp_path)
        if "finding/cls/one_prototype" in line
    }
    began, ended = events
    assert events == {began: 1.0, ended: 0.0}
    assert 10 + PATIENCE <= began <= 10 + PATIENCE + 2, "two steps are a window"
    assert 20 + PATIENCE <= ended <= 20 + PATIENCE + 4
    mine = [x for x in monitor.findings if x.name == "one prototype"]
    assert [x.ended for x in mine] == [False, True]
    assert "one prototype (cls)" not in monitor.active


@pytest.mark.parametrize("stop", [12, 17, 24])
def test_a_resumed_run_logs_and_finds_what_an_uninterrupted_one_does(tmp_path, stop):
    """The run is cut between the two events of a finding, too; steps beyond the checkpoint were logged already."""
    straight, whole = Monitor(1), tmp_path / "whole"
    run(whole, sick=10, well=18, callbacks=[straight], loggers=[JsonLines(whole)])
    cut = tmp_path / "cut"
    run(cut, sick=10, well=18, callbacks=[Monitor(1)], loggers=[JsonLines(cut)], limit_steps=stop)
    beyond = lines(whole)[stop].copy()
    with (cut / "metrics.jsonl").open("a") as file:
        file.write(str(beyond).replace("'", '"').replace("None", "null") + '\n{"step": 99, "lo')
    resumed = Monitor(1)
    run(cut, sick=10, well=18, callbacks=[GoOn(), resumed], loggers=[JsonLines(cut)], resume=True)
    assert without_times(lines(cut)) == without_times(lines(whole))
    assert resumed.findings == straight.findings
    assert len(straight.findings) >= 2


def test_watching_does_not_change_a_run(tmp_path):
    watched = run(tmp_path / "a", callbacks=[Monitor(1)], epochs=2).method.state_dict()
    alone = run(tmp_path / "b", epochs=2).method.state_dict()
    assert all((alone[name] == x).all() for name, x in watched.items())


def test_it_must_look_at_some_steps():
    with pytest.raises(ValueError, match="every=0"):
        Monitor(0)


def test_a_kind_of_token_that_a_rank_lacks_is_left_out(two_ranks):
    """Otherwise the ranks would wait for each other's sums of different things."""
    assert two_ranks.run(looked_at) == [["cls"], ["cls"]]
    assert looked_at(0, 2) == ["cls", "patches"]
