"""Runs of one's own come out of the same `load` as others' checkpoints."""

import json

import pytest
import torch
from torch import nn

from method_cases import CASES, tiny_resnet, tiny_vit
from prototile.checkpoints import export, load
from prototile.training.finetuning import Classifier

DESCRIBED = {
    "class_path": "prototile.backbones.vit",
    "init_args": {"size": "tiny", "patch": 4, "image_size": 16, "dims": 24, "depth": 2, "heads": 2},
}


def checkpoint(method, name: str = "", options: dict | None = None) -> dict:
    """What Lightning keeps of a run, as far as it matters."""
    config = {"method": {"class_path": f"prototile.methods.{name}", "init_args": options or {}}} if name else {}
    return {
        "state_dict": {f"method.{key}": x for key, x in method.state_dict().items()},
        "epoch": 4,
        "global_step": 50,
        "optimizer_states": [{"state": {0: {"m": torch.zeros(2)}}}],
        "lr_schedulers": [],
        "prototile": {"settings": {"config": config}, "loader": {"step": 3}, "ranks": 1, "buffers": []},
    }


def saved(tmp_path, contents):
    torch.save(contents, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("described", [True, False], ids=["described", "made in Python"])
def test_every_method(tmp_path, name, described):
    method = CASES[name].make().eval()
    backbone = DESCRIBED
    if name == "data2vec":
        arguments = DESCRIBED["init_args"] | {"attention_drop": 0.0}
        backbone = {"class_path": "prototile.backbones.beit", "init_args": arguments}
    elif "ibot" in name or name == "dinov2":
        backbone = DESCRIBED | {"init_args": DESCRIBED["init_args"] | {"mask_token": True}}
    options = {"backbone": backbone, "student_temperature": 0.2} | ({"decoder_heads": 2} if name == "mae" else {})
    if not described:
        if name in ("swav", "excb", "data2vec", "mae") or not CASES[name].prototypes:
            pytest.skip("what activations, heads or norms they have, their weights do not tell")
        for module in method.modules():  # which the weights do not tell either
            if hasattr(module, "num_heads"):
                module.num_heads, module.head_dim, module.scale = 1, 24, 24**-0.5
    path = saved(tmp_path, checkpoint(method, name, options) if described else checkpoint(method))
    found = load(path)
    assert found.layout == "prototile"
    assert found.epoch == 4
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        features = found.backbone(images)
        torch.testing.assert_close(features.pooled, method.backbone(images).pooled)
        if not CASES[name].prototypes:
            return
        network = method.teacher if method.teacher is not None else method.student
        rows = features.pooled
        expected = network.head.prototypes(network.head.projector(rows), 0.1).probabilities()
        torch.testing.assert_close(found.heads["cls"](rows, 0.1).probabilities(), expected)
        assert set(found.heads) == ({"cls"} if network.patch_head is None else {"cls", "patches"})
        if network.patch_head is not None:
            patches = features.patches.flatten(0, 1)
            expected = network.patch_head.prototypes(network.patch_head.projector(patches), 0.1).probabilities()
            torch.testing.assert_close(found.heads["patches"](patches, 0.1).probabilities(), expected)
    assert found.temperature == (0.2 if described else None)


def test_student_and_teacher(tmp_path):
    method = CASES["dino"].make()
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.add_(0.1)
    path = saved(tmp_path, checkpoint(method, "dino", {"backbone": DESCRIBED}))
    assert load(path).network.startswith("teacher")
    student, teacher = (load(path, network=name).backbone.vit.cls_token for name in ("student", "teacher"))
    torch.testing.assert_close(teacher, student + 0.1)


def test_a_run_without_a_teacher_is_its_student(tmp_path):
    method = CASES["simclr"].make(tiny_resnet())
    described = {"class_path": "prototile.backbones.resnet", "init_args": {"name": "resnet18", "stem": "cifar"}}
    found = load(saved(tmp_path, checkpoint(method, "simclr", {"backbone": described, "temperature": 0.3})))
    assert found.network.startswith("student")
    assert found.temperature == 0.3
    assert found.projector is not None


@pytest.mark.parametrize("described", [True, False], ids=["described", "made in Python"])
@pytest.mark.parametrize("projected", [True, False])
def test_what_was_fine_tuned_is_a_backbone(tmp_path, described, projected):
    backbone = tiny_resnet()
    classifier = Classifier(backbone, 3, projection=nn.Linear(backbone.dims, 5) if projected else None).eval()
    contents = checkpoint(classifier)
    if described:
        resnet = {"class_path": "prototile.backbones.resnet", "init_args": {"name": "resnet18", "stem": "cifar"}}
        contents["prototile"]["settings"]["config"] = {"method": {"init_args": {"backbone": resnet}}}
    found = load(saved(tmp_path, contents))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(found.backbone(images).pooled, backbone(images).pooled)
    assert (found.heads, found.projector, found.layout) == ({}, None, "prototile")
    assert "only: it was fine-tuned on labels" in found.network
    assert any(x.startswith("method.head.weight and 1 more") for x in found.ignored)
    with pytest.raises(ValueError, match="there is no teacher in this file of prototile"):
        load(tmp_path / "last.ckpt", network="teacher")
    contents["state_dict"]["method.other"] = torch.zeros(2)
    with pytest.raises(ValueError, match=r"1 keys of its network are not known: method\.other"):
        load(saved(tmp_path, contents))


def test_a_damaged_run(tmp_path):
    contents = checkpoint(CASES["dino"].make(), "dino", {"backbone": DESCRIBED})
    del contents["state_dict"]["method.teacher.head.projector.2.weight"]
    with pytest.raises(ValueError, match="looks like a file of prototile"):
        load(saved(tmp_path, contents))


@pytest.mark.parametrize("value", [10**9, -(10**9)])
@pytest.mark.parametrize("name", ["depth", "dims", "image_size"])
def test_a_description_of_what_nobody_builds(tmp_path, name, value):
    described = DESCRIBED | {"init_args": DESCRIBED["init_args"] | {name: value}}
    with pytest.raises(ValueError, match=f"says {name} = "):
        load(saved(tmp_path, checkpoint(CASES["dino"].make(), "dino", {"backbone": described})))


def test_a_description_of_something_else(tmp_path):
    described = {"class_path": "os.system", "init_args": {"command": "true"}}
    with pytest.raises(ValueError, match=r"a backbone is described by a `class_path` inside prototile\.backbones"):
        load(saved(tmp_path, checkpoint(CASES["dino"].make(), "dino", {"backbone": described})))


def test_what_a_run_exports(tmp_path):
    method = CASES["dino"].make(gain="learned")
    export(method, tmp_path / "model", DESCRIBED)
    for path in (tmp_path, tmp_path / "model", tmp_path / "model" / "model.safetensors"):
        found = load(path)
        images = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(found.backbone(images).pooled, method.backbone.eval()(images).pooled)
        head = found.heads["cls"]
        torch.testing.assert_close(head.prototypes.weights(), method.student.head.prototypes.weights())
        with pytest.raises(ValueError, match="prototypes without a projector"):
            head(torch.zeros(1, 24), 0.1)
    with pytest.raises(ValueError, match="holds the evaluated backbone only"):
        load(tmp_path, network="student")


def test_an_export_that_does_not_say_how_it_was_built(tmp_path):
    export(CASES["dino"].make(tiny_vit()), tmp_path)
    found = load(tmp_path)
    assert found.backbone is None
    assert "does not say how to build" in found.ignored[0]
    assert set(found.heads) == {"cls"}


def test_a_checkpoint_stands_before_an_export(tmp_path):
    method = CASES["dino"].make()
    export(method, tmp_path / "model", DESCRIBED)
    (tmp_path / "checkpoints").mkdir()
    saved(tmp_path / "checkpoints", checkpoint(method, "dino", {"backbone": DESCRIBED}))
    assert load(tmp_path).heads["cls"].projector is not None


def test_a_damaged_export(tmp_path):
    export(CASES["dino"].make(), tmp_path, DESCRIBED)
    (tmp_path / "config.json").write_text(json.dumps({"format": 7, "backbone": DESCRIBED}))
    with pytest.raises(ValueError, match="has format 7"):
        load(tmp_path)
    for text in ("{", "[1]", '{"backbone": 3}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"config.json"):
            load(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "prototypes.safetensors"])
def test_an_export_that_is_cut_off(tmp_path, name):
    export(CASES["dino"].make(), tmp_path, DESCRIBED)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        load(tmp_path)
