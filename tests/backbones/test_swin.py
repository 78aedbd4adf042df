"""Swin against timm's own at its own size, and against windows written out at others."""

import math
from functools import partial

import pytest
import timm
import torch
from torch import nn

from prototile.backbones import swin


def small(image_size: int = 48, **options):
    """Grids of 12 and 6 tokens at 48 pixels, in windows of 4: both stages have a shifted block."""
    shape = {"window": 4, "dims": 12, "depths": (2, 2), "heads": (2, 4)}
    return swin("tiny", image_size=image_size, **shape | options).eval()


def test_it_is_timms():
    backbone = swin("tiny").eval()
    options = {"num_classes": 0, "norm_layer": partial(nn.LayerNorm, eps=1e-6)}
    network = timm.create_model("swin_tiny_patch4_window7_224", **options).eval()
    network.load_state_dict(backbone.swin.state_dict())
    backbone.swin.load_state_dict(network.state_dict())
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        features, tokens = backbone(x), network.forward_features(x)
    assert torch.equal(features.patches, tokens.flatten(1, 2))
    torch.testing.assert_close(features.pooled, network(x).detach())
    assert (backbone.dims, backbone.patch, features.cls) == (768, 32, None)


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ("tiny", "swin_tiny_patch4_window7_224"),
        ("small", "swin_small_patch4_window7_224"),
        ("base", "swin_base_patch4_window7_224"),
    ],
)
def test_sizes_are_timms(size, name):
    with torch.device("meta"):
        ours, timms = swin(size).swin.state_dict(), timm.create_model(name, num_classes=0).state_dict()
    assert {key: x.shape for key, x in ours.items()} == {key: x.shape for key, x in timms.items()}


def written_out(block, x, window: int, shift: int):
    """One window after the other, one head after the other, for one image of h x w x d.

    The grid is padded with zeros at the right and below after the norm, then shifted; a token that came over the
    border is apart from those that did not.
    """
    height, width, _ = x.shape
    padded = [math.ceil(length / window) * window for length in (height, width)]
    normed = torch.zeros(*padded, x.shape[2])
    normed[:height, :width] = block.norm1(x)
    out = torch.zeros_like(normed)
    for top in range(0, padded[0], window):
        for left in range(0, padded[1], window):
            shifted = [(top + i, left + j) for i in range(window) for j in range(window)]
            places = [((i + shift) % padded[0], (j + shift) % padded[1]) for i, j in shifted]
            sides = [(i + shift >= padded[0], j + shift >= padded[1]) for i, j in shifted]
            attended = attention(block.attn, torch.stack([normed[p] for p in places]), shifted, sides, window)
            for place, token in zip(places, attended, strict=True):
                out[place] = token
    x = x + out[:height, :width]
    return x + block.mlp(block.norm2(x))


def attention(attn, tokens, places, sides, window: int):
    q, k, v = attn.qkv(tokens).chunk(3, dim=1)
    heads = []
    size = q.shape[1] // attn.num_heads
    for head in range(attn.num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[:, part] @ k[:, part].T / math.sqrt(size)
        for a, (ya, xa) in enumerate(places):
            for b, (yb, xb) in enumerate(places):
                entry = (ya - yb + window - 1) * (2 * window - 1) + xa - xb + window - 1
                scores[a, b] += attn.relative_position_bias_table[entry, head]
                scores[a, b] -= 100 * (sides[a] != sides[b])
        heads.append(scores.softmax(1) @ v[:, part])
    return attn.proj(torch.cat(heads, dim=1))


@pytest.mark.parametrize(("height", "width"), [(12, 12), (10, 10), (3, 3), (5, 9)])
@pytest.mark.parametrize("number", [0, 1])
def test_windows_of_any_grid(height, width, number):
    """Whole windows, padded ones, one that is larger than the grid, a grid that is not square."""
    block = small().swin.layers[0].blocks[number]
    for p in block.parameters():
        nn.init.normal_(p, std=0.5)
    x = torch.randn(2, height, width, 12)
    with torch.no_grad():
        expected = torch.stack([written_out(block, image, 4, 2 * number) for image in x])
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


def test_a_stage_of_one_window_is_not_shifted():
    """At its own size: 4 tokens are one window of 4, 3 are one of 3."""
    for image_size, window in ((32, 4), (24, 3)):
        blocks = small(image_size).swin.layers[1].blocks
        assert [(block.window, block.shift) for block in blocks] == [(window, 0), (window, 0)]
    assert [block.shift for block in small().swin.layers[1].blocks] == [0, 2]


def test_local_crops():
    backbone = swin("tiny").eval()
    with torch.no_grad():
        features = backbone(torch.randn(1, 3, 96, 96), blocks=3)
    assert [tokens.shape for tokens in features.blocks] == [(1, 36, 384), (1, 9, 768), (1, 9, 768)]
    assert features.patches.shape == (1, 9, 768)
    assert torch.equal(features.patches, backbone.swin.norm(features.blocks[-1]))


def test_odd_grids_are_padded_where_patches_merge():
    features = small()(torch.randn(2, 3, 20, 36), blocks=4)
    assert [tokens.shape[1] for tokens in features.blocks] == [45, 45, 15, 15]


def test_a_mask_hides_patches_of_the_last_grid():
    backbone, x = small(mask_token=True), torch.randn(2, 3, 48, 48)
    nn.init.normal_(backbone.mask_token)
    mask = torch.rand(2, 36) < 0.5
    tokens = backbone.swin.patch_embed(x).clone()
    for n, i, j in mask.unflatten(1, (6, 6)).nonzero().tolist():
        tokens[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = backbone.mask_token[0, 0]
    for stage in backbone.swin.layers:
        tokens = stage(tokens)
    assert torch.equal(backbone(x, mask=mask).patches, backbone.swin.norm(tokens).flatten(1, 2))
    assert torch.equal(backbone(x, mask=torch.zeros_like(mask)).patches, backbone(x).patches)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": torch.zeros(1, 3, dtype=torch.long)}, "sees all patches of its windows"),
        ({"images": torch.zeros(1, 3, 50, 48)}, "a patch of 4 pixels does not divide images of 50 x 48"),
        ({"mask": torch.zeros(1, 144, dtype=torch.bool)}, "the mask is of 144 patches, the view has 6 x 6"),
        ({"mask": torch.zeros(1, 36, dtype=torch.bool)}, "build it with mask_token=True"),
        ({"blocks": 5}, "has 4 blocks"),
    ],
)
def test_what_cannot_be_seen(arguments, message):
    with pytest.raises(ValueError, match=message):
        small()(**{"images": torch.zeros(1, 3, 48, 48)} | arguments)


def test_masks_need_views_that_their_patches_divide():
    with pytest.raises(ValueError, match="a patch of 8 pixels does not divide images of 44 x 48"):
        small(mask_token=True)(torch.zeros(1, 3, 44, 48), mask=torch.zeros(1, 36, dtype=torch.bool))


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_built():
    with pytest.raises(ValueError, match="size must be one of tiny, small, base, got 'large'"):
        swin("large")
    with pytest.raises(ValueError, match=r"one number a stage, got \(2, 2\) and \(3, 6, 12, 24\)"):
        swin("tiny", depths=(2, 2))
    with pytest.raises(ValueError, match="patch 4 and image_size 30"):
        swin("tiny", image_size=30)
