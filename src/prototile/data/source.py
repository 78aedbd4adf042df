"""A source: images by number, each with an id and, where there are any, labels.

    Source        what every source gives
    Arrays        images that lie in memory
    Subset        some images of another source
    BadImage      an image that cannot be read: loaders skip it, count it and list it

Axes: n images, h w pixels, c classes.
"""

import warnings
import zlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor


class BadImage(ValueError):
    """An image that cannot be read; the message says why."""


class Source(ABC):
    """Images by number. `labels` are classes, one for each image, or a row of -1, 0, 1 for each class (VOC)."""

    labels: Int[np.ndarray, " n *c"] | None
    classes: tuple[str, ...] | None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """Image number `index`; raises `BadImage` where it cannot be read."""

    @abstractmethod
    def id(self, index: int) -> str:
        """What a user would call this image: its path, or its place in the data set."""

    def stamp(self, index: int) -> str:
        """What changes when the image does, as far as can be told at little cost: its id at least."""
        return self.id(index)


class Arrays(Source):
    """Images that lie in memory, grey or RGB, channels last; workers share them, forked or not."""

    def __init__(
        self,
        images: UInt8[np.ndarray, "n h w *rgb"],
        labels: Int[np.ndarray, " n"] | None = None,
        classes: tuple[str, ...] | None = None,
        *,
        name: str = "image",
    ):
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,), (3,)):
            raise ValueError(
                f"images must be uint8, n x h x w or n x h x w x 3, got {images.dtype} of shape {images.shape}"
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing writes to it
            # as a tensor, which is sent to other processes without a copy
            self._images = torch.from_numpy(images if images.ndim == 4 else images[..., None])
        self._name = name
        self.labels = None if labels is None else whole_labels(labels, len(images))
        self.classes = classes

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        # channels last in memory, as decoders give it and resizing likes it
        image = self._images[index].expand(-1, -1, 3)
        return image.clone(memory_format=torch.contiguous_format).permute(2, 0, 1)

    def id(self, index: int) -> str:
        return f"{self._name}/{index}"

    def stamp(self, index: int) -> str:
        return f"{self.id(index)} {zlib.crc32(self._images[index].numpy().tobytes())}"


class Subset(Source):
    """The images of `source` numbered `indices`, in that order; or those where `indices`, one for each, is true."""

    def __init__(self, source: Source, indices: Int[np.ndarray, " n"] | Bool[np.ndarray, " images"]):
        indices = np.asarray(indices)
        if indices.dtype == bool and indices.shape == (len(source),):
            indices = np.flatnonzero(indices)
        elif indices.ndim != 1 or not (np.issubdtype(indices.dtype, np.integer) or indices.size == 0):
            raise ValueError(
                f"a subset needs numbers of images, or a boolean for each of the {len(source)}, "
                f"got {indices.dtype} of shape {indices.shape}"
            )
        if indices.size and not (indices.min() >= 0 and indices.max() < len(source)):
            raise ValueError(
                f"there are images 0 to {len(source) - 1}, so there is none for {indices.min()} or {indices.max()}"
            )
        self._source = source
        self._indices = indices.astype(np.int64)
        self.labels = None if source.labels is None else source.labels[self._indices]
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self._indices)

    def image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        return self._source.image(int(self._indices[index]))

    def id(self, index: int) -> str:
        return self._source.id(int(self._indices[index]))

    def stamp(self, index: int) -> str:
        return self._source.stamp(int(self._indices[index]))


def whole_labels(labels: Any, images: int) -> Int[np.ndarray, " n *c"]:
    """The labels of so many images as whole numbers, whatever they came as."""
    found = np.asarray(labels)
    if len(found) != images:
        raise ValueError(f"every image needs its label, got {images} images and {len(found)} labels")
    whole = found.astype(np.int64)
    if not np.array_equal(found, whole):
        raise ValueError(f"labels must be whole numbers, got {found.dtype}: number the classes from 0")
    return whole
