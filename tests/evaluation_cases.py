"""Images and a backbone whose features are easily known."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from prototile.backbones import Backbone
from prototile.data.source import BadImage, Source
from prototile.types import Features


class Pixels(Backbone):
    """Features are the pixels that it was shown; dropout and batch norm would show in training mode."""

    def __init__(self, dims: int):
        super().__init__()
        self.dims, self.patch = dims, None
        self.scale = nn.Parameter(torch.ones(()))
        self.norm, self.drop = nn.BatchNorm2d(3, eps=0.0, affine=False), nn.Dropout(0.5)
        self.batches: list[int] = []

    def forward(self, images, keep=None, mask=None, *, blocks: int = 0, patches: bool = True) -> Features:
        self.batches.append(len(images))
        return Features(self.drop(self.norm(images)).flatten(1) * self.scale)

    @property
    def layers(self) -> Sequence[nn.Module]:
        return [self.norm]

    def keep_all_paths_(self) -> None:
        pass


class Some(Source):
    """Images of different shapes, of which some cannot be read."""

    def __init__(self, shapes: Sequence[tuple[int, int]], bad: Sequence[int] = (), labels: bool = True):
        rng = np.random.default_rng(0)
        self.pixels = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in shapes]
        self.labels = np.arange(len(shapes)) % 3 if labels else None
        self.classes = None
        self._bad = set(bad)

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, index: int):
        if index in self._bad:
            raise BadImage("cut off")
        return torch.from_numpy(self.pixels[index]).permute(2, 0, 1)

    def id(self, index: int) -> str:
        return f"image {index}"
