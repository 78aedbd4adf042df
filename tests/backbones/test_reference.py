"""Features equal the official networks', element by element, from the same synthetic weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from prototile.backbones import beit, resnet, swin, vit
from prototile.types import Features
from synthetic import fill_, images, weight

REFERENCE = load_file(Path(__file__).parents[1] / "reference" / "backbones" / "features.safetensors")

pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


def check(case: str, actual: Tensor, *, tolerance: float = 3e-5) -> None:
    """The stated tolerances are 2e-4 to 5e-4; the mildest wrong import is 100 times further away."""
    torch.testing.assert_close(actual, REFERENCE[case], rtol=tolerance, atol=tolerance)


def some(patches: Tensor) -> Tensor:
    return patches[:, [0, 5, -1]]


def cls_of(norm: nn.Module, features: Features) -> Tensor:
    return torch.cat([norm(tokens)[:, 0] for tokens in features.blocks], dim=1)


@pytest.mark.parametrize("side", [224, 96])
def test_dino(side):
    backbone = vit("tiny").eval()
    fill_(backbone.vit, lambda name: f"backbone.{name}")
    features = backbone(images(2, side), blocks=4)
    case = f"dino_vit_tiny16/teacher.{side}x{side}"
    check(f"{case}.linear_eval_n4", cls_of(backbone.vit.norm, features))
    interleaved = torch.stack([features.pooled, features.patches.mean(1)], dim=2).flatten(1)
    check(f"{case}.linear_eval_n1_avgpool_interleaved", interleaved)


def test_the_epsilon_of_layer_norm():
    """Embeddings scaled down: 1e-5 instead of 1e-6 would be off by 0.83."""
    backbone = vit("tiny").eval()
    small = ("patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token", "pos_embed")
    fill_(backbone.vit, lambda name: f"backbone.{name}", dict.fromkeys(small, 0.002))
    check("dino_vit_tiny16_eps_probe/224x224.features", backbone(images(2, 224)).cls, tolerance=5e-4)


@pytest.mark.parametrize("side", [224, 96])
def test_mask_tokens_of_ibot(side):
    backbone = vit("tiny", mask_token=True).eval()
    fill_(backbone.vit, lambda name: f"student:backbone.{name}")
    backbone.mask_token.copy_(weight("student:backbone.masked_embed", backbone.mask_token))
    mask = torch.zeros(2, side // 16, side // 16, dtype=torch.bool)
    mask[:, ::2, 1::2] = True
    features = backbone(images(2, side), mask=mask.flatten(1))
    check(f"ibot_vit_tiny16_shared/student.{side}x{side}.masked_checker.features", features.cls)


@pytest.mark.parametrize("side", [224, 96])
def test_msn(side):
    backbone = vit("tiny", resize="msn").eval()
    fill_(backbone.vit, str)
    features = backbone(images(2, side), blocks=4)
    case = f"msn_deit_tiny/target_encoder.{side}x{side}"
    check(f"{case}.cls_postnorm", features.cls)
    check(f"{case}.lineval_feature_prenorm_n4", torch.cat([tokens[:, 0] for tokens in features.blocks], dim=1))


def test_mae_sees_all_patches_or_some():
    backbone = vit("tiny", depth=6, resize="timm").eval()
    fill_(backbone.vit, str)
    features = backbone(images(2, 224))
    check("mae_vit_tiny_custom/encoder.cls_postnorm", features.cls)
    check("mae_vit_tiny_custom/encoder.patch_0_5_last_postnorm", some(features.patches))
    keep = torch.arange(0, 196, 4).expand(2, -1)
    check("mae_vit_tiny_custom/encoder.masked_keep_every4.cls_postnorm", backbone(images(2, 224), keep=keep).cls)


@pytest.mark.parametrize("side", [224, 98])
def test_dinov2(side):
    """Its positions are stored for 518 pixels: every size is interpolated."""
    backbone = vit("small", patch=14, image_size=518, layer_scale=1e-5).eval()
    fill_(backbone.vit, str)
    features = backbone(images(2, side), blocks=4)
    four = torch.cat([cls_of(backbone.vit.norm, features), features.patches.mean(1)], dim=1)
    check(f"dinov2_vits14/{side}x{side}.linear4_input", four)
    check(f"dinov2_vits14/{side}x{side}.x_norm_patchtokens_0_5_last", some(features.patches))


def test_data2vec():
    backbone = beit("tiny", depth=4).eval()
    fill_(backbone.beit, str)
    features = backbone(images(1, 224), blocks=1)
    check("data2vec_vit_tiny_custom/cls_postnorm", features.cls)
    check("data2vec_vit_tiny_custom/patch_mean_postnorm", features.patches.mean(1))
    check("data2vec_vit_tiny_custom/last_block_patch_mean_prenorm", features.blocks[0][:, 1:].mean(1))


def test_esvit_swin():
    """The official code merges patches at the end of a stage, timm at the beginning of the next."""

    def official(name: str) -> str:
        parts = name.split(".")
        if parts[2:3] == ["downsample"]:
            parts[1] = str(int(parts[1]) - 1)
        return ".".join(parts)

    backbone = swin("tiny").eval()
    fill_(backbone.swin, official)
    features = backbone(images(2, 224), blocks=4)
    check("esvit_swin_tiny_w7/teacher.224x224.features", features.pooled)
    check("esvit_swin_tiny_w7/teacher.224x224.region_tokens_0_5_last", some(features.patches))
    means = [tokens.mean(1) for tokens in features.blocks[:2]]
    means += [backbone.swin.norm(tokens).mean(1) for tokens in features.blocks[2:]]
    check("esvit_swin_tiny_w7/teacher.224x224.linear_eval_n4", torch.cat(means, dim=1))


@pytest.mark.parametrize(
    ("name", "prefix", "count", "outputs"),
    [
        ("resnet50", "backbone", 2, {224: "dino_resnet50/teacher.224x224", 96: "dino_resnet50/teacher.96x96"}),
        ("resnet18", "backbone.backbone", 2, {96: "esvit_resnet18/teacher.96x96"}),
        ("resnet18", "encoder", 4, {96: "simsiam_resnet18/96x96", 32: "simsiam_resnet18/32x32"}),
    ],
)
def test_resnets(name, prefix, count, outputs):
    backbone = resnet(name).eval()
    fill_(backbone.resnet, lambda key: f"{prefix}.{key}")
    for side, case in outputs.items():
        check(f"{case}.features", backbone(images(count, side)).pooled)


def test_the_stem_for_small_images():
    """solo-learn pads by 2; else it is ours."""
    backbone = resnet("resnet18", stem="cifar").eval()
    fill_(backbone.resnet, lambda key: f"backbone.{key}")
    backbone.resnet.conv1.padding = (2, 2)
    check("solo_swav_resnet18_cifar/32x32.features", backbone(images(4, 32)).pooled)
