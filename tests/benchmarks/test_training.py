"""The benchmark of training: who is on the clock, whether contestants do the same work, and what is made of numbers."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import contests  # noqa: E402
import goals  # noqa: E402
import report  # noqa: E402
import trainers  # noqa: E402
import training  # noqa: E402
from contests import Case, Clock  # noqa: E402

CPU = torch.device("cpu")
SMALL = [Case(name, "tiny", small=True, batch=64, prototypes=4096).quick() for name in ("dino", "msn")]


def test_clock_gives_time_to_the_part_that_was_entered(monkeypatch):
    times = iter([0.0, 1.0, 4.0, 10.0, 20.0])
    monkeypatch.setattr(contests.time, "process_time", lambda: next(times))
    clock = Clock(CPU)
    clock.enter("loss")  # off: nobody looks at the time
    clock.start()
    for part in ("views", "student", "update"):
        clock.enter(part)
    clock.stop()
    assert dict(clock.seconds) == {"other": 1.0, "views": 3.0, "student": 6.0, "update": 10.0}
    shares = clock.shares()
    assert shares["student"] == 0.3
    assert sum(shares.values()) == 1
    assert tuple(shares) == contests.PARTS


def test_forward_and_backward_are_the_students_and_what_lies_between_is_the_loss(monkeypatch):
    clock, backbone, projector, prototypes = Clock(CPU), nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
    entered = []
    monkeypatch.setattr(clock, "enter", entered.append)
    clock.watch(backbone, projector, "student")
    scores = prototypes(projector(backbone(torch.ones(2, 3))))
    assert entered == ["student", "loss"]
    scores.sum().backward()
    assert entered == ["student", "loss", "student"]
    with torch.no_grad():
        projector(backbone(torch.ones(2, 3)))
    assert entered[3:] == ["student", "loss"]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.method)
def test_a_first_step_of_ours(case, tmp_path):
    """Tokens by hand: 65 of a view of 32 pixels, 17 of one of 16; of MSN's anchor 54 patches and the class token."""
    torch.manual_seed(0)
    trainer = trainers.Ours(case, tmp_path, CPU, 0)
    found = trainer.check()
    whole, crop = 65, 17
    assert found["teacher_tokens"] == (2 * whole if case.method == "dino" else whole)
    assert found["student_tokens"] == (2 * whole if case.method == "dino" else 55) + 4 * crop
    assert found["parameters"] == sum(p.numel() for p in trainer.parameters() if p.requires_grad)
    assert 2 < found["first_loss"] < 6  # ln 64 is 4.2
    assert trainer.steps == 1
    shares = trainer.profile(2)
    assert min(shares[part] for part in ("views", "student", "teacher", "loss", "update")) > 0
    assert trainer.measure(1, 0).images_per_second > 0


@pytest.mark.slow
def test_fit_is_timed_between_its_steps(tmp_path):
    fit = trainers.Fit(SMALL[0], tmp_path, CPU, 0)
    for _ in range(2):  # a turn after a turn
        rate = fit.measure(2, 1)
        assert 0 < rate.images_per_second < 1e4
        assert 0 < rate.cpu_seconds < 10
    fit.close()


def test_photographs_are_trained_on_again_and_again(tmp_path):
    case = Case("dino", "tiny", small=False, batch=4, prototypes=64)
    contests.write_photos(tmp_path, quick=True)
    source = trainers.source(case, tmp_path)
    assert len(source) == contests.EPOCH_IMAGES
    assert source.id(0) == source.id(4) == "000.jpg"
    assert source.image(1).shape == (3, 375, 500)


@pytest.mark.parametrize("what", ["student_tokens", "teacher_tokens", "parameters", "first_loss"])
def test_other_work_is_refused(what):
    ours = {"student_tokens": 198, "teacher_tokens": 130, "parameters": 10_000, "first_loss": 4.0}
    training.same_work({"loop": ours, "lightly": ours | {"parameters": 10_005, "first_loss": 4.2}})
    with pytest.raises(ValueError, match=f"lightly is not like loop: {what}"):
        training.same_work({"loop": ours, "lightly": ours | {what: ours[what] * 1.3}})


def test_cases_are_those_that_were_asked_for():
    large = [case for case in training.CASES["cpu"] if not case.small]
    assert {case.method: case.prototypes for case in large} == {"dino": 65536, "msn": 1024}
    sizes = {case.method: [(g.size, len(g.views)) for g in case.augmentation.groups] for case in large}
    assert sizes == {"dino": [(224, 2), (96, 8)], "msn": [(224, 1), (224, 1), (96, 10)]}
    assert {case.name for case in training.CASES["cuda"] if case.size == "small"} == {
        "dino ViT-small/16 224 px B=64 K=65536",
        "dino ViT-small/16 224 px B=256 K=65536",
        "msn ViT-small/16 224 px B=128 K=1024",
    }


def results(**rates):
    found = {name: {"images_per_second": rate, "rounds": [rate, rate]} for name, rate in rates.items()}
    return {"quick": False, "device": "cpu", "cases": {"a case": {"note": "its note", "contestants": found}}}


def test_goals_are_ratios_and_equal_is_not_faster():
    found = goals.training(results(loop=3.0, fit=2.0, lightly=2.0), ["a case", "another"])
    assert [(goal["value"], goal["met"]) for goal in found] == [(1.5, True), (1.0, False), (None, None), (None, None)]


def test_report_of_a_rival_that_failed():
    run = results(loop=3.0, fit=2.0) | {"machine": {}, "method": {}, "about": training.ABOUT}
    contestants = run["cases"]["a case"]["contestants"]
    contestants["loop"] |= {"waiting": 0.25, "cpu_seconds": 0.5, "parts": dict.fromkeys(contests.PARTS, 0.5)}
    contestants["loop"] |= {"parameters": 1234, "student_tokens": 690.0, "teacher_tokens": 394.0, "first_loss": 4.5}
    contestants["lightly"] = {"error": "RuntimeError"}
    text = report.training(run | {"goals": goals.training(run, ["a case"])})
    assert "| loop | 3 | 3 - 3 | 333 |  | 25.0% | 500 |" in text
    assert "| lightly | failed: RuntimeError |" in text
    assert "| loop | 1,234 | 690 | 394 | 4.5000 |" in text
    assert "## Goals: 0 of 2 met" in text
