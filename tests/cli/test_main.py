"""The command as users run it: help, lists, a whole run, going on with it."""

import json
import logging
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import prototile
from cli_cases import TINY
from prototile import recipes
from prototile.checkpoints.native import load_backbone
from prototile.cli import main
from started import script

COMMAND = Path(prototile.__file__).with_name("__main__.py")
RUN = TINY | {"epochs": 2, "workers": 0, "monitor_every": 2, "accelerator": "cpu", "views.augmentation.local_views": 1}


@pytest.fixture(scope="module", autouse=True)
def pictures(tmp_path_factory):
    """48 images of two classes: 6 batches."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir()
        for i in range(24):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / name / f"{i}.png")
    RUN["data"] = f"classes:{folder}"


def words(out, **changes) -> list[str]:
    return ["pretrain", *(f"--{name}={value}" for name, value in (RUN | {"out": str(out)} | changes).items())]


@pytest.fixture
def quiet():
    """What a command does to the package's messages is undone."""
    package = logging.getLogger("prototile")
    handlers, level = list(package.handlers), package.level
    yield
    package.handlers[:] = handlers
    package.setLevel(level)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"prototile {version('prototile')}"


def test_help_names_every_setting(capsys):
    from prototile.cli.running import train
    from prototile.cli.settings import options

    assert main(["pretrain", "--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"--{name} " in said for name in options(train))
    assert "--recipe digits-dino" in said
    assert max(map(len, said.splitlines())) <= 110
    assert main([]) == 0
    assert "prototile VERB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--method.help", "dino_vmf"], ["--method.student_temperature", "von Mises-Fisher", "EpochRamp: start=0.04"]),
        (["--method.help"], ["dino ", "data2vec", "Masked autoencoder"]),
        (["--method.backbone.help=vit"], ["--method.backbone.patch", "{tiny,small,base,large,huge,giant}"]),
        (["--views.help", "msn"], ["--views.focal_views", "(10)"]),
        (["--optimization.help"], ["--optimization.layer_decay", "{adamw,sgd,lars,larc}"]),
        (["--optimization.roles.help"], ["freeze_epochs"]),
        (["--method.prior.help", "PowerLaw"], ["--method.prior.exponent", "(0.25)"]),
    ],
)
def test_help_on_a_part(asked, said, capsys):
    assert main(["pretrain", *asked]) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in said)


def test_help_on_what_is_not_there(capsys):
    assert main(["pretrain", "--method.help", "dyno"]) == 2
    assert "there are: dino" in capsys.readouterr().err
    assert main(["pretrain", "--epochs.help"]) == 2
    assert "there is no help on 'epochs'" in capsys.readouterr().err


def test_recipes_are_listed_and_printed(capsys):
    assert main(["recipes"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name} " in said for name in recipes.names())
    assert "arXiv:2104.14294" in said
    assert main(["recipes", "swav-r50"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["epochs"] == 800


def test_print_config_is_a_recipe(tmp_path, capsys):
    assert main([*words(tmp_path / "run"), "--print_config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(printed)
    assert main(["pretrain", "--recipe", str(tmp_path / "again.yaml"), "--print_config"]) == 0
    assert capsys.readouterr().out == printed
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("quiet")
def test_a_run_in_python_is_the_same(tmp_path):
    run = prototile.pretrain(None, **(RUN | {"out": tmp_path / "a", "limit_steps": 2, "tensorboard": False}))
    assert run.steps == 2
    config = yaml.safe_load((tmp_path / "a" / "config.yaml").read_text())
    assert config["method"]["init_args"]["num_prototypes"] == 16
    again = prototile.pretrain(tmp_path / "a" / "config.yaml", out=tmp_path / "b", method={"num_prototypes": 16})
    first, second = run.method.state_dict(), again.method.state_dict()
    assert again.steps == 2
    assert all(torch.equal(x, second[name]) for name, x in first.items())
    with pytest.raises(FileExistsError, match="there is a run in"):
        prototile.pretrain(tmp_path / "a" / "config.yaml", out=tmp_path / "b")
    with pytest.raises(ValueError, match=r"there is no setting method\.num_prototype of dino"):
        prototile.pretrain(tmp_path / "a" / "config.yaml", out=tmp_path / "c", method={"num_prototype": 16})


@pytest.mark.slow
def test_a_run_and_going_on_with_it(tmp_path, start):
    """Begun as users do, in a fresh interpreter."""
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "prototile", *words(out, limit_steps=3)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "before training: kNN" in done.stderr
    assert "done: 3 steps" in done.stderr
    assert "litlogger" not in done.stderr
    names = {path.name.partition(".")[0] for path in out.iterdir()}
    assert names == {"config", "environment", "metrics", "train", "events", "checkpoints", "model"}
    assert load_backbone(out / "model").dims == 24
    refused = start(script, COMMAND, *words(out))
    assert refused.wait() == 2
    assert "resume goes on with it, overwrite removes it" in refused.stderr
    changed = start(script, COMMAND, *words(out, epochs=3), "--resume")
    assert changed.wait() == 2
    assert "epochs was 2 and is 3" in changed.stderr
    resumed = start(script, COMMAND, *words(out), "--resume")
    assert resumed.wait() == 0, resumed.stderr
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 12
    assert "Traceback" not in done.stderr + refused.stderr + changed.stderr


@pytest.mark.slow
def test_a_run_that_breaks_has_its_own_exit_code(tmp_path, start):
    changes = {"method": "simclr", "views.augmentation": "simclr", "optimization.lr.base": 1e30, "monitor_every": 0}
    given = [
        word for word in words(tmp_path / "run", **changes) if "num_prototypes" not in word and "local" not in word
    ]
    done = start(script, COMMAND, *given)
    assert done.wait() == 3
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_the_package_is_imported_without_what_is_heavy():
    code = "import sys, prototile; print(*{'timm', 'lightning', 'jsonargparse', 'sklearn'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
    assert callable(prototile.methods.dino)
    assert callable(prototile.backbones.vit)
    assert "pretrain" in dir(prototile)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        prototile.nothing  # noqa: B018
