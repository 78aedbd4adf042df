"""Features of a frozen backbone: the same images give the same features, in the source's order.

    extract(backbone, source, size=224)    of a source of images: resized, cropped at the centre, normalised
    encode(backbone, images)               of images that lie in memory, normalised already
    labelled(features, labels)             those of images that have a label
    FeatureSet                             features, with labels and ids
    Crop, Shown                            how images are shown, and batches of them

What is too large for memory, or shall be computed once, is kept on disk by `stored.py`.

n images, h w pixels, d dims, s side of the crop.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from prototile.backbones import Backbone
from prototile.data.source import BadImage, Source, whole_labels
from prototile.precision import wide
from prototile.views.spec import IMAGENET, Normalization

_SMALL = 128  # pixels: what is smaller is shown whole


@dataclass(frozen=True)
class FeatureSet:
    """Features of images, on the CPU in float32; labels are -1 where there are none. `bad` could not be read."""

    features: Float[Tensor, "n d"] = field(repr=False)
    labels: Int[Tensor, " n *classes"] = field(repr=False)
    ids: tuple[str, ...] = field(repr=False)
    bad: tuple[tuple[str, str], ...] = ()  # id and reason

    def __len__(self) -> int:
        return len(self.features)

    def __str__(self) -> str:
        said = f"{len(self):,} images, {self.features.shape[1]:,} dims"
        return said + (f", {len(self.bad):,} more could not be read" if self.bad else "")


def extract(
    backbone: Backbone,
    source: Source,
    *,
    size: int = 224,
    resize: int | None = None,
    normalization: Normalization = IMAGENET,
    batch: int = 256,
    workers: int = 0,
    device: torch.device | str | None = None,
) -> FeatureSet:
    """Pooled features of all images that can be read, in order, in evaluation mode, without gradients.

    The shorter side becomes `resize` pixels (bicubic, antialiased), of which the central `size` x `size` are shown: 256
    for 224 as is usual; for sizes below 128 the image whole, up to its shape. The backbone is left as it was; `device`
    is where it lies.
    """
    there = device_of(backbone) if device is None else torch.device(device)
    shown = Shown(source, Crop(size, resize, normalization), batch=batch, workers=workers, device=there)
    with evaluating(backbone):
        features = [backbone(images, patches=False).pooled.float().cpu() for images in shown]
    return FeatureSet(torch.cat(features), shown.labels(), shown.ids(), tuple(shown.bad))


@dataclass(frozen=True)
class Crop:
    """How an image is shown: the shorter side becomes `resize` pixels, and the central `size` x `size` are normalised.

    Without `resize` 256 for 224, as is usual, and in that ratio for other sizes; below 128 the image whole, up to its
    shape. With `squeeze` all of it is shown, both sides made `size` (CLEVR, VOC).
    """

    size: int = 224
    resize: int | None = None
    normalization: Normalization = IMAGENET
    squeeze: bool = False

    def __post_init__(self) -> None:
        if self.resize is None:
            usual = self.size if self.size < _SMALL else round(self.size * 256 / 224)
            object.__setattr__(self, "resize", usual)
        if not 1 <= self.size <= self.shorter:
            raise ValueError(
                f"a crop of {self.size} pixels needs images of at least that size, got resize={self.resize}"
            )

    def as_dict(self) -> dict[str, Any]:
        """What tells it from other crops."""
        found = asdict(self)
        return found if self.squeeze else {name: x for name, x in found.items() if name != "squeeze"}

    @property
    def shorter(self) -> int:
        """What the shorter side becomes."""
        assert self.resize is not None
        return self.resize


class Shown:
    """Batches of a source's images, cropped and normalised, on a device, in order; those that cannot be read are left
    out, and `bad` lists them. `taken` are the numbers of the others. `part` are the numbers of those that are looked
    at, where these are not all. To be walked once.
    """

    def __init__(
        self,
        source: Source,
        crop: Crop,
        *,
        batch: int = 256,
        workers: int = 0,
        device: torch.device,
        part: range | None = None,
    ):
        if batch < 1:
            raise ValueError(f"a batch needs at least one image, got {batch}")
        self.taken: list[int] = []
        self.bad: list[tuple[str, str]] = []
        self._source, self._crop, self._batch, self._workers, self._device = source, crop, batch, workers, device
        self._part = range(len(source)) if part is None else part

    def __iter__(self) -> Iterator[Float[Tensor, "n 3 s s"]]:
        # a generator of its own: else the model's random numbers would depend on how often features are taken
        loader = DataLoader(
            _Crops(self._source, self._part, self._crop),
            batch_size=self._batch,
            num_workers=self._workers,
            collate_fn=_as_they_are,
            generator=torch.Generator(),
        )
        pixels = self._crop.normalization
        mean, std = (torch.tensor(x, device=self._device).view(3, 1, 1) for x in (pixels.mean, pixels.std))
        for crops in loader:
            read = [(index, crop) for index, crop in crops if isinstance(crop, Tensor)]
            self.bad += [(self._source.id(index), reason) for index, reason in crops if isinstance(reason, str)]
            self.taken += [index for index, _ in read]
            if read:
                images = torch.stack([crop for _, crop in read]).to(self._device).float() / 255
                yield (images - mean) / std
        if not self.taken and len(self._part) == len(self._source):
            raise none_readable(len(self._source), self.bad)

    def labels(self) -> Int[Tensor, " n *classes"]:
        """Of the images taken; -1 where the source has none."""
        labels = self._source.labels
        every = np.full(len(self._source), -1) if labels is None else whole_labels(labels, len(self._source))
        return torch.from_numpy(every[self.taken])

    def ids(self) -> tuple[str, ...]:
        return tuple(self._source.id(index) for index in self.taken)


def none_readable(images: int, bad: Sequence[tuple[str, str]]) -> ValueError:
    """The error where features are asked for and no image can be read."""
    return ValueError(f"none of the {images} images can be read; the first: {bad[0][1] if bad else 'none'}")


def encode(backbone: Backbone, images: Float[Tensor, "n c h w"], *, batch: int = 256) -> Float[Tensor, "n d"]:
    """Pooled features of normalised images, on the CPU in float32; the backbone is left as it was."""
    if len(images) == 0:
        raise ValueError("there are no images to encode")
    there = device_of(backbone)
    with evaluating(backbone):
        return torch.cat([backbone(part.to(there), patches=False).pooled.float().cpu() for part in images.split(batch)])


def labelled(
    features: Float[Tensor, "n d"], labels: Tensor, part: str
) -> tuple[Float[Tensor, "m d"], Int[Tensor, " m"]]:
    """The features and classes of images that have one; an error, which names this part of the data, where none has."""
    if labels.ndim != 1:
        raise ValueError(f"{part} images need one class each, got labels of shape {tuple(labels.shape)}")
    checked(features, labels, part)
    keep = labels >= 0
    if bool(keep.all()):
        return wide(features.detach()), labels  # as they are: they may lie on disk
    return wide(features.detach()[keep]), labels[keep]


def all_labelled(
    features: Float[Tensor, "n d"], labels: Int[Tensor, "n c"], part: str
) -> tuple[Float[Tensor, "n d"], Int[Tensor, "n c"]]:
    """The same for images of several classes: 1 where one is there, 0 where it is difficult to see, -1 elsewhere."""
    if labels.ndim != 2:
        raise ValueError(f"{part} images need 1, 0 or -1 for each class, got labels of shape {tuple(labels.shape)}")
    checked(features, labels, part)
    return wide(features.detach()), labels


def checked(features: Float[Tensor, "n d"], labels: Tensor, part: str) -> None:
    """An error, which names this part of the data, where labels are missing or features are no numbers."""
    if labels.ndim not in (1, 2) or len(labels) != len(features):
        raise ValueError(
            f"{part} images need one class each, or 1, 0 or -1 for every class, got {len(features)} rows of features "
            f"and labels of shape {tuple(labels.shape)}"
        )
    if not all(bool(rows.isfinite().all()) for rows in features.split(2**16)):
        raise ValueError(f"the {part} features hold NaN or infinity: the backbone has diverged")
    if len(labels) == 0 or (labels.ndim == 1 and not bool((labels >= 0).any())):
        raise ValueError(f"no {part} image has a label (-1 is none): give some that have")


def same_dims(x: Tensor, y: Tensor) -> None:
    """An error where features cannot be of one backbone."""
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of {x.shape[1]} and of {y.shape[1]} dims are not of one backbone")


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every part is in the mode it had."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def device_of(network: nn.Module) -> torch.device:
    """Where the network's parameters lie; the CPU, where it has none."""
    first = next(network.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def centre_crop(image: UInt8[Tensor, "3 h w"], size: int, resize: int) -> UInt8[Tensor, "3 s s"]:
    """The shorter side becomes `resize`, and the centre is cut out."""
    height, width = image.shape[1:]
    shorter = min(height, width)
    shape = (max(resize, round(height * resize / shorter)), max(resize, round(width * resize / shorter)))
    if shape != (height, width):
        image = F.interpolate(image[None], shape, mode="bicubic", antialias=True)[0]
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    return image[:, top : top + size, left : left + size]


def squeezed(image: UInt8[Tensor, "3 h w"], size: int) -> UInt8[Tensor, "3 s s"]:
    """All of the image, both sides made `size`."""
    if image.shape[1:] == (size, size):
        return image
    return F.interpolate(image[None], (size, size), mode="bicubic", antialias=True)[0]


class _Crops(Dataset[tuple[int, Tensor | str]]):
    """The crop of an image, or why it cannot be read."""

    def __init__(self, source: Source, part: range, crop: Crop):
        self._source, self._part, self._crop = source, part, crop

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, place: int) -> tuple[int, Tensor | str]:
        index = self._part[place]
        try:
            image, size = self._source.image(index), self._crop.size
            if self._crop.squeeze:
                return index, squeezed(image, size).contiguous()
            return index, centre_crop(image, size, self._crop.shorter).contiguous()
        except BadImage as error:
            return index, str(error)


def _as_they_are(crops: list[tuple[int, Tensor | str]]) -> list[tuple[int, Tensor | str]]:
    return crops
