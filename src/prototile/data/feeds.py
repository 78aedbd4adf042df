"""Feeds: what a loader's workers do, for images by number and for shards read in order.

    Packet        a batch as it leaves a worker
    Maker         images -> Packet; bad images are replaced by others of the batch
    Feed          what a loader needs to know of its data
    SourceFeed    a sampler says which images; any worker makes any batch
    ShardFeed     every worker reads its own part of the shards

Axes: b images of this rank's batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from prototile.data.images import decode
from prototile.data.samplers import Sampler
from prototile.data.shards import Part, Shards, read, steps_per_epoch
from prototile.data.source import BadImage, Source
from prototile.schedules import Progress
from prototile.types import Views
from prototile.views.engine import Crops, Engine
from prototile.views.masks import Draw
from prototile.views.randomness import Stream, generator


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
        load: Callable[[int], UInt8[Tensor, "3 h w"]],
        name: Callable[[int], str],
        indices: Int[np.ndarray, " b"],
        labels: Int[np.ndarray, " b *classes"] | None,
        draw: Draw,
        steps: int,
    ) -> Packet:
        """The batch whose i-th image `load(i)` gives, in an epoch of `steps` steps."""
        images: dict[int, Tensor] = {}
        bad = []
        for place in range(len(indices)):
            try:
                images[place] = load(place)
            except BadImage as error:
                bad.append((name(place), str(error)))
        places = self._replaced(images, bad, draw)
        crops = self.engine.crop([images[place] for place in places], draw, self._progress(draw, steps))
        return Packet(
            draw.step,
            tuple(self.engine.finish(group) for group in crops) if self.finish else crops,
            torch.from_numpy(indices[places]),
            None if labels is None else torch.from_numpy(labels[places]),
            tuple(bad),
        )

    def _replaced(self, images: dict[int, Tensor], bad: list[tuple[str, str]], draw: Draw) -> Int[np.ndarray, " b"]:
        """Every place's own, or that of an image which can be read, drawn by key."""
        good = list(images)
        if bad and not good:
            raise ValueError(
                f"none of the {len(bad)} images of a batch can be read; the first is {bad[0][0]}: {bad[0][1]}"
            )
        places = np.arange(len(draw.numbers))
        for place in set(places.tolist()) - images.keys():
            random = generator(self.engine.seed, Stream.SUBSTITUTES, draw.epoch, int(draw.numbers[place]))
            places[place] = random.choice(good)
        return places

    def _progress(self, draw: Draw, steps: int) -> Progress | None:
        if self.epochs is None:
            return None
        total = self.epochs * steps
        return Progress(min(draw.epoch * steps + draw.step, total), total, self.epochs)


class Feed(ABC):
    """What a loader needs to know of its data."""

    num_images: int  # on all ranks
    steps: int  # of an epoch

    @abstractmethod
    def arguments(self) -> dict[str, Any]:
        """What makes a DataLoader deliver packets."""

    @abstractmethod
    def begin(self, epoch: int, step: int) -> None:
        """Let the next iteration of that DataLoader begin there."""

    @abstractmethod
    def identity(self) -> dict[str, int]:
        """What must be the same where a run is resumed."""


class SourceFeed(Feed):
    """Images by number, in the sampler's batches, of which this rank takes every `world`-th image."""

    def __init__(self, source: Source, maker: Maker, sampler: Sampler, rank: int, world: int):
        _share(sampler.batch_size, world)
        self.num_images = len(source)
        self.steps = len(sampler)
        self._seed = maker.engine.seed
        self._batches = _SourceBatches(source, maker, self.steps)
        self._requests = _Requests(sampler, rank, world)

    def arguments(self) -> dict[str, Any]:
        return {"dataset": self._batches, "batch_sampler": self._requests, "collate_fn": _as_it_is}

    def begin(self, epoch: int, step: int) -> None:
        self._requests.start = (epoch, step)

    def identity(self) -> dict[str, int]:
        size = self._requests.sampler.batch_size
        return {"images": self.num_images, "batch": size, "steps": self.steps, "seed": self._seed}


class ShardFeed(Feed):
    """Shards, of which every worker of every rank reads its own part in order."""

    def __init__(self, shards: Shards, maker: Maker, batch_size: int, rank: int, world: int, workers: int):
        self.num_images = shards.num_images
        part = Part(maker.engine.seed, 0, _share(batch_size, world), rank, world, workers=max(workers, 1))
        self.steps = steps_per_epoch(shards.num_images, part.batch_size, world)
        self._batches = _ShardBatches(shards, maker, part, self.steps)
        self._identity = {"images": self.num_images, "batch": batch_size, "seed": part.seed}
        self._identity |= {"ranks": world, "workers": part.workers}

    def arguments(self) -> dict[str, Any]:
        return {"dataset": self._batches, "batch_size": None}

    def begin(self, epoch: int, step: int) -> None:
        self._batches.start.copy_(torch.tensor([epoch, step]))

    def identity(self) -> dict[str, int]:
        return self._identity


@dataclass(frozen=True)
class _Request:
    draw: Draw
    indices: Int[np.ndarray, " b"]


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
        self._maker = maker
        self._steps = steps

    def __getitems__(self, request: _Request) -> Packet:
        source, indices = self._source, request.indices
        return self._maker(
            lambda place: source.image(int(indices[place])),
            lambda place: source.id(int(indices[place])),
            indices,
            None if source.labels is None else source.labels[indices],
            request.draw,
            self._steps,
        )


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
            indices = np.array([sample.index for sample in samples])
            labels = [-1 if sample.label is None else sample.label for sample in samples]
            rows = part.rank + part.world * np.arange(len(samples))
            yield self._maker(
                lambda place, samples=samples: decode(samples[place].data),
                lambda place, samples=samples: samples[place].id,
                indices,
                np.array(labels) if max(labels) >= 0 else None,
                Draw(epoch, step, indices, rows, part.batch_size * part.world),
                self._steps,
            )


def _share(batch_size: int, world: int) -> int:
    """A rank's share of a batch."""
    if batch_size % world:
        below = batch_size // world * world
        raise ValueError(
            f"a batch of {batch_size} images cannot be shared evenly by {world} ranks: use "
            + (f"{below} or " if below else "")
            + f"{below + world}"
        )
    return batch_size // world


def _as_it_is(packet: Packet) -> Packet:
    return packet
