"""An audit after every epoch: what the run's prototypes are, and where its targets have gone."""

import json

import pytest
import torch

from prototile.audit import unique
from prototile.heads import Prototypes
from prototile.training import Monitor, auditing
from prototile.training.auditing import EpochAudits
from training_cases import train


def told(folder):
    return {path.name: json.loads(path.read_text()) for path in sorted((folder / "audit").glob("*.json"))}


def test_every_epoch_and_the_last(tmp_path):
    monitor = Monitor(1)
    run = train("vit", tmp_path, epochs=3, callbacks=[monitor, EpochAudits(tmp_path, monitor, every=2)])
    found = told(tmp_path)
    assert list(found) == ["epoch-0002.json", "epoch-0003.json"]
    last = found["epoch-0003.json"]
    prototypes = run.method.student.head.prototypes
    assert (last["epoch"], last["step"]) == (3, run.steps)
    assert last["prototypes"]["cls"]["unique"] == unique(prototypes.directions().detach()).count
    clusters = last["clusters"]["cls"]
    assert sum(clusters["sizes"]) == clusters["images"]
    assert len(clusters["sizes"]) == clusters["prototypes"] == len(prototypes.vectors)
    assert clusters["empty"] == clusters["sizes"].count(0)
    assert 1 <= clusters["effective"] <= clusters["prototypes"]


def test_without_a_monitor_there_are_prototypes_alone(tmp_path):
    train("vit", tmp_path, epochs=1, callbacks=[EpochAudits(tmp_path)])
    assert told(tmp_path)["epoch-0001.json"]["clusters"] == {}


def test_prototypes_that_broke_are_left_to_the_guard(tmp_path, monkeypatch):
    broken = Prototypes(4, 6)
    with torch.no_grad():
        broken.vectors[0, 0] = torch.nan
    monkeypatch.setattr(auditing, "prototypes_of", lambda _: {"cls": broken})
    train("vit", tmp_path, epochs=1, callbacks=[EpochAudits(tmp_path)])
    assert told(tmp_path)["epoch-0001.json"]["prototypes"] == {}


def test_a_method_without_prototypes_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(auditing, "prototypes_of", lambda _: {})
    train("tiny", tmp_path, epochs=1, callbacks=[EpochAudits(tmp_path)])
    assert not (tmp_path / "audit").exists()


def test_bad_numbers(tmp_path):
    with pytest.raises(ValueError, match="at least every one, got every=0"):
        EpochAudits(tmp_path, every=0)
