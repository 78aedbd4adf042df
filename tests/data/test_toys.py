"""Toys: what is drawn where, shares of digits, independence of the factors."""

import pickle

import numpy as np
import pytest
from sklearn.datasets import load_digits

from prototile.data import toys
from prototile.data.source import Arrays
from prototile.data.toys import SHAPES, digits, handwriting, mnist_on_cifar


def grey(toy) -> np.ndarray:
    return np.stack([toy.image(index)[0].numpy() for index in range(len(toy))])


def joint(toy) -> np.ndarray:
    table = np.zeros((10, 10), int)
    np.add.at(table, (toy.factors["object"], toy.factors["digit"]), 1)
    return table


@pytest.fixture(scope="module")
def train():
    return digits(num_images=1000)


def test_sizes():
    assert len(digits()) == 10_000
    assert len(digits("test")) == 2_000


@pytest.mark.parametrize("exponent", [0.0, 0.5, 2.0])
def test_the_joint_distribution_is_the_product(exponent):
    toy = digits(exponent=exponent, num_images=1000)
    mass = np.arange(1, 11) ** -exponent
    exact = np.full((10, 1), 100) * mass / mass.sum()
    assert (joint(toy).sum(1) == 100).all()
    assert (abs(joint(toy) - exact) < 1).all()
    assert (toy.labels == toy.factors["digit"]).all()


def test_digits_of_the_test_split_are_uniform():
    np.testing.assert_array_equal(joint(digits("test", exponent=2)), 20)


def test_largest_remainders():
    rng = np.random.default_rng(0)
    shares = np.array([0.42, 0.27, 0.31, *[0.0] * 7])
    drawn = toys._independent(np.zeros(10, np.int64), shares, rng)  # 4.2, 2.7, 3.1
    assert np.bincount(drawn).tolist() == [4, 3, 3]


@pytest.mark.parametrize("num_images", [30, 77, 100, 345])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 2.0])
def test_rounding_does_not_add_up(exponent, num_images):
    toy = digits(exponent=exponent, num_images=num_images)
    mass = np.arange(1, 11) ** -exponent
    table, shares = joint(toy), mass / mass.sum()
    assert (abs(table - table.sum(1, keepdims=True) * shares) < 1).all()
    assert (abs(table.sum(0) - num_images * shares) <= 2).all()


def test_seeds(train):
    again, other = digits(num_images=1000), digits(num_images=1000, seed=1)
    np.testing.assert_array_equal(grey(train), grey(again))
    np.testing.assert_array_equal(train.labels, again.labels)
    assert (grey(train) != grey(other)).any()
    assert (train.labels != other.labels).any()


def test_a_digit_is_lighter_than_what_is_behind(train):
    images = grey(train)
    assert images.shape == (1000, 32, 32)
    outside = images.copy()
    outside[:, 1:15, 1:15] = 0
    assert outside.max() < 160
    assert (images[:, 1:15, 1:15].max((1, 2)) > 180).all()


def accuracy(train: np.ndarray, labels: np.ndarray, test: np.ndarray, true: np.ndarray) -> float:
    """Of the classifier by ridge regression on flattened images."""
    train, test = (np.c_[x.reshape(len(x), -1), np.ones(len(x))] for x in (train, test))
    weights = np.linalg.solve(train.T @ train + np.eye(train.shape[1]), train.T @ np.eye(10)[labels])
    return float(((test @ weights).argmax(1) == true).mean())


def test_both_factors_can_be_seen():
    """The digit from its corner's pixels, the object from spectra of the right half: chance is 0.1."""
    train, test = digits(exponent=0, num_images=2000), digits("test", num_images=500)
    here, there = (grey(toy)[:, 1:15, 1:15] / 255 for toy in (train, test))
    assert accuracy(here, train.labels, there, test.labels) > 0.6
    here, there = (np.log(abs(np.fft.rfft2(grey(toy)[:, :, 16:] / 255)) + 0.1) for toy in (train, test))
    assert accuracy(here, train.factors["object"], there, test.factors["object"]) > 0.6


def test_names_and_shapes(train):
    assert train.classes == tuple("0123456789")
    assert len(SHAPES) == 10
    assert train.image(0).shape == (3, 32, 32)
    assert train.id(17) == "digits/train/17"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(train)).image(17), train.image(17))


def test_refused():
    with pytest.raises(ValueError, match="no split 'val' of this data set; it has: train, test"):
        digits("val")
    with pytest.raises(ValueError, match="at least one image, got num_images = 0"):
        digits(num_images=0)
    for exponent in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="exponent of a power law"):
            digits(exponent=exponent)


def test_mnist_on_cifar(monkeypatch):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (600, 32, 32, 3), np.uint8)
    handwriting = np.zeros((20, 28, 28), np.uint8)
    handwriting[:, ::2] = (10 * np.arange(20))[:, None, None]  # after halving: 5 times the instance

    def source(name, root, split, download):
        assert (root, split, download) == ("ROOT", "train", False)
        if name == "cifar10":
            return Arrays(colours, np.arange(600) % 3)
        return Arrays(handwriting, np.arange(20) % 10)

    monkeypatch.setattr(toys, "torchvision_source", source)
    toy = mnist_on_cifar("ROOT", exponent=1.0)
    luma = colours @ [0.299, 0.587, 0.114]
    images = grey(toy).astype(float)
    border = np.ones((32, 32), bool)
    border[1:15, 1:15] = False
    np.testing.assert_allclose(images[:, border], luma[:, border], atol=0.501)
    instances = 5 * np.stack([toy.labels, toy.labels + 10], 1)[..., None, None]
    expected = np.maximum(luma[:, None, 1:15, 1:15], instances)
    errors = abs(images[:, None, 1:15, 1:15] - expected).max((2, 3))
    assert errors.min(1).max() <= 0.501
    assert 200 < (errors.argmin(1) == 0).sum() < 400  # either instance: 300 and 12 of standard deviation
    mass = 1 / np.arange(1, 11)
    assert (abs(joint(toy)[:3] - 200 * mass / mass.sum()) < 1).all()
    np.testing.assert_array_equal(toy.factors["object"], np.arange(600) % 3)
    assert toy.id(3) == "mnist-on-cifar/train/3"


def test_handwriting_is_scikit_learns():
    pixels, written = load_digits(return_X_y=True)
    train, test = handwriting(), handwriting("test")
    assert (len(train), len(test)) == (1300, 497)
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels]), written)
    image = test.image(3)
    assert image.shape == (3, 32, 32)
    blocks = image[0].unfold(0, 4, 4).unfold(1, 4, 4).float().mean((2, 3))
    assert np.corrcoef(blocks.flatten(), pixels[1303])[0, 1] > 0.95
    with pytest.raises(ValueError, match="it has: train, test"):
        handwriting("val")
