"""The digits, their views, and the network."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from prototile.demo.backbone import SmallNetwork
from prototile.demo.data import digits
from prototile.demo.views import boxes, two_views


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_digit_is_in_one_split():
    train, test = digits()
    assert (len(train), len(test)) == (1300, 497)
    both = np.concatenate([train.raw, test.raw]).reshape(1797, 64)
    np.testing.assert_array_equal(np.unique(both, axis=0), np.unique(load_digits().data, axis=0))
    assert torch.bincount(torch.cat([train.labels, test.labels])).tolist() == np.bincount(load_digits().target).tolist()


def test_the_split_is_always_the_same():
    first, second = digits(), digits()
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.images, other.images)
    assert first[0].labels[:8].tolist() != load_digits().target[:8].tolist()


def test_images_are_the_raw_ones_twice_as_large():
    train, _ = digits()
    assert train.images.shape == (1300, 1, 16, 16)
    pixels = torch.from_numpy(train.raw[5]).double()
    assert train.images[5, 0, 0, 0] == pytest.approx(float(pixels[0, 0]) / 16 - 0.3)
    # bilinear: the third row and column lie a quarter of the way from the second raw pixel to the first
    row = 0.25 * pixels[0] + 0.75 * pixels[1]
    value = 0.25 * row[0] + 0.75 * row[1]
    assert train.images[5, 0, 2, 2] == pytest.approx(float(value) / 16 - 0.3, abs=1e-6)


def test_views_depend_on_the_generator_alone():
    images = digits()[0].images[:4]
    one, again, other = (two_views(images, random(seed)).images for seed in (0, 0, 1))
    assert one.shape == (2, 4, 1, 16, 16)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])


def test_boxes_have_the_stated_sizes_and_stay_inside():
    matrices = boxes(20_000, random())
    width, height = matrices[:, 0, 0], matrices[:, 1, 1]
    x, y = matrices[:, 0, 2], matrices[:, 1, 2]
    assert (matrices[:, 0, 1] == 0).all()
    assert (matrices[:, 1, 0] == 0).all()
    for size, offset in ((width, x), (height, y)):
        assert float((size + offset.abs()).max()) <= 1 + 1e-6
    inside = (width < 1) & (height < 1)
    area, aspect = (width * height)[inside], (width / height)[inside]
    assert 0.5 - 1e-6 <= float(area.min()) < 0.51
    assert float(area.max()) > 0.95
    assert 0.75 - 1e-6 <= float(aspect.min()) < 0.76
    assert 1.32 < float(aspect.max()) <= 4 / 3 + 1e-6
    assert float(aspect.log().mean()) == pytest.approx(0, abs=0.01)
    assert float(x.mean()) == pytest.approx(0, abs=0.01)


def test_a_view_is_the_image_in_other_light():
    """Of a constant image nothing but brightness and noise is left: contrast is about its mean."""
    views = two_views(torch.full((500, 1, 16, 16), 0.4), random()).images
    means = views.mean((2, 3, 4)) - 0.4
    assert 0.19 < float(means.abs().max()) < 0.21
    assert float(means.mean()) == pytest.approx(0, abs=0.02)
    assert float(views.std((2, 3, 4)).mean()) == pytest.approx(0.03, abs=0.001)


def test_contrast_is_within_its_range():
    image = torch.tensor([0.0, 1.0]).repeat(8).view(1, 1, 1, 16).expand(400, 1, 16, 16)  # the same in every row
    spread = two_views(image, random()).images.mean(3).std(-1) / image[0, 0, 0].std()
    assert float(spread.max()) < 1.45


def test_the_network():
    network = SmallNetwork()
    features = network(torch.randn(3, 1, 16, 16))
    assert features.pooled.shape == (3, network.dims) == (3, 128)
    assert features.patches is None
    assert float(features.pooled.detach().min()) == 0
    inside = [p for layer in network.layers for p in layer.parameters()]
    assert len(inside) == len(set(inside)) == len(list(network.parameters())) == 12
    network.keep_all_paths_()


def test_the_network_looks_at_all_sides_alike():
    """Kernels of 4 with stride 2 see every corner: the gradient of the mean reaches all pixels."""
    images = torch.randn(8, 1, 16, 16, requires_grad=True)
    SmallNetwork().eval()(images).pooled.sum().backward()
    seen = images.grad.abs().mean((0, 1))
    assert float(seen.min()) > 0
    assert float(seen[:8].mean() / seen[8:].mean()) == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("given", [{"keep": torch.zeros(1, 1, dtype=torch.long)}, {"blocks": 1}])
def test_the_network_has_no_patches(given):
    with pytest.raises(ValueError, match="give images alone"):
        SmallNetwork()(torch.zeros(1, 1, 16, 16), **given)
