"""What images and labels go through on their way to a classifier, by timm's own operators, as DeiT and BEiT use them.

    RandAugment    on each view's pixels, in a loader's worker (Cubuk et al. 2020, https://arxiv.org/abs/1909.13719)
    Mixing         on a batch: random erasing (https://arxiv.org/abs/1708.04896), then mixup
                   (https://arxiv.org/abs/1710.09412) or cutmix (https://arxiv.org/abs/1905.04899), with smoothing

timm draws from the global generators of Python and numpy: they are seeded by key in a worker, and by the trainer on a
batch.

n images, c classes, s side of a view.
"""

import random as python
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from timm.data.auto_augment import RandAugment as Operations
from timm.data.auto_augment import posterize, rand_augment_transform
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from prototile.views import IMAGENET, Normalization, Policy


@dataclass(frozen=True)
class RandAugment(Policy):
    """timm's, by its own line of text: "rand-m9-mstd0.5-inc1" has two of fifteen operations, each done half of the
    time, of strength 9 with deviation 0.5, stronger being more. What moves in is of the mean colour.
    """

    policy: str = "rand-m9-mstd0.5-inc1"
    normalization: Normalization = IMAGENET

    def __post_init__(self) -> None:
        try:
            _operations(self, 224)
        except (AssertionError, KeyError, ValueError) as error:
            raise ValueError(f"{self.policy!r} is no policy such as 'rand-m9-mstd0.5-inc1' ({error!r})") from error

    def __call__(self, image: UInt8[Tensor, "3 s s"], random: np.random.Generator) -> UInt8[Tensor, "3 s s"]:
        with _seeded(int(random.integers(2**32))):
            done = _operations(self, image.shape[-1])(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))
        return torch.from_numpy(np.array(done)).permute(2, 0, 1)


@cache
def _operations(policy: RandAugment, size: int) -> Operations:
    options = {
        "translate_const": int(size * 0.45),
        "img_mean": tuple(min(255, round(255 * x)) for x in policy.normalization.mean),
        "interpolation": Image.Resampling.BICUBIC,
    }
    operations = rand_augment_transform(policy.policy, options)
    for operation in operations.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterized
    return operations


def _posterized(image: Image.Image, bits: int, **options: object) -> Image.Image:
    """With so many bits a channel; with none it is black, as it was before Pillow 12 refused it."""
    return posterize(image, bits) if bits else Image.new(image.mode, image.size)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The global generators begin at this seed, and are afterwards where they were."""
    before = python.getstate(), np.random.get_state()
    python.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        python.setstate(before[0])
        np.random.set_state(before[1])


@dataclass(frozen=True)
class Mixing:
    r"""Erases a box of an image to noise with probability `erasing`; then mixes the batch with itself reversed.

    Half of the batches mix pixels, $\lambda x + (1 - \lambda) x'$ with $\lambda \sim Beta(a, a)$, a being `mixup`; the
    others paste a box of $1 - \lambda$ of the area, $\lambda \sim Beta(a, a)$, a being `cutmix`. Where one is 0, all do
    the other; where both are, none. Labels are mixed alike; each is 1 - `smoothing` of its class and `smoothing` of
    all classes alike.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0
    erasing: float = 0.0

    def __post_init__(self) -> None:
        if self.mixup < 0 or self.cutmix < 0:
            raise ValueError(f"mixup and cutmix are parameters of Beta laws, 0 for none, got {self}")
        if not (0 <= self.smoothing < 1 and 0 <= self.erasing <= 1):
            raise ValueError(f"smoothing lies in [0, 1) and erasing in [0, 1], got {self}")

    def __call__(
        self, images: Float[Tensor, "n 3 s s"], labels: Int[Tensor, " n"], classes: int
    ) -> tuple[Float[Tensor, "n 3 s s"], Float[Tensor, "n c"]]:
        """Images and targets, whose rows sum to one; the images given stay as they are."""
        images = images.clone()
        if self.erasing:
            erase = RandomErasing(self.erasing, mode="pixel", max_count=1, device=str(images.device))
            images = erase(images)
        if not self.mixes:
            return images, mixup_target(labels, classes, smoothing=self.smoothing)
        if len(images) % 2:
            raise ValueError(f"images are mixed in pairs: a rank's batch must be even, got {len(images)}")
        mix = Mixup(self.mixup, self.cutmix, label_smoothing=self.smoothing, num_classes=classes)
        return mix(images, labels)

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0
