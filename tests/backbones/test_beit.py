"""BEiT against timm's own, with a bias for all blocks and with one for each."""

import math
from functools import partial

import pytest
import torch
from timm.models.beit import Beit
from torch import nn

from prototile.backbones import beit

SHAPE = {"image_size": 32, "patch": 4, "dims": 24, "depth": 3, "heads": 2}


def small(**options):
    return beit("tiny", **SHAPE, **options).eval()


def timms(**options):
    norm = partial(nn.LayerNorm, eps=1e-6)
    shape = {"img_size": 32, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "init_values": 1e-4}
    fixed = {"num_classes": 0, "global_pool": "token", "use_abs_pos_emb": False, "norm_layer": norm}
    return Beit(**shape, **fixed, **options).eval()


@pytest.fixture
def backbone():
    backbone = small()
    nn.init.normal_(backbone.beit.rel_pos_bias.relative_position_bias_table)
    return backbone


def test_it_is_timms(backbone):
    network, x = timms(use_shared_rel_pos_bias=True), torch.randn(2, 3, 32, 32)
    network.load_state_dict(backbone.beit.state_dict())
    features, tokens = backbone(x, blocks=2), network.forward_features(x)
    assert torch.equal(torch.cat([features.cls[:, None], features.patches], 1), tokens)
    assert torch.equal(features.pooled, network(x))
    assert torch.equal(network.norm(features.blocks[-1]), tokens)


def test_its_bias_may_be_copied_to_every_block(backbone):
    """As its docstring says."""
    state = backbone.beit.state_dict()
    table = state.pop("rel_pos_bias.relative_position_bias_table")
    state |= {f"blocks.{i}.attn.relative_position_bias_table": table for i in range(3)}
    network, x = timms(use_rel_pos_bias=True), torch.randn(2, 3, 32, 32)
    network.load_state_dict(state)
    torch.testing.assert_close(backbone(x).cls, network(x))


def test_the_bias_of_relative_positions_decides(backbone):
    x = torch.randn(1, 3, 32, 32)
    before = backbone(x).cls
    backbone.beit.rel_pos_bias.relative_position_bias_table.data *= -1
    assert (backbone(x).cls - before).abs().max() > 1e-6


def test_masked_patches_are_not_seen(backbone):
    x, mask = torch.randn(2, 3, 32, 32), torch.zeros(2, 64, dtype=torch.bool)
    mask[:, :8] = True  # the first row
    changed = x.clone()
    changed[:, :, :4] += 1
    assert torch.equal(backbone(x, mask=mask).patches, backbone(changed, mask=mask).patches)
    assert not torch.equal(backbone(x).patches, backbone(changed).patches)
    embedded = backbone.beit.patch_embed(x)
    embedded = torch.where(mask[..., None], backbone.mask_token, embedded)
    tokens = torch.cat([backbone.beit.cls_token.expand(2, -1, -1), embedded], 1)
    for block in backbone.beit.blocks:
        tokens = block(tokens, shared_rel_pos_bias=backbone.beit.rel_pos_bias())
    assert torch.equal(backbone(x, mask=mask).cls, backbone.beit.norm(tokens)[:, 0])


def test_weights_start_as_in_the_official_code():
    """Normal of standard deviation 0.02 cut off at one of it (0.54 of it is left); deeper blocks smaller."""
    backbone = beit("tiny", image_size=32, patch=4, depth=2)
    left = 0.02 * math.sqrt(1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / math.erf(1 / math.sqrt(2)))
    first, second = backbone.beit.blocks
    for weight, scale in (
        (backbone.beit.patch_embed.proj.weight, 1),
        (first.attn.qkv.weight, 1),
        (first.attn.proj.weight, 2**-0.5),
        (second.mlp.fc2.weight, 0.5),
        (second.mlp.fc1.weight, 1),
    ):
        assert weight.abs().max() <= 0.02 * scale + 1e-9
        assert weight.std().item() == pytest.approx(left * scale, rel=0.05)
    for token in (backbone.mask_token, backbone.beit.cls_token):
        assert token.std().item() == pytest.approx(left, rel=0.2)
        assert token.abs().max() <= 0.02
    assert (first.gamma_1 == 1e-4).all()
    assert (backbone.beit.rel_pos_bias.relative_position_bias_table == 0).all()
    assert (backbone.beit.patch_embed.proj.bias == 0).all()


def test_attention_is_dropped_in_training():
    backbone, x = small(attention_drop=0.5, layer_scale=None), torch.randn(1, 3, 32, 32)
    assert torch.equal(backbone(x).cls, backbone(x).cls)
    backbone.train().keep_all_paths_()
    assert not torch.equal(backbone(x).cls, backbone(x).cls)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": torch.zeros(1, 3, 16, 16)}, "4 x 4 patches and BEiT's positions are for 8 x 8"),
        ({"images": torch.zeros(1, 3, 33, 32)}, "a patch of 4 pixels does not divide"),
        ({"keep": torch.zeros(1, 3, dtype=torch.long)}, "BEiT sees all patches: give it a mask"),
        ({"blocks": 4}, "has 3 blocks"),
        ({"mask": torch.zeros(1, 9, dtype=torch.bool)}, "the mask is 1 x 9 and the patches are 1 x 64"),
    ],
)
def test_what_cannot_be_seen(arguments, message):
    with pytest.raises(ValueError, match=message):
        small()(**{"images": torch.zeros(1, 3, 32, 32)} | arguments)


def test_without_a_mask_token():
    with pytest.raises(ValueError, match="mask_token=True"):
        small(mask_token=False)(torch.zeros(1, 3, 32, 32), mask=torch.zeros(1, 64, dtype=torch.bool))


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_built():
    with pytest.raises(ValueError, match="size must be one of"):
        beit("vast")
    with pytest.raises(ValueError, match="5 heads do not divide 24 dims"):
        beit("tiny", **SHAPE | {"heads": 5})


def test_a_bias_of_its_own_in_every_block():
    backbone = small(shared_bias=False, mask_token=False)
    tables = [name for name, _ in backbone.named_parameters() if "relative_position_bias_table" in name]
    assert tables == [f"beit.blocks.{i}.attn.relative_position_bias_table" for i in range(3)]
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        network = backbone.beit
        torch.testing.assert_close(backbone(images).cls, network.forward_features(images)[:, 0])
        for p in network.parameters():
            p.normal_(std=0.3)  # else all tokens get the same, whatever the attention
        before = backbone(images).cls
        network.blocks[1].attn.relative_position_bias_table.normal_(std=3)
        assert (backbone(images).cls - before).abs().max() > 1e-3


def test_pooling_patches_before_the_norm():
    backbone = small(pool="mean")
    features = backbone(torch.randn(2, 3, 32, 32), blocks=1)
    torch.testing.assert_close(features.pooled, backbone.beit.norm(features.blocks[0][:, 1:].mean(1)))
