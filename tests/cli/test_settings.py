"""Settings: layers, short names, what reaches the objects, and errors that name the valid."""

import pytest
import yaml

from cli_cases import TINY
from prototile.cli.layers import arguments, layer, merged
from prototile.cli.pretraining import settings_of
from prototile.cli.settings import FLAGS, TEXTS, Resolved
from prototile.methods import Prototypical
from prototile.priors import PowerLaw
from prototile.schedules import Constant, EpochRamp


def tiny(**changes) -> Resolved:
    return settings_of(None, (TINY | {name.replace("__", "."): value for name, value in changes.items()}).items())


def test_settings_become_objects():
    built = tiny(
        method__prior="PowerLaw",
        method__prior__exponent=0.3,
        method__balancer="Sinkhorn",
        method__balancer__iterations=5,
        method__add_ons="koleo_proto",
        method__add_ons__weight=0.2,
        method__teacher_temperature__final=0.06,
    ).build()
    method = built["method"]
    assert isinstance(method, Prototypical)
    objective = method.objectives[0]
    assert objective.balancer.iterations == 5
    assert objective.match.prior.allclose(PowerLaw(0.3)(16).to(objective.match.prior))
    assert [add_on.weight for add_on in method.add_ons.each] == [0.2]
    assert objective.temperatures.teacher == EpochRamp(0.04, 0.06, 30)  # what is not said stays the default's
    assert built["views"].groups[0].size == 32
    assert built["optimization"].lr.base == 1e-3


@pytest.mark.parametrize("method", ["dino_vmf", "msn", "dinov2"])
def test_forwarded_options_are_known(method):
    args = tiny(method=method, method__backbone__mask_token=True, method__student_temperature=0.2).plain["method"]
    assert args["init_args"]["student_temperature"] == 0.2
    assert {"prior", "balancer", "hidden"} <= set(args["init_args"])


def test_the_printed_settings_give_the_same_ones(tmp_path):
    first = tiny(method__add_ons=["koleo_proto", "koleo_data"], method__add_ons__weight=0.3, split="train")
    (tmp_path / "a.yaml").write_text(first.yaml())
    again = settings_of(tmp_path / "a.yaml", [])
    assert again.plain == first.plain
    assert again.yaml() == first.yaml()


def test_null_is_kept(tmp_path):
    first = tiny(method__add_ons="koleo_proto", method__add_ons__partition=None)
    (tmp_path / "a.yaml").write_text(first.yaml())
    assert settings_of(tmp_path / "a.yaml", []).plain["method"]["init_args"]["add_ons"][0]["init_args"] == {
        "weight": 0.1,
        "partition": None,
    }


def test_settings_change_a_recipe():
    plain = settings_of(
        "digits-dino", [("out", "a"), ("method.num_prototypes", 7), ("epochs", 2), ("optimization.clip", None)]
    ).plain
    assert plain["method"]["init_args"]["num_prototypes"] == 7
    assert plain["method"]["init_args"]["hidden"] == 256
    assert (plain["epochs"], plain["optimization"]["clip"]) == (2, None)


def test_another_method_keeps_the_backbone_only():
    args = settings_of("digits-dino", [("out", "a"), ("method", "simclr"), ("views", "simclr")]).plain["method"]
    assert args["class_path"] == "prototile.methods.simclr"
    assert args["init_args"]["backbone"]["init_args"]["depth"] == 2
    assert args["init_args"]["hidden"] == 2048


def test_lists_are_replaced_or_appended_to():
    below = layer({"method": "dino", "method.add_ons": "koleo_proto"})
    paths = [
        each["class_path"]
        for each in merged(below, layer({"method.add_ons+": "auh"}))["method"]["init_args"]["add_ons"]
    ]
    assert paths == ["prototile.methods.koleo_proto", "prototile.methods.auh"]
    replaced = merged(below, layer({"method.add_ons": ["auh"]}))["method"]["init_args"]["add_ons"]
    assert [each["class_path"] for each in replaced] == ["prototile.methods.auh"]


def test_a_number_is_a_constant_schedule():
    built = tiny(optimization__weight_decay="1e-6", method__momentum=0.9).build()
    assert built["optimization"].weight_decay == Constant(1e-6)
    assert built["method"].momentum == Constant(0.9)
    assert tiny(optimization__momentum=0.8).plain["optimization"]["momentum"] == 0.8


def test_a_command_line():
    words = "--out 12 --batch=8 --limit-steps 3 --wandb --no_tensorboard --method.add_ons+=auh --resume true"
    assert arguments(words.split(), FLAGS, TEXTS) == [
        ("out", "12"),
        ("batch", 8),
        ("limit_steps", 3),
        ("wandb", True),
        ("tensorboard", False),
        ("method.add_ons+", "auh"),
        ("resume", True),
    ]


@pytest.mark.parametrize(
    ("words", "said"), [(["x"], "no setting"), (["--batch"], "needs a value"), (["--a", "["], "YAML")]
)
def test_a_bad_command_line(words, said):
    with pytest.raises(ValueError, match=said):
        arguments(words, FLAGS, TEXTS)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("epoch", 1, "there is no setting epoch; there are: epochs, "),
        ("method", "dyno", "there is no method 'dyno'; there are: dino, "),
        ("method.backbone", "vitt", "there is no backbone 'vitt'; there are: vit, "),
        ("views", "dimo", "there is no views 'dimo'; there are: dino, "),
        ("method.prior", "Powerlaw", "there is no prior 'Powerlaw'; there are: PowerLaw, "),
        ("method.num_prototype", 3, "there is no setting method.num_prototype of dino; there are: num_prototypes, "),
        ("optimization.klip", 3, "there is no setting optimization.klip of Optimization; there are: clip, "),
        ("optimization.roles.prototypes.freeze_epoch", 3, "of Special; there are: freeze_epochs, "),
        ("epochs", "few", "epochs: expected int, got few"),
        ("method.num_prototypes", "few", "method.num_prototypes: expected int, got few"),
        ("method.backbone.size", "vast", r"method.backbone.size: expected Literal.*'tiny'.*, got vast"),
        ("optimization.clip", "q", "optimization.clip: expected float or null, got q"),
        ("precision", "8", "precision: expected Literal"),
        ("views", "my.preset", "views: my.preset can not be imported"),
        ("method.backbone", "prototile.backbones.nix", "can not be imported"),
        ("long_tail.imbalance", 10, "long_tail: which long_tail.*Exponential"),
        ("views.masks.ratio", 0.1, "views.masks"),
    ],
)
def test_what_is_wrong_is_named(name, value, said):
    with pytest.raises(ValueError, match=said) as error:
        settings_of(None, [*TINY.items(), (name, value)])
    assert "\n" not in str(error.value)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="these settings are missing: data, views, epochs, batch"):
        settings_of(None, [("out", "x"), ("method", "dino"), ("method.backbone", "vit"), ("optimization.lr", 0.1)])
    with pytest.raises(ValueError, match="optimization"):
        settings_of(None, [item for item in TINY.items() if not item[0].startswith("optimization")])
    with pytest.raises(ValueError, match=r"method.*backbone"):
        settings_of(None, [item for item in TINY.items() if not item[0].startswith("method.backbone")])


def test_the_yaml_holds_no_command():
    said = yaml.safe_load(tiny(resume=True).yaml())
    assert "resume" not in said
    assert said["out"] == "runs/x"
