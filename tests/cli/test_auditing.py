"""`prototile audit` and `prototile export`, as a user runs them."""

import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import prototile
from prototile.checkpoints import load
from prototile.cli import main
from prototile.cli.auditing import MEASURES, prior_of
from prototile.cli.encoding import crop_of, encoded, views_of
from prototile.data import Arrays
from prototile.data.subsets import some_of
from prototile.evaluation import Crop
from prototile.evaluation.records import FILE, append
from prototile.evaluation.stored import weights_hash
from prototile.priors import FromCounts, PowerLaw, Uniform
from prototile.training import Monitor
from prototile.training.auditing import EpochAudits
from record_cases import several
from training_cases import SIDE, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three epochs, watched and audited."""
    out = tmp_path_factory.mktemp("runs") / "run"
    monitor = Monitor(1)
    return train("vit", out, callbacks=[monitor, EpochAudits(out, monitor)])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(root / name / f"{i}.png")
    (root / "b" / "20.png").write_bytes(b"no image")
    return root


def command(*words):
    return main([str(word) for word in words])


def test_without_images(run, tmp_path, capsys):
    assert command("audit", run.folder, "--out", tmp_path / "a") == 0
    said = capsys.readouterr().out
    assert said.startswith("run: prototile (teacher")
    assert "unique prototypes (cls)" in said
    assert "epoch 3 (cls): " in said
    told = json.loads((tmp_path / "a" / "audit.json").read_text())
    prototypes = load(run.folder).heads["cls"].prototypes
    assert told["prototypes"]["cls"]["prototypes"] == len(prototypes.vectors)
    assert told["clusters"] == told["embeddings"] == {}
    assert "<h1>" in (tmp_path / "a" / "report.html").read_text()


def test_a_run_gets_its_page_itself(run):
    assert command("audit", run.folder, "--no-maps") == 0
    assert "What the features are worth" not in (run.folder / "report.html").read_text()


def test_the_page_of_a_run_has_its_evaluations(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    append(folder / FILE, *several())
    assert command("audit", folder, run.folder, "--no-maps", "--out", tmp_path / "a") == 0
    page = (tmp_path / "a" / "report.html").read_text()
    assert "What the features are worth" in page
    assert "<b>60.00 %</b>" in page


def test_with_images(run, images, tmp_path, capsys):
    given = ("--data", f"classes:{images}", "--cache", tmp_path / "cache", "--out", tmp_path / "a", "--workers", 0)
    assert command("audit", run.folder, *given, "--prior", "power-law:0.5") == 0
    told = json.loads((tmp_path / "a" / "audit.json").read_text())
    clusters = told["clusters"]["cls"]
    assert clusters["images"] == sum(clusters["sizes"]) == 40
    assert clusters["to_prior"] is not None
    assert clusters["labels"]["classes"] == 2
    assert set(told["embeddings"]) == {"features", "projections"}
    assert told["embeddings"]["features"]["alignment"] > 0
    page = (tmp_path / "a" / "report.html").read_text()
    assert "b/20.png" in page  # which could not be read
    assert "data:image/" in page
    assert len(list((tmp_path / "cache").iterdir())) == 1
    capsys.readouterr()
    assert command("audit", run.folder, *given) == 0  # from the cache
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_two_are_compared(run, images, tmp_path, capsys):
    given = ("--data", f"classes:{images}", "--cache", tmp_path / "cache", "--no-maps", "--views", 0, "--workers", 0)
    assert command("audit", run.folder, run.checkpoint, *given, "--out", tmp_path / "a") == 0
    told = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert [audit["name"] for audit in told["audits"]] == ["run", "last.ckpt"]
    change = told["comparison"]["changes"][0]
    assert (change["kind"], change["nmi"]) == ("images", pytest.approx(1))


def test_a_share_can_be_asked_for(run, tmp_path, capsys):
    assert command("audit", run.folder, "--out", tmp_path, "--no-maps", "--fail-under", "unique=0") == 0
    with torch.no_grad():
        same = load(run.folder).heads["cls"].prototypes.vectors
    broken = torch.load(run.checkpoint, weights_only=True)
    for name, x in broken["state_dict"].items():
        if "prototypes" in name and x.shape == same.shape:
            x.copy_(x[:1].expand_as(x))
    torch.save(broken, tmp_path / "copies.ckpt")
    capsys.readouterr()
    given = ("--out", tmp_path, "--no-maps", "--fail-under", "unique=0.5")
    assert command("audit", tmp_path / "copies.ckpt", *given) == 1
    assert "copies.ckpt: unique is 0." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fail-under", "unique"], "--fail-under takes NAME=SHARE with unique, used, effective, rankme"),
        (["--fail-under", "used=0.5"], "--fail-under used needs images: give them, --data"),
        (["--data", "digit"], "neither a data set nor a path"),
        (["--prior", "zipf", "--data", "handwriting", "--limit", "4"], "a prior is written uniform, power-law:0.25"),
        (["--temperature", "0"], "a temperature must be positive, got 0"),
        (["--data", "handwriting", "--limit", "1"], "needs two of them at least"),
        (["--epsilon", "3"], "epsilon"),
    ],
)
def test_bad_options(run, tmp_path, capsys, words, said):
    given = ("--out", tmp_path / "a", "--cache", tmp_path / "cache", "--views", 0, "--workers", 0, "--no-maps")
    assert command("audit", run.folder, *given, *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_bad_files(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no weights")
    for path in (tmp_path / "notes.txt", tmp_path / "nowhere.pth", tmp_path):
        assert command("audit", path, "--out", tmp_path / "a") == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "a").exists()


def test_measures_are_shares():
    assert list(MEASURES) == ["unique", "used", "effective", "rankme"]


def test_priors_in_words(tmp_path):
    (tmp_path / "counts.txt").write_text("3\n1\n")
    assert prior_of("uniform") == Uniform()
    assert prior_of("power-law:0.5") == PowerLaw(0.5)
    assert prior_of(f"counts:{tmp_path / 'counts.txt'}") == FromCounts([3, 1])
    with pytest.raises(ValueError, match="the exponent of power-law:x is no number"):
        prior_of("power-law:x")


def test_images_are_shown_as_the_run_has_seen_them(run):
    crop = crop_of(load(run.folder))
    assert crop.size == SIDE
    assert crop.normalization == run_normalization(run)
    assert crop_of(load(run.checkpoint)) == crop
    assert crop_of(load(run.folder), 8).size == 8


def run_normalization(run):
    told = json.loads((run.model / "config.json").read_text())["images"]
    return Crop(8).normalization.__class__(tuple(told["mean"]), tuple(told["std"]))


def test_projections_are_the_heads(run, tmp_path):
    source = Arrays(np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), np.uint8))
    imported, crop = load(run.folder), Crop(SIDE)
    found = encoded(imported, source, crop, cache=tmp_path, device=CPU, batch=4, workers=0)
    assert set(found.outputs) == {"features", "projections"}
    projected = imported.heads["cls"].projector(found.outputs["features"])
    torch.testing.assert_close(found.outputs["projections"], projected.detach())
    views = views_of(imported, source, crop, views=3, images=5, device=CPU)
    assert views["features"].shape[:2] == views["projections"].shape[:2] == (3, 5)


def test_some_images_are_drawn_and_kept_in_order():
    source = Arrays(np.zeros((50, 2, 2), np.uint8))
    drawn = some_of(source, 10, seed=1)
    numbers = [int(drawn.id(i).rpartition("/")[2]) for i in range(10)]
    assert numbers == sorted(set(numbers))
    assert numbers != list(range(10))
    assert some_of(source, None, 0) is some_of(source, 50, 0) is source


def test_weights_are_told_apart():
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert weights_hash(a) == weights_hash(a) != weights_hash(b)


def test_export(run, tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    assert command("export", run.folder, "--out", path) == 0
    code = capsys.readouterr().out.partition("timm's network for it:")[2]
    scope = {}
    exec(code, scope)
    x = torch.randn(2, 3, SIDE, SIDE)
    wanted = load(run.folder).backbone(x).pooled.detach()
    torch.testing.assert_close(scope["model"].eval()(x).detach(), wanted)
    assert command("export", run.folder, "--out", path) == 2
    assert "is there already" in capsys.readouterr().err
    assert command("export", run.folder, "--out", tmp_path / "a.onnx") == 0
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    np.testing.assert_allclose(session.run(None, {"images": x.numpy()})[0], wanted.numpy(), rtol=1e-3, atol=1e-5)
    assert command("export", run.folder, "--out", tmp_path / "a.bin") == 2
    assert "must end in one of .safetensors, .pth, .onnx" in capsys.readouterr().err


def test_from_python(run):
    found = prototile.audit_checkpoint(run.folder, maps=False)
    assert found.audit.prototypes["cls"].unique.count >= 1
    assert found.page.startswith("<!doctype html>")


def test_a_runs_own_softmax_is_looked_at(tmp_path):
    """vMF's normaliser is part of the assignments, though no weight tells of it."""
    config = {"method": {"class_path": "prototile.methods.dino", "init_args": {"vmf": True}}}
    run = train("vit", tmp_path / "run", limit_steps=1, config=config)
    head = load(run.folder).heads["cls"]
    assert head.prototypes.vmf
    assert load(train("vit", tmp_path / "other", limit_steps=1).folder).heads["cls"].prototypes.vmf is False
