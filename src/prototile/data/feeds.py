"""Feeds: what a loader's workers do, for images by number and for shards read in order.

    Packet        a batch as it leaves a worker
    Maker         images -> Packet; bad images are replaced by others
    Feed          what a loader needs to know of its data
    SourceFeed    a sampler says which images; any worker makes any batch
    ShardFeed     every worker reads its own part of the shards

Axes: b images of this rank's batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from prototile.data.images import decode
from prototile.data.samplers import Sampler, nearest_multiples
from prototile.data.shards import Part, Shards, ShardSample, read, steps_per_epoch
from prototile.data.source import BadImage, Source, whole_labels
from prototile.schedules import Progress
from prototile.types import Views
from prototile.views.engine import Crops, Engine
from prototile.views.masks import Draw
from prototile.views.randomness import Stream, generator

_SUBSTITUTES = 100  # tried in place of an image that cannot be read


@dataclass(frozen=True)
class Packet:
    """A batch as it leaves a worker: `bad` are the ids of images that could not be read, with the reasons."""

    step: int
    views: tuple[Crops | Views, ...]
    indices: Int[Tensor, " b"]
    labels: Int[Tensor, " b *classes"] | None
    bad: tuple[tuple[str, str], ...]

    def pin_memory(self) -> "Packet":
        return replace(self, views=tuple(views.pin_memory() for views in self.views))


@dataclass(frozen=True)
class Maker:
    """Makes packets; with `finish` the views are floats, else uint8 crops that a device will finish."""

    engine: Engine
    finish: bool
    epochs: int | None

    def __call__(
        self,
        source: Source,
        labels: Int[np.ndarray, " n *classes"] | None,
        numbers: Int[np.ndarray, " b"],
        draw: Draw,
        steps: int,
    ) -> Packet:
        """The views of the images of these numbers, in an epoch of `steps` steps."""
        taken: list[int] = []
        bad: dict[str, str] = {}
        crops = self.engine.crop(self._read(source, numbers, draw, taken, bad), draw, self._progress(draw, steps))
        return Packet(
            draw.step,
            tuple(self.engine.finish(group) for group in crops) if self.finish else crops,
            torch.tensor(taken, dtype=torch.int64),
            None if labels is None else torch.from_numpy(labels[taken]),
            tuple(bad.items()),
        )

    def _read(
        self, source: Source, numbers: Int[np.ndarray, " b"], draw: Draw, taken: list[int], bad: dict[str, str]
    ) -> Iterator[UInt8[Tensor, "3 _h _w"]]:
        """The images one by one, and in `taken` and `bad` which they are and which could not be read."""
        for number, key in zip(numbers.tolist(), draw.numbers.tolist(), strict=True):
            for candidate in self._candidates(number, key, draw.epoch, len(source)):
                try:
                    image = source.image(candidate)
                except BadImage as error:
                    bad[source.id(candidate)] = str(error)
                    continue
                taken.append(candidate)
                yield image
                break
            else:
                id, reason = next(iter(bad.items()))
                raise ValueError(
                    f"{_SUBSTITUTES} images in place of one that cannot be read cannot be read either; "
                    f"the first of them is {id}: {reason}"
                )

    def _candidates(self, number: int, key: int, epoch: int, images: int) -> Iterator[int]:
        """An image, then those that may replace it: the same on every rank."""
        yield number
        random = generator(self.engine.seed, Stream.SUBSTITUTES, epoch, key)
        for _ in range(_SUBSTITUTES):
            yield int(random.integers(images))

    def _progress(self, draw: Draw, steps: int) -> Progress | None:
        if self.epochs is None:
            return None
        total = self.epochs * steps
        return Progress(min(draw.epoch * steps + draw.step, total), total, self.epochs)


class Feed(ABC):
    """What a loader needs to know of its data."""

    num_images: int  # on all ranks
    batch_size: int  # on all ranks
    steps: int  # of an epoch

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """What makes a DataLoader deliver packets."""

    @abstractmethod
    def begin(self, epoch: int, step: int) -> None:
        """Let the next iteration of that DataLoader begin there."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What must be the same where a run is resumed."""


class SourceFeed(Feed):
    """Images by number, in the sampler's batches, of which this rank takes every `world`-th image."""

    def __init__(self, source: Source, maker: Maker, sampler: Sampler, rank: int, world: int):
        _share(sampler.batch_size, world)
        if sampler.num_images != len(source):
            raise ValueError(
                f"the sampler is for {sampler.num_images} images, and the source has {len(source)}: "
                "make it for this source"
            )
        self.num_images = len(source)
        self.batch_size = sampler.batch_size
        self.steps = len(sampler)
        self._identity = sampler.identity() | {"steps": self.steps, "view_seed": maker.engine.seed}
        self._batches = _SourceBatches(source, maker, self.steps)
        self._requests = _Requests(sampler, rank, world)

    def arguments(self) -> dict[str, Any]:
        return {"dataset": self._batches, "batch_sampler": self._requests, "collate_fn": _as_it_is}

    def begin(self, epoch: int, step: int) -> None:
        self._requests.start = (epoch, step)

    def identity(self) -> dict[str, Any]:
        return self._identity


class ShardFeed(Feed):
    """Shards, of which every worker of every rank reads its own part in order."""

    def __init__(self, shards: Shards, maker: Maker, batch_size: int, buffer: int, rank: int, world: int, workers: int):
        self.num_images = shards.num_images
        self.batch_size = batch_size
        workers = max(workers, 1)
        part = Part(maker.engine.seed, 0, _share(batch_size, world), rank, world, workers=workers, buffer=buffer)
        self.steps = steps_per_epoch(shards.num_images, part.batch_size, world)
        self._batches = _ShardBatches(shards, maker, part, self.steps)
        self._identity = {"images": self.num_images, "batch": batch_size, "seed": part.seed}
        self._identity |= {"ranks": world, "workers": workers, "buffer": buffer}

    def arguments(self) -> dict[str, Any]:
        return {"dataset": self._batches, "batch_size": None}

    def begin(self, epoch: int, step: int) -> None:
        self._batches.start.copy_(torch.tensor([epoch, step]))

    def identity(self) -> dict[str, Any]:
        return self._identity


@dataclass(frozen=True)
class _Request:
    draw: Draw
    images: Int[np.ndarray, " b"]


class _Requests:
    """This rank's part of every batch of an epoch, from `start` on."""

    def __init__(self, sampler: Sampler, rank: int, world: int):
        self.sampler = sampler
        self.start: tuple[int, int] = (0, 0)  # epoch, step
        self._rank = rank
        self._world = world

    def __iter__(self) -> Iterator[_Request]:
        epoch, first = self.start
        for step in range(first, len(self.sampler)):
            batch = self.sampler.batch(epoch, step)
            rows = np.arange(self._rank, len(batch), self._world)
            numbers = step * self.sampler.batch_size + rows
            yield _Request(Draw(epoch, step, numbers, rows, len(batch)), batch[rows])


class _SourceBatches(Dataset[Packet]):
    def __init__(self, source: Source, maker: Maker, steps: int):
        self._source = source
        self._labels = None if source.labels is None else whole_labels(source.labels, len(source))
        self._maker = maker
        self._steps = steps

    def __getitems__(self, request: _Request) -> Packet:
        return self._maker(self._source, self._labels, request.images, request.draw, self._steps)


class _ShardBatches(IterableDataset[Packet]):
    def __init__(self, shards: Shards, maker: Maker, part: Part, steps: int):
        self.start = torch.zeros(2, dtype=torch.int64).share_memory_()  # epoch and step, as persistent workers see them
        self._shards = shards
        self._maker = maker
        self._part = part
        self._steps = steps

    def __iter__(self) -> Iterator[Packet]:
        epoch, start = self.start.tolist()
        worker = get_worker_info()
        part = replace(self._part, epoch=epoch, worker=0 if worker is None else worker.id)
        for step, samples in read(self._shards, part, start):
            source = _Samples(samples)
            indices = np.array([sample.index for sample in samples])
            rows = part.rank + part.world * np.arange(len(samples))
            draw = Draw(epoch, step, indices, rows, part.batch_size * part.world)
            packet = self._maker(source, source.labels, np.arange(len(samples)), draw, self._steps)
            yield replace(packet, indices=torch.from_numpy(indices)[packet.indices])


class _Samples(Source):
    """A batch of samples from shards; the label is -1 where there is none."""

    def __init__(self, samples: list[ShardSample]):
        self._samples = samples
        self.labels = np.array([-1 if sample.label is None else sample.label for sample in samples], np.int64)
        self.classes = None

    def __len__(self) -> int:
        return len(self._samples)

    def image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        return decode(self._samples[index].data)

    def id(self, index: int) -> str:
        return self._samples[index].id


def _share(batch_size: int, world: int) -> int:
    """A rank's share of a batch."""
    if batch_size % world:
        raise ValueError(
            f"a batch of {batch_size} images cannot be shared evenly by {world} ranks: "
            f"use {nearest_multiples(batch_size, world)}"
        )
    return batch_size // world


def _as_it_is(packet: Packet) -> Packet:
    return packet
