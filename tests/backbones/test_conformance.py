"""What holds for every backbone."""

import copy

import pytest
import torch
from timm.layers import DropPath

from prototile.backbones import beit, resnet, swin, timm_model, vit

SMALL = {"patch": 4, "image_size": 32, "dims": 24, "depth": 3, "heads": 2}
SMALL_SWIN = {"window": 4, "image_size": 64, "dims": 12, "depths": (2, 2), "heads": (2, 4)}

BACKBONES = {
    "vit": lambda: vit("tiny", **SMALL),
    "vit for iBOT": lambda: vit("tiny", **SMALL, mask_token=True, drop_path=0.3),
    "vit for MAE": lambda: vit("tiny", **SMALL, positions="sincos", init="xavier", resize="timm"),
    "vit for DINOv2": lambda: vit("tiny", **SMALL, mask_token=True, layer_scale=1e-5, drop_path=0.3),
    "vit with registers": lambda: vit("tiny", **SMALL, registers=2, mlp="swiglu", hidden=20, drop_path=0.3),
    "beit, fine-tuned": lambda: beit("tiny", **SMALL, shared_bias=False, mask_token=False),
    "resnet of double width": lambda: resnet("resnet18", width=128),
    "beit": lambda: beit("tiny", **SMALL, drop_path=0.3),
    "beit without masks": lambda: beit("tiny", **SMALL, mask_token=False, layer_scale=None),
    "swin": lambda: swin("tiny", **SMALL_SWIN, drop_path=0.3),
    "swin for iBOT": lambda: swin("tiny", **SMALL_SWIN, mask_token=True),
    "resnet18": lambda: resnet("resnet18", stem="cifar"),
    "resnet50": lambda: resnet("resnet50"),
    "convnext": lambda: timm_model("convnext_atto", drop_path=0.3),
    "efficientnet": lambda: timm_model("efficientnet_b0", drop_path=0.3),
}

every = pytest.mark.parametrize("name", BACKBONES)


def images_for(name: str) -> torch.Tensor:
    return torch.randn(3, 3, 64, 64) if name.startswith("swin") else torch.randn(3, 3, 32, 32)


def forward(backbone, images):
    """With a mask wherever there is a mask token."""
    tokens = [key for key, _ in backbone.named_parameters() if key == "mask_token"]
    if not tokens:
        return backbone(images)
    height, width = (side // backbone.patch for side in images.shape[2:])
    mask = torch.zeros(len(images), height * width, dtype=torch.bool)
    mask[:, ::3] = True
    return backbone(images, mask=mask)


@every
def test_features_have_their_sizes(name):
    backbone, images = BACKBONES[name](), images_for(name)
    features = forward(backbone, images)
    assert features.pooled.shape == (3, backbone.dims)
    if backbone.patch is None:
        assert features.patches is None
    else:
        assert features.patches.shape == (3, (images.shape[2] // backbone.patch) ** 2, backbone.dims)
    if features.cls is not None:
        assert torch.equal(features.pooled, features.cls)
    elif features.patches is not None:
        torch.testing.assert_close(features.pooled, features.patches.mean(1))


@every
def test_every_parameter_is_in_one_layer(name):
    backbone = BACKBONES[name]()
    in_layers = [id(p) for layer in backbone.layers for p in layer.parameters()]
    assert len(in_layers) == len(set(in_layers))
    assert set(in_layers) == {id(p) for p in backbone.parameters()}


@every
def test_layers_are_in_the_order_of_the_forward_pass(name):
    backbone = BACKBONES[name]()
    called = []
    for i, layer in enumerate(backbone.layers):
        for part in layer.modules():
            if not list(part.children()) and list(part.parameters(recurse=False)):
                part.register_forward_hook(lambda *_, i=i: called.append(i))
    forward(backbone, images_for(name))
    assert called == sorted(called)


@every
def test_every_trainable_parameter_gets_a_gradient(name):
    backbone = BACKBONES[name]()
    backbone.keep_all_paths_()
    features = forward(backbone, images_for(name))
    (features.pooled * torch.randn(backbone.dims)).sum().backward()
    missing = [
        key for key, p in backbone.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert missing == []


@every
def test_a_state_dict_goes_round(name):
    first, second = BACKBONES[name]().eval(), BACKBONES[name]().eval()
    images = images_for(name)
    torch.manual_seed(1)
    for p in first.parameters():
        p.data += 0.01 * torch.randn_like(p)
    second.load_state_dict(first.state_dict())
    assert torch.equal(forward(first, images).pooled, forward(second, images).pooled)


@every
def test_a_copy_is_its_own(name):
    backbone, images = BACKBONES[name]().eval(), images_for(name)
    other = copy.deepcopy(backbone)
    before = forward(backbone, images).pooled
    assert torch.equal(forward(other, images).pooled, before)
    for p in other.parameters():
        p.data.zero_()
    assert torch.equal(forward(backbone, images).pooled, before)


@every
def test_keeping_all_paths_changes_nothing_else(name):
    backbone = BACKBONES[name]().train()
    leaves = [part for part in backbone.modules() if not list(part.children())]
    before = [repr(part) for part in leaves]
    backbone.keep_all_paths_()
    assert backbone.training
    for part, was in zip(leaves, before, strict=True):
        if isinstance(part, DropPath):
            assert part.drop_prob == 0
        else:
            assert repr(part) == was


@pytest.mark.parametrize("name", ["vit for iBOT", "vit for DINOv2", "swin"])
def test_with_all_paths_training_is_evaluation(name):
    backbone, images = BACKBONES[name]().train(), images_for(name)
    assert not torch.equal(forward(backbone, images).pooled, forward(backbone, images).pooled)
    backbone.keep_all_paths_()
    trained = forward(backbone, images).pooled
    assert torch.equal(trained, forward(backbone.eval(), images).pooled)


@pytest.mark.parametrize("name", ["vit for iBOT", "beit", "swin"])
def test_checkpointing_changes_no_number(name):
    """Neither value nor gradient, with the same paths and activations dropped."""
    plain, images = BACKBONES[name]().train(), images_for(name)
    saving = copy.deepcopy(plain)
    saving.checkpointing = True
    results = []
    for backbone in (plain, saving):
        torch.manual_seed(3)
        features = forward(backbone, images)
        features.pooled.square().sum().backward()
        results.append((features.pooled, [p.grad for p in backbone.parameters()]))
    (value, gradients), (saved_value, saved_gradients) = results
    assert torch.equal(value, saved_value)
    assert all(torch.equal(a, b) for a, b in zip(gradients, saved_gradients, strict=True))


def test_checkpointing_keeps_fewer_tensors():
    def kept(checkpointing: bool) -> int:
        backbone = vit("tiny", **SMALL, checkpointing=checkpointing).train()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            backbone(torch.randn(3, 3, 32, 32))
        return sum(sizes)

    assert kept(True) < kept(False) / 3


@pytest.mark.parametrize("name", ["vit for iBOT", "beit", "swin for iBOT"])
def test_under_autocast_it_trains(name):
    backbone, images = BACKBONES[name](), images_for(name)
    exact = forward(copy.deepcopy(backbone).eval(), images).pooled
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = forward(backbone.eval(), images)
    torch.testing.assert_close(features.pooled.float(), exact, rtol=0.1, atol=0.1)
    features.pooled.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in backbone.parameters())
