"""Exported files give the same features to those who do not know this package."""

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from prototile.backbones import resnet, vit
from prototile.checkpoints.exporting import write_onnx, write_weights

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return vit(patch=8, image_size=32, dims=48, depth=2, heads=3, mask_token=True).eval()


def features(backbone):
    with torch.no_grad():
        return backbone(IMAGES).pooled


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_timm_loads_it(backbone, tmp_path, name):
    code = write_weights(backbone, tmp_path / name)
    scope = {"timm": timm}
    exec(code, scope)
    model = scope["model"].eval()
    timm.models.load_checkpoint(model, str(tmp_path / name), strict=True)
    torch.testing.assert_close(model(IMAGES), features(backbone))


def test_the_file_says_what_builds_its_network(backbone, tmp_path):
    code = write_weights(backbone, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "timm": code}


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_under_our_own_names(backbone, tmp_path, name):
    assert write_weights(backbone, tmp_path / name, names="prototile") is None
    path = tmp_path / name
    weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    other = vit(patch=8, image_size=32, dims=48, depth=2, heads=3, mask_token=True).eval()
    other.load_state_dict(weights)
    torch.testing.assert_close(features(other), features(backbone), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_onnx(backbone, tmp_path, kind, capfd):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    network = backbone if kind == "vit" else resnet("resnet18", stem="cifar").eval()
    write_onnx(network, tmp_path / "a.onnx", 32)
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    found = onnxruntime.InferenceSession(tmp_path / "a.onnx").run(None, {"images": IMAGES.numpy()})[0]
    np.testing.assert_allclose(found, features(network).numpy(), rtol=1e-3, atol=1e-5)


def test_bad_names(backbone, tmp_path):
    with pytest.raises(ValueError, match=r"weights are written as \.safetensors or \.pth, got a\.bin"):
        write_weights(backbone, tmp_path / "a.bin")
    with pytest.raises(ValueError, match=r"a network is written as \.onnx, got a\.pth"):
        write_onnx(backbone, tmp_path / "a.pth", 32)
    assert list(tmp_path.iterdir()) == []
