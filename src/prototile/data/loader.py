"""The loader: batches of views from any source, the same whatever the number of ranks and workers, resumable anywhere.

    Loader            iterate over it: one epoch of batches
    Waiting           how long an epoch took, and how much of it was waiting for data
    default_workers   a sensible number of worker processes for this machine

    sampler -> numbers of images -> worker: decode, crop, finish on a CPU -> finish on a GPU, if there is one -> Batch

What a step holds is a function of seed, epoch and step, so the loader's whole state is where it stands. Shards are read
in order by workers that have their own parts: there the numbers of ranks and workers must stay, too.
"""

import logging
import operator
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import torch
from torch.utils.data import DataLoader

from prototile import distributed
from prototile.data.bad import BadImages
from prototile.data.feeds import Feed, Maker, Packet, ShardFeed, SourceFeed
from prototile.data.samplers import Sampler, Shuffled
from prototile.data.shards import Shards
from prototile.data.source import Source
from prototile.schedules import Progress
from prototile.types import Batch, Views
from prototile.views.engine import Crops, Engine
from prototile.views.spec import Augmentation

logger = logging.getLogger(__name__)

_MOST_WORKERS = 16


@dataclass
class Waiting:
    """Seconds of an epoch so far, those among them spent waiting for data, and this rank's images."""

    total: float = 0.0
    waited: float = 0.0
    images: int = 0

    @property
    def share(self) -> float:
        return self.waited / self.total if self.total else 0.0

    def __str__(self) -> str:
        speed = self.images / self.total if self.total else 0.0
        return f"{self.images:,} images, {speed:,.0f} a second, {self.share:.1%} of the time waiting for data"


class Loader:
    """Batches of the views that `augmentation` makes of the images of `data`.

    `batch` is the number of images in a batch over all ranks, which come shuffled, or a sampler. With a `device`,
    workers send uint8 crops, and colours, blur and normalisation are computed there, on whole batches. `epochs` is the
    length of the run, for augmentations that follow it. Images that cannot be read are replaced by others and listed in
    `bad`; more than the share `bad_share` of those that this rank has seen is an error. Of shards each worker shuffles
    `buffer` images at a time, which it holds undecoded.

    Every `iter` is one epoch, the next one; after `load_state_dict` the one in which the state was taken goes on.
    Workers are processes: where they are not forked, a script must guard its main part (`if __name__ == ...`).
    """

    def __init__(
        self,
        data: Source | Shards,
        augmentation: Augmentation,
        batch: SupportsIndex | Sampler,
        *,
        seed: int = 0,
        epochs: int | None = None,
        device: torch.device | str | None = None,
        workers: int | None = None,
        bad_share: float = 0.1,
        buffer: int = 1000,
    ):
        _check(data, augmentation, epochs)
        workers = default_workers() if workers is None else workers
        self._device = None if device is None else torch.device(device)
        self._engine = Engine(augmentation, seed)
        self._feed = _feed(data, Maker(self._engine, device is None, epochs), batch, workers, buffer)
        self._loader: DataLoader[Packet] = DataLoader(
            **self._feed.arguments(),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=outlive_signals if workers else None,
            generator=torch.Generator(),  # else every epoch takes a number from the model's random numbers
        )
        self._next = (0, 0)  # epoch and step of the batch to come
        self._resumed = True  # whether the next `iter` goes on there, instead of with the next epoch
        self._turn = 0  # of which `iter` is the last one
        self._ranks = distributed.rank(), distributed.world_size()
        self.bad = BadImages(self._feed.num_images, bad_share)
        self.waiting = Waiting()

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._feed.steps

    @property
    def augmentation(self) -> Augmentation:
        """What makes the views."""
        return self._engine.augmentation

    @property
    def batch_size(self) -> int:
        """Images of a batch over all ranks."""
        return self._feed.batch_size

    def __iter__(self) -> Iterator[Batch]:
        if self._ranks != (distributed.rank(), distributed.world_size()):
            raise RuntimeError("the process group changed after this loader was made: make loaders after it")
        self._turn = turn = self._turn + 1
        epoch, step = self._next if self._resumed else (self._next[0] + 1, 0)
        self._next, self._resumed = (epoch, step), False
        self._feed.begin(epoch, step)
        self.waiting = Waiting()
        began = time.perf_counter()
        packets = iter(self._loader)
        while True:
            asked = time.perf_counter()
            self.waiting.total = asked - began
            packet = next(packets, None)
            if packet is None:
                break
            self.waiting.waited += time.perf_counter() - asked
            self.waiting.images += len(packet.indices)
            self.bad.note(len(packet.indices), packet.bad)
            self._next = (epoch, packet.step + 1)
            yield self._batch(packet)
            if self._turn != turn:
                raise RuntimeError("another epoch of this loader was begun: this one cannot go on; make two loaders")
        logger.info("epoch %d: %s%s", epoch, self.waiting, f", {len(self.bad)} bad so far" if self.bad else "")

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: after the batch that it gave last."""
        epoch, step = self._next
        epoch, step = (epoch + 1, 0) if step == len(self) else (epoch, step)
        return {"epoch": epoch, "step": step, **self._feed.identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the state was taken; the data and the settings that decide what a step holds must be the same."""
        changed = {
            name: (state.get(name), value) for name, value in self._feed.identity().items() if state.get(name) != value
        }
        if changed:
            said = ", ".join(f"{name} was {old} and is {new}" for name, (old, new) in changed.items())
            raise ValueError(f"the loader cannot go on where this state was taken: {said}; make them equal again")
        self._next, self._resumed = (int(state["epoch"]), int(state["step"])), True

    def _batch(self, packet: Packet) -> Batch:
        views = tuple(self._finished(group) for group in packet.views)
        batch = Batch(views, packet.indices, packet.labels)
        return batch if self._device is None else batch.to(self._device)

    def _finished(self, group: Crops | Views) -> Views:
        if isinstance(group, Views):
            return group
        assert self._device is not None
        return self._engine.finish(group.to(self._device))


def outlive_signals(worker: int) -> None:
    """For a worker: signals that end a run reach all its processes, and the main one wants to finish its step first.

    Ctrl-C and SLURM's notice are for the main process alone, and so is what a group of processes gets.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def default_workers() -> int:
    """One worker for each core that this process may use, less one for training; at most 16."""
    return max(1, min(_MOST_WORKERS, _cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))


def _check(data: Source | Shards, augmentation: Augmentation, epochs: int | None) -> None:
    if not isinstance(data, Source | Shards):
        raise TypeError(f"a loader takes a source or shards, got {data!r}: open it with prototile.data.open_data")
    if not isinstance(augmentation, Augmentation):
        raise TypeError(f"a loader takes an augmentation, got {augmentation!r}: see prototile.views.preset")
    if augmentation.follows_the_run and epochs is None:
        raise ValueError("this augmentation follows the run: say how many `epochs` it has")
    for step in (0, 1):  # of one: bounds that follow the run must make sense at both of its ends
        augmentation.at(Progress(step, 1))


def _feed(data: Source | Shards, maker: Maker, batch: SupportsIndex | Sampler, workers: int, buffer: int) -> Feed:
    rank, world = distributed.rank(), distributed.world_size()
    if isinstance(data, Source):
        if not isinstance(batch, Sampler):
            batch = Shuffled(len(data), operator.index(batch), seed=maker.engine.seed)
        return SourceFeed(data, maker, batch, rank, world)
    if isinstance(batch, Sampler):
        raise ValueError("shards are read in order, so samplers do not apply: give the number of images in a batch")
    return ShardFeed(data, maker, operator.index(batch), buffer, rank, world, workers)


def _cores() -> int:
    """Cores that this process may use: those it is bound to, or fewer where a container has a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        allowed, period = quota.read_text().split()
        if allowed != "max":
            cores = min(cores, max(1, int(allowed) // int(period)))
    return cores
