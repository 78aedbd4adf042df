"""Parts that a file lacks."""

import pytest
import torch

from continuing_cases import SIZE, drawn, going_on, saved, weights_of
from foreign_cases import CASES, _simsiam, filled, vit
from prototile.backbones import ViT
from prototile.backbones import vit as backbone_vit
from prototile.checkpoints import load
from prototile.evaluation import Crop
from prototile.methods import Prototypical, dino
from prototile.sphere import normalize
from prototile.training.continuing import (
    Bench,
    restore,
)
from prototile.training.continuing.rebuilding import Unfreezing, start_prototypes_
from training_cases import SIDE

REBUILT = {"num_prototypes": 6, "hidden": 16, "bottleneck": 8}


def test_missing_heads_are_rebuilt_and_said(tmp_path):
    path = saved(tmp_path, filled(vit()))
    result = going_on(path, tmp_path / "run", options=REBUILT, epochs=1, limit_steps=3)
    assert result.rebuilt == ("projector", "prototypes")
    assert "the file has no projector, no prototypes: rebuilt" in result.said[0]
    assert "afresh" in result.said[-1]
    base = load(path).backbone
    assert isinstance(base, ViT)
    found = weights_of(tmp_path / "run")
    for network in ("student", "teacher"):  # the warm-up has three steps
        mine = {k.removeprefix(f"{network}.backbone."): x for k, x in found.items() if f"{network}.backbone" in k}
        assert all(torch.equal(x, mine[name]) for name, x in base.state_dict().items())
    assert not torch.equal(found["student.head.projector.0.weight"], found["teacher.head.projector.0.weight"])


def test_after_the_warm_up_the_backbone_learns(tmp_path):
    path = saved(tmp_path, filled(vit()))
    options = REBUILT | {"hidden": 16}
    result = going_on(path, tmp_path / "run", options=options, epochs=1, stages=1, keep="last", lr=0.01)
    assert (result.epochs, result.steps) == (2, 6)
    base, found = load(path).backbone.state_dict(), weights_of(tmp_path / "run")
    assert any(not torch.equal(x, found[f"student.backbone.{name}"]) for name, x in base.items())


def test_layers_wake_from_the_last_on():
    method = dino(backbone_vit("tiny", patch=4, image_size=SIDE, dims=16, depth=5, heads=2), num_prototypes=4, hidden=8)
    waking = Unfreezing(warmup=2, stages=3)
    layers = method.backbones[0].layers
    assert len(layers) == 6
    for epoch, count in enumerate([6, 6, 4, 2, 0, 0]):
        student, teacher = waking.resting(method, epoch)
        assert (len(student), len(teacher)) == (count, count)
        resting = {p for layer in student for p in layer.parameters()}
        assert resting == {p for layer in layers[:count] for p in layer.parameters()}


def test_new_prototypes_lie_where_images_do(tmp_path):
    restored = restore(saved(tmp_path, filled(vit())), options=REBUILT)
    method = restored.method
    assert isinstance(method, Prototypical)
    start_prototypes_(method, drawn(), Crop(SIZE), restored.rebuilt)
    prototypes = method.student.head.prototypes.directions()
    assert torch.equal(method.teacher.head.prototypes.directions(), prototypes)
    bench = Bench.of(drawn(), None, Crop(SIZE), "hypersphere")
    _, rows, _ = bench._encoded(method, drawn())
    nearest = (normalize(rows) @ prototypes.T).max(1)
    assert set(nearest.indices.tolist()) == set(range(6))  # none is empty
    random = normalize(torch.randn(6, 8))
    assert nearest.values.mean() > (normalize(rows) @ random.T).max(1).values.mean() + 0.1


def test_too_few_images_for_prototypes(tmp_path):
    restored = restore(saved(tmp_path, filled(vit())), options=REBUILT | {"num_prototypes": 61})
    with pytest.raises(ValueError, match=r"61 prototypes cannot be started from 60 images: give more"):
        start_prototypes_(restored.method, drawn(), Crop(SIZE), restored.rebuilt)


def test_a_missing_predictor_alone_is_rebuilt(tmp_path):
    contents = _simsiam()
    state = {name: x for name, x in contents["state_dict"].items() if "predictor" not in name}
    assert len(state) < len(contents["state_dict"])
    restored = restore(saved(tmp_path, CASES["vicreg"][0]()), method="simsiam")
    assert restored.rebuilt == ("predictor",)
    assert restored.method.student.predictor[0].in_features == 10
