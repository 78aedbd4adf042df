"""A source: images by number, each with an id and, where there are any, labels.

    Source        what every source gives
    Arrays        images that lie in memory
    Subset        some images of another source
    BadImage      an image that cannot be read: loaders skip it, count it and list it

Axes: n images, h w pixels, c classes.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Int, UInt8
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


class Arrays(Source):
    """Images that lie in memory, grey or RGB, channels last."""

    def __init__(
        self,
        images: UInt8[np.ndarray, "n h w *rgb"],
        labels: Int[np.ndarray, " n"] | None = None,
        classes: tuple[str, ...] | None = None,
        *,
        name: str = "image",
    ):
        if images.ndim == 4 and images.shape[3] != 3:
            raise ValueError(f"images must be n x h x w or n x h x w x 3, got {images.shape}")
        self._images = images if images.ndim == 4 else images[..., None]
        self._name = name
        self.labels = labels
        self.classes = classes

    def __len__(self) -> int:
        return len(self._images)

    def image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        # channels last in memory, as decoders give it and resizing likes it
        return torch.from_numpy(np.broadcast_to(self._images[index], (*self._images.shape[1:3], 3)).copy()).permute(
            2, 0, 1
        )

    def id(self, index: int) -> str:
        return f"{self._name}/{index}"


class Subset(Source):
    """The images of `source` numbered `indices`, in that order."""

    def __init__(self, source: Source, indices: Int[np.ndarray, " n"]):
        self._source = source
        self._indices = np.asarray(indices, np.int64)
        self.labels = None if source.labels is None else source.labels[self._indices]
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self._indices)

    def image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        return self._source.image(int(self._indices[index]))

    def id(self, index: int) -> str:
        return self._source.id(int(self._indices[index]))
