"""`prototile continue`, as a user runs it."""

import json

import pytest
import torch
import yaml

import prototile
from foreign_cases import CASES
from prototile.checkpoints import load, load_backbone
from prototile.cli import main
from prototile.training.continuing import planned, restore

FEW = ("--epochs", 1, "--batch", 100, "--workers", 0, "--no-tensorboard", "--limit", 60, "--accelerator", "cpu")


def command(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of SwAV, as the command line makes it."""
    out = tmp_path_factory.mktemp("runs") / "base"
    sizes = {"method.num_prototypes": 16, "method.hidden": 16, "method.bottleneck": 8, "method.queue": 200}
    few = {"workers": 0, "tensorboard": False, "probe_every": 0, "limit_steps": 2, "accelerator": "cpu"}
    return prototile.pretrain("digits-swav", out=out, **sizes, **few)


def test_a_run_goes_on(base, tmp_path, capsys):
    out = tmp_path / "more"
    assert command("continue", base.folder, "--data", "handwriting", "--out", out, *FEW, "--limit-steps", 3) == 0
    said = capsys.readouterr()
    assert said.out.startswith("base: prototile, only; swav, criterion e2mc")
    for row in ("kNN", "linear, 1% of the labels", "entropy of a dim", "chi-square", "overlap"):
        assert row in said.out
    assert "prototile, only: swav" in said.err
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.yaml", "continued.json", "environment.json", "metrics.jsonl", "train.log", "model"}
    told = json.loads((out / "continued.json").read_text())
    assert told["coefficients"]["beta"] == 1.0
    assert told["rebuilt"] == []
    assert told["before"] != told["last"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert next(line["guard/kNN"] for line in lines if "guard/kNN" in line) == pytest.approx(
        told["scores"]["0"], rel=1e-6
    )
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert load_backbone(out / "model")(images).pooled.shape == (2, 64)


def test_a_run_is_restored_to_the_last_bit(base):
    restored = restore(base.folder)
    old, new = base.method.state_dict(), restored.method.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(x, new[name]) for name, x in old.items())
    assert restored.rebuilt == restored.said == ()
    assert restored.views.groups[0].views[0].scale == (0.5, 1.0)  # the run's own
    assert planned(restored).lr.value == pytest.approx(2e-5)


def test_python_gives_the_same(base, tmp_path):
    settings = {"epochs": 1, "batch": 100, "workers": 0, "limit": 60, "accelerator": "cpu", "tensorboard": False}
    done = prototile.continue_checkpoint(
        base.folder, data="handwriting", out=tmp_path / "a", criterion="vcreg", limit_steps=1, **settings
    )
    assert (done.criterion, done.steps) == ("vcreg", 1)
    assert done.coefficients == {"weight": 1.0, "mu": 0.1, "nu": 0.001, "space": "hypersphere"}


def test_a_foreign_file_goes_on(tmp_path, capsys):
    torch.save(CASES["simsiam"][0](), tmp_path / "file.pth")
    out = tmp_path / "run"
    given = ("--data", "handwriting", "--size", 32, "--criterion", "none", "--lr", 0, "--limit-steps", 1)
    assert command("continue", tmp_path / "file.pth", "--out", out, *FEW, *given) == 0
    assert "file.pth: SimSiam, only; simsiam, criterion none" in capsys.readouterr().out
    base, again = load(tmp_path / "file.pth"), load(out)
    assert again.settings["method"]["class_path"] == "prototile.methods.simsiam"
    projector = again.projector.state_dict()
    assert all(torch.equal(x, projector[name]) for name, x in base.projector.named_parameters())
    assert again.predictor is not None


def test_settings_are_printed_and_read_again(base, tmp_path, capsys):
    given = ("continue", base.folder, "--data", "handwriting", "--out", tmp_path / "a", "--coefficient", "beta=5")
    assert command(*given, "--print-config") == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["coefficients"] == {"beta": 5}
    assert not (tmp_path / "a").exists()
    (tmp_path / "config.yaml").write_text(text)
    assert command("continue", "--config", tmp_path / "config.yaml", "--epochs", 3, "--print-config") == 0
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(text) | {"epochs": 3}


def test_help(capsys):
    with pytest.raises(SystemExit):
        command("continue", "--help")
    said = capsys.readouterr().out
    assert "--criterion" in said
    assert command("--help") == 0
    assert "prototile continue" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--epochs", 0), "epochs must be at least 1, got 0"),
        (("--coefficient", "beta"), "write NAME=VALUE, got 'beta'"),
        (("--coefficient", "delta=1"), "e2mc has no coefficient delta; it has: beta, gamma, space"),
        (("--criterion", "none", "--coefficient", "beta=1"), "without a criterion there are no coefficients"),
        (("--batch", 5000), "1300 images are less than one batch of 5000"),
        (("--data", "nowhere"), "'nowhere' is neither a data set nor a path that exists"),
        (("--size", 130), "views are made for 224 pixels, or for less than 128, not for 130"),
        (("--limit", 1), "needs at least two images, got a limit of 1"),
        (("--resume", "--overwrite"), "either resumed or overwritten"),
        (("--option", "num_prototypes=7", "--method", "simclr"), "unexpected keyword argument 'num_prototypes'"),
    ],
)
def test_errors_come_before_anything_starts(base, tmp_path, capsys, words, said, unchecked):
    given = ("continue", base.folder, "--data", "handwriting", "--out", tmp_path / "a", "--workers", 0)
    assert command(*given, *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("missing", ["checkpoint", "data", "out"])
def test_what_is_missing_is_named(missing, capsys):
    given = {"checkpoint": ["x.pth"], "data": ["--data", "digits"], "out": ["--out", "y"]}
    del given[missing]
    assert command("continue", *(word for words in given.values() for word in words)) == 2
    assert missing.lower() in capsys.readouterr().err.lower()


def test_another_configuration_is_refused(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("method: swav\nlearning: 3\n")
    assert command("continue", "--config", tmp_path / "config.yaml") == 2
    assert "no configuration of prototile continue, it holds: learning" in capsys.readouterr().err
