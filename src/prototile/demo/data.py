"""The handwriting that comes with scikit-learn: 1,797 digits, nothing to download.

b images, c channels, h w pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from sklearn.datasets import load_digits
from torch import Tensor

TRAIN = 1300
SIDE = 16
MEAN = 0.3  # of a pixel, about; subtracted
CLASSES = tuple("0123456789")


@dataclass(frozen=True)
class Digits:
    """Images of one split as the network sees them, and as they came: 8 x 8 pixels from 0 to 16."""

    images: Float[Tensor, "b 1 h w"]
    labels: Int[Tensor, " b"]
    raw: UInt8[np.ndarray, "b 8 8"]

    def __len__(self) -> int:
        return len(self.images)


def digits() -> tuple[Digits, Digits]:
    """1,300 images to train on and 497 to test, always the same; 16 x 16 pixels."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    raw = pixels.reshape(-1, 8, 8)[order].astype(np.uint8)
    images = torch.from_numpy(raw).float()[:, None] / 16
    images = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False) - MEAN
    targets = torch.from_numpy(labels[order]).long()
    parts = slice(TRAIN), slice(TRAIN, None)
    train, test = (Digits(images[part], targets[part], raw[part]) for part in parts)
    return train, test
