"""Whole runs: before and after, the guard, resuming, bad settings."""

import json
import math

import pytest
import torch

from continuing_cases import END, drawn, going_on, judge_of, weights_of
from prototile.checkpoints import load, load_backbone
from prototile.data import Loader
from prototile.evaluation import Crop
from prototile.training.continuing import (
    Bench,
    Judge,
    KeepBest,
    continue_training,
    planned,
    restore,
    views_for,
)
from prototile.training.continuing.measuring import DRAWS, Measures
from prototile.training.continuing.restoring import parts_of
from prototile.training.continuing.result import Continued
from training_cases import SIDE


def test_without_criterion_and_rate_nothing_changes(tmp_path, run):
    result = going_on(run.folder, tmp_path / "run", criterion="none", lr=0.0, epochs=1)
    assert result.before == result.after
    assert (result.kept, result.worse, result.criterion, result.coefficients) == (0, False, "none", {})
    assert "made nothing better" in result.verdict
    base = run.method.state_dict()
    after = weights_of(tmp_path / "run")
    assert all(torch.equal(base[name], after[name]) for name in base if "center" not in name)


def test_before_is_what_the_file_holds(tmp_path, swav_run):
    """Whatever happens in the steps."""
    result = going_on(swav_run.folder, tmp_path / "run", limit_steps=1)
    restored = restore(swav_run.folder)
    bench = Bench.of(drawn(), None, Crop(SIDE), "hypersphere")
    assert result.before == bench(restored.method)
    base = load(swav_run.folder)
    parts = parts_of(restored.method)
    images = torch.randn(4, 3, SIDE, SIDE)
    with torch.no_grad():
        features = base.backbone(images).pooled
        assert torch.equal(parts["backbone"].eval()(images).pooled, features)
        assert torch.equal(parts["projector"].eval()(features), base.heads["cls"].projector(features))


def test_a_run_leaves_what_others_do(tmp_path, run):
    out = tmp_path / "run"
    result = going_on(run.folder, out, checkpoint="base")
    told = json.loads((out / "continued.json").read_text())
    assert told["before"]["entropy"] == pytest.approx(result.before.entropy, rel=1e-6)
    assert told["after"]["images"] == 12
    assert told["coefficients"] == {
        "weight": 1.0,
        "beta": 1.0,
        "gamma": 25.0,
        "space": "hypersphere",
        "reduction": "mean",
    }
    assert "the optimiser goes on with the file's state" in told["said"][-1]
    assert set(result.scores) == {0, 1, 2}
    assert (out / "train.log").exists()
    images = torch.randn(2, 3, SIDE, SIDE)
    kept = load_backbone(out / "model")
    assert torch.equal(kept(images).pooled, load(out).backbone(images).pooled)
    text = str(result)
    assert text.startswith("base: prototile, student and teacher; dino, criterion e2mc")
    assert "linear, 1% of the labels" in text
    again = restore(out)
    assert again.continued
    assert planned(again).lr(END) == pytest.approx(planned(restore(run.folder)).lr(END))


def test_continuing_raises_entropy(tmp_path, swav_run):
    result = going_on(swav_run.folder, tmp_path / "run", keep="last", lr=0.1, epochs=4, coefficients={"beta": 10})
    assert result.after.entropy > result.before.entropy
    assert result.kept == 4
    assert "the last weights are kept, as asked for" in result.verdict


def test_the_best_weights_are_kept(tmp_path, run):
    out = tmp_path / "run"
    result = going_on(run.folder, out, lr=0.01, epochs=3, judge=judge_of(0.5, 0.7, 0.4, 0.6))
    assert (result.kept, result.worse, dict(result.scores)) == (1, False, {0: 0.5, 1: 0.7, 2: 0.4, 3: 0.6})
    best = torch.load(out / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 1
    assert all(torch.equal(best["state_dict"][name], x) for name, x in weights_of(out).items())
    final = torch.load(out / "checkpoints" / "final.ckpt", weights_only=True)["state_dict"]
    assert any(not torch.equal(final[f"method.{name}"], x) for name, x in weights_of(out).items())
    assert result.last is not None


@pytest.mark.parametrize(("scores", "best"), [((0.5, 0.6, 0.6), 2), ((0.6, 0.6, 0.6), 0), ((0.6, 0.5), 0)])
def test_of_equals_the_last_but_not_the_beginning(tmp_path, run, scores, best):
    keeper = KeepBest(judge_of(*scores), tmp_path)
    for epoch in range(len(scores)):
        keeper.look(run.method, epoch, epoch)
        keeper.look(run.method, epoch, epoch)  # twice at one step is once
    assert keeper.best == torch.load(keeper.path, weights_only=True)["epoch"] == best


def test_what_made_it_worse_is_said_and_left_out(tmp_path, swav_run, caplog):
    """A learning rate that breaks everything."""
    out = tmp_path / "run"
    with caplog.at_level("WARNING"):
        result = going_on(swav_run.folder, out, lr=1e4, judge=None)
    assert result.worse
    assert result.kept == 0
    assert result.after == result.before
    assert "made it worse" in result.verdict or "broke off" in result.verdict
    assert result.verdict in caplog.text
    base, kept = load(swav_run.folder).backbone, load_backbone(out / "model", into=load(swav_run.folder).backbone)
    assert all(torch.equal(x, kept.state_dict()[name]) for name, x in base.state_dict().items())


def test_a_run_that_breaks_off_keeps_what_was_best(tmp_path, run):
    restored = restore(run.folder)
    views, crop = views_for("dino", SIDE, 4)[0], Crop(SIDE)
    restored.method.objectives[0].weight = math.nan
    result = continue_training(
        restored,
        Loader(drawn(), views, 20, workers=0, epochs=1),
        bench=Bench.of(drawn(), None, crop, "hypersphere"),
        guard=lambda folder: KeepBest(Judge.of(drawn(), crop), folder),
        out=tmp_path / "run",
        epochs=1,
        accelerator="cpu",
    )
    assert result.diverged is not None
    assert "broke off" in result.verdict
    assert result.after == result.before
    assert (tmp_path / "run" / "continued.json").exists()


def test_rankme_judges_where_there_are_no_labels(tmp_path, run):
    source = drawn(labelled=False)
    result = going_on(run.folder, tmp_path / "run", source=source, epochs=1)
    assert result.measure == "RankMe"
    assert result.before.knn is result.before.linear is None
    assert "linear" not in str(result)
    features = torch.linalg.svdvals(_features(run.folder, source).double())
    p = features / features.sum() + 1e-7
    assert result.scores[0] == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-5)


def _features(path, source):
    from prototile.evaluation import extract

    return extract(load(path).backbone, source, size=SIDE).features


def test_killed_and_resumed_is_as_if_nothing_had_been(tmp_path, run):
    whole = going_on(run.folder, tmp_path / "a", epochs=2)
    going_on(run.folder, tmp_path / "b", epochs=2, limit_steps=4)
    parts = going_on(run.folder, tmp_path / "b", epochs=2, resume=True)
    assert (parts.before, parts.after, dict(parts.scores)) == (whole.before, whole.after, dict(whole.scores))
    a, b = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)
    again = going_on(run.folder, tmp_path / "b", epochs=2, resume=True)  # it has ended
    assert (again.after, again.kept) == (whole.after, whole.kept)
    assert all(torch.equal(a[name], x) for name, x in weights_of(tmp_path / "b").items())


def test_another_base_is_not_resumed(tmp_path, run, swav_run):
    going_on(run.folder, tmp_path / "a", epochs=2, limit_steps=1)
    with pytest.raises(ValueError, match="criterion was 'e2mc' and is 'auh'"):
        going_on(run.folder, tmp_path / "a", epochs=2, criterion="auh", resume=True)


def test_measures_of_labelled_images(run):
    bench = Bench.of(drawn(600), drawn(90), Crop(SIDE), "hypersphere", limit=100)
    assert (len(bench.known), len(bench.asked), [len(x) for x in bench.subsets]) == (100, 90, [6] * DRAWS)
    found = bench(restore(run.folder).method)
    assert found.images == 90
    assert found.linear_error is not None
    assert 0 <= found.overlap <= 1


def test_the_guard_tests_on_no_test_image():
    source = drawn(60)
    judge = Judge.of(source, Crop(SIDE))
    ids = [each.id(i) for each in (judge.train, judge.test) for i in range(len(each))]
    assert sorted(ids) == sorted(source.id(i) for i in range(60))


def test_looks_of_the_guard_are_scheduled(tmp_path):
    with pytest.raises(ValueError, match="at least every one, got 0"):
        KeepBest(judge_of(), tmp_path, every=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"criterion": "e3mc"}, "there is no criterion 'e3mc'; there are: none, e2mc"),
        ({"coefficients": {"delta": 1}}, "e2mc has no coefficient delta; it has: beta, gamma, space"),
        ({"criterion": "none", "coefficients": {"beta": 1}}, "without a criterion there are no coefficients, got beta"),
        ({"keep": "first"}, "keep must be 'best' or 'last', got 'first'"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
    ],
)
def test_bad_settings(given, said, run, tmp_path, unchecked):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        going_on(run.folder, tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_measures_print_without_labels():
    none = Measures(5, None, None, None, *[0.5] * 9)
    result = Continued("a", "b", "c", "swav", "e2mc", {}, none, none, None, "RankMe", {0: 2.0, 1: 1.0}, 0, "best", 1, 3)
    assert "Continuing made it worse. RankMe: 2.0 before, 1.0 at the end: the weights of before are kept." in str(
        result
    )
