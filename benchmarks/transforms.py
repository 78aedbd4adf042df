"""Ways to make the views of DINO, 2 x 224 and 10 x 96, from JPEG files in memory: ours, rivals and floors.

    exact, linear, crops only    ours
    lightly                      its DINOTransform
    torchvision v1, PIL          as the published codes of DINO and iBOT
    torchvision v2, tensors      the same on tensors
    floors                       what any of them has to do: decode, and resize crops

Every one is given a list of files and gives a list of views. lightly is imported only when asked for.
"""

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from io import BytesIO

import torch
import torch.nn.functional as F
import torchvision.transforms as v1
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode, v2

from prototile.data.images import decode
from prototile.views import IMAGENET, Augmentation, Blur, Draw, Engine, Jitter, View
from prototile.views.presets import dino

LOCAL_VIEWS = 10
DINO = dino(local_views=LOCAL_VIEWS)
BICUBIC = InterpolationMode.BICUBIC
SOLARIZE_FROM = 128
BLUR_TAPS = 13  # three times the largest deviation on both sides

Make = Callable[[list[bytes]], list[Tensor]]


@dataclass(frozen=True)
class Contestant:
    """A way to make views; it is built only when it is its turn. `gives` is the type of its views, if it gives any."""

    about: str
    build: Callable[[], Make]
    gives: torch.dtype | None = torch.float32


# -------------------------------------------------------------------------------------------------------- ours
def ours(augmentation: Augmentation, *, finished: bool = True) -> Make:
    engine, steps = Engine(augmentation), itertools.count()
    make = engine if finished else engine.crop

    def run(files: list[bytes]) -> list[Tensor]:
        groups = make([decode(data) for data in files], Draw.alone(len(files), step=next(steps)))
        return [view for group in groups for view in group.images.flatten(0, 1)]

    return run


# ------------------------------------------------------------------------------------------------------ rivals
def lightly() -> Make:
    transform = import_module("lightly.transforms").DINOTransform(n_local_views=LOCAL_VIEWS)
    return lambda files: [view for data in files for view in transform(_opened(data))]


def v1_pil() -> Make:
    transforms = [_v1_view(view) for view in DINO.views]
    return lambda files: [transform(image) for image in map(_opened, files) for transform in transforms]


def v2_tensors() -> Make:
    transforms = [_v2_view(view) for view in DINO.views]
    return lambda files: [transform(image) for image in map(decode, files) for transform in transforms]


def _opened(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data)).convert("RGB")


def _v1_view(view: View) -> Callable[[Image.Image], Tensor]:
    jitter, blur = _jitter_and_blur(view)
    steps = [
        v1.RandomResizedCrop(view.size, view.scale, interpolation=BICUBIC),
        v1.RandomHorizontalFlip(view.flip),
        v1.RandomApply([v1.ColorJitter(*_strengths(jitter))], jitter.probability),
        v1.RandomGrayscale(view.gray),
        _Sometimes(blur.probability, lambda x: x.filter(ImageFilter.GaussianBlur(random.uniform(*blur.sigma)))),
    ]
    if view.solarize:
        steps.append(_Sometimes(view.solarize, lambda x: ImageOps.solarize(x, SOLARIZE_FROM)))
    return v1.Compose([*steps, v1.ToTensor(), v1.Normalize(IMAGENET.mean, IMAGENET.std)])


@dataclass(frozen=True)
class _Sometimes:
    probability: float
    operation: Callable[[Image.Image], Image.Image]

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.operation(image) if random.random() < self.probability else image


def _v2_view(view: View) -> Callable[[Tensor], Tensor]:
    jitter, blur = _jitter_and_blur(view)
    steps = [
        v2.RandomResizedCrop(view.size, view.scale, interpolation=BICUBIC),
        v2.RandomHorizontalFlip(view.flip),
        v2.ToDtype(torch.float32, scale=True),
        v2.RandomApply([v2.ColorJitter(*_strengths(jitter))], jitter.probability),
        v2.RandomGrayscale(view.gray),
        v2.RandomApply([v2.GaussianBlur(BLUR_TAPS, blur.sigma)], blur.probability),
    ]
    if view.solarize:
        steps.append(v2.RandomSolarize(SOLARIZE_FROM / 255, view.solarize))
    return v2.Compose([*steps, v2.Normalize(IMAGENET.mean, IMAGENET.std)])


def _jitter_and_blur(view: View) -> tuple[Jitter, Blur]:
    assert view.jitter is not None
    assert view.blur is not None
    return view.jitter, view.blur


def _strengths(jitter: Jitter) -> tuple[float, float, float, float]:
    return jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue


# ------------------------------------------------------------------------------------------------------ floors
def decoding(decoder: Callable[[bytes], object]) -> Make:
    def run(files: list[bytes]) -> list[Tensor]:
        for data in files:
            decoder(data)
        return []

    return run


def resizing() -> Make:
    """Crops by boxes that are drawn once for every image, resized one by one."""

    @cache
    def boxes(place: int, shape: torch.Size) -> list[tuple[int, int, int, int]]:
        return [v1.RandomResizedCrop.get_params(torch.empty(shape), view.scale, view.ratio) for view in DINO.views]

    def run(files: list[bytes]) -> list[Tensor]:
        crops = []
        for place, image in enumerate(map(decode, files)):
            for view, (top, left, height, width) in zip(DINO.views, boxes(place, image.shape), strict=True):
                crop = image[None, :, top : top + height, left : left + width]
                crops.append(F.interpolate(crop, (view.size, view.size), mode="bicubic", antialias=True)[0])
        return crops

    return run


def _bare_decode(data: bytes) -> Tensor:
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


# ------------------------------------------------------------------------------------------------- contestants
CONTESTANTS = {
    "exact": Contestant(
        "prototile's Engine, which finishes the views where they are cropped; all images as one batch, which it stacks",
        lambda: ours(DINO),
    ),
    "linear": Contestant(
        "the same with jitter and grey composed to one matrix, which is another operator",
        lambda: ours(replace(DINO, colour="linear")),
    ),
    "crops only": Contestant(
        "prototile's Engine.crop: uint8, with what a GPU is to do with them",
        lambda: ours(DINO, finished=False),
        torch.uint8,
    ),
    "lightly": Contestant(
        f"DINOTransform(n_local_views={LOCAL_VIEWS}), else as it comes, on Pillow images: its solarisation takes no "
        "tensors; its views and those of torchvision stay lists, which a loader would have yet to stack",
        lightly,
    ),
    "torchvision v1, PIL": Contestant(
        "what the published codes of DINO and iBOT do, on Pillow images, with Pillow's blur",
        v1_pil,
    ),
    "torchvision v2, tensors": Contestant(
        "decoded by torchvision, channels last, cropped as uint8 and then turned to floats, on which colours are "
        f"faster than on uint8; blurred by {BLUR_TAPS} x {BLUR_TAPS} taps, three times the largest deviation on both "
        "sides (with the 23 that are usual it is slower)",
        v2_tensors,
    ),
    "floor: decode and resize": Contestant(
        "by torchvision, crops whose boxes are drawn beforehand; no flips, no memory for the batch",
        resizing,
        torch.uint8,
    ),
    "floor: decode": Contestant("by torchvision.io", lambda: decoding(_bare_decode), None),
    "floor: decode, PIL": Contestant("by Pillow, to RGB", lambda: decoding(_opened), None),
}
