"""The engine: decoded images in, every view of a method out.

    Crops        a group's views, cropped to uint8, with what is still to be done to their pixels
    Engine       images -> Crops of each group, then Crops -> Views

A worker crops each decoded image to small uint8 views, image by image. `finish` does the rest on any device: in the
worker, or on whole batches on a GPU, to which uint8 crops are a quarter of the load. Random numbers have keys: a view
depends on the seed and on its image's key alone, not on who makes it.

Axes: b images, v views, n = v * b rows, view after view; h w pixels, s size of a view.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from prototile.schedules import Progress
from prototile.types import Views, mapped, moved
from prototile.views.draws import NUMBERS, Looks, draw_boxes, draw_looks
from prototile.views.finish import finish
from prototile.views.masks import Draw, Generators
from prototile.views.randomness import Stream, generator
from prototile.views.spec import Augmentation, Group, Interpolation

_PORTION_BYTES = 2**25  # of decoded images that are cropped together


@dataclass(frozen=True)
class Crops:
    """Views that are cropped, resized and flipped, but have yet to go through the operations of their `looks`."""

    images: UInt8[Tensor, "v b 3 s s"]
    looks: Looks
    mask: Bool[Tensor, "v b n"] | None = None
    keep: Int[Tensor, "v b m"] | None = None

    def to(self, device: torch.device | str) -> "Crops":
        return mapped(self, lambda x: moved(x, device))

    def pin_memory(self) -> "Crops":
        return mapped(self, Tensor.pin_memory)


@dataclass(frozen=True)
class Engine:
    """Makes the views of `augmentation`; the same `seed` and keys give the same pixels."""

    augmentation: Augmentation
    seed: int = 0

    def __call__(
        self, images: Iterable[UInt8[Tensor, "3 _h _w"]], draw: Draw, progress: Progress | None = None
    ) -> tuple[Views, ...]:
        """All views of the images, finished on the CPU."""
        return tuple(self.finish(crops) for crops in self.crop(images, draw, progress))

    def crop(
        self, images: Iterable[UInt8[Tensor, "3 _h _w"]], draw: Draw, progress: Progress | None = None
    ) -> tuple[Crops, ...]:
        """The crops of each group; `progress` is needed only by augmentations that follow the run.

        Images are taken from an iterator as they are needed: few lie in memory at a time.
        """
        groups, count = self._at(progress).groups, len(draw.numbers)
        numbers = np.split(self._uniform(draw), np.cumsum([len(group.views) for group in groups])[:-1], axis=1)
        pixels = [
            torch.empty(len(group.views), count, 3, group.size, group.size, dtype=torch.uint8) for group in groups
        ]
        start = 0
        for some in _portions(images):
            part = slice(start, start := start + len(some))
            if start > count:
                break
            for group, uniform, out in zip(groups, numbers, pixels, strict=True):
                _crop(some, group, uniform[part], out[:, part])
        if start != count:
            raise ValueError(f"every image needs a key: {count} keys, {'more' if start > count else start} images")
        self._apply_policies(pixels, draw)
        generators = Generators.of(self.seed, draw)
        return tuple(
            Crops(out, draw_looks(group.views, uniform), *self._hidden(group, draw, generators))
            for group, uniform, out in zip(groups, numbers, pixels, strict=True)
        )

    def finish(self, crops: Crops) -> Views:
        """The views as a network takes them, on the device where the crops lie."""
        images = crops.images.flatten(0, 1)
        finished = finish(images, crops.looks, self.augmentation.normalization, self.augmentation.colour)
        return Views(finished.view(crops.images.shape), crops.mask, crops.keep)

    def _apply_policies(self, pixels: Sequence[UInt8[Tensor, "_v b 3 _s _s"]], draw: Draw) -> None:
        """In place, image by image; an image's views take numbers of one generator in turn."""
        places = [
            (out[v], view.policy)
            for group, out in zip(self.augmentation.groups, pixels, strict=True)
            for v, view in enumerate(group.views)
            if view.policy is not None
        ]
        for b, number in enumerate(draw.numbers if places else ()):
            random = generator(self.seed, Stream.POLICY, draw.epoch, int(number))
            for images, policy in places:
                images[b] = policy(images[b], random)

    def _at(self, progress: Progress | None) -> Augmentation:
        if not self.augmentation.follows_the_run:
            return self.augmentation
        if progress is None:
            raise ValueError("this augmentation follows the run: say how long it is (a loader's `epochs`)")
        return self.augmentation.at(progress)

    def _uniform(self, draw: Draw) -> Float[np.ndarray, "b v numbers"]:
        out = np.empty((len(draw.numbers), len(self.augmentation.views), NUMBERS))
        for image, number in zip(out, draw.numbers, strict=True):
            generator(self.seed, Stream.VIEWS, draw.epoch, int(number)).random(out=image)
        return out

    def _hidden(self, group: Group, draw: Draw, generators: Generators) -> tuple[Tensor | None, Tensor | None]:
        if group.masks is None:
            return None, None
        mask, keep = group.masks(len(group.views), group.size // group.patch, draw, generators)
        return None if mask is None else torch.from_numpy(mask), None if keep is None else torch.from_numpy(keep)


def _portions(images: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The images, some megabytes at a time."""
    portion, size = [], 0
    for image in images:
        _check(image)
        portion.append(image)
        size += image.numel()
        if size >= _PORTION_BYTES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _check(image: Tensor) -> None:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or image.device.type != "cpu":
        raise ValueError(
            f"images must be uint8, 3 x h x w, on the CPU, got {image.dtype} of shape {tuple(image.shape)} on "
            f"{image.device}: give pixels from 0 to 255, grey ones three times"
        )


def _crop(
    images: Sequence[Tensor], group: Group, uniform: Float[np.ndarray, "b v numbers"], out: UInt8[Tensor, "v b 3 s s"]
) -> None:
    """Draw boxes and cut them out, resized and perhaps flipped."""
    heights, widths = np.array([image.shape[1:] for image in images], np.int64).T
    boxes = draw_boxes(group.views, uniform, heights, widths)
    places = np.stack([boxes.top, boxes.left, boxes.height, boxes.width, boxes.flip], -1).tolist()
    for b, image in enumerate(images):
        for v, view in enumerate(group.views):
            top, left, height, width, flip = places[b][v]
            crop = image[:, top : top + height, left : left + width]
            resized = _resized(crop, group.size, view.interpolation)
            out[v, b] = resized.flip(-1) if flip else resized


def _resized(image: UInt8[Tensor, "3 h w"], size: int, interpolation: Interpolation) -> UInt8[Tensor, "3 s s"]:
    """Antialiased, on uint8: rounds once, as Pillow does. Channels that lie last in memory are twice as fast."""
    return F.interpolate(image[None], (size, size), mode=interpolation, antialias=True)[0]
