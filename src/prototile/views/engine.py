"""The engine: decoded images in, every view of a method out.

    Crops        a group's views, cropped to uint8, with what is still to be done to their pixels
    Engine       images -> Crops of each group, then Crops -> Views

A worker crops each decoded image to small uint8 views, image by image. `finish` does the rest on any device: in the
worker, or on whole batches on a GPU, to which uint8 crops are a quarter of the load. Random numbers have keys: a view
depends on the seed and on its image's key alone, not on who makes it.

Axes: b images, v views, n = v * b rows, view after view; h w pixels, s size of a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from prototile.schedules import Progress
from prototile.types import Views
from prototile.views.draws import NUMBERS, Boxes, Looks, draw_boxes, draw_looks
from prototile.views.finish import finish
from prototile.views.masks import Draw, Generators, Hidden
from prototile.views.randomness import Stream, generator
from prototile.views.spec import Augmentation, Group, Interpolation


@dataclass(frozen=True)
class Crops:
    """Views that are cropped, resized and flipped, but have yet to go through the operations of their `looks`."""

    images: UInt8[Tensor, "v b 3 s s"]
    looks: Looks
    mask: Bool[Tensor, "v b n"] | None = None
    keep: Int[Tensor, "v b m"] | None = None

    def to(self, device: torch.device | str) -> "Crops":
        mask, keep = (x if x is None else x.to(device, non_blocking=True) for x in (self.mask, self.keep))
        return Crops(self.images.to(device, non_blocking=True), self.looks, mask, keep)

    def pin_memory(self) -> "Crops":
        mask, keep = (x if x is None else x.pin_memory() for x in (self.mask, self.keep))
        return Crops(self.images.pin_memory(), self.looks, mask, keep)


@dataclass(frozen=True)
class Engine:
    """Makes the views of `augmentation`; the same `seed` and keys give the same pixels."""

    augmentation: Augmentation
    seed: int = 0

    def __call__(
        self, images: Sequence[UInt8[Tensor, "3 _h _w"]], draw: Draw, progress: Progress | None = None
    ) -> tuple[Views, ...]:
        """All views of the images, finished where the images lie."""
        return tuple(self.finish(crops) for crops in self.crop(images, draw, progress))

    def crop(
        self, images: Sequence[UInt8[Tensor, "3 _h _w"]], draw: Draw, progress: Progress | None = None
    ) -> tuple[Crops, ...]:
        """The crops of each group; `progress` is needed only by augmentations that follow the run."""
        if len(images) != len(draw.numbers):
            raise ValueError(f"every image needs a key: got {len(images)} images and {len(draw.numbers)} keys")
        groups = self._at(progress).groups
        uniform = self._uniform(draw)
        heights, widths = np.array([image.shape[1:] for image in images], np.int64).reshape(-1, 2).T
        crops, first = [], 0
        generators = Generators.of(self.seed, draw)
        for group in groups:
            numbers = uniform[:, first : first + len(group.views)]
            first += len(group.views)
            boxes = draw_boxes(group.views, numbers, heights, widths)
            hidden = Hidden()
            if group.masks is not None:
                hidden = group.masks(len(group.views), group.size // group.patch, draw, generators)
            crops.append(
                Crops(
                    _cropped(images, group, boxes),
                    draw_looks(group.views, numbers),
                    *(None if x is None else torch.from_numpy(x) for x in hidden),
                )
            )
        return tuple(crops)

    def finish(self, crops: Crops) -> Views:
        """The views as a network takes them, on the device where the crops lie."""
        images = crops.images.flatten(0, 1)
        finished = finish(images, crops.looks, self.augmentation.normalization, self.augmentation.colour)
        return Views(finished.view(crops.images.shape), crops.mask, crops.keep)

    def _at(self, progress: Progress | None) -> Augmentation:
        if progress is not None:
            return self.augmentation.at(progress)
        if self.augmentation.follows_the_run:
            raise ValueError("this augmentation follows the run: say how long it is (a loader's `epochs`)")
        return self.augmentation

    def _uniform(self, draw: Draw) -> Float[np.ndarray, "b v numbers"]:
        out = np.empty((len(draw.numbers), len(self.augmentation.views), NUMBERS))
        for image, number in zip(out, draw.numbers, strict=True):
            generator(self.seed, Stream.VIEWS, draw.epoch, int(number)).random(out=image)
        return out


def _cropped(images: Sequence[Tensor], group: Group, boxes: Boxes) -> UInt8[Tensor, "v b 3 s s"]:
    size = group.size
    out = torch.empty(len(group.views), len(images), 3, size, size, dtype=torch.uint8)
    places = np.stack([boxes.top, boxes.left, boxes.height, boxes.width, boxes.flip], -1).tolist()
    for b, image in enumerate(images):
        for v, view in enumerate(group.views):
            top, left, height, width, flip = places[b][v]
            crop = image[:, top : top + height, left : left + width]
            resized = _resized(crop, size, view.interpolation)
            out[v, b] = resized.flip(-1) if flip else resized
    return out


def _resized(image: UInt8[Tensor, "3 h w"], size: int, interpolation: Interpolation) -> UInt8[Tensor, "3 s s"]:
    """Antialiased, on uint8: rounds once, as Pillow does. Channels that lie last in memory are twice as fast."""
    return F.interpolate(image[None], (size, size), mode=interpolation, antialias=True)[0]
