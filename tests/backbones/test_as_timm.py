"""timm's own network gives the same features, once it has loaded what we say are its weights."""

import pytest
import timm
import torch

from prototile.backbones import as_timm, beit, resnet, swin, timm_model, vit
from training_cases import TinyBackbone

SMALL = {"dims": 48, "depth": 2, "heads": 3}
CASES = {
    "vit": lambda: vit(patch=8, image_size=32, channels=1, mask_token=True, **SMALL),
    "vit, layer scale and registers": lambda: vit(
        patch=8, image_size=32, layer_scale=0.1, registers=3, resize="timm", **SMALL
    ),
    "vit, gated": lambda: vit(patch=8, image_size=32, mlp="swiglu", hidden=96, layer_scale=0.1, **SMALL),
    "vit, mean": lambda: vit(patch=8, image_size=32, pool="mean", **SMALL),
    "beit": lambda: beit(patch=8, image_size=32, **SMALL),
    "beit, fine-tuned": lambda: beit(patch=8, image_size=32, shared_bias=False, pool="mean", **SMALL),
    "swin": lambda: swin(image_size=64, window=4, dims=24, depths=[1, 2], heads=[2, 3], mask_token=True),
    "resnet": lambda: resnet("resnet18"),
    "resnet, cifar": lambda: resnet("resnet18", stem="cifar", channels=1),
    "resnet, padded": lambda: resnet("resnet18", stem="padded"),
    "pooled": lambda: timm_model("convnext_atto", channels=1),
}


@pytest.mark.parametrize("case", CASES)
def test_the_features_are_timms(case):
    torch.manual_seed(0)
    backbone = CASES[case]().eval()
    for parameter in backbone.parameters():  # tables that start at zero would hide that they are not copied
        torch.nn.init.normal_(parameter, std=0.1)
    found = as_timm(backbone)
    scope = {"timm": timm}
    exec(found.code, scope)
    model = scope["model"].eval()
    model.load_state_dict(found.weights)
    channels = 1 if any(x.shape[1:2] == (1,) and x.ndim == 4 for x in list(backbone.parameters())[:6]) else 3
    side = 64 if case == "swin" else 32
    images = torch.randn(2, channels, side, side)
    with torch.no_grad():
        torch.testing.assert_close(model(images), backbone(images).pooled, rtol=1e-4, atol=1e-5)


def test_what_timm_cannot_build():
    with pytest.raises(ValueError, match="timm has no TinyBackbone: export its weights under the package's own names"):
        as_timm(TinyBackbone())
    with pytest.raises(ValueError, match="timm has no ResNet of this width"):
        as_timm(resnet("resnet18", width=16))
