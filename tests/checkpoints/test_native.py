"""Our own weights: out and in again."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prototile.backbones.vit import vit
from prototile.checkpoints.native import build, export, load_backbone, load_prototypes
from prototile.methods import dino, ibot, mae
from prototile.views import IMAGENET, preset, small
from training_cases import SIDE, TinyBackbone, TinyMethod

OPTIONS: dict[str, Any] = {"size": "tiny", "patch": 4, "image_size": SIDE, "dims": 16, "depth": 2, "heads": 2}
DESCRIPTION = {"class_path": "prototile.backbones.vit", "init_args": OPTIONS}


def method(**options: Any):
    return dino(vit(**OPTIONS), num_prototypes=6, hidden=8, bottleneck=4, **options)


def test_the_evaluated_backbone_comes_back(tmp_path):
    trained = method()
    with torch.no_grad():
        for p in trained.student.parameters():
            p.add_(1)  # the teacher's is exported
    export(trained, tmp_path / "model", DESCRIPTION, small(preset("dino"), size=SIDE, patch=4))
    assert sorted(x.name for x in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
        "prototypes.safetensors",
    ]
    again = load_backbone(tmp_path / "model")
    assert not again.training
    images = torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(again(images).pooled, trained.backbone.eval()(images).pooled)
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == {
        "format": 1,
        "backbone": DESCRIPTION,
        "dims": 16,
        "patch": 4,
        "images": {"size": SIDE, "mean": list(IMAGENET.mean), "std": list(IMAGENET.std)},
    }


def test_prototypes_by_kind_of_token(tmp_path):
    export(trained := method(), tmp_path / "a")
    found = load_prototypes(tmp_path / "a")
    assert list(found) == ["cls.directions"]
    assert torch.equal(found["cls.directions"], trained.student.head.prototypes.directions())
    trained = method(gain="learned")
    with torch.no_grad():
        trained.student.head.prototypes.gain.copy_(torch.arange(6.0)[:, None])
    export(trained, tmp_path / "b")
    assert torch.equal(load_prototypes(tmp_path / "b")["cls.gains"], torch.arange(6.0))
    masked = vit(**OPTIONS, mask_token=True)
    apart = ibot(masked, num_prototypes=6, hidden=8, bottleneck=4, shared="projector")
    export(apart, tmp_path / "c")
    assert sorted(load_prototypes(tmp_path / "c")) == ["cls.directions", "patches.directions"]


def test_a_method_without_prototypes(tmp_path):
    export(mae(vit(**OPTIONS), decoder_dims=8, decoder_depth=1, decoder_heads=2), tmp_path)
    assert load_prototypes(tmp_path) == {}


def test_a_backbone_made_in_python_is_filled(tmp_path):
    export(trained := TinyMethod(), tmp_path)
    with pytest.raises(ValueError, match=r"does not say how to build the backbone, .* `into=...`"):
        load_backbone(tmp_path)
    again = load_backbone(tmp_path, into=TinyBackbone())
    for x, y in zip(again.state_dict().values(), trained.backbone.state_dict().values(), strict=True):
        assert torch.equal(x, y)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    export(TinyMethod(), tmp_path)
    with pytest.raises(
        ValueError, match=r"block.0.weight is \(4, 4, 1, 1\) and should be \(3, 3, 1, 1\), .* and 3 more"
    ):
        load_backbone(tmp_path, into=TinyBackbone(3))
    weights = load_file(tmp_path / "model.safetensors")
    weights["extra"] = weights.pop("stem.bias")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"extra is unknown, stem.bias is missing; build it as it was trained"):
        load_backbone(tmp_path, into=TinyBackbone())


def test_no_export_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors .* folder `model` of a run that has ended"):
        load_backbone(tmp_path)


def test_another_format(tmp_path):
    export(TinyMethod(), tmp_path)
    (tmp_path / "config.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match="has format 2, and this version reads 1"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("os.system", "inside prototile.backbones, got 'os.system'"),
        ("prototile.backbones_of_others.x", "inside prototile.backbones"),
        (None, "inside prototile.backbones, got None"),
        ("prototile.backbones.vit.torch", "only what prototile.backbones defines is built"),
        ("prototile.backbones.transformer.checkpoint", "only what prototile.backbones defines is built"),
        ("prototile.backbones.beit.Beit", "only what prototile.backbones defines is built"),
        ("prototile.backbones.vit._initialize", "only what prototile.backbones defines is built"),
        ("prototile.backbones.missing", "there is no prototile.backbones.missing"),
        ("prototile.backbones.missing.vit", "there is no prototile.backbones.missing.vit"),
    ],
)
def test_only_backbones_are_built(path, said):
    with pytest.raises(ValueError, match=said):
        build({"class_path": path, "init_args": {}})


def test_what_is_no_backbone(tmp_path):
    export(
        TinyMethod(),
        tmp_path,
        {"class_path": "prototile.backbones.vit.Shape", "init_args": dict.fromkeys(("dims", "depth", "heads"), 1)},
    )
    with pytest.raises(ValueError, match="describes a Shape, which is no backbone"):
        load_backbone(tmp_path)


def test_a_description_has_plain_values(tmp_path):
    with pytest.raises(ValueError, match="plain values only, not <object"):
        export(TinyMethod(), tmp_path, {"class_path": "prototile.backbones.vit", "init_args": {"size": object()}})
