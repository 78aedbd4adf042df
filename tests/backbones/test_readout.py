"""What evaluations read from a backbone, written out."""

import pytest
import torch

from prototile.backbones import Readout, beit, resnet, swin, timm_model, vit

SMALL = {"patch": 4, "image_size": 32, "dims": 24, "depth": 3, "heads": 2}


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=["vit", "beit"])
def transformer(request):
    backbone = {"vit": vit, "beit": beit}[request.param]("tiny", **SMALL).eval()
    network = backbone.vit if request.param == "vit" else backbone.beit
    torch.nn.init.normal_(network.norm.weight)
    return backbone, network.norm


def test_tokens_of_blocks(transformer):
    backbone, norm = transformer
    images = torch.randn(2, 3, 32, 32)
    features = backbone(images, blocks=2)
    first, second = features.blocks
    mean = features.patches.mean(1)
    torch.testing.assert_close(Readout()(backbone, images), features.pooled)
    expected = {
        Readout(blocks=2): torch.cat([norm(first)[:, 0], norm(second)[:, 0]], 1),
        Readout(blocks=2, normed=False): torch.cat([first[:, 0], second[:, 0]], 1),
        Readout(blocks=1, patches="behind"): torch.cat([features.cls, mean], 1),
        Readout(blocks=2, patches="behind"): torch.cat([norm(first)[:, 0], norm(second)[:, 0], mean], 1),
    }
    for readout, value in expected.items():
        torch.testing.assert_close(readout(backbone, images), value)
    interleaved = Readout(blocks=1, patches="interleaved")(backbone, images)
    torch.testing.assert_close(interleaved[:, ::2], features.cls)
    torch.testing.assert_close(interleaved[:, 1::2], mean)


def test_earlier_stages_of_swin_go_without_the_norm():
    backbone = swin("tiny", window=4, image_size=64, dims=12, depths=(2, 2), heads=(2, 4)).eval()
    torch.nn.init.normal_(backbone.swin.norm.weight)
    images = torch.randn(2, 3, 64, 64)
    third, fourth, fifth = backbone(images, blocks=3).blocks
    norm = backbone.swin.norm
    expected = torch.cat([third.mean(1), norm(fourth).mean(1), norm(fifth).mean(1)], 1)
    torch.testing.assert_close(Readout(blocks=3)(backbone, images), expected)


def test_a_pooled_map():
    backbone = resnet("resnet18").eval()
    images = torch.randn(1, 3, 96, 96)
    found = Readout(pool=2)(backbone, images)
    regions = backbone.regions(images)
    assert found.shape == (1, 512 * 4)
    torch.testing.assert_close(found.view(1, 512, 2, 2)[..., 1, 0], regions[..., 1:3, 0:2].mean((2, 3)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patches": "all"}, "patches must be 'no', 'behind' or 'interleaved'"),
        ({"blocks": 2, "pool": 6}, "of blocks or of a pooled map"),
        ({"blocks": -1}, "of blocks or of a pooled map"),
        ({"blocks": 2, "patches": "interleaved"}, "one block is interleaved"),
        ({"patches": "behind"}, "pooled features stand alone"),
        ({"normed": False}, "pooled features stand alone"),
    ],
)
def test_what_cannot_be_read(options, said):
    with pytest.raises(ValueError, match=said):
        Readout(**options)


def test_backbones_without_blocks_or_a_map():
    images = torch.randn(1, 3, 64, 64)
    with pytest.raises(ValueError, match="gives pooled features, not the tokens of blocks"):
        Readout(blocks=1)(resnet("resnet18").eval(), images)
    with pytest.raises(ValueError, match="only a ResNet has a map to pool, not a Pooled"):
        Readout(pool=6)(timm_model("convnext_atto").eval(), images)
