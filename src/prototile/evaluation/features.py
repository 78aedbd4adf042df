"""Features of a frozen backbone: the same images give the same features, in the source's order.

    extract(backbone, source, size=224)    of a source of images: resized, cropped at the centre, normalised
    encode(backbone, images)               of images that lie in memory, normalised already
    labelled(features, labels)             those of images that have a label
    FeatureSet                             features, with labels and ids

n images, h w pixels, d dims, s side of the crop.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

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
    resize = _default_resize(size) if resize is None else resize
    if not 1 <= size <= resize:
        raise ValueError(f"a crop of {size} pixels needs images of at least that size, got resize={resize}")
    if batch < 1:
        raise ValueError(f"a batch needs at least one image, got {batch}")
    there = device_of(backbone) if device is None else torch.device(device)
    # a generator of its own: else the model's random numbers would depend on how often features are taken
    loader = DataLoader(
        _Crops(source, size, resize),
        batch_size=batch,
        num_workers=workers,
        collate_fn=_as_they_are,
        generator=torch.Generator(),
    )
    mean, std = (torch.tensor(x, device=there).view(3, 1, 1) for x in (normalization.mean, normalization.std))
    features, taken, bad = [], [], []
    with evaluating(backbone):
        for crops in loader:
            read = [(index, crop) for index, crop in crops if isinstance(crop, Tensor)]
            bad += [(source.id(index), reason) for index, reason in crops if isinstance(reason, str)]
            if read:
                images = torch.stack([crop for _, crop in read]).to(there).float() / 255
                features.append(backbone((images - mean) / std, patches=False).pooled.float().cpu())
                taken += [index for index, _ in read]
    if not taken:
        raise ValueError(f"none of the {len(source)} images can be read; the first: {bad[0][1] if bad else 'none'}")
    labels = np.full(len(source), -1) if source.labels is None else whole_labels(source.labels, len(source))
    ids = tuple(source.id(index) for index in taken)
    return FeatureSet(torch.cat(features), torch.from_numpy(labels[taken]), ids, tuple(bad))


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
    if labels.ndim != 1 or len(labels) != len(features):
        raise ValueError(
            f"{part} images need one class each, got {len(features)} rows of features and labels of shape "
            f"{tuple(labels.shape)}"
        )
    if not bool(features.isfinite().all()):
        raise ValueError(f"the {part} features hold NaN or infinity: the backbone has diverged")
    keep = labels >= 0
    if not bool(keep.any()):
        raise ValueError(f"no {part} image has a label (-1 is none): give some that have")
    return wide(features.detach()[keep]), labels[keep]


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


def _default_resize(size: int) -> int:
    return size if size < _SMALL else round(size * 256 / 224)


class _Crops(Dataset[tuple[int, Tensor | str]]):
    """The crop of an image, or why it cannot be read."""

    def __init__(self, source: Source, size: int, resize: int):
        self._source, self._size, self._resize = source, size, resize

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            return index, centre_crop(self._source.image(index), self._size, self._resize).contiguous()
        except BadImage as error:
            return index, str(error)


def _as_they_are(crops: list[tuple[int, Tensor | str]]) -> list[tuple[int, Tensor | str]]:
    return crops
