"""ResNets, and networks of timm by name."""

import pytest
import timm
import torch
from torch import nn

from prototile.backbones import resnet, timm_model


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_keys_are_timms(name):
    with torch.device("meta"):
        ours, timms = resnet(name).resnet.state_dict(), timm.create_model(name, num_classes=0).state_dict()
    assert {key: x.shape for key, x in ours.items()} == {key: x.shape for key, x in timms.items()}


def test_the_stem_for_small_images_neither_strides_nor_pools():
    backbone = resnet("resnet18", stem="cifar", channels=1).eval()
    sides = []
    for part in (backbone.resnet.conv1, backbone.resnet.maxpool, backbone.resnet.layer4):
        part.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    features = backbone(torch.randn(2, 1, 32, 32))
    assert sides == [32, 32, 4]
    assert features.pooled.shape == (2, 512)
    weight = backbone.resnet.conv1.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


def test_pooled_features_are_the_mean_over_space():
    backbone, x = resnet("resnet18").eval(), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(backbone(x).pooled, backbone.resnet.forward_features(x).mean((2, 3)))


@pytest.mark.parametrize(("name", "last"), [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_branches_may_start_at_zero(name, last):
    def scales(zero: bool) -> list[float]:
        backbone = resnet(name, zero_init_last=zero)
        return [m.weight.abs().max().item() for key, m in backbone.named_modules() if key.endswith(last)]

    assert set(scales(True)[:4]) == {0.0}
    assert set(scales(False)) == {1.0}


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_built():
    with pytest.raises(ValueError, match=r"one of resnet18, .*, got 'resnet14'; timm_model\(\) builds others"):
        resnet("resnet14")
    with pytest.raises(ValueError, match="one of imagenet, cifar, padded, got 'none'"):
        resnet("resnet18", stem="none")


@pytest.mark.parametrize("make", [lambda: resnet("resnet18"), lambda: timm_model("convnext_atto")])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": torch.zeros(1, 4, dtype=torch.bool)}, "no patches to keep or mask"),
        ({"keep": torch.zeros(1, 4, dtype=torch.long)}, "no patches to keep or mask"),
        ({"blocks": 1}, "not the tokens of blocks, got blocks=1"),
    ],
)
def test_it_has_pooled_features_only(make, options, message):
    with pytest.raises(ValueError, match=message):
        make()(torch.zeros(1, 3, 32, 32), **options)


@pytest.mark.parametrize(
    ("name", "options", "dims"),
    [
        ("mobilenetv3_small_050", {}, 1024),
        ("convnext_atto", {"drop_path": 0.1}, 320),
        ("vit_tiny_patch16_224", {"image_size": 64, "drop_path": 0.1}, 192),
        ("resnet26", {"channels": 1}, 2048),
    ],
)
def test_other_networks(name, options, dims):
    backbone = timm_model(name, **options).eval()
    x = torch.randn(2, options.get("channels", 3), 64, 64)
    assert backbone.dims == dims
    assert torch.equal(backbone(x).pooled, backbone.network(x))
    assert backbone(x).pooled.shape == (2, dims)
    classifiers = [m for key, m in backbone.network.named_modules() if key in ("head.fc", "classifier", "fc", "head")]
    assert not any(isinstance(m, nn.Linear) for m in classifiers)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet500", {}, "timm has no network 'resnet500': did you mean resnet50"),
        ("qwertyuiop", {}, r"'qwertyuiop': timm.list_models\(\) names all"),
        ("hf-hub:timm/resnet50.a1_in1k", {}, "has no network 'hf-hub:"),
        ("resnet26", {"image_size": 64}, "resnet26 does not know image_size: leave it out"),
        ("vgg11", {"drop_path": 0.1}, "vgg11 does not know drop_path: leave it out"),
    ],
)
def test_networks_that_timm_does_not_have(name, options, message):
    with pytest.raises(ValueError, match=message):
        timm_model(name, **options)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_another_width(name):
    """Every layer in proportion, and one network with the usual one where that is asked for."""
    usual, half = resnet(name), resnet(name, width=32, zero_init_last=True)
    assert half.dims * 2 == usual.dims
    shapes = {key: x.shape for key, x in half.state_dict().items()}
    assert shapes.keys() == usual.state_dict().keys()
    for key, x in usual.state_dict().items():
        axes = [n if n in (1, 3, 7) else n // 2 for n in x.shape]
        assert list(shapes[key]) == axes, key
    assert half(torch.randn(2, 3, 64, 64)).pooled.shape == (2, half.dims)
    zeros = [key for key, x in half.state_dict().items() if key.endswith("weight") and not x.any()]
    assert len(zeros) == sum(len(half.resnet.get_submodule(f"layer{i}")) for i in range(1, 5))


def test_a_padded_stem():
    backbone = resnet("resnet18", stem="padded")
    assert backbone.resnet.conv1.padding == (2, 2)
    assert backbone.regions(torch.randn(1, 3, 32, 32)).shape == (1, 512, 5, 5)  # of 34 pixels


def test_regions_have_the_features_as_their_mean():
    backbone, images = resnet("resnet18").eval(), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(backbone.regions(images).mean((2, 3)), backbone(images).pooled)
