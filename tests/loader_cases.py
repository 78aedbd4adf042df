"""Loaders that ranks and processes of their own run for `data/test_loader.py`."""

import json
import multiprocessing
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prototile.data.loader import Loader
from prototile.data.shards import open_shards
from prototile.data.source import Arrays, BadImage, Source
from prototile.views import Augmentation, Blur, Group, Jitter, SharedDrop, SpreadBlocks, View

IMAGES = 48
TINY = View(16, (0.4, 1.0), jitter=Jitter(0.4, 0.4, 0.2, 0.1), gray=0.2, blur=Blur(0.5), solarize=0.2)
PLAIN = Augmentation((Group((View(8, (1.0, 1.0), flip=0.0),)),))
AUGMENTATION = Augmentation(
    (
        Group((TINY, TINY), SpreadBlocks(), 4),
        Group((TINY,), SharedDrop(0.5), 4),
    )
)


def source() -> Arrays:
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 20, 24, 3), dtype=np.uint8)
    return Arrays(images, np.arange(IMAGES) % 5, name="noise")


class Damaged(Source):
    """Images of one grey; those in `bad` cannot be read."""

    def __init__(self, num_images: int, bad: tuple[int, ...]):
        self.labels = np.arange(num_images)
        self.classes = None
        self._bad = bad

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Tensor:
        if index in self._bad:
            raise BadImage("it is torn")
        return torch.full((3, 8, 8), index, dtype=torch.uint8)

    def id(self, index: int) -> str:
        return f"{index}.jpg"


def write_shards(folder: Path, labelled: Callable[[int], bool] = lambda number: True) -> Path:
    """Shards that hold the images of `source`, with their numbers as labels; the path of their index."""
    sizes, images, number = (11, 1, 20, 16), source(), 0
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"{shard:02}.tar", "w") as tar:
            for _ in range(size):
                Image.fromarray(images.image(number).permute(1, 2, 0).numpy()).save(folder / "file.png")
                (folder / "file.cls").write_text(str(number))
                for ending in ("png", "cls") if labelled(number) else ("png",):
                    tar.add(folder / f"file.{ending}", f"{number:03}.{ending}")
                number += 1
    index = folder / "index.json"
    listed = [{"url": f"{shard:02}.tar", "nsamples": size} for shard, size in enumerate(sizes)]
    index.write_text(json.dumps({"shardlist": listed}))
    return index


def loader(kind: str, folder: str, batch: int = 8, workers: int = 2) -> Loader:
    data = source() if kind == "source" else open_shards(folder)
    return Loader(data, AUGMENTATION, batch, workers=workers, seed=3)


def pixels(views: tuple[Any, ...]) -> list[Tensor]:
    """All that the views of a batch hold."""
    return [x for group in views for x in (group.images, group.mask, group.keep) if x is not None]


def epochs(rank: int, world: int, kind: str, folder: str, count: int, state: dict | None = None) -> list[list[list]]:
    """The numbers of this rank's images, by epoch and batch."""
    batches = loader(kind, folder)
    if state is not None:
        batches.load_state_dict(state)
    return [[batch.indices.tolist() for batch in batches] for _ in range(count)]


def state_after(rank: int, world: int, kind: str, folder: str, steps: int) -> dict:
    """The state after so many batches."""
    batches = loader(kind, folder)
    for _, _ in zip(range(steps), batches, strict=False):
        pass
    return batches.state_dict()


def contents(rank: int, world: int) -> list[list[Tensor]]:
    """All that the first batches of this rank hold."""
    return [pixels(batch.views) for batch in loader("source", "")]


def replaced(rank: int, world: int) -> list[list[int]]:
    """This rank's images of every batch, where some are bad."""
    batches = Loader(Damaged(40, (3, 17)), PLAIN, 8, workers=0)
    return [batch.indices.tolist() for batch in batches]


def odd_batch(rank: int, world: int) -> str:
    """What a batch is told that ranks cannot share."""
    try:
        loader("source", "", batch=9)
    except ValueError as error:
        return str(error).split(": ")[1]
    return "nothing"


def write_down(kind: str, folder: str, log: Path, workers: int, start_method: str) -> None:
    """Writes each batch and the state after it."""
    multiprocessing.set_start_method(start_method, force=True)
    with log.open("w") as file:
        for seen in (batches := loader(kind, folder, workers=workers)):
            print(json.dumps({"indices": seen.indices.tolist(), "state": batches.state_dict()}), file=file, flush=True)
