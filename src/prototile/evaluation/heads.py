"""Linear classifiers trained by gradient descent, many of them in one pass over the features.

    Training     how: epochs, batch, optimiser, schedule
    Head         which: of what features, at which rate, with a batch norm before it or not
    Feed         batches of features, epoch by epoch; StoredFeed: of features that are there
    train_heads  all heads at once, each as if it were alone

b images of a batch, d dims, h heads, c classes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from prototile.precision import no_autocast, no_tf32
from prototile.views.randomness import Stream, generator

_BLOCK_NUMBERS = 2**24  # scores that are held at a time


@dataclass(frozen=True)
class Training:
    """How heads are trained; rates are those of `batch` images.

    schedule   "cosine" to `final` of the rate, or the epochs after which it is divided by ten
    optimizer  stochastic gradient descent, or LARC's: each weight's step in proportion to its size (You et al. 2017)
    """

    epochs: int = 100
    batch: int = 1024
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    schedule: Literal["cosine"] | tuple[int, ...] = "cosine"
    final: float = 0.0
    every_step: bool = False  # whether the rate falls with each step, or with each epoch
    optimizer: Literal["sgd", "larc"] = "sgd"
    trust: float = 0.001  # LARC's

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1:
            raise ValueError(f"heads need an epoch and an image at least, got {self.epochs} and {self.batch}")

    def factor(self, epoch: int, step: int, steps: int) -> float:
        """Of the rate, in this step of this epoch."""
        if self.schedule != "cosine":
            return 0.1 ** sum(epoch >= milestone for milestone in self.schedule)
        progress = (epoch + step / steps if self.every_step else epoch) / self.epochs
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Head:
    """A linear classifier of some features; with a batch norm over each of them, or over `places` of a channel."""

    features: str
    rate: float
    normed: bool = False
    places: int = 1


class Feed(ABC):
    """Batches of named features and of classes, the same for the same epoch."""

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch."""

    @abstractmethod
    def batches(self, epoch: int) -> Iterator[tuple[Mapping[str, Float[Tensor, "_b _d"]], Int[Tensor, " _b"]]]: ...


class StoredFeed(Feed):
    """Features that are there, in an order drawn for each epoch; they may lie on disk.

    With those of the `mirrored` images, each epoch draws for every image which of both it sees: augmentation by flips,
    for twice the encoding.
    """

    def __init__(
        self,
        features: Mapping[str, Float[Tensor, "_n _d"]],
        labels: Int[Tensor, " n"],
        batch: int,
        *,
        rows: Int[Tensor, " m"] | None = None,
        mirrored: Mapping[str, Float[Tensor, "_n _d"]] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        self._features, self._labels, self._batch, self._seed = features, labels, batch, seed
        self._mirrored = mirrored
        self._rows = torch.arange(len(labels)) if rows is None else rows
        self._device = torch.device(device)

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch)

    def batches(self, epoch: int) -> Iterator[tuple[Mapping[str, Tensor], Tensor]]:
        random = generator(self._seed, Stream.SAMPLER, epoch, 0)
        order = torch.from_numpy(random.permutation(len(self._rows)))
        turned = torch.from_numpy(random.random(len(self._rows)) < 0.5)
        for some, flips in zip(order.split(self._batch), turned.split(self._batch), strict=True):
            rows = self._rows[some]
            features = {name: self._of(name, rows, flips).to(self._device) for name in self._features}
            yield features, self._labels[rows].to(self._device)

    def _of(self, name: str, rows: Int[Tensor, " b"], flips: Bool[Tensor, " b"]) -> Float[Tensor, "b _d"]:
        seen = self._features[name][rows]
        if self._mirrored is not None:
            seen[flips] = self._mirrored[name][rows[flips]]
        return seen


@dataclass(frozen=True, eq=False)
class Trained:
    """Heads as they are after training."""

    heads: tuple[Head, ...]
    banks: "tuple[_Bank, ...]" = field(repr=False)

    @no_autocast
    @no_tf32
    @torch.no_grad()
    def ranks(self, features: Mapping[str, Float[Tensor, "_n _d"]], labels: Int[Tensor, " n"]) -> Int[Tensor, "h n"]:
        """For each head and image, how many classes come before its own: 0 where it is right. On the CPU."""
        found = torch.empty(len(self.heads), len(labels), dtype=torch.int16)
        for bank in self.banks:
            step = max(1, _BLOCK_NUMBERS // (bank.weight.shape[0] * bank.weight.shape[1]))
            for start in range(0, len(labels), step):
                rows = slice(start, start + step)
                scores = bank(features[bank.features][rows].to(bank.weight.device).float(), training=False)
                found[bank.numbers, rows] = _ranks(scores, labels[rows].to(scores.device)).T.cpu()
        return found


@no_autocast
@no_tf32
def train_heads(
    heads: Sequence[Head],
    feed: Feed,
    dims: Mapping[str, int],
    classes: int,
    training: Training,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Trained:
    """Cross-entropy, weights from N(0, 0.01) and biases from zero; heads of the same features begin alike.

    Heads do not see each other: each ends where it would alone.
    """
    banks = _banks(heads, dims, classes, seed, torch.device(device))
    for epoch in range(training.epochs):
        for step, (features, labels) in enumerate(feed.batches(epoch)):
            factor = training.factor(epoch, step, len(feed))
            for bank in banks:
                x = features[bank.features].float()
                if len(x) < 2 and bank.normed:
                    continue  # one image has no variance
                with torch.enable_grad():
                    scores = bank(x, training=True)
                    wanted = labels.repeat_interleave(scores.shape[1])
                    loss = F.cross_entropy(scores.flatten(0, 1), wanted, reduction="sum") / len(x)
                bank.step(torch.autograd.grad(loss, list(bank.parameters())), factor, training)
    return Trained(tuple(heads), banks)


def _banks(
    heads: Sequence[Head], dims: Mapping[str, int], classes: int, seed: int, device: torch.device
) -> "tuple[_Bank, ...]":
    """Heads that look at the same features in the same way, side by side."""
    kinds = dict.fromkeys((head.features, head.normed, head.places) for head in heads)
    found = []
    for features, normed, places in kinds:
        numbers = [i for i, x in enumerate(heads) if (x.features, x.normed, x.places) == (features, normed, places)]
        rates = torch.tensor([heads[i].rate for i in numbers], dtype=torch.float32)
        random = torch.Generator().manual_seed(seed)
        first = 0.01 * torch.randn(classes, dims[features], generator=random)
        found.append(_Bank(features, numbers, rates, first, places if normed else 0).to(device))
    return tuple(found)


class _Bank(nn.Module):
    """Heads of the same features, as one matrix product."""

    def __init__(
        self, features: str, numbers: list[int], rates: Float[Tensor, " h"], first: Float[Tensor, "c d"], places: int
    ):
        super().__init__()
        heads, dims = len(numbers), first.shape[1]
        self.features, self.numbers, self.normed = features, torch.tensor(numbers), places > 0
        self._places, self._seen = max(1, places), False
        self.weight = nn.Parameter(first.repeat(heads, 1, 1))
        self.bias = nn.Parameter(torch.zeros(heads, first.shape[0]))
        if self.normed:
            channels = dims // places
            self.scale, self.shift = (
                nn.Parameter(torch.ones(heads, channels)),
                nn.Parameter(torch.zeros(heads, channels)),
            )
            self.register_buffer("mean", torch.zeros(channels))
            self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("rates", rates)
        self.rates: Tensor
        self.mean: Tensor
        self.variance: Tensor
        self._velocity: list[Tensor] = []

    def forward(self, x: Float[Tensor, "b d"], *, training: bool) -> Float[Tensor, "b h c"]:
        weight, bias = self.weight, self.bias
        if self.normed:
            x = self._normalized(x, training)
            scale, shift = (part.repeat_interleave(self._places, 1)[:, None] for part in (self.scale, self.shift))
            bias = bias + (weight * shift).sum(2)
            weight = weight * scale
        return F.linear(x, weight.flatten(0, 1), bias.flatten()).unflatten(1, weight.shape[:2])

    def _normalized(self, x: Float[Tensor, "b d"], training: bool) -> Float[Tensor, "b d"]:
        """Batch norm without its factors, which every head has of its own."""
        channels = x.unflatten(1, (-1, self._places))
        return F.batch_norm(channels, self.mean, self.variance, training=training, momentum=0.1, eps=1e-5).flatten(1)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], factor: float, training: Training) -> None:
        """Stochastic gradient descent with momentum, each head at its rate; batch norms do not decay."""
        if not self._velocity:
            self._velocity = [torch.zeros_like(p) for p in self.parameters()]
        for (name, p), g, velocity in zip(self.named_parameters(), gradients, self._velocity, strict=True):
            decay = training.weight_decay if name in ("weight", "bias") else 0.0
            change = g + decay * p
            if training.optimizer == "larc":
                change = change * _trusted(p, g, decay, training.trust)
            velocity.mul_(training.momentum).add_(change)
            if training.nesterov:
                change = change + training.momentum * velocity
            else:
                change = velocity
            p -= (factor * self.rates).view(-1, *[1] * (p.ndim - 1)) * change


def _trusted(p: Tensor, g: Tensor, decay: float, trust: float) -> Tensor:
    """LARC's factor, of each head: none where the weights or their gradient are zero."""
    own, slope = (torch.linalg.vector_norm(x.flatten(1), dim=1) for x in (p, g))
    ratio = trust * own / (slope + decay * own + 1e-8)
    ratio = torch.where((own > 0) & (slope > 0), ratio, torch.ones_like(ratio))
    return ratio.view(-1, *[1] * (p.ndim - 1))


def _ranks(scores: Float[Tensor, "b h c"], labels: Int[Tensor, " b"]) -> Int[Tensor, "b h"]:
    """How many classes have a higher score than the own one; of equal ones the first comes first."""
    wanted = labels[:, None, None].expand(-1, scores.shape[1], 1)
    own = scores.gather(2, wanted)
    before = torch.arange(scores.shape[2], device=scores.device) < wanted
    ahead = ((scores > own) | ((scores == own) & before)).sum(2)
    return torch.where(own[..., 0].isfinite(), ahead, scores.shape[2]).to(torch.int16)
