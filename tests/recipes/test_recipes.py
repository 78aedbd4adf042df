"""Every recipe resolves and builds; those of papers say what their tables say."""

from functools import cache
from typing import Any

import pytest
import torch

from prototile import recipes
from prototile.checkpoints.foreign.filling import Unset
from prototile.cli.pretraining import settings_of
from prototile.cli.settings import Resolved
from prototile.schedules import Progress, Schedule
from prototile.training.optimization import Optimization


@cache
def resolved(name: str) -> Resolved:
    return settings_of(name, [("out", "runs/x"), *([] if name.startswith("digits-") else [("data", "digits")])])


@cache
def built(name: str) -> dict[str, Any]:
    """The objects of a recipe; networks without memory."""
    with Unset(), torch.device("meta"):
        return resolved(name).build()


# of those that only change a base of theirs the others are enough for every day
DERIVED = ("-inat18", "-lt-", "-kp", "-kd", "cifar10-")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if any(part in name for part in DERIVED) else name
        for name in recipes.names()
    ],
)
def test_a_recipe_builds_what_fits_together(name):
    settings = built(name)
    method, optimization = settings["method"], settings["optimization"]
    method.check(settings["views"])
    groups = optimization.groups(method, settings["batch"] * settings["accumulate"])
    trained = {id(p) for p in method.parameters() if p.requires_grad}
    assert {id(p) for group in groups for p in group["params"]} == trained
    for group in settings["views"].groups:
        if method.backbone.patch is not None:
            assert group.size % min(method.backbone.patch, 16) == 0


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_says_where_it_comes_from(name):
    notes = recipes.read(name).notes
    assert set(notes) >= {"method", "paper", "data", "cost", "result", "run"}
    assert f"--recipe {name} " in notes["run"]
    assert all(notes.values())


def start_end(schedule: Schedule, epochs: int) -> tuple[float, float]:
    """At the first step and after the last, of 1,000 an epoch."""
    steps = 1000 * epochs
    return schedule(Progress(0, steps, epochs)), schedule(Progress(steps, steps, epochs))


def rates(optimization: Optimization, epochs: int, batch: int) -> tuple[float, float]:
    """The highest and the last learning rate, scaled."""
    scale = {"none": 1.0, "linear": batch / 256, "sqrt": (batch / 1024) ** 0.5}[optimization.lr_scaling]
    steps = 100 * epochs
    values = [optimization.lr(Progress(step, steps, epochs)) for step in range(steps + 1)]
    return scale * max(values), scale * values[-1]


# epochs, batch, highest and last learning rate, optimiser
RUNS = {
    "simclr-r50": (300, 4096, 4.8, 0.0, "lars"),
    "vicreg-r50": (300, 1024, 0.8, 0.0008, "lars"),
    "simsiam-r50": (100, 512, 0.1, None, "sgd"),
    "swav-r50": (800, 4096, 4.8, 0.0048, "larc"),
    "swav-r50-256": (400, 256, 0.6, 0.0006, "larc"),
    "dino-vits16": (800, 1024, 2e-3, 1e-5, "adamw"),
    "ibot-vits16": (800, 1024, 2e-3, 1e-6, "adamw"),
    "ibot-vmf-vits16": (800, 1024, 2e-3, 1e-6, "adamw"),
    "ibot-vmf-kp-vits16": (800, 1024, 2e-3, 1e-6, "adamw"),
    "ibot-vitb16": (400, 512, 1.5e-3, 2e-6, "adamw"),
    "ibot-vmf-vitb16": (400, 512, 1.5e-3, 2e-6, "adamw"),
    "ibot-vmf-kp-vitb16": (400, 512, 1.5e-3, 2e-6, "adamw"),
    "ibot-vmf-vits16-inat18": (300, 1024, 2e-3, 1e-6, "adamw"),
    "ibot-vmf-kd-vits16-inat18": (300, 1024, 2e-3, 1e-6, "adamw"),
    "ibot-vmf-kp-vitb16-inat18": (300, 512, 1.5e-3, 2e-6, "adamw"),
    "esvit-swint": (300, 512, 1e-3, 1e-6, "adamw"),
    "dinov2-vitl16": (100, 1024, 4e-3, 1e-6, "adamw"),
    "dino-r50": (800, 4080, 4.78125, 0.0048, "lars"),
    "dino-vmf-r50": (100, 4080, 4.78125, 0.0048, "lars"),
    "msn-vits16": (800, 1024, 1e-3, None, "adamw"),
    "msn-vitb16": (300, 1024, 1e-3, None, "adamw"),
    "pmsn-vits16-inat18": (300, 4096, 1e-3, None, "adamw"),
    "pmsn-toy": (300, 1024, 1e-3, None, "adamw"),
    "msn-vits16-inat18": (300, 1536, 6e-3, None, "adamw"),
    "pmsn-vits16-inat18-1536": (300, 1536, 6e-3, None, "adamw"),
    "excb-r50": (400, 1024, 0.6, 6e-5, "sgd"),
    "excb-vits16": (800, 1024, 2e-3, 2e-7, "adamw"),
    "mae-vitl16": (800, 1024, 6e-4, 0.0, "adamw"),
    "data2vec-vitb16": (800, 2048, 2e-3, 1e-5, "adamw"),
}


@pytest.mark.parametrize("name", RUNS)
def test_length_and_rates(name):
    epochs, batch, highest, last, optimizer = RUNS[name]
    settings = built(name)
    optimization = settings["optimization"]
    assert (settings["epochs"], settings["batch"], optimization.optimizer) == (epochs, batch, optimizer)
    found = rates(optimization, epochs, batch)
    assert found[0] == pytest.approx(highest, rel=1e-3)
    if last is not None:
        assert found[1] == pytest.approx(last, rel=1e-3, abs=1e-12)


# weight decay at start and end, clip, its kind
PENALTIES = {
    "simclr-r50": (1e-6, 1e-6, None),
    "vicreg-r50": (1e-6, 1e-6, None),
    "simsiam-r50": (1e-4, 1e-4, None),
    "swav-r50": (1e-6, 1e-6, None),
    "dino-vits16": (0.04, 0.4, (3.0, "tensor")),
    "ibot-vits16": (0.04, 0.4, (3.0, "tensor")),
    "ibot-vitb16": (0.04, 0.4, (0.3, "tensor")),
    "ibot-vmf-kp-vitb16": (0.04, 0.4, (0.3, "tensor")),
    "esvit-swint": (0.04, 0.4, (3.0, "tensor")),
    "dinov2-vitl16": (0.04, 0.4, (3.0, "total")),
    "dino-r50": (1e-6, 1e-6, None),
    "msn-vits16": (0.04, None, (3.0, "total")),
    "pmsn-vits16-inat18": (0.04, None, (3.0, "total")),
    "pmsn-toy": (0.04, None, None),
    "excb-r50": (1e-4, 1e-4, None),
    "excb-vits16": (0.04, 0.4, None),
    "mae-vitl16": (0.05, 0.05, None),
    "data2vec-vitb16": (0.05, 0.05, (3.0, "total")),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_decay_and_clipping(name):
    first, last, clip = PENALTIES[name]
    settings = built(name)
    optimization = settings["optimization"]
    found = start_end(optimization.weight_decay, settings["epochs"])
    assert found[0] == pytest.approx(first, rel=1e-4)
    if last is not None:
        assert found[1] == pytest.approx(last, rel=1e-4)
    assert (None if optimization.clip is None else (optimization.clip, optimization.clip_by)) == clip


# prototypes, drop path, teacher's temperature at start and end, momentum at start
NETWORKS = {
    "swav-r50": (3000, None, 0.05, 0.05, None),
    "dino-vits16": (65536, 0.1, 0.04, 0.07, 0.996),
    "ibot-vits16": (8192, 0.1, 0.04, 0.07, 0.996),
    "ibot-vmf-vitb16": (8192, 0.1, 0.04, 0.07, 0.996),
    "esvit-swint": (65536, 0.1, 0.04, 0.07, 0.996),
    "dinov2-vitl16": (65536, 0.3, 0.04, 0.07, 0.992),
    "dino-r50": (60000, None, 0.04, 0.07, 0.996),
    "dino-vmf-kp-r50": (8192, None, 0.04, 0.07, 0.996),
    "msn-vits16": (1024, 0.0, 0.025, 0.025, 0.996),
    "msn-vits16-inat18": (8142, 0.1, 0.025, 0.025, 0.996),
    "pmsn-vits16-inat18": (8142, 0.0, 0.025, 0.025, 0.996),
    "pmsn-toy": (10, 0.0, 0.025, 0.025, 0.996),
    "excb-r50": (65536, None, 0.04, 0.04, 0.996),
    "excb-vits16": (65536, 0.0, 0.04, 0.04, 0.996),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_and_targets(name):
    count, drop_path, first, last, momentum = NETWORKS[name]
    settings = built(name)
    method = settings["method"]
    assert {len(each.vectors) for each in method.student.prototypes} == {count}
    args = resolved(name).plain["method"]["init_args"]["backbone"]["init_args"]
    assert args.get("drop_path") == drop_path
    for objective in method.objectives:
        found = start_end(objective.temperatures.teacher, settings["epochs"])
        assert found == (pytest.approx(first), pytest.approx(last))
        assert objective.temperatures.student == 0.1
    if momentum is None:
        assert method.momentum is None
    else:
        assert method.momentum(Progress(0, 10, 10)) == momentum


# of each group: how many views, of which size, and the scales at the start
VIEWS = {
    "simclr-r50": [(2, 224, (0.08, 1.0))],
    "vicreg-r50": [(2, 224, (0.08, 1.0))],
    "simsiam-r50": [(2, 224, (0.2, 1.0))],
    "swav-r50": [(2, 224, (0.14, 1.0)), (6, 96, (0.05, 0.14))],
    "dino-vits16": [(2, 224, (0.25, 1.0)), (10, 96, (0.05, 0.25))],
    "ibot-vits16": [(2, 224, (0.25, 1.0)), (10, 96, (0.05, 0.25))],
    "ibot-vmf-vitb16": [(2, 224, (0.32, 1.0)), (10, 96, (0.05, 0.32))],
    "esvit-swint": [(2, 224, (0.4, 1.0)), (8, 96, (0.05, 0.4))],
    "dinov2-vitl16": [(2, 224, (0.32, 1.0)), (8, 96, (0.05, 0.32))],
    "dino-r50": [(2, 224, (0.14, 1.0)), (6, 96, (0.05, 0.14))],
    "msn-vits16": [(1, 224, (0.3, 1.0)), (1, 224, (0.3, 1.0)), (10, 96, (0.05, 0.3))],
    "pmsn-toy": [(1, 32, (0.5, 1.0)), (1, 32, (0.5, 1.0))],
    "excb-r50": [(2, 224, (0.26, 1.0)), (6, 96, (0.05, 0.26))],
    "mae-vitl16": [(1, 224, (0.2, 1.0))],
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(name):
    groups = built(name)["views"].at(Progress(0, 10, 10)).groups
    assert [(len(group.views), group.size, group.views[0].scale) for group in groups] == VIEWS[name]


@pytest.mark.parametrize(
    ("name", "drop"), [("msn-vits16", 0.15), ("msn-vitb16", 0.5), ("pmsn-vits16-inat18", 0.15), ("pmsn-toy", 0.05)]
)
def test_dropped_patches(name, drop):
    assert built(name)["views"].groups[1].masks.ratio == drop


@pytest.mark.parametrize(
    ("name", "weight", "prior"),
    [
        ("msn-vits16", 1.0, "Uniform"),
        ("pmsn-vits16-inat18", 5.0, "PowerLaw"),
        ("pmsn-vits16-inat18-1536", 5.0, "PowerLaw"),
        ("pmsn-toy", 100.0, "PowerLaw"),
    ],
)
def test_the_match_with_the_prior(name, weight, prior):
    args = resolved(name).plain["method"]["init_args"]
    assert args["match_weight"] == weight
    assert args["prior"]["class_path"].endswith(prior)


def frozen(name: str, step: int, steps: int) -> bool:
    settings = built(name)
    special = settings["optimization"].roles["prototypes"]
    return special.frozen(Progress(step, steps, settings["epochs"]))


@pytest.mark.parametrize(
    ("name", "steps_per_epoch", "thawed"),
    [
        ("dino-vits16", 100, 100),
        ("ibot-vitb16", 100, 300),
        ("swav-r50", 100, 313),
        ("swav-r50-256", 100, 100),
        ("dinov2-vitl16", 100, 100),
    ],
)
def test_prototypes_are_frozen_at_first(name, steps_per_epoch, thawed):
    steps = steps_per_epoch * built(name)["epochs"]
    assert frozen(name, thawed - 1, steps)
    assert not frozen(name, thawed, steps)


def test_what_is_special_about_some_methods():
    special = built("msn-vits16")["optimization"].roles["prototypes"]
    assert (special.clip, special.weight_decay(Progress(5, 10))) == (False, 0.0)
    decay = built("excb-r50")["optimization"].roles["prototypes"].decay_factor
    assert start_end(decay, 400)[0] == pytest.approx(10, rel=1e-4)
    assert start_end(decay, 400)[1] == pytest.approx(1, rel=1e-4)
    predictor = built("simsiam-r50")["optimization"].roles["predictor"].lr
    assert start_end(predictor, 100) == (0.05, 0.05)
    assert built("dinov2-vitl16")["optimization"].layer_decay == 0.9
    assert built("dinov2-vitl16")["optimization"].patch_embed_factor == 0.2
    assert built("swav-r50-256")["method"].objectives[0].queue is not None
    assert {name for name in recipes.names() if resolved(name).plain["precision"] == "16-mixed"} == {
        name for name in recipes.names() if name.startswith(("dino-vit", "ibot", "esvit", "dinov2"))
    }


def test_koleo_is_where_the_name_says():
    for name in recipes.names():
        if resolved(name).plain["method"]["class_path"].endswith(("mae", "data2vec")):
            continue
        names = [each["class_path"] for each in resolved(name).plain["method"]["init_args"]["add_ons"]]
        assert ("prototile.methods.koleo_proto" in names) is ("-kp" in name), name
        assert ("prototile.methods.koleo_data" in names) is ("-kd" in name), name


def test_a_recipe_of_ones_own_takes_another_as_base(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: digits-dino\nmethod.num_prototypes: 7\n")
    (tmp_path / "more.yaml").write_text("base: mine.yaml\nepochs: 3\n")
    plain = settings_of(tmp_path / "more.yaml", [("out", "x")]).plain
    assert (plain["epochs"], plain["method"]["init_args"]["num_prototypes"]) == (3, 7)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base: a.yaml", "each other's base"),
        ("base: dino-vitz16", "did you mean dino-vits16"),
        ("- 1", "must hold settings"),
        ("a: [", "not valid YAML"),
        ("base: missing.yaml", "there is no recipe file"),
    ],
)
def test_a_bad_recipe_is_refused(tmp_path, text, said):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=said):
        recipes.read(tmp_path / "a.yaml")
