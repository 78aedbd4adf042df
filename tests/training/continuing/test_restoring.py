"""What a file holds is what goes on; files that cannot; the optimiser's memory."""

from dataclasses import replace

import pytest
import torch

from continuing_cases import END, SIZE, SWAV, TEMPERATURE, batch_for, going_on, saved, weights_of
from foreign_cases import CASES, _vicreg
from prototile.backbones import resnet
from prototile.checkpoints import export, load, native
from prototile.methods import JointEmbedding, swav
from prototile.schedules import Constant, Progress
from prototile.training.continuing import (
    planned,
    restore,
)
from prototile.training.continuing.criteria import add_
from prototile.training.continuing.described import describe
from prototile.training.continuing.rebuilding import take_state_
from prototile.training.run import fit
from training_cases import CASES as RUNS
from training_cases import loader

# file -> the method that goes on, and whether the file has a teacher
METHODS = {
    "vicreg": ("vicreg", False),
    "simsiam": ("simsiam", False),
    "swav": ("swav", False),
    "deepcluster-v2": ("swav", False),
    "solo-learn swav": ("swav", False),
    "vissl swav": ("swav", False),
    "dino vit": ("dino", True),
    "dino resnet, batch norm in the head": ("dino", True),
    "ibot vit, separate prototypes": ("ibot", True),
    "ibot swin": ("ibot", True),
    "esvit swin": ("esvit", True),
    "esvit resnet": ("dino", True),
    "dinov2, blocks in chunks, gated, two heads": ("dinov2", False),
    "msn": ("msn", True),
    "excb vit": ("excb", True),
    "excb resnet": ("excb", True),
    "solo-learn dino": ("dino", True),
    "lightly msn": ("msn", True),
    "lightly swav": ("swav", False),  # with a bias of its prototypes
}


@pytest.mark.parametrize("case", METHODS)
def test_what_the_file_holds_goes_on(case, tmp_path):
    name, taught = METHODS[case]
    path = saved(tmp_path, CASES[case][0]())
    restored = restore(path)
    assert (restored.name, restored.rebuilt) == (name, ())
    kinds = ("student", "teacher") if taught else ("evaluated", "evaluated")
    files = [load(path, network=kind) for kind in kinds[: len(restored.method.backbones)]]
    method = restored.method.eval()
    networks = [method.student] if isinstance(method, JointEmbedding) or method.teacher is None else None
    networks = [method.student, method.teacher] if networks is None else networks
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        for network, file in zip(networks, files, strict=True):
            features = file.backbone(images)
            found = network.backbone(images)
            assert torch.equal(found.pooled, features.pooled)
            if isinstance(method, JointEmbedding):
                projected = file.projector(features.pooled)
                assert torch.equal(network.projector(found.pooled), projected)
                if file.predictor is not None:
                    assert torch.equal(network.predictor(projected), file.predictor(projected))
                continue
            rows, head = network.head.projector(found.pooled), file.heads["cls"]
            assert torch.equal(rows, head.projector(features.pooled))
            wanted = head.prototypes(rows, TEMPERATURE).probabilities()
            assert torch.equal(network.head.prototypes(rows, TEMPERATURE).probabilities(), wanted)
            if name == "excb":
                assert torch.equal(network.head.predictor(rows), file.predictor(rows))
            if network.patch_head is not None:
                rows = features.patches.flatten(0, 1)
                wanted = file.heads["patches"](rows, TEMPERATURE).probabilities()
                assert torch.equal(network.patch_head(rows, TEMPERATURE).probabilities(), wanted)
    method.train()
    criterion = "e2mc"
    add_(method, criterion, name)
    terms = method(batch_for(name, method.backbones[0].patch).views, Progress(0, 10))
    assert {"e2mc"} <= set(terms.parts)
    terms.loss.backward()
    student = {name: p for name, p in method.named_parameters() if p.requires_grad}
    silent = [name for name, p in student.items() if p.grad is None or not p.grad.any()]
    assert all(name.startswith("student.") for name in student)
    assert all("mask_token" in name or "patch_embed" in name for name in silent), silent  # of BEiT-like padding only


def test_a_bias_of_prototypes_goes_on_and_learns(tmp_path):
    """From the file into the run, from that into its checkpoint, and from there on again."""
    contents = CASES["lightly swav"][0]()
    bias = contents["state_dict"]["prototypes.heads.0.bias"]
    path = saved(tmp_path, contents)
    method = restore(path).method
    assert torch.equal(method.student.head.prototypes.bias, bias)
    going_on(path, tmp_path / "run", keep="last", epochs=1)
    learned = weights_of(tmp_path / "run")["student.head.prototypes.bias"]
    assert not torch.equal(learned, bias)
    again = restore(tmp_path / "run")
    assert torch.equal(again.method.student.head.prototypes.bias, learned)
    assert torch.equal(load(tmp_path / "run").heads["cls"].prototypes.bias, learned)


def test_a_centre_goes_on(tmp_path):
    contents = CASES["dino vit"][0]()
    contents["dino_loss"]["center"] = torch.arange(12.0)[None]
    method = restore(saved(tmp_path, contents)).method
    assert torch.equal(method.objectives[0].balancer.center, torch.arange(12.0, dtype=torch.float64))


def test_sizes_of_clusters_go_on(tmp_path):
    contents = CASES["excb vit"][0]()
    contents["criterion"]["center"] = torch.arange(12.0)[None]
    sizes = restore(saved(tmp_path, contents)).method.objectives[0].balancer.sizes
    assert torch.allclose(sizes, torch.arange(12.0, dtype=torch.float64) / 66)


def test_schedules_stand_where_training_left_them(tmp_path):
    method = restore(saved(tmp_path, CASES["dino vit"][0]())).method
    assert method.objectives[0].temperatures.teacher == Constant(0.07)
    assert method.momentum == Constant(0.996)


def test_a_teacher_alone_becomes_both(tmp_path):
    restored = restore(saved(tmp_path, CASES["dinov2, blocks in chunks, gated, two heads"][0]()))
    student, teacher = restored.method.student.state_dict(), restored.method.teacher.state_dict()
    assert restored.network == "teacher"
    assert all(torch.equal(x, teacher[name]) for name, x in student.items())


@pytest.mark.parametrize("which", ["run", "swav_run"])
def test_a_run_goes_on_with_its_whole_state(which, request):
    run = request.getfixturevalue(which)
    restored = restore(run.folder)
    assert restored.name == ("dino" if which == "run" else "swav")
    old, new = run.method.state_dict(), restored.method.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)
    made = RUNS["vit"][2] if which == "run" else SWAV
    plan = planned(restored)
    assert plan.optimizer == made.optimizer
    assert plan.lr(END) == pytest.approx(0.01 * made.lr.base)
    assert plan.weight_decay(END) == made.weight_decay(END)
    assert not any(role.freeze_epochs or role.freeze_steps for role in plan.roles.values())
    assert restored.optimizer is not None


def test_exported_weights_of_a_backbone_without_description(run):
    with pytest.raises(ValueError, match="holds no backbone that can be built here"):
        restore(run.model)


def test_exported_prototypes_lack_their_projector(run, tmp_path):
    export(run.method, tmp_path, describe(run.method.backbone))
    restored = restore(tmp_path, method="dino", options={"num_prototypes": 6, "hidden": 16, "bottleneck": 8})
    assert restored.rebuilt == ("projector", "prototypes")
    assert "prototypes without the projector that leads to them: both are made anew" in restored.said[0]


@pytest.mark.parametrize("case", ["swav", "dino vit", "ibot swin", "dinov2 with registers", "solo-learn swav"])
def test_described_backbones_are_the_same(case, tmp_path):
    backbone = load(saved(tmp_path, CASES[case][0]())).backbone
    built = native.build(describe(backbone)).eval()
    built.load_state_dict(backbone.state_dict())
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert torch.equal(built(images).pooled, backbone(images).pooled)


def test_runs_made_in_python_get_their_method_s_activation(tmp_path):
    torch.manual_seed(0)
    method = swav(resnet("resnet18", stem="cifar", width=4), num_prototypes=12, hidden=16, bottleneck=8)
    fit(method, loader("swav"), optimization=SWAV, epochs=1, out=tmp_path, accelerator="cpu", limit_steps=1)
    restored = restore(tmp_path)
    assert "by its parts, it was taken for swav" in restored.said
    rows = torch.randn(5, 32)
    with torch.no_grad():
        projected = restored.method.student.head.projector.eval()(rows)
        assert torch.equal(projected, method.student.head.projector.eval()(rows))


def test_the_optimiser_goes_on_where_its_state_fits(run):
    restored = restore(run.folder)
    optimizer = planned(restored).build(restored.method, 8)
    said = take_state_(optimizer, restored.method, restored.optimizer)
    listed = [i for group in restored.optimizer["param_groups"] for i in group["params"]]
    assert said == f"the optimiser goes on with the file's state of {len(listed)} tensors"
    mine = [p for group in optimizer.param_groups for p in group["params"]]
    for i, p in zip(listed, mine, strict=True):
        assert torch.equal(optimizer.state[p]["exp_avg"], restored.optimizer["state"][i]["exp_avg"])


def test_official_momentum_fits_in_the_order_of_parameters(tmp_path):
    contents = _vicreg()
    method = restore(saved(tmp_path, contents)).method
    parameters = [p for p in method.parameters() if p.requires_grad]
    contents["optimizer"] = {
        "state": {i: {"mu": torch.full_like(p, i)} for i, p in enumerate(parameters)},
        "param_groups": [{"params": list(range(len(parameters)))}],
    }
    restored = restore(saved(tmp_path, contents))
    optimizer = planned(restored).build(restored.method, 512)
    assert "goes on" in take_state_(optimizer, restored.method, restored.optimizer)
    for i, p in enumerate(p for p in restored.method.parameters() if p.requires_grad):
        assert bool((optimizer.state[p]["momentum_buffer"] == i).all())
    adam = replace(planned(restored), optimizer="adamw").build(restored.method, 512)
    assert "afresh" in take_state_(adam, restored.method, restored.optimizer)
    assert not adam.state
    contents["optimizer"]["state"][0]["mu"] = torch.zeros(3)
    optimizer = planned(restored).build(restored.method, 512)
    assert "of other parameters" in take_state_(optimizer, restored.method, contents["optimizer"])
    assert not optimizer.state


@pytest.mark.parametrize(
    ("case", "given", "said"),
    [
        ("resnet alone", {}, "does not tell its method: say which one shall go on"),
        ("mae", {}, "MAE has no projector to spread"),
        ("esvit cvt", {}, "holds no backbone that can be built here: nothing to go on with"),
        ("dino vit", {"method": "mae"}, "there is no method 'mae' to go on with; there are: dino"),
        ("swav", {"method": "ibot"}, "works on patches, and a ResNet has none"),
    ],
)
def test_files_that_cannot_go_on(case, given, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        restore(saved(tmp_path, CASES[case][0]()), **given)
