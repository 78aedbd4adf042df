"""Toys: handwriting alone, or with two factors that are known: a small digit, of long-tailed classes, before an object.

    handwriting         scikit-learn's 1,797 digits: nothing to download
    Toy                 the source of two factors: `factors` has "digit" (also `labels`) and "object"
    mnist_on_cifar      MNIST digits on CIFAR-10 images (Assran et al. 2023, section 5.1)
    digits              the same in miniature, drawn: nothing to download

Digit r = 0..9 has P(r) proportional to (r + 1)^-exponent in training and 1/10 in the test split. The factors are
independent: every class of objects has the same share of each digit, up to rounding. A method that expects
uniform clusters finds objects, one that expects a long tail may find digits (https://arxiv.org/abs/2210.07277).

Axes: n images, m pieces of handwriting, h w pixels.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from prototile.data.catalog import torchvision_source
from prototile.data.files import PathLike
from prototile.data.source import Arrays, Source
from prototile.views.randomness import Stream, generator

SPLITS = ("train", "test")
SIDE = 32  # of an image; a digit has 14, its corner at (1, 1)
DIGIT = slice(1, 15)
LUMA = (0.299, 0.587, 0.114)
TRAIN_DIGITS = 1300  # of scikit-learn's 1,797; the others are for testing

Images = UInt8[np.ndarray, "n h w"]
Labels = Int[np.ndarray, " n"]


def handwriting(split: str = "train") -> Arrays:
    """Scikit-learn's handwritten digits, four times as large: 1,300 images of 32 x 32 to train on, 497 to test."""
    _checked(split)
    small, written = _written(split)
    images = interpolate(small, (SIDE, SIDE), mode="bilinear")[:, 0].numpy()
    return Arrays(_rounded(images), written.astype(np.int64), tuple("0123456789"), name=f"handwriting/{split}")


class Toy(Source):
    """Grey images with a digit, which is their label, and an object behind it."""

    def __init__(self, images: Images, factors: dict[str, Labels], *, name: str):
        self._images = Arrays(images, name=name)
        self.factors = factors
        self.labels = factors["digit"]
        self.classes = tuple("0123456789")

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        return self._images.image(index)

    def id(self, index: int) -> str:
        return self._images.id(index)

    def stamp(self, index: int) -> str:
        return self._images.stamp(index)


def mnist_on_cifar(
    root: PathLike, split: str = "train", exponent: float = 0.5, seed: int = 0, download: bool = False
) -> Toy:
    """CIFAR-10 in grey (ITU-R 601 luma) with an MNIST digit, halved to 14 x 14, both by their maximum."""
    rng = _generator(split, seed)
    cifar = torchvision_source("cifar10", root, split, download)
    mnist = torchvision_source("mnist", root, split, download)
    assert cifar.labels is not None
    assert mnist.labels is not None
    behind = np.stack([_rounded(np.tensordot(LUMA, cifar.image(i).numpy(), 1)) for i in range(len(cifar))])
    large = np.stack([mnist.image(i)[0].numpy() for i in range(len(mnist))])
    small = large.reshape(-1, 14, 2, 14, 2).mean((2, 4))
    digit = _independent(cifar.labels, _shares(split, exponent), rng)
    images = _combined(behind, _rounded(small), mnist.labels, digit, rng)
    return Toy(images, {"digit": digit, "object": cifar.labels}, name=f"mnist-on-cifar/{split}")


def digits(split: str = "train", exponent: float = 0.5, seed: int = 0, num_images: int | None = None) -> Toy:
    """A drawn shape or texture of one of ten kinds with a handwritten digit of scikit-learn's before it.

    There are 10,000 images to train on and 2,000 to test; no piece of handwriting is in both.
    """
    rng = _generator(split, seed)
    if num_images is None:
        num_images = 10_000 if split == "train" else 2_000
    if num_images < 1:
        raise ValueError(f"a data set needs at least one image, got num_images = {num_images}")
    shape = rng.permutation(np.arange(num_images) % len(SHAPES))
    digit = _independent(shape, _shares(split, exponent), rng)
    small, written = _written(split)
    large = interpolate(small, (14, 14), mode="bilinear")[:, 0].numpy()
    images = _combined(_drawn(shape, rng), _rounded(large), written, digit, rng)
    return Toy(images, {"digit": digit, "object": shape}, name=f"digits/{split}")


def _written(split: str) -> tuple[Float[Tensor, "m 1 8 8"], Labels]:
    """Handwriting of this split, and which digits it is."""
    from sklearn.datasets import load_digits  # its import takes seconds, for which other sources need not wait

    pixels, written = load_digits(return_X_y=True)
    part = slice(None, TRAIN_DIGITS) if split == "train" else slice(TRAIN_DIGITS, None)
    return torch.from_numpy(pixels[part].reshape(-1, 1, 8, 8)) * (255 / 16), written[part]


def _generator(split: str, seed: int) -> np.random.Generator:
    return generator(seed, Stream.TOY, 0, SPLITS.index(_checked(split)))


def _checked(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"there is no split {split!r} of this data set; it has: {', '.join(SPLITS)}")
    return split


def _shares(split: str, exponent: float) -> Float[np.ndarray, "10"]:
    if not 0 <= exponent < np.inf:
        raise ValueError(f"the exponent of a power law must be finite and at least 0, got {exponent}")
    mass = np.arange(1, 11, dtype=np.float64) ** (-exponent if split == "train" else 0)
    return mass / mass.sum()


def _independent(objects: Labels, shares: Float[np.ndarray, "10"], rng: np.random.Generator) -> Labels:
    """Digits whose joint distribution with the objects is the product up to rounding.

    Each kind of object has the largest remainders rounded up, and what that leaves over is carried to the next kind, so
    the digits' counts are less than 1 off within a kind and at most 2 off overall.
    """
    digit = np.empty(len(objects), np.int64)
    carried = np.zeros(len(shares))
    for kind in np.unique(objects):
        members = np.flatnonzero(objects == kind)
        exact = shares * len(members)
        counts = np.floor(exact + 1e-9).astype(np.int64)  # not one less where rounding left 19.999999999
        carried += exact - counts
        remainders = np.argsort(np.where(exact - counts > 1e-9, -carried, np.inf), kind="stable")
        up = remainders[: len(members) - counts.sum()]
        counts[up] += 1
        carried[up] -= 1
        digit[rng.permutation(members)] = np.repeat(np.arange(10), counts)
    return digit


def _combined(
    behind: Images,
    handwriting: UInt8[np.ndarray, "m 14 14"],
    written: Int[np.ndarray, " m"],
    digit: Labels,
    rng: np.random.Generator,
) -> Images:
    """Where both overlap the lighter pixel shows; each image gets any handwriting of its digit."""
    images = behind.copy()
    for value in range(10):
        members = np.flatnonzero(digit == value)
        chosen = handwriting[rng.choice(np.flatnonzero(written == value), len(members))]
        images[members, DIGIT, DIGIT] = np.maximum(images[members, DIGIT, DIGIT], chosen)
    return images


def _drawn(shape: Labels, rng: np.random.Generator) -> Images:
    """Shapes of random place and size in two random greys, dark enough for a light digit, with a little noise."""
    n = len(shape)
    y, x, size, dark, step = (
        rng.uniform(low, high, (n, 1, 1)).astype(np.float32)
        for low, high in ((13, 21), (13, 21), (7, 11), (0, 50), (50, 75))
    )
    down, right = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    mask = np.empty((n, SIDE, SIDE), bool)
    for kind, draw in enumerate(SHAPES.values()):
        members = shape == kind
        mask[members] = draw(down - y[members], right - x[members], size[members])
    swap = rng.random((n, 1, 1)) < 0.5
    grey = dark + step * (mask ^ swap)
    return _rounded(np.clip(grey + 4 * rng.standard_normal(grey.shape, dtype=np.float32), 0, 255))


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.rint(values).astype(np.uint8)


def _stripes(along: np.ndarray, size: np.ndarray) -> np.ndarray:
    return along % (0.8 * size) < 0.4 * size


_Pixels = Float[np.ndarray, "..."]

# Which pixels lie inside, given their offset (down, right) from the centre and half the shape's size.
SHAPES: dict[str, Callable[[_Pixels, _Pixels, _Pixels], np.ndarray]] = {
    "disc": lambda y, x, r: y**2 + x**2 < r**2,
    "square": lambda y, x, r: np.maximum(abs(y), abs(x)) < 0.9 * r,
    "triangle": lambda y, x, r: (y < 0.8 * r) & (abs(x) < 0.6 * (y + r)),
    "ring": lambda y, x, r: abs(np.hypot(y, x) - 0.8 * r) < 0.25 * r,
    "cross": lambda y, x, r: (np.minimum(abs(y), abs(x)) < 0.25 * r) & (np.maximum(abs(y), abs(x)) < r),
    "horizontal stripes": lambda y, x, r: _stripes(y, r),
    "vertical stripes": lambda y, x, r: _stripes(x, r),
    "diagonal stripes": lambda y, x, r: _stripes(0.7 * (y + x), r),
    "checker": lambda y, x, r: _stripes(y, r) ^ _stripes(x, r),
    "dots": lambda y, x, r: np.hypot(y % (0.8 * r) - 0.4 * r, x % (0.8 * r) - 0.4 * r) < 0.25 * r,
}
