"""The experiment in miniature, and the command around it."""

import json
from dataclasses import replace

import pytest
import torch

from prototile.demo import experiment, main, measures, run
from prototile.demo.arms import ARMS, adamw, build
from prototile.demo.data import digits
from prototile.demo.experiment import settings_for
from prototile.demo.training import Job, train

TINY = replace(settings_for(quick=True), num_prototypes=24, steps=20, batch=32)


@pytest.fixture(scope="module")
def result():
    reported = []
    found = run(1, workers=0, settings=TINY, on_steps=lambda job, steps: reported.append(steps))
    assert sum(reported) == 4 * TINY.steps
    return found


def test_settings_are_those_of_the_study():
    settings = settings_for(quick=False)
    assert (settings.num_prototypes, settings.steps, settings.batch, settings.lr) == (512, 400, 256, 5e-3)
    assert (settings.train_images, settings.test_images, settings.epsilon) == (1300, 497, 0.025)
    assert settings_for(quick=True).steps < 400


def test_arms_differ_in_what_they_say():
    assert [(a.balancer, a.koleo, a.prototype_decay) for a in ARMS] == [
        ("centering", 0.0, 20.0),
        ("centering", 0.1, 20.0),
        ("centering", 0.0, 0.04),
        ("explicit", 0.0, 0.04),
    ]
    kinds = [type(build(arm, TINY).objectives[0].balancer).__name__ for arm in ARMS]
    assert kinds == ["Centering", "Centering", "Centering", "ExplicitBalancing"]


def test_all_arms_start_alike():
    networks = []
    for arm in ARMS:
        torch.manual_seed(0)
        networks.append(build(arm, TINY).student.state_dict())
    for other in networks[1:]:
        assert all(torch.equal(networks[0][name], other[name]) for name in networks[0])


def test_every_parameter_is_in_one_group():
    method = build(ARMS[0], TINY)
    groups = adamw(method, 20.0).param_groups
    assert [group["weight_decay"] for group in groups] == [0.04, 0.0, 20.0]
    grouped = [p for group in groups for p in group["params"]]
    assert set(grouped) == {p for p in method.parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert all(p.ndim == 1 for p in groups[1]["params"])
    assert [p.shape for p in groups[2]["params"]] == [(24, 32)]


def test_a_result_is_whole(result):
    assert [(r.arm, r.seed) for r in result.runs] == [(arm.key, 0) for arm in ARMS]
    for found in result.runs:
        assert [point.step for point in found.curve] == [0, 10, 20]
        assert found.curve[-1].unique == found.after.unique
        for shot in (found.before, found.after):
            assert sum(shot.sizes) == 1300
            assert len(shot.sizes) == sum(shot.groups) == 24
            assert len(shot.groups) == shot.unique
            assert 0.1 < shot.knn < 1
    assert [sheet.arm for sheet in result.sheets] == [arm.key for arm in ARMS]
    assert [query.picture.label for query in result.queries] == list("0123456789")
    assert result.seconds > sum(r.seconds for r in result.runs) * 0.9
    json.loads(result.to_json())


def test_the_same_seed_gives_the_same_run(result):
    again = train(Job(ARMS[1], 0, TINY, False), lambda steps: None).run
    assert replace(again, seconds=0) == replace(result.of("koleo")[0], seconds=0)
    other = train(Job(ARMS[1], 1, TINY, False), lambda steps: None).run
    assert other.curve != again.curve


def test_a_sheet_shows_members_and_the_nearest_first():
    train_digits, _ = digits()
    method = build(ARMS[0], TINY)
    scores = measures.cosines(method, train_digits)
    found = measures.sheet(method, train_digits, arm="forgetting", seed=0)
    used = scores.argmax(1).unique()
    ranks = [cluster.rank for cluster in found.clusters]
    assert (ranks[0], ranks[-1]) == (1, len(used))
    assert ranks == sorted(set(ranks))
    sizes = [cluster.size for cluster in found.clusters]
    assert sizes == sorted(sizes, reverse=True)
    largest = int(torch.bincount(scores.argmax(1)).argmax())
    best = int((scores[:, largest] - 9.0 * (scores.argmax(1) != largest)).argmax())
    assert found.clusters[0].pictures[0] == measures.picture(train_digits, best)


def test_neighbours_are_the_nearest():
    train_digits, test_digits = digits()
    method = build(ARMS[0], TINY)
    queries = measures.first_of_each_class(test_digits)
    assert test_digits.labels[queries].tolist() == list(range(10))
    found = measures.neighbors(method, train_digits, test_digits, queries[:1])
    x = torch.nn.functional.normalize(measures.features(method, train_digits))
    q = torch.nn.functional.normalize(measures.features(method, test_digits)[queries[:1]])
    assert found[0].tolist() == (x @ q[0]).argsort(descending=True)[: measures.NEIGHBORS].tolist()


def test_refused():
    with pytest.raises(ValueError, match="at least one seed"):
        run(0)


def test_a_folder_that_cannot_be_is_refused_before_training(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="name another folder"):
        main(str(file / "inside"))


def test_the_command(tmp_path, capsys, monkeypatch, result):
    heard = {}

    def instead(seeds, *, quick, on_steps, on_done):
        heard.update(seeds=seeds, quick=quick)
        return replace(result, quick=quick)

    monkeypatch.setattr("prototile.demo.command.run", instead)
    out = tmp_path / "a" / "b"
    main(str(out), seeds=4, quick=True)
    assert heard == {"seeds": 4, "quick": True}
    said = capsys.readouterr().out
    assert f"The page: {out / 'index.html'}" in said
    assert "its numbers mean little" in said
    assert "untrained network" in said
    assert json.loads((out / "result.json").read_text())["seeds"] == [0]
    assert "<title>prototile demo" in (out / "index.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_in_two_processes_as_in_one(result):
    found = experiment.run(1, workers=2, settings=TINY)
    for there, here in zip(found.runs, result.runs, strict=True):
        assert (there.arm, there.seed) == (here.arm, here.seed)
        assert [point.step for point in there.curve] == [point.step for point in here.curve]
        assert there.curve[1].loss == pytest.approx(here.curve[1].loss, rel=1e-3)
