"""Loggers: lines that are whole and right, cut where a run goes on; TensorBoard's events; W&B where it is missing."""

import importlib.util
import json
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prototile.training.logs import FILE, GoOn, JsonLines, TensorBoard, weights_and_biases
from watched import lines, run


def test_a_line_is_there_at_once_and_valid(tmp_path):
    log = JsonLines(tmp_path / "new")
    log.log_metrics({"loss": torch.tensor(1.5), "epoch": 2, "a/b": 3}, step=7)
    assert len(lines(tmp_path / "new")) == 1
    log.log_metrics({"loss": math.nan, "x": math.inf}, step=8)
    log.finalize("success")
    first, second = lines(tmp_path / "new")
    assert list(first) == ["step", "epoch", "time", "loss", "a/b"]
    assert (first["step"], first["epoch"], first["loss"], first["a/b"]) == (7, 2, 1.5, 3)
    assert abs(first["time"] - (tmp_path / "new" / FILE).stat().st_mtime) < 10
    assert second["loss"] is second["x"] is None
    assert "epoch" not in second


def test_another_logger_appends(tmp_path):
    for step in (1, 2):
        log = JsonLines(tmp_path)
        log.log_metrics({"loss": 1.0}, step=step)
        log.finalize("success")
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_lines_beyond_a_step_and_broken_ones_are_cut(tmp_path):
    log = JsonLines(tmp_path)
    for step in (1, 2, 2, 3, 4):
        log.log_metrics({"loss": step / 2, "x": math.nan}, step=step)
    with log.path.open("a") as file:
        file.write('{"step": 2, "time": 1')
    before = log.path.read_text().splitlines()[:3]
    log.cut(2)
    assert log.path.read_text().splitlines() == before, "what stays is as it was, to the last digit"
    log.log_metrics({"loss": 9.0, "x": 0.0}, step=3)
    log.finalize("success")
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == [FILE], "nothing else is left"


def test_what_was_logged_at_the_very_step_is_not_logged_again(tmp_path):
    """A checkpoint may come before the last numbers of its step."""
    log = JsonLines(tmp_path)
    log.log_metrics({"loss": 1.0}, step=5)
    log.cut(5)
    log.log_metrics({"loss": 1.0}, step=5)
    log.log_metrics({"probe": 0.5}, step=5)
    log.log_metrics({"loss": 1.0}, step=6)
    log.finalize("success")
    assert [(line["step"], "probe" in line) for line in lines(tmp_path)] == [(5, False), (5, True), (6, False)]


def test_cutting_nothing_makes_no_file(tmp_path):
    JsonLines(tmp_path).cut(3)
    assert list(tmp_path.iterdir()) == []


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(x.step, x.value) for x in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_holds_the_same_and_forgets(tmp_path):
    log = TensorBoard(tmp_path)
    for step in range(1, 6):
        log.log_metrics({"loss": step / 2, "epoch": 0}, step=step)
    log.save()
    assert scalars(tmp_path) == {"loss": [(step, step / 2) for step in range(1, 6)]}
    log.finalize("success")
    again = TensorBoard(tmp_path)
    again.cut(2)
    again.log_metrics({"loss": 7.0}, step=3)
    again.finalize("success")
    assert scalars(tmp_path) == {"loss": [(1, 0.5), (2, 1.0), (3, 7.0)]}
    assert all(path.name.startswith("events.") for path in tmp_path.iterdir())


def test_a_run_that_begins_cuts_nothing(tmp_path):
    out = tmp_path / "run"
    log = JsonLines(out)
    run(out, callbacks=[GoOn()], loggers=[log, TensorBoard(out)], epochs=1)
    assert not log.path.exists(), "nobody logged"


def test_hyperparameters_stay_where_they_are(tmp_path):
    for log in (JsonLines(tmp_path), TensorBoard(tmp_path)):
        log.log_hyperparams({"lr": 1.0})
        log.save()
        log.finalize("success")
        assert log.save_dir == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_wandb_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("prototile.training.logs.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install wandb"):
        weights_and_biases(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="W&B is not installed")
def test_wandb_takes_numbers(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = weights_and_biases(tmp_path, name="test")
    log.log_metrics({"loss": 1.0}, step=1)
    log.finalize("success")
    assert any(tmp_path.rglob("*.wandb"))


def test_lines_are_json_lines(tmp_path):
    log = JsonLines(tmp_path)
    log.log_metrics({"a": 1}, step=None)
    log.finalize("success")
    text = log.path.read_text()
    assert text.endswith("}\n")
    assert json.loads(text)["step"] == 0
