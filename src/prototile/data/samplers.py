r"""Samplers: which images a batch holds, as a function of seed, epoch and step alone.

    sampler                               a batch                                    P(image in batch)
    Shuffled(num_images, batch_size)      the next images of a permutation           B / n
    InOrder(num_images, batch_size)       the next images, for evaluation            -
    Repeated(num_images, batch_size, r)   a permutation, each image r times in turn  B / n
    ClassesPerBatch(labels, ..., c)       c classes, equally many images of each     B / (C N), whatever c is
    ClassPower(labels, ..., exponent)     classes by N^exponent, then their images   proportional to N^exponent / N

A batch is the one of all ranks together: any number of ranks and workers sees the same batches, and a resumed run the
ones that an unbroken run would have seen. Classes are those that occur in `labels`.

Axes: n images, b images of a batch, c classes, k classes of a batch. N is the number of images of a class.
"""

import zlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from prototile.data.longtail import class_labels
from prototile.views.randomness import Stream, generator


class Sampler(ABC):
    """Which images a batch holds; equal arguments give equal batches, in whatever order they are asked for."""

    batch_size: int  # over all ranks
    num_images: int  # of the source that it chooses from

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What decides its batches, for a resumed run to compare: plain values."""

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch."""

    @abstractmethod
    def batch(self, epoch: int, step: int) -> Int[np.ndarray, " b"]:
        """The images of batch number `step` of this epoch."""


class Shuffled(Sampler):
    """Every image once an epoch, in an order drawn for each epoch; `drop_last` leaves out an incomplete last batch."""

    def __init__(self, num_images: int, batch_size: int, *, seed: int = 0, drop_last: bool = True):
        _check_positive(num_images=num_images, batch_size=batch_size)
        if drop_last and batch_size > num_images:
            raise ValueError(
                f"{num_images} images are less than one batch of {batch_size}: "
                f"use a batch_size of at most {num_images}, or drop_last=False"
            )
        self.batch_size = batch_size
        self.num_images = num_images
        self._seed = seed
        self._steps = num_images // batch_size if drop_last else -(-num_images // batch_size)
        self._orders = _Orders(num_images, seed)

    def identity(self) -> dict[str, Any]:
        return {"sampler": "shuffled", "images": self.num_images, "batch": self.batch_size, "seed": self._seed}

    def __len__(self) -> int:
        return self._steps

    def batch(self, epoch: int, step: int) -> Int[np.ndarray, " b"]:
        assert 0 <= step < len(self)
        order = self._orders(epoch)
        return order[step * self.batch_size : (step + 1) * self.batch_size].copy()


class InOrder(Sampler):
    """All images from first to last, the same in every epoch; the last batch may be smaller."""

    def __init__(self, num_images: int, batch_size: int):
        _check_positive(num_images=num_images, batch_size=batch_size)
        self.batch_size = batch_size
        self.num_images = num_images

    def identity(self) -> dict[str, Any]:
        return {"sampler": "in order", "images": self.num_images, "batch": self.batch_size}

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def batch(self, epoch: int, step: int) -> Int[np.ndarray, " b"]:
        assert 0 <= step < len(self)
        return np.arange(step * self.batch_size, min((step + 1) * self.batch_size, self.num_images))


class Repeated(Sampler):
    """Each image `repeats` times in one batch, in different views, so that an epoch sees a part of the images only
    (Hoffer et al. 2020, https://arxiv.org/abs/1901.09335; DeiT: three times).
    """

    def __init__(self, num_images: int, batch_size: int, repeats: int = 3, *, seed: int = 0):
        _check_positive(num_images=num_images, batch_size=batch_size, repeats=repeats)
        if batch_size > num_images:
            raise ValueError(
                f"{num_images} images are less than one batch of {batch_size}: use a batch_size of at most {num_images}"
            )
        self.batch_size, self.num_images = batch_size, num_images
        self._repeats, self._seed = repeats, seed
        self._orders = _Orders(num_images, seed)

    def identity(self) -> dict[str, Any]:
        named = {"images": self.num_images, "batch": self.batch_size, "repeats": self._repeats, "seed": self._seed}
        return {"sampler": "repeated", **named}

    def __len__(self) -> int:
        return self.num_images // self.batch_size

    def batch(self, epoch: int, step: int) -> Int[np.ndarray, " b"]:
        assert 0 <= step < len(self)
        order = self._orders(epoch)
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        return order[places // self._repeats]


class ClassesPerBatch(Sampler):
    r"""`classes` classes out of C and B / `classes` images of each, both uniformly without replacement.

    $P(x \in \text{batch}) = B / (C N_{class(x)})$, independent of `classes`: few classes make batches unlike the whole,
    with the same marginals (Assran et al. 2023, section 4 and appendix G, https://arxiv.org/abs/2210.07277). Classes
    are equally likely, not images: on unequal classes this is not shuffling, however large `classes` is.
    """

    def __init__(
        self,
        labels: Int[np.ndarray, " n"],
        batch_size: int,
        classes: int,
        *,
        seed: int = 0,
        steps: int | None = None,
    ):
        _check_positive(batch_size=batch_size, classes=classes)
        self._images = _ImagesOfClasses(labels)
        _check_fits(self._images, batch_size, classes)
        self.batch_size = batch_size
        self.num_images = len(labels)
        self.classes = classes
        self._seed = seed
        self._steps = _steps(steps, len(labels), batch_size)

    def identity(self) -> dict[str, Any]:
        chosen = {"sampler": "classes per batch", "batch": self.batch_size, "classes": self.classes, "seed": self._seed}
        return chosen | self._images.identity()

    def __len__(self) -> int:
        return self._steps

    def batch(self, epoch: int, step: int) -> Int[np.ndarray, " b"]:
        random = generator(self._seed, Stream.SAMPLER, epoch, step)
        chosen = random.choice(len(self._images.sizes), self.classes, replace=False)
        return self._images.draw(chosen, np.full(self.classes, self.batch_size // self.classes), random)

    def inclusion(self) -> Float[np.ndarray, " n"]:
        """The probability that a batch holds this image, for each image."""
        return self.batch_size / (len(self._images.sizes) * self._images.sizes[self._images.class_of])


class ClassPower(Sampler):
    r"""Classes independently with probability $N_k^a / \sum_j N_j^a$, then distinct images of each.

    a = 1 takes images as they are, a = 0 makes classes equal, and a = 1/2 weights images by $1 / \sqrt{N}$ (Mikolov
    et al. 2013; Assran et al. 2023, appendix F, https://arxiv.org/abs/2210.07277). Where a batch asks for more images
    than a class has, each of them comes equally often, or once more.
    """

    def __init__(
        self,
        labels: Int[np.ndarray, " n"],
        batch_size: int,
        exponent: float = 0.5,
        *,
        seed: int = 0,
        steps: int | None = None,
    ):
        _check_positive(batch_size=batch_size)
        if not 0 <= exponent < float("inf"):
            raise ValueError(f"the exponent of class sizes must be finite and at least 0, got {exponent}")
        self._images = _ImagesOfClasses(labels)
        weights = (self._images.sizes / self._images.sizes.max()) ** exponent
        self.probabilities: Float[np.ndarray, " c"] = weights / weights.sum()
        self.batch_size = batch_size
        self.num_images = len(labels)
        self._exponent = exponent
        self._seed = seed
        self._steps = _steps(steps, len(labels), batch_size)

    def identity(self) -> dict[str, Any]:
        chosen = {"sampler": "class power", "batch": self.batch_size, "exponent": self._exponent, "seed": self._seed}
        return chosen | self._images.identity()

    def __len__(self) -> int:
        return self._steps

    def batch(self, epoch: int, step: int) -> Int[np.ndarray, " b"]:
        random = generator(self._seed, Stream.SAMPLER, epoch, step)
        counts = random.multinomial(self.batch_size, self.probabilities)
        chosen = np.flatnonzero(counts)
        return self._images.draw(chosen, counts[chosen], random)

    def expected_distinct(self) -> float:
        r"""How many different images an epoch of T steps shows on average: the price of sampling the tail more often.

        $\sum_k N_k (1 - q_k^T)$, where $q_k = E[\max(0, 1 - M / N_k)]$ is the probability that a batch misses an
        image of class k, of which it draws M, binomial with B and $p_k$.
        """
        sizes, first, classes = np.unique(self._images.sizes, return_index=True, return_counts=True)
        log_chances = _log_binomial(self.batch_size, self.probabilities[first])
        drawn = np.arange(self.batch_size + 1)
        missed = np.einsum("kb,kb->k", np.exp(log_chances), np.maximum(1 - drawn / sizes[:, None], 0))
        return float((classes * sizes * (1 - missed ** len(self))).sum())


class _Orders:
    """All images in an order of their own for each epoch; the latest is kept."""

    def __init__(self, num_images: int, seed: int):
        self._num_images, self._seed = num_images, seed
        self._drawn = (-1, np.empty(0, np.int64))  # the epoch whose order this is

    def __call__(self, epoch: int) -> Int[np.ndarray, " images"]:
        drawn, order = self._drawn
        if drawn != epoch:
            order = generator(self._seed, Stream.SAMPLER, epoch, 0).permutation(self._num_images)
            self._drawn = (epoch, order)
        return order


class _ImagesOfClasses:
    """The images of each class that occurs, and draws of them."""

    def __init__(self, labels: Int[np.ndarray, " n"]):
        self.ids, self.class_of, self.sizes = np.unique(class_labels(labels), return_inverse=True, return_counts=True)
        self._images = np.argsort(self.class_of, kind="stable")
        self._starts = np.cumsum(self.sizes) - self.sizes

    def identity(self) -> dict[str, int]:
        return {"images": len(self.class_of), "labels": zlib.crc32(self.class_of.astype("<i8").tobytes())}

    def draw(
        self, classes: Int[np.ndarray, " k"], counts: Int[np.ndarray, " k"], random: np.random.Generator
    ) -> Int[np.ndarray, " b"]:
        """`counts` images of these classes, distinct as far as there are enough.

        Their order is random, so that the slice of each rank is a random part.
        """
        rounds, rest = np.divmod(counts, self.sizes[classes])
        whole = [np.tile(self._of(int(classes[i])), rounds[i]) for i in np.flatnonzero(rounds)]
        which, places = _distinct(self.sizes[classes], rest, random)
        return random.permutation(np.concatenate([*whole, self._images[self._starts[classes[which]] + places]]))

    def _of(self, number: int) -> Int[np.ndarray, " images"]:
        return self._images[self._starts[number] : self._starts[number] + self.sizes[number]]


def _distinct(
    sizes: Int[np.ndarray, " k"], counts: Int[np.ndarray, " k"], random: np.random.Generator
) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " b"]]:
    """For each k, `counts` different numbers below `sizes`, all subsets equally likely: which k, and the numbers.

    Floyd's algorithm, for all k at a time: draw from 0..j and take j itself where the number drawn was there before
    (Bentley & Floyd 1987, https://doi.org/10.1145/30401.315746).
    """
    most_first = np.argsort(-counts, kind="stable")
    sizes, counts = sizes[most_first], counts[most_first]
    taken = np.full((len(counts), counts.max(initial=0)), -1)
    for i in range(taken.shape[1]):
        active = np.searchsorted(-counts, -i)  # those that want more than i
        top = sizes[:active] - counts[:active] + i
        drawn = random.integers(0, top, endpoint=True)
        before = (taken[:active, :i] == drawn[:, None]).any(axis=1)
        taken[:active, i] = np.where(before, top, drawn)
    row, column = np.nonzero(taken >= 0)
    return most_first[row], taken[row, column]


def _log_binomial(trials: int, chances: Float[np.ndarray, " k"]) -> Float[np.ndarray, "k b"]:
    """The log probability of 0..trials successes; a chance may be 1."""
    p = torch.from_numpy(chances)[:, None]
    successes = torch.arange(trials + 1, dtype=torch.float64)
    failures = trials - successes
    log_choices = torch.lgamma(failures.max() + 1) - torch.lgamma(successes + 1) - torch.lgamma(failures + 1)
    return (log_choices + torch.special.xlogy(successes, p) + torch.special.xlog1py(failures, -p)).numpy()


def _check_fits(images: _ImagesOfClasses, batch_size: int, classes: int) -> None:
    num_classes = len(images.sizes)
    if classes > num_classes:
        raise ValueError(f"a batch cannot have {classes} classes: the labels have {num_classes}")
    if batch_size % classes:
        raise ValueError(
            f"a batch of {batch_size} cannot be shared equally by {classes} classes: "
            f"use a batch_size of {nearest_multiples(batch_size, classes)}"
        )
    smallest = int(np.argmin(images.sizes))
    size = int(images.sizes[smallest])
    if batch_size // classes > size:
        fits = [c for c in range(classes, num_classes + 1) if batch_size % c == 0 and batch_size // c <= size]
        advice = (
            f"the fewest that fit are {fits[0]} classes" if fits else f"use a batch_size of at most {size * classes}"
        )
        raise ValueError(
            f"{batch_size // classes} images of each of {classes} classes are too many: "
            f"class {images.ids[smallest]} has {size}; {advice}"
        )


def nearest_multiples(number: int, divisor: int) -> str:
    """The positive multiples of `divisor` on either side of `number`, for an error to name."""
    below = number - number % divisor
    return " or ".join(str(size) for size in (below, below + divisor) if size)


def _steps(steps: int | None, num_images: int, batch_size: int) -> int:
    if steps is None:
        return max(num_images // batch_size, 1)
    _check_positive(steps=steps)
    return steps


def _check_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
