"""`prototile finetune`, from Python and from a command line."""

import json

import numpy as np
import pytest
import torch

from evaluation_cli_cases import resnet_checkpoint
from finetuning_cases import RESNET, SIZE, VIT, checkpoint, vit_recipe
from prototile.backbones import ViT
from prototile.checkpoints import load
from prototile.cli.auditing import audit_checkpoint
from prototile.cli.encoding import crop_of
from prototile.cli.evaluating import evaluate
from prototile.cli.finetuning import finetune_checkpoint
from prototile.cli.main import main
from prototile.data import handwriting
from prototile.evaluation import records
from prototile.reports.evaluations import by_checkpoint, render_evaluations
from prototile.training.checkpointing import read
from prototile.training.continuing import restore

QUICK = {"accelerator": "cpu", "workers": 0, "print_every": 10_000}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("vit"), VIT, vit_recipe())


def test_from_a_command_line(vit, tmp_path, capsys):
    words = f"finetune {vit} --data handwriting --out {tmp_path} --recipe semi-vicreg-10 --epochs 2 --batch 50 "
    words += "--seeds 1 2 --set flip=0.0 --workers 0 --accelerator cpu"
    assert main(words.split()) == 0
    record = json.loads((tmp_path / "finetuned.json").read_text())
    said = capsys.readouterr()
    assert f"the record is {tmp_path / 'finetuned.json'}, and a line of {vit / 'evaluations.jsonl'}" in said.out
    assert said.out.startswith("semi-vicreg-10: top1 ")
    assert "epoch 2, test: top1 " in said.err
    assert (record["recipe"], record["seeds"], record["n"], record["train_images"]) == (
        "semi-vicreg-10",
        [1, 2],
        497,
        130,
    )
    used = record["settings"]["recipe"]
    assert (used["epochs"], used["batch"], used["flip"], used["size"], used["smallest_crop"]) == (2, 50, 0.0, SIZE, 0.3)
    assert record["settings"]["hashes"].keys() == {"weights", "train", "test"}
    assert record["settings"]["packages"]["torch"] == torch.__version__.split("+")[0]
    labels = handwriting().labels
    assert labels is not None
    assert record["train_images"] == sum(max(1, round(0.1 * n)) for n in np.bincount(labels))


def test_the_record_is_one_of_the_evaluations(tmp_path):
    """Once, although the call is resumed; beside those of frozen features, for the same images."""
    options = {"data": "handwriting", "settings": {"epochs": 1, "batch": 50, "size": 16}, **QUICK}
    path, out = resnet_checkpoint(tmp_path), tmp_path / "out"
    found = finetune_checkpoint(path, out=out, **options)
    finetune_checkpoint(path, out=out, resume=True, **options)
    (line,) = records.read(out / "evaluations.jsonl")
    assert (line.protocol, line.value, line.values, line.seeds) == ("finetune, plain", found.value, found.values, (0,))
    assert (line.data["name"], line.data["train"], line.data["test"], line.images) == ("handwriting", 1300, 497, 497)
    (probed,) = evaluate(path, data="handwriting", protocols=["probe"], workers=0, cache=tmp_path, out=out)
    assert line.checkpoint["weights"] == probed.checkpoint["weights"]
    assert (line.checkpoint["name"], line.checkpoint["layout"]) == ("resnet.pth", "SimSiam")
    assert line.data["test hash"] == probed.data["test hash"]
    assert line.versions["torch"] == torch.__version__
    assert line.seconds > 0
    page = render_evaluations(by_checkpoint(records.read(out / "evaluations.jsonl")))
    assert page.count('<section id="data-') == 1
    finetune_checkpoint(path, out=out, seeds=(1,), **options)
    assert [x.seeds for x in records.read(out / "evaluations.jsonl")] == [(0,), (0,), (1,)]


def test_what_was_fine_tuned_is_a_checkpoint(vit, tmp_path):
    record = finetune_checkpoint(vit, data="handwriting", out=tmp_path, settings={"epochs": 1, "batch": 50}, **QUICK)
    assert record.select_on == "given"
    found = load(tmp_path / "seed-0" / "model").backbone
    assert isinstance(found, ViT)
    trained = read(tmp_path / "seed-0" / "checkpoints" / "last.ckpt")["state_dict"]
    assert torch.equal(found.vit.cls_token, trained["method.encoder.vit.cls_token"])
    before = load(vit).backbone
    assert isinstance(before, ViT)
    assert not torch.equal(found.vit.cls_token, before.vit.cls_token)
    for path in (tmp_path / "seed-0", tmp_path / "seed-0" / "checkpoints" / "last.ckpt"):
        weights = load(path).backbone.state_dict()
        assert all(torch.equal(x, weights[name]) for name, x in found.state_dict().items())
        assert crop_of(load(path)).size == SIZE
        assert audit_checkpoint(path, maps=False).audit.prototypes == {}
        with pytest.raises(ValueError, match=r"does not tell its method: say which one shall go on"):
            restore(path)
        restored = restore(path, method="simclr", options={"hidden": 8, "bottleneck": 4})
        assert torch.equal(restored.method.student.backbone.vit.cls_token, found.vit.cls_token)
        assert (restored.rebuilt, restored.optimizer, restored.optimization) == (("projector",), None, None)
    (probed,) = evaluate(tmp_path / "seed-0", data="handwriting", protocols=["probe"], workers=0, cache=tmp_path)
    assert probed.value > 0.2
    with pytest.raises(ValueError, match=f"or {tmp_path / 'seed-0'}, a run that is in it"):
        load(tmp_path)


def test_what_others_have_made_is_a_checkpoint_when_it_is_fine_tuned(tmp_path):
    """Although their files do not say how to build their networks."""
    options = {"settings": {"epochs": 1, "batch": 50, "size": 16}, **QUICK}
    finetune_checkpoint(resnet_checkpoint(tmp_path), data="handwriting", out=tmp_path / "run", **options)
    run = tmp_path / "run" / "seed-0"
    weights = [load(path).backbone.state_dict() for path in (run / "model", run / "checkpoints" / "last.ckpt")]
    assert all(torch.equal(x, weights[1][name]) for name, x in weights[0].items())


def test_a_list_of_images(vit, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("".join(f"handwriting/train/{i}\n" for i in range(0, 120, 2)) + "\n")
    options = {"ids": ids, "settings": {"epochs": 1, "batch": 20}, "recipe": "semi-vicreg-1", **QUICK}
    assert finetune_checkpoint(vit, data="handwriting", out=tmp_path / "run", **options).train_images == 60


def test_a_recipe_of_ones_own(vit, tmp_path):
    record = finetune_checkpoint(vit, data="handwriting", out=tmp_path, recipe=vit_recipe(1), **QUICK)
    assert record.recipe == "own"
    assert record.settings["recipe"]["smallest_crop"] == 0.6


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipe": "semi-vicregg-1"}, "did you mean 'semi-vicreg-1'"),
        ({"settings": {"epoch": 3}}, "a recipe has no epoch: it has batch, "),
        ({"recipe": "semi-ibot-10", "settings": {"epochs": 1}}, "the checkpoint holds no projector"),
        ({"test_split": "valid"}, "split"),
        ({"split": "test", "test_split": "test"}, "cannot be the split to train on and the one to test on"),
        ({"settings": {"epochs": 1, "batch": 5000}}, "1300 images are less than one batch of 5000"),
    ],
)
def test_what_cannot_be(vit, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        finetune_checkpoint(vit, data="handwriting", out=tmp_path, **(QUICK | options))
    assert not list(tmp_path.iterdir())


def test_a_folder_has_no_test_split_by_name(vit, tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
    from PIL import Image

    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / name / "1.png")
    with pytest.raises(ValueError, match="no test split that is known by name: give the images to test on"):
        finetune_checkpoint(vit, data=f"classes:{tmp_path / 'data'}", out=tmp_path / "run", **QUICK)


def test_errors_of_a_command_line(vit, tmp_path, capsys):
    words = ["finetune", str(vit), "--data", "handwriting", "--out", str(tmp_path), "--set", "flip"]
    assert main(words) == 2
    assert "--set takes FIELD=VALUE, got 'flip'" in capsys.readouterr().err


@pytest.mark.slow
def test_from_the_first_layer_of_a_projector(tmp_path):
    """Of a run's checkpoint: pre-trained for a moment, then iBOT's recipe."""
    from prototile import pretrain

    changes = {"epochs": 1, "probe_every": 0, "tensorboard": False, "accelerator": "cpu", "workers": 0}
    run = pretrain("digits-dino", out=tmp_path / "run", limit_steps=2, batch=64, **changes)
    settings = {"epochs": 1, "batch": 64, "repeats": 1, "final_lr": 0.0, "start_lr": 0.0}
    options = {"recipe": "semi-ibot-10", "settings": settings, **QUICK}
    record = finetune_checkpoint(run.folder, data="handwriting", out=tmp_path / "fine", **options)
    assert record.settings["recipe"]["projection"]
    weights = read(tmp_path / "fine" / "seed-0" / "checkpoints" / "last.ckpt")["state_dict"]
    assert weights["method.head.weight"].shape[1] == weights["method.projection.0.weight"].shape[0]


def test_residual_networks(tmp_path):
    path = checkpoint(tmp_path / "start", RESNET, vit_recipe())
    options = {"recipe": "semi-swav-1", "settings": {"epochs": 1, "batch": 10}, **QUICK}
    record = finetune_checkpoint(path, data="handwriting", out=tmp_path / "run", **options)
    assert record.train_images == 10  # one of each class: 1% of about 130
