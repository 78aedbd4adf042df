"""Masked modelling: hidden patches are predicted from those that are seen, as pixels or as a teacher's features.

n images, p patches, m kept patches, d dims.
"""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prototile.backbones import Backbone, Decoder
from prototile.ema import follow_, teacher_of
from prototile.losses import latent_regression, masked_pixels, patchify
from prototile.methods.method import Method, Terms
from prototile.schedules import Progress, Schedule
from prototile.types import Batch, Views
from prototile.views import Augmentation


class Autoencoder(nn.Module):
    """A backbone that sees some patches, and a decoder that draws all of them."""

    def __init__(self, backbone: Backbone, decoder: Decoder):
        super().__init__()
        self.backbone, self.decoder = backbone, decoder


class MaskedPixels(Method):
    """The pixels of patches that were left out (MAE)."""

    student: Autoencoder

    def __init__(self, student: Autoencoder, *, normalize_pixels: bool = True):
        super().__init__()
        self.student, self.normalize_pixels = student, normalize_pixels

    def forward(self, views: tuple[Views, ...], progress: Progress) -> Terms:
        images, keep = views[0].images.flatten(0, 1), views[0].keep
        if keep is None:
            raise ValueError("patches are left out and drawn again, but the views keep all: give them `masks`")
        keep = keep.flatten(0, 1)
        features = self.student.backbone(images, keep=keep)
        drawn = self.student.decoder(features, keep)
        patch = self.backbone.patch
        assert patch is not None  # checked when the method was made
        hidden = torch.ones(drawn.shape[:2], dtype=torch.bool, device=drawn.device).scatter_(1, keep, False)
        loss = masked_pixels(drawn, patchify(images, patch), hidden, normalize=self.normalize_pixels)
        return Terms(loss, {"pixels": loss.detach()}, features.pooled.detach())

    def after_step(self, progress: Progress) -> None:
        """Nothing: there is no teacher."""

    def prepare(self, batches: Iterator[Batch]) -> None:
        """Nothing: all starts at random."""

    def check(self, augmentation: Augmentation) -> None:
        _check_masks(augmentation, self.backbone, "mae", drops=True)

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        return (self.student.backbone,)

    @property
    def roles(self) -> Mapping[str, nn.Module]:
        return {}


class Regressor(nn.Module):
    """A backbone, and a linear layer that guesses the teacher's features."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone, self.regression = backbone, nn.Linear(backbone.dims, backbone.dims)


class MaskedLatents(Method):
    """The teacher's features of patches that a token hides from the student (data2vec)."""

    student: Regressor

    def __init__(self, student: Regressor, *, momentum: Schedule, blocks: int = 6, beta: float = 2.0):
        super().__init__()
        self.student, self.momentum, self.blocks, self.beta = student, momentum, blocks, beta
        self.teacher = teacher_of(student.backbone)
        self.teacher.keep_all_paths_()

    def forward(self, views: tuple[Views, ...], progress: Progress) -> Terms:
        images, mask = views[0].images.flatten(0, 1), views[0].mask
        if mask is None:
            raise ValueError("patches are hidden and guessed, but the views show all: give them `masks`")
        mask = mask.flatten(0, 1)
        features = self.student.backbone(images, mask=mask)
        assert features.patches is not None  # checked when the method was made
        loss = latent_regression(self.student.regression(features.patches), self._targets(images), mask, beta=self.beta)
        return Terms(loss, {"latents": loss.detach()}, features.pooled.detach())

    @torch.no_grad()
    def _targets(self, images: Tensor) -> Float[Tensor, "n p d"]:
        """The mean of the last blocks' outputs, each standardised over its dims, standardised again."""
        features = self.teacher.eval()(images, blocks=self.blocks)  # without dropout, as the official average
        assert features.patches is not None
        patches = features.patches.shape[1]
        layers = [F.layer_norm(x[:, -patches:].float(), x.shape[-1:]) for x in features.blocks]
        mean = torch.stack(layers).mean(0)
        return F.layer_norm(mean, mean.shape[-1:])

    def after_step(self, progress: Progress) -> None:
        follow_(self.teacher, self.student.backbone, self.momentum(progress))

    def prepare(self, batches: Iterator[Batch]) -> None:
        """Nothing: all starts at random."""

    def check(self, augmentation: Augmentation) -> None:
        _check_masks(augmentation, self.backbone, "data2vec", drops=False)

    @property
    def backbones(self) -> tuple[Backbone, ...]:
        return self.student.backbone, self.teacher

    @property
    def roles(self) -> Mapping[str, nn.Module]:
        return {}


def _check_masks(augmentation: Augmentation, backbone: Backbone, preset: str, *, drops: bool) -> None:
    group = augmentation.groups[0]
    if (
        len(augmentation.groups) != 1
        or group.masks is None
        or group.masks.drops != drops
        or group.patch != backbone.patch
    ):
        raise ValueError(
            f"this method needs one group of views, with patches of {backbone.patch} pixels "
            f"{'left out' if drops else 'masked'}: use prototile.views.preset({preset!r}) with the backbone's patch"
        )
