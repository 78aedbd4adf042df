"""Runs to go on from."""

import pytest
import torch

from continuing_cases import SWAV
from prototile.backbones import resnet
from prototile.methods import swav
from prototile.training.run import fit
from training_cases import loader, train


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run of this package that was made in Python."""
    return train("vit", tmp_path_factory.mktemp("runs") / "vit")


@pytest.fixture(scope="session")
def swav_run(tmp_path_factory):
    """A run that says which method it is of, and not how its backbone was built."""
    torch.manual_seed(0)
    backbone = resnet("resnet18", stem="cifar", width=4)
    method = swav(backbone, num_prototypes=12, hidden=16, bottleneck=8, queue=32, queue_from=1)
    out = tmp_path_factory.mktemp("runs") / "swav"
    config = {"method": {"class_path": "prototile.methods.swav", "init_args": {}}}
    batches = loader("swav")
    return fit(method, batches, optimization=SWAV, epochs=3, out=out, accelerator="cpu", config=config)
