"""Features: the same pixels that PIL would show, in order, from a backbone that is left as it was."""

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation_cases import Pixels, Some
from prototile.data.source import Arrays
from prototile.evaluation import encode, extract
from prototile.evaluation.features import centre_crop
from prototile.views import CIFAR10, IMAGENET


def shown(features: torch.Tensor, size: int, normalization) -> np.ndarray:
    """The pixels in a row of features, from 0 to 255."""
    mean, std = (np.array(x)[:, None, None] for x in (normalization.mean, normalization.std))
    return (features.view(3, size, size).double().numpy() * std + mean) * 255


@pytest.mark.parametrize(("height", "width"), [(90, 60), (60, 91), (40, 40), (64, 48)])
def test_the_crop_is_pillows(height, width):
    """Resize the shorter side to 48, crop 32 at the centre."""
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    found = centre_crop(torch.from_numpy(pixels).permute(2, 0, 1), 32, 48)
    shorter = min(height, width)
    size = (round(width * 48 / shorter), round(height * 48 / shorter))
    left, top = (size[0] - 32) // 2, (size[1] - 32) // 2
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).crop((left, top, left + 32, top + 32))
    assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - np.asarray(image).astype(int)).max() <= 1


def test_small_images_are_shown_whole():
    source = Some([(8, 8)] * 5)
    found = extract(Pixels(192), source, size=8, normalization=CIFAR10)
    for row, pixels in zip(found.features, source.pixels, strict=True):
        np.testing.assert_allclose(shown(row, 8, CIFAR10), pixels.transpose(2, 0, 1), atol=1e-3)


def test_large_images_are_resized_as_is_usual():
    """256 for 224: a border of 16 pixels of 256 is not seen."""
    pixels = np.full((256, 256, 3), 200, np.uint8)
    pixels[16:240, 16:240] = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    found = extract(Pixels(3 * 224 * 224), Arrays(pixels[None]))
    np.testing.assert_allclose(
        shown(found.features[0], 224, IMAGENET), pixels[16:240, 16:240].transpose(2, 0, 1), atol=0.01
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_order_is_kept_and_bad_images_are_listed(workers, batch):
    source = Some([(10, 12), (9, 9), (12, 8), (11, 11), (8, 8), (20, 9), (8, 9)], bad=[0, 3, 6])
    found = extract(Pixels(192), source, size=8, batch=batch, workers=workers)
    expected = extract(Pixels(192), Some([p.shape[:2] for p in source.pixels]), size=8, batch=1)
    torch.testing.assert_close(found.features, expected.features[[1, 2, 4, 5]])
    assert found.labels.tolist() == [1, 2, 1, 2]
    assert found.ids == ("image 1", "image 2", "image 4", "image 5")
    assert found.bad == (("image 0", "cut off"), ("image 3", "cut off"), ("image 6", "cut off"))
    assert str(found) == "4 images, 192 dims, 3 more could not be read"


def test_no_labels_are_minus_one():
    assert extract(Pixels(192), Some([(8, 8)] * 3, labels=False), size=8).labels.tolist() == [-1] * 3


def test_the_backbone_is_left_as_it_was():
    backbone = Pixels(192).train()
    backbone.drop.eval()
    found = extract(backbone, Some([(8, 8)] * 3), size=8)
    encode(backbone, torch.randn(2, 3, 8, 8))
    assert backbone.training
    assert backbone.norm.training
    assert not backbone.drop.training, "every part as it was"
    assert backbone.norm.num_batches_tracked == 0
    assert not found.features.requires_grad


def test_random_numbers_are_left_as_they_were():
    state = torch.get_rng_state()
    extract(Pixels(192), Some([(8, 8)] * 3), size=8, workers=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_modes_come_back_after_an_error():
    backbone = Pixels(192).train()
    with pytest.raises(ValueError, match="none of the 2 images can be read; the first: cut off"):
        extract(backbone, Some([(8, 8)] * 2, bad=[0, 1]), size=8)
    assert backbone.training


def test_images_in_memory():
    backbone = Pixels(48)
    images = torch.randn(7, 3, 4, 4)
    torch.testing.assert_close(encode(backbone, images, batch=3), images.flatten(1))
    assert backbone.batches == [3, 3, 1]
    with pytest.raises(ValueError, match="no images"):
        encode(backbone, images[:0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8, "resize": 7}, "resize=7"),
        ({"size": 0}, "crop of 0"),
        ({"size": 8, "batch": 0}, "at least one image"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        extract(Pixels(192), Some([(8, 8)]), **options)
