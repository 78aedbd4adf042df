"""The ViT against timm's own forward, and loops over timm's blocks written out."""

import pytest
import timm
import torch

from prototile.backbones import sincos, vit


def small(**options):
    return vit("tiny", **{"patch": 4, "image_size": 32, "dims": 24, "depth": 3, "heads": 2} | options).eval()


def images(side: int = 32, count: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randn(count, channels, side, side)


@pytest.mark.parametrize(("size", "name"), [("tiny", "vit_tiny_patch16_224"), ("small", "vit_small_patch16_224")])
def test_it_is_timms(size, name):
    """The same keys, and from the same weights the same features to the bit."""
    backbone = vit(size).eval()
    network = timm.create_model(name, num_classes=0).eval()
    network.load_state_dict(backbone.vit.state_dict())
    backbone.vit.load_state_dict(network.state_dict())
    x = images(224, 1)
    with torch.no_grad():
        tokens = network.forward_features(x)
        features = backbone(x)
    assert torch.equal(features.pooled, network(x).detach())
    assert torch.equal(features.cls, tokens[:, 0])
    assert torch.equal(features.patches, tokens[:, 1:])
    assert features.blocks == ()


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ("tiny", "vit_tiny_patch16_224"),
        ("small", "vit_small_patch16_224"),
        ("base", "vit_base_patch16_224"),
        ("large", "vit_large_patch16_224"),
    ],
)
def test_sizes_are_timms(size, name):
    with torch.device("meta"):
        ours, timms = vit(size).vit.state_dict(), timm.create_model(name, num_classes=0).state_dict()
    assert {key: x.shape for key, x in ours.items()} == {key: x.shape for key, x in timms.items()}


def blocks_of(backbone, tokens):
    after = []
    for block in backbone.vit.blocks:
        tokens = block(tokens)
        after.append(tokens)
    return after


def test_patches_to_keep_are_the_only_tokens():
    backbone, x = small(), images()
    keep = torch.stack([torch.randperm(64)[:10], torch.randperm(64)[:10]])
    patches = backbone.vit.patch_embed(x).flatten(1, 2) + backbone.vit.pos_embed[:, 1:]
    cls = (backbone.vit.cls_token + backbone.vit.pos_embed[:, :1])[0]
    tokens = torch.stack([torch.cat([cls, patches[i, keep[i]]]) for i in range(2)])
    after = blocks_of(backbone, tokens)
    features = backbone(x, keep, blocks=2)
    expected = backbone.vit.norm(after[-1])
    torch.testing.assert_close(features.cls, expected[:, 0])
    torch.testing.assert_close(features.patches, expected[:, 1:])
    torch.testing.assert_close(list(features.blocks), after[1:])


def test_patches_keep_their_order():
    backbone, x = small(), images()
    keep = torch.randperm(64).expand(2, -1)
    whole, shuffled = backbone(x), backbone(x, keep)
    torch.testing.assert_close(shuffled.cls, whole.cls, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shuffled.patches, whole.patches[:, keep[0]], rtol=1e-4, atol=1e-5)


def test_the_mask_token_replaces_patches_before_positions_are_added():
    backbone, x = small(mask_token=True), images()
    torch.nn.init.normal_(backbone.mask_token)
    mask = torch.rand(2, 64) < 0.4
    patches = backbone.vit.patch_embed(x).flatten(1, 2).clone()
    for i, j in mask.nonzero().tolist():
        patches[i, j] = backbone.mask_token[0, 0]
    patches = patches + backbone.vit.pos_embed[:, 1:]
    cls = (backbone.vit.cls_token + backbone.vit.pos_embed[:, :1]).expand(2, -1, -1)
    expected = backbone.vit.norm(blocks_of(backbone, torch.cat([cls, patches], 1))[-1])
    features = backbone(x, mask=mask)
    torch.testing.assert_close(torch.cat([features.cls[:, None], features.patches], 1), expected)
    # what is below the mask is not seen
    x2 = x.clone().unflatten(2, (8, 4)).unflatten(4, (8, 4))
    x2.permute(0, 2, 4, 1, 3, 5)[mask.unflatten(1, (8, 8))] += 1
    torch.testing.assert_close(backbone(x2.flatten(4, 5).flatten(2, 3), mask=mask).patches, features.patches)


def test_an_empty_mask_is_no_mask_and_gives_its_token_a_gradient():
    backbone, x = small(mask_token=True), images()
    features = backbone(x, mask=torch.zeros(2, 64, dtype=torch.bool))
    torch.testing.assert_close(features.patches, backbone(x).patches)
    features.pooled.sum().backward()
    assert (backbone.mask_token.grad == 0).all()


def test_masked_and_kept_at_once():
    backbone, x = small(mask_token=True), images()
    mask, keep = torch.rand(2, 64) < 0.5, torch.stack([torch.randperm(64)[:9] for _ in range(2)])
    again = backbone(x, keep, mask=mask)
    flipped = mask.clone()
    flipped[torch.arange(2)[:, None], keep] ^= True
    outside = torch.where(mask.scatter(1, keep, True) ^ mask.scatter(1, keep, False), mask, ~mask)
    torch.testing.assert_close(backbone(x, keep, mask=outside).cls, again.cls)
    assert (backbone(x, keep, mask=flipped).cls - again.cls).abs().max() > 1e-4


def test_local_crops_and_views_that_are_not_square():
    backbone = small()
    assert backbone(images(16)).patches.shape == (2, 16, 24)
    assert backbone(torch.randn(2, 3, 8, 40)).patches.shape == (2, 20, 24)


def test_the_last_blocks_come_oldest_first():
    backbone, x = small(), images()
    features = backbone(x, blocks=3)
    assert torch.equal(backbone.vit.norm(features.blocks[-1])[:, 0], features.cls)
    torch.testing.assert_close(backbone.vit.blocks[1](features.blocks[0]), features.blocks[1])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_without_patches_the_class_token_is_the_same(checkpointing):
    """Features and gradients, with drop path's random numbers."""
    network = vit("tiny", patch=4, image_size=16, depth=3, drop_path=0.5, layer_scale=0.1, checkpointing=checkpointing)
    images = torch.randn(6, 3, 16, 16)
    found = []
    for patches in (True, False):
        torch.manual_seed(0)
        network.zero_grad()
        features = network(images, patches=patches)
        assert (features.patches is not None) == patches
        features.pooled.square().mean().backward()
        found.append([features.pooled, *(each.grad for each in network.parameters())])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    assert len(network(images, patches=False, blocks=1).blocks[0][0]) == 17


def test_without_patches_the_last_block_works_less():
    network = vit("tiny", patch=4, image_size=16, depth=2)
    rows = []
    network.vit.blocks[-1].mlp.register_forward_hook(lambda _, x, y: rows.append(tuple(x[0].shape)))
    network(torch.randn(2, 3, 16, 16))
    network(torch.randn(2, 3, 16, 16), patches=False)
    assert rows == [(2, 17, 192), (2, 1, 192)]


def test_drop_path_grows_with_depth_and_layer_scale_starts_small():
    backbone = small(drop_path=0.2, layer_scale=1e-5)
    rates = [getattr(block.drop_path2, "drop_prob", 0.0) for block in backbone.vit.blocks]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor([0, 0.1, 0.2]))
    assert (backbone.vit.blocks[0].ls1.gamma == 1e-5).all()


def test_drop_path_drops_whole_branches_in_training_only():
    backbone = small(drop_path=0.999, depth=2)
    x = images(count=64)
    assert torch.equal(backbone(x).cls, backbone(x).cls)
    features = backbone.train()(x, blocks=2)
    assert (features.blocks[0] == features.blocks[1]).flatten(1).all(1).float().mean() > 0.9


def test_maes_encoder():
    backbone = small(positions="sincos", init="xavier", dims=64, depth=1, heads=4)
    assert torch.equal(backbone.vit.pos_embed, sincos(64, 8))
    assert not backbone.vit.pos_embed.requires_grad
    embedding, qkv = backbone.vit.patch_embed.proj.weight, backbone.vit.blocks[0].attn.qkv.weight
    for weight, ins, outs in ((embedding, 48, 64), (qkv, 64, 192)):
        bound = (6 / (ins + outs)) ** 0.5
        assert weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert (backbone.vit.blocks[0].attn.qkv.bias == 0).all()


def test_weights_start_as_in_the_official_code():
    backbone = small(dims=192, heads=3, depth=1, mask_token=True)
    for x in (backbone.vit.blocks[0].mlp.fc1.weight, backbone.vit.pos_embed, backbone.vit.cls_token):
        assert x.std().item() == pytest.approx(0.02, rel=0.2)
    assert (backbone.mask_token == 0).all()


def test_grey_images():
    assert small(channels=1)(images(channels=1)).pooled.shape == (2, 24)


def test_without_a_mask_token_there_is_no_parameter():
    assert "mask_token" not in dict(small().named_parameters())
    with pytest.raises(ValueError, match="build it with mask_token=True"):
        small()(images(), mask=torch.zeros(2, 64, dtype=torch.bool))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "vast"}, "size must be one of tiny, small, base, large, huge, giant, got 'vast'"),
        ({"patch": 16, "image_size": 100}, "got patch 16 and image_size 100"),
        ({"dims": 50, "heads": 3}, "3 heads do not divide 50 dims"),
        ({"resize": "bilinear"}, "resize must be one of dino, msn, timm, got 'bilinear'"),
        ({"positions": "rotary"}, "'learned' or 'sincos', got 'rotary'"),
        ({"init": "zero"}, "'truncated' or 'xavier', got 'zero'"),
        ({"positions": "sincos", "dims": 30, "heads": 2}, "divisible by 4, got 30"),
    ],
)
def test_what_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message):
        vit(**{"size": "tiny", "depth": 1} | options)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": torch.zeros(2, 3, 30, 32)}, "a patch of 4 pixels does not divide images of 30 x 32"),
        ({"images": torch.zeros(2, 1, 32, 32)}, "images have 1 channels and the backbone was built for 3"),
        ({"mask": torch.zeros(2, 49, dtype=torch.bool)}, "the mask is 2 x 49 and the patches are 2 x 64"),
        ({"keep": torch.zeros(3, 5, dtype=torch.long)}, "named for 3 images, there are 2"),
        ({"blocks": 4}, "has 3 blocks, got blocks=4"),
        ({"blocks": -1}, "has 3 blocks, got blocks=-1"),
    ],
)
def test_what_cannot_be_seen(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(mask_token=True)(**{"images": images()} | arguments)


COMPILED = """
import torch
from prototile.backbones import vit

torch.manual_seed(0)
options = {"patch": 4, "image_size": 32, "dims": 24, "depth": 2, "heads": 2, "drop_path": 0.1, "mask_token": True}
backbone = vit("tiny", **options).eval()
images = torch.randn(2, 3, 32, 32)
mask, keep = torch.rand(2, 64) < 0.4, torch.randperm(64)[:9].expand(2, -1)
calls = [(images, {}), (images[..., :16, :16], {}), (images, {"mask": mask}), (images, {"keep": keep, "blocks": 2})]
expected = [backbone(x, **options) for x, options in calls]
backbone.compile(fullgraph=True, backend="aot_eager")  # captured whole; what a compiler makes of it is its own
for (x, options), features in zip(calls, expected):
    actual = backbone(x, **options)
    torch.testing.assert_close(actual.patches, features.patches)
    torch.testing.assert_close(actual.blocks, features.blocks)
    actual.pooled.sum().backward()
assert all(p.grad.isfinite().all() for p in backbone.parameters())
"""


@pytest.mark.slow
def test_it_compiles(start):
    """In a process of its own, where shapes are annotations only, as for users."""
    process = start(exec, COMPILED, {})
    assert process.wait() == 0, process.stderr


def test_registers_are_seen_by_all_and_shown_to_nobody():
    backbone = small(registers=3)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for p in backbone.parameters():
            p.normal_(std=0.3)  # else all tokens get the same, whatever the attention
        features = backbone(images, blocks=2)
        assert features.patches.shape == (2, 64, 24)
        assert [x.shape for x in features.blocks] == [(2, 65, 24)] * 2
        torch.testing.assert_close(backbone.vit.norm(features.blocks[-1])[:, 0], features.cls)
        torch.testing.assert_close(backbone.vit.forward_features(images)[:, 0], features.cls)  # timm's own way
        torch.testing.assert_close(backbone.vit.forward_features(images)[:, 4:], features.patches)
        torch.testing.assert_close(backbone(images, patches=False).cls, features.cls)
        backbone.vit.reg_token.normal_()
        assert (backbone(images).cls - features.cls).abs().max() > 1e-3


def test_a_gated_mlp():
    backbone = small(mlp="swiglu", hidden=20)
    layer, x = backbone.vit.blocks[0].mlp, torch.randn(5, 24)
    gate, value = layer.fc1(x).chunk(2, dim=-1)
    assert gate.shape == (5, 10)
    torch.testing.assert_close(layer(x), layer.fc2(torch.nn.functional.silu(gate) * value))


def test_pooling_patches_before_the_norm():
    backbone = small(pool="mean")
    images = torch.randn(2, 3, 32, 32)
    features = backbone(images, blocks=1)
    expected = backbone.vit.norm(features.blocks[0][:, 1:].mean(1))
    torch.testing.assert_close(features.pooled, expected)
    torch.testing.assert_close(backbone(images, patches=False).pooled, expected)
    assert not torch.allclose(features.pooled, features.cls)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "max"}, "pool must be one of cls, mean, got 'max'"),
        ({"mlp": "relu"}, "mlp must be 'gelu' or 'swiglu'"),
        ({"mlp": "swiglu", "hidden": 7}, "hidden positive"),
        ({"registers": -1}, "registers must not be negative"),
    ],
)
def test_parts_that_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)
