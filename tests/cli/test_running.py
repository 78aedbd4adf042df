"""What is looked at before anything starts: an error of one line, exit code 2, and nothing written."""

import pytest

from cli_cases import TINY
from prototile.cli import main


def words(out, **changes):
    settings = TINY | {"out": str(out)} | {name.replace("__", "."): value for name, value in changes.items()}
    return ["pretrain", *(f"--{name}={value}" for name, value in settings.items() if value is not None)]


TINY_VIT = "{class_path: vit, init_args: {size: tiny, patch: 8, image_size: 32, dims: 24, depth: 1, heads: 2}}"
BEIT = "{class_path: beit, init_args: {size: tiny, patch: 8, image_size: 224, dims: 24, depth: 1, heads: 2}}"
BAD = {
    "a wrong name": ({"epochz": 1}, "there is no setting epochz; there are: epochs"),
    "missing data": ({"data": "folder:nowhere"}, "nowhere"),
    "a missing set": ({"data": "cifar10:nowhere"}, "nowhere"),
    "a wrong split": ({"split": "dev"}, "train, test"),
    "too large a batch": ({"batch": 20000}, "10000 images are less than one batch of 20000"),
    "no batch": ({"batch": 0}, "batch must be at least 1"),
    "ranks": ({"devices": 3, "accelerator": "cpu"}, "3 ranks cannot share a batch of 8 equally: give 6 or 9"),
    "a method without patches": (
        {"method": "ibot", "method.backbone": "{class_path: resnet, init_args: {name: resnet18}}"},
        "iBOT works on patches, and a ResNet has none",
    ),
    "no mask token": ({"method": "ibot", "method.backbone": TINY_VIT, "views.augmentation": "ibot"}, "mask"),
    "views of another method": ({"method": "msn", "views.augmentation": "simclr"}, "one of anchors"),
    "patches of masks": ({"method": "msn", "views.augmentation": "msn", "views.patch": 4}, "masked in patches of 4"),
    "sizes": ({"views.local_size": 12}, "12"),
    "a role that is not there": (
        {"method": "simclr", "views.augmentation": "simclr", "optimization.roles": "{prototypes: {freeze_epochs: 1}}"},
        "has no such part",
    ),
    "two samplers": ({"classes_per_batch": 2, "class_power": 0.5}, "give one of them"),
    "an uneven sampler": ({"classes_per_batch": 3}, "use a batch_size of 6 or 9"),
    "a bad value": ({"optimization.clip": -1}, "must be positive"),
    "both": ({"resume": "true", "overwrite": "true"}, "either resumed or overwritten"),
    "a bad prior": ({"method.prior": "PowerLaw", "method.prior.exponent": -1}, "exponent of a power law"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_before_anything_starts(case, tmp_path, capsys):
    changes, said = BAD[case]
    if "method" in changes and "method.backbone" not in changes:
        changes = changes | {"method.backbone": TINY_VIT, "method.backbone.heads": None, "method.num_prototypes": None}
    if "method.backbone" in changes:
        changes = changes | {"method.backbone.heads": None, "method.num_prototypes": None}
    assert main(words(tmp_path / "run", **changes)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("unchecked")
def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(words(tmp_path / "file" / "run")) == 2
    assert "is a file, and the run needs a folder" in capsys.readouterr().err


@pytest.mark.usefixtures("unchecked")
def test_debug_shows_where(tmp_path):
    with pytest.raises(ValueError, match="there is no setting"):
        main([*words(tmp_path / "run", epochz=1), "--debug"])


def test_an_unknown_recipe(capsys):
    assert main(["pretrain", "--recipe", "digit-dino", "--out", "x"]) == 2
    assert "did you mean digits-dino" in capsys.readouterr().err


def test_an_unknown_verb(capsys):
    assert main(["pretrian"]) == 2
    assert "there are demo, recipes, pretrain, continue, audit" in capsys.readouterr().err
